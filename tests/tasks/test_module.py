"""ModuleProblem against plain modules, run one at a time."""

import copy
import re
from collections.abc import Callable

import pytest
import torch
from example_modules import (
    ALL,
    DROPPING,
    IMAGE,
    NORMED,
    PLAIN,
    SEQUENCE,
    TOKENS,
    VECTOR,
    Recurrent,
    Words,
    conv,
    transformer,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Window, run, start, value_and_gradient
from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.optimizers import SGD, PortHamiltonian
from ph_l2o.tasks import ModuleProblem

F64 = torch.float64
KEYS = ProblemKeys(0, "train", 0, (3, 0, 7))
BATCH = 4


class Fit(ModuleProblem):
    """Least squares to random targets, on a new batch in each step."""

    stochastic = True

    def __init__(self, keys: ProblemKeys, factory: Callable[[], nn.Module], shape: tuple[int, ...], *, dtype=F64):
        super().__init__(keys, factory, dtype=dtype)
        self.shape, self.dtype = shape, dtype

    def inputs(self, step: int) -> Tensor:
        def draw(index: int) -> Tensor:
            generator = torch.Generator().manual_seed(self.keys.torch_seed(Purpose.BATCH, index, step))
            return torch.randn(BATCH, *self.shape, generator=generator, dtype=F64)

        return torch.stack([draw(i) for i in self.keys.indices]).to(self.dtype)

    def batches(self, first, count):
        return iter([(self.inputs(step), step) for step in range(first, first + count)])

    def loss(self, params, buffers, batch):
        inputs, step = batch
        seeds = [self.keys.torch_seed(Purpose.MODULE, i, 1 + step) for i in self.keys.indices]
        outputs, buffers = self.outputs(params, buffers, inputs, seeds=seeds)
        return objective(outputs.flatten(1)), buffers


def objective(outputs: Tensor) -> Tensor:
    """Mean over the last axis; neither even nor constant where an output does not change."""
    return (outputs - 0.3).square().mean(-1) + 0.1 * torch.sin(outputs).mean(-1)


def alone(factory: Callable[[], nn.Module], index: int, keys: ProblemKeys = KEYS) -> nn.Module:
    """The module of a problem, made by itself."""
    torch.manual_seed(keys.torch_seed(Purpose.MODULE, index))
    return factory().double()


def optimised(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def flat(tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("name", {**PLAIN, **NORMED})
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_outputs_and_gradients_are_those_of_each_module_alone(name, train):
    factory, shape = ALL[name]
    problem = Fit(KEYS, factory, shape)
    inputs = problem.inputs(0)
    leaf = problem.params.flat.clone().requires_grad_()
    moded = problem if train else problem.evaluating()
    outputs, buffers = moded.outputs(problem.params.like(leaf), problem.buffers, inputs)
    (gradient,) = torch.autograd.grad(objective(outputs.flatten(1)).sum(), leaf)
    with torch.no_grad():
        constant = moded.outputs(problem.params, problem.buffers, inputs)[0]
    torch.testing.assert_close(constant, outputs)
    for row, index in enumerate(KEYS.indices):
        module = alone(factory, index).train(train)
        expected = module(inputs[row])
        torch.testing.assert_close(outputs[row], expected)
        parts = torch.autograd.grad(objective(expected.flatten()), optimised(module))
        torch.testing.assert_close(gradient[row], flat(parts))
        for key, buffer in module.named_buffers():
            torch.testing.assert_close(buffers[key][row], buffer)


@pytest.mark.parametrize("name", [*NORMED, "scalars", "deep gru", "frozen", "padding", "bag"])
def test_steps_and_buffers_are_those_of_a_plain_loop(name):
    factory, shape = ALL[name]
    problem = Fit(KEYS, factory, shape)
    before = {key: b.clone() for key, b in problem.buffers.items()}
    exact = SGD().double().with_hyperparameters(lr=0.1)
    carry, losses = run(exact, problem, 5)
    for row, index in enumerate(KEYS.indices):
        module = alone(factory, index)
        sgd = torch.optim.SGD(optimised(module), lr=0.1)
        for step in range(5):
            loss = objective(module(problem.inputs(step)[row]).flatten())
            torch.testing.assert_close(losses[step, row], loss)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        torch.testing.assert_close(carry.params.flat[row], flat(optimised(module)).detach())
        for key, buffer in module.named_buffers():
            assert carry.buffers[key].dtype == buffer.dtype
            torch.testing.assert_close(carry.buffers[key][row], buffer)
    for key, buffer in before.items():  # nothing is changed in place
        assert torch.equal(problem.buffers[key], buffer)
    again = run(exact, problem, 5)[1]
    assert torch.equal(losses, again)


@pytest.mark.parametrize("name", ALL)
def test_second_order_meta_gradient_is_the_derivative(name):
    factory, shape = ALL[name]
    problem = Fit(ProblemKeys(0, "train", 0, range(2)), factory, shape)
    torch.manual_seed(0)
    optimizer = PortHamiltonian(hidden_size=4).double()
    phi = {key: p.detach().clone() for key, p in optimizer.named_parameters()}
    objective, steps, eps = OBJECTIVES["mean_loss"], 3, 1e-5
    estimate = Truncated(order=2)(Window(optimizer, phi, problem, start(optimizer, problem), 0, steps, objective))
    size = flat(estimate.gradient.values()).norm()
    assert size > 1e-8

    def outer_loss(sign: float, direction: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            for key, p in optimizer.named_parameters():
                p.copy_(phi[key] + sign * eps * direction[key])
        return objective(run(optimizer, problem, steps)[1][1:])

    for _ in range(2):
        direction = {key: torch.randn_like(p) for key, p in phi.items()}
        expected = (outer_loss(1, direction) - outer_loss(-1, direction)) / (2 * eps)
        actual = sum((estimate.gradient[key] * d).sum() for key, d in direction.items())
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * size.item())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ALL)
def test_port_hamiltonian_runs(name, dtype):
    factory, shape = ALL[name]
    problem = Fit(ProblemKeys(0, "train", 0, range(2)), factory, shape, dtype=dtype)
    torch.manual_seed(0)
    carry, losses = run(PortHamiltonian(hidden_size=4).to(dtype), problem, 3)
    assert losses.isfinite().all() and losses.dtype == carry.params.flat.dtype == dtype
    assert all(b.dtype == dtype for b in carry.buffers.values() if b.is_floating_point())


@pytest.mark.parametrize("name", ALL)
def test_problem_starts_the_same_whatever_the_others_are(name):
    factory, shape = ALL[name]
    whole = Fit(ProblemKeys(0, "train", 2, range(4)), factory, shape)
    part = Fit(ProblemKeys(0, "train", 2, [2, 0, 2]), factory, shape)
    for tensors, others in ((whole.params, part.params), (whole.buffers, part.buffers)):
        assert list(tensors) == list(others)
        for key, tensor in tensors.items():
            assert torch.equal(others[key], tensor[[2, 0, 2]])
    assert len(whole.params.flat.unique(dim=0)) == 4
    other = Fit(ProblemKeys(0, "val", 2, range(4)), factory, shape)
    assert not torch.equal(other.params.flat, whole.params.flat)


@pytest.mark.parametrize("name", DROPPING)
def test_dropout(name):
    factory, shape = DROPPING[name]
    # The same problem twice, on the same inputs: only the masks can differ.
    problem = Fit(ProblemKeys(0, "train", 0, [1, 1]), factory, shape)
    inputs = problem.inputs(0)

    def outputs(*seeds: int, train: bool = True) -> Tensor:
        moded = problem if train else problem.evaluating()
        return moded.outputs(problem.params, problem.buffers, inputs, seeds=seeds)[0]

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = outputs(11, 12)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are not touched
    torch.manual_seed(6)
    assert torch.equal(outputs(11, 12), first)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(outputs(12, 11), first.flip(0))
    for row, seed in enumerate((11, 12)):
        torch.manual_seed(seed)
        torch.testing.assert_close(first[row], alone_drawing(factory, seed)(inputs[row]))
    quiet = outputs(11, 12, train=False)
    assert torch.equal(quiet, outputs(train=False)) and torch.equal(quiet[0], quiet[1])
    torch.testing.assert_close(quiet[0], alone(factory, 1).eval()(inputs[0]))


def alone_drawing(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    module = alone(factory, 1)
    torch.manual_seed(seed)
    return module


@pytest.mark.parametrize("name", DROPPING)
def test_draws_depend_on_the_problem_alone(name):
    """Not on how many processes share the problems out, nor on what else is in the batch."""
    factory, shape = DROPPING[name]

    def losses(indices: list[int]) -> Tensor:
        return run(SGD(lr=0.1), Fit(ProblemKeys(0, "train", 0, indices), factory, shape), 3)[1]

    whole = losses([0, 1, 2, 3])
    torch.testing.assert_close(torch.cat([losses([0, 1]), losses([2, 3])], 1), whole)
    torch.testing.assert_close(losses([3, 1, 3]), whole[:, [3, 1, 3]])


def test_draws_need_a_seed_for_each_problem():
    problem = Fit(KEYS, *DROPPING["dropout"])
    with pytest.raises(ValueError, match="seeds: must hold one for each of 3 problems, not 1"):
        problem.outputs(problem.params, problem.buffers, problem.inputs(0), seeds=[1])


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_right_on_average(name):
    factory, shape = DROPPING[name]
    problem = Fit(ProblemKeys(0, "train", 0, [1] * 400), factory, shape)
    inputs = problem.inputs(0)
    outputs = problem.outputs(problem.params, problem.buffers, inputs, seeds=range(400))[0].flatten(1)
    module = alone(factory, 1)
    torch.manual_seed(0)
    expected = torch.stack([module(inputs[0]).flatten() for _ in range(400)]).detach()
    error = ((outputs.var(0) + expected.var(0)) / 400).sqrt()
    assert ((outputs.mean(0) - expected.mean(0)).abs() <= 5 * error + 1e-9).all()
    torch.testing.assert_close(outputs.std(0), expected.std(0), rtol=0.3, atol=0.02)


def test_dropout_of_zero_draws_nothing():
    problem = Fit(KEYS, lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)), VECTOR)
    assert not problem.draws_randomly


def test_recurrent_layers_take_an_initial_state():
    class WithState(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.start = nn.LSTM(2, 3, batch_first=True), nn.Parameter(torch.randn(2, 1, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            h, c = self.start.expand(-1, -1, len(x), -1).unbind(0)
            outputs, (h, c) = self.layer(x, (h.contiguous(), c.contiguous()))
            return torch.cat([outputs.flatten(1), h[0], c[0]], 1)

    problem = Fit(KEYS, WithState, SEQUENCE)
    inputs = problem.inputs(0)
    outputs = problem.outputs(problem.params, problem.buffers, inputs)[0]
    for row, index in enumerate(KEYS.indices):
        torch.testing.assert_close(outputs[row], alone(WithState, index)(inputs[row]))


def test_torch_is_left_as_it_was():
    problem = Fit(KEYS, transformer, TOKENS)
    enabled = torch.backends.mha.get_fastpath_enabled()
    problem.evaluating().outputs(problem.params, problem.buffers, problem.inputs(0))
    with pytest.raises(ValueError, match=r"task.model=Sequential: fails on inputs of shape"):
        problem.outputs(problem.params, problem.buffers, torch.zeros(3, BATCH, 5, dtype=F64))
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    assert torch.backends.cuda.flash_sdp_enabled()


def test_making_problems_draws_nothing_from_torch():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    Fit(KEYS, transformer, TOKENS)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_with_a_batched_forward_is_run_by_it():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3))

        def batched_forward(self, tensors, inputs):
            return 2 * (inputs * tensors["weight"][:, None]).sum(-1)

    problem = Fit(KEYS, Own, VECTOR)
    inputs = problem.inputs(0)
    outputs, buffers = problem.outputs(problem.params, problem.buffers, inputs)
    for row, index in enumerate(KEYS.indices):
        torch.testing.assert_close(outputs[row], 2 * inputs[row] @ alone(Own, index).weight.detach())
    assert buffers is problem.buffers


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + torch.randn(len(x), dtype=x.dtype)


class NoisyAndSaysSo(Noisy):
    draws_randomly = True


def test_a_module_that_says_it_draws():
    problem = Fit(ProblemKeys(0, "train", 0, [1, 1]), NoisyAndSaysSo, VECTOR)
    inputs = problem.inputs(0)
    first, again = (problem.outputs(problem.params, {}, inputs, seeds=[3, 4])[0] for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first[0], first[1])


class Doing(nn.Module):
    """A linear layer, and what a function makes of its outputs and inputs."""

    def __init__(self, function: Callable):
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x), x)


class Shrinking(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.mul_(0.9)
        return super().forward(input)


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def growing() -> Callable[[], nn.Module]:
    sizes = iter(range(2, 100))
    return lambda: nn.Linear(3, next(sizes))


CANNOT = "torch.vmap cannot run it for several problems at once"


@pytest.mark.parametrize(
    ("factory", "shape", "message"),
    [
        (Fixed, VECTOR, "task.model=Fixed: has no parameters to optimise"),
        (growing(), VECTOR, "task.model: must make modules with the same tensors in every call"),
        (lambda: 3, VECTOR, "task.model: must make an nn.Module, not int"),
        (Noisy, VECTOR, "task.model=Noisy: draws random numbers other than by torch's layers; give it a class"),
        (conv(lambda: nn.BatchNorm2d(2, momentum=None)), IMAGE, f"task.model=Sequential: {CANNOT}; replace the layer"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.RReLU()), VECTOR, f"task.model=Sequential: {CANNOT}"),
        (lambda: Recurrent(nn.LSTM(2, 3, proj_size=2)), SEQUENCE, "task.model: an LSTM with proj_size cannot"),
        (
            lambda: nn.Linear(3, 2).requires_grad_(False),
            VECTOR,
            "task.model=Linear: has no parameters to optimise; a",
        ),
        (lambda: nn.Linear(5, 2), VECTOR, "task.model=Linear: fails on inputs of shape (4, 3), torch.float64; mend it"),
        (lambda: nn.Bilinear(3, 3, 2), VECTOR, "task.model=Bilinear: fails on inputs of shape (4, 3), torch.float64"),
        (lambda: nn.LSTM(2, 3, batch_first=True), SEQUENCE, "task.model=LSTM: fails on .* it returns a tuple, must re"),
        (lambda: nn.LazyLinear(2), VECTOR, "task.model=LazyLinear: weight has no shape yet; give lazy layers their"),
        (lambda: nn.Linear(3, 2, dtype=torch.cfloat), VECTOR, "task.model=Linear: weight is complex; give it a last"),
        (lambda: nn.Linear(3, 2, device="meta"), VECTOR, "task.model=Linear: weight is on the meta device"),
        (lambda: nn.Linear("x", 2), VECTOR, "task.model: cannot be made (TypeError: "),
        (lambda: Words(nn.Embedding(5, 3, max_norm=1.0)), VECTOR, "task.model: an embedding with max_norm changes"),
        (lambda: Words(nn.EmbeddingBag(5, 3, max_norm=1.0)), VECTOR, "task.model: an embedding with max_norm changes"),
        (lambda: Words(nn.Embedding(5, 3, scale_grad_by_freq=True)), VECTOR, "task.model: an embedding with scale_"),
        (lambda: nn.Embedding(5, 3), VECTOR, "task.model: an embedding's inputs must be whole numbers, not torch.fl"),
        (
            lambda: Doing(lambda y, x: y.detach()),
            VECTOR,
            "task.model=Doing: its outputs don't depend",
        ),
        (
            lambda: Doing(lambda y, x: y + torch.from_numpy(x.numpy())[:, :2]),
            VECTOR,
            "task.model=Doing: takes a",
        ),
        (lambda: Shrinking(3, 2), VECTOR, "task.model=Shrinking: changes a parameter or an input in place"),
        (
            lambda: Doing(lambda y, x: checkpoint(torch.tanh, y, use_reentrant=True)),
            VECTOR,
            "task.model=Doing: uses an",
        ),
        (
            lambda: Doing(lambda y, x: checkpoint(torch.tanh, y, use_reentrant=False)),
            VECTOR,
            "task.model=Doing: uses t",
        ),
        (
            lambda: Doing(lambda y, x: None),
            VECTOR,
            "task.model=Doing: fails on .* it returns a NoneType, must",
        ),
        (lambda: Doing(lambda y, x: {}["a"]), VECTOR, "task.model=Doing: fails on .*(KeyError: 'a')"),
        (lambda: torch.nn.DataParallel(nn.Linear(3, 2)), VECTOR, "task.model=DataParallel: fails on inputs of"),
    ],
)
def test_modules_that_cannot_be_optimised(factory, shape, message):
    with pytest.raises(ValueError) as error:
        problem = Fit(KEYS, factory, shape)
        value_and_gradient(problem, problem.params, problem.buffers, (problem.inputs(0), 0))
    pattern = re.escape(message).replace(r"\.\*", ".*")
    assert re.match(pattern, str(error.value)), error.value
    assert "\n" not in str(error.value)


def test_packed_sequences_are_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.PackedSequence(x.flatten(0, 1), torch.tensor([4, 4, 4]))
            return self.layer(packed)[0].data

    problem = Fit(KEYS, Packed, SEQUENCE)
    with pytest.raises(ValueError, match="packed sequences cannot run for several problems at once; pad them"):
        problem.outputs(problem.params, {}, problem.inputs(0))


def test_a_sparse_embedding_has_the_gradient_of_a_dense_one():
    gradients = []
    for sparse in (True, False):
        problem = Fit(KEYS, lambda sparse=sparse: Words(nn.Embedding(5, 3, sparse=sparse)), VECTOR)
        gradients.append(value_and_gradient(problem, problem.params, {}, (problem.inputs(0), 0))[1].flat)
    assert gradients[0].abs().sum() > 0 and torch.equal(*gradients)


def test_a_problem_can_be_copied():
    problem = Fit(KEYS, transformer, TOKENS)
    again = copy.deepcopy(problem)
    assert torch.equal(run(SGD(lr=0.1), again, 2)[1], run(SGD(lr=0.1), problem, 2)[1])
