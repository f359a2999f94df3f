"""Compiled windows against the eager ones, whose gradients are tested against finite differences."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ph_l2o.compilation import Compiled
from ph_l2o.errors import CompileError
from ph_l2o.estimators import ES, OBJECTIVES, PES, Truncated
from ph_l2o.inner import Window, run, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import (
    HNN,
    LSTM,
    Adam,
    CoordinatewiseMLP,
    LearnedOptimizer,
    PortHamiltonian,
    RNNprop,
    Scheduled,
)
from ph_l2o.params import Params
from ph_l2o.tasks import ImageClassification, Landscape, ModuleProblem, Problem, Quadratic, Saddle, rescaled
from ph_l2o.tasks.saddles import KINDS
from ph_l2o.tasks.task import Buffers
from tests.compilation.traced import as_a_graph

K = 3


@pytest.fixture(autouse=True)
def seeded():
    """The optimizers' weights are the same whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture
def graphs_as_they_are(monkeypatch) -> None:
    """Tracing and keeping are tested without a compiler; see `as_a_graph`."""
    monkeypatch.setattr("ph_l2o.compilation.functions.ahead_of_time", as_a_graph)


small = functools.partial(PortHamiltonian, hidden_size=4)


class Batches(ModuleProblem):
    """A module on inputs of its problem, with targets 0."""

    def __init__(self, keys: ProblemKeys, factory: Callable[[], nn.Module], inputs: Tensor):
        super().__init__(keys, factory, dtype=inputs.dtype)
        self.inputs = inputs

    def loss(self, params: Params, buffers: Buffers, batch: Any) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.outputs(params, buffers, self.inputs)
        return outputs.square().mean((1, 2)), buffers


def keys(episode: int) -> ProblemKeys:
    return ProblemKeys(0, "train", episode, range(2))


def normalised(episode: int) -> Problem:
    inputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(episode))
    return Batches(keys(episode), lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), inputs)


class Words(nn.Module):
    """A frozen layer, of which a graph must not keep the first problem's, and an embedding with padding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.embedding(x.long().abs() % 5).mean(1))


def with_constants(episode: int) -> Problem:
    inputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(episode))
    return Batches(keys(episode), Words, inputs)


def quadratics(episode: int, noise: float = 0.0) -> Problem:
    return Quadratic(3, noise=noise).sample(keys(episode), dtype=torch.float64)


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "quadratic": quadratics,
    "noisy": lambda episode: quadratics(episode, noise=0.3),
    "rescaled": lambda episode: rescaled(quadratics(episode), 0.5),
    "batch_norm": normalised,
    "constants": with_constants,
}
OPTIMIZERS: dict[str, Callable[[], LearnedOptimizer]] = {
    "port_hamiltonian": small,
    "hnn": lambda: HNN(output_scale=0.05),
    "hnn with norm": lambda: HNN(output_scale=0.05, norm=True),
    "lstm": lambda: LSTM(hidden_size=3),
    "rnnprop": lambda: RNNprop(hidden_size=3),
    "mlp": lambda: CoordinatewiseMLP(hidden_size=3),
    "adam": lambda: Adam(lr=0.05),
    "scheduled": lambda: Scheduled(Adam(lr=0.05), horizon=8, warm_up=0.3),
}


def assert_like_eager(
    optimizer: LearnedOptimizer,
    make: Callable[[int], Problem],
    order: Any = 2,
    *,
    part: Any = "step",
    episodes: int = 2,
    bound: float | None = None,
) -> int:
    """Several episodes, so that the later ones have to do with what was compiled for the first.

    Returns:
        The number of functions that were compiled.
    """
    estimator, executor = Truncated(order=order, amplification=bound), Compiled(part)
    phi, objective = dict(optimizer.named_parameters()), OBJECTIVES["mean_log_loss"]
    for episode in range(episodes):
        problem = make(episode)
        carry, _ = run(optimizer, problem, 2)  # not at the start, where averages are 0
        window = Window(optimizer, phi, problem, carry, 2, K, objective)
        expected, found = estimator(window), estimator(window, executor)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.outer_loss, expected.outer_loss, rtol=1e-9, atol=0)
        largest = max(g.abs().max() for g in expected.gradient.values())
        for name, gradient in expected.gradient.items():
            torch.testing.assert_close(found.gradient[name], gradient, rtol=1e-7, atol=1e-9 * largest)
        assert_carries_equal(found.carry, expected.carry)
    return executor.num_compiled


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize(("order", "name"), [(1, "adam"), (2, "port_hamiltonian")])
def test_updates_alone(order, name):
    problems, optimizer = list(PROBLEMS.values()), OPTIMIZERS[name]().double()
    assert assert_like_eager(optimizer, lambda e: problems[e](e), order, part="update", episodes=len(problems)) == 1


class Scaled(nn.Module):
    """With a scalar parameter, and one of more than a slot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 17), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.tanh(self.layer(x))


def any_architecture(episode: int) -> Problem:
    """One coordinate, 20, a network of two tensors and buffers, one of three, and one of 16 that fills its slot."""
    modules: dict[int, Callable[[], nn.Module]] = {
        2: lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        3: Scaled,
    }
    if episode in modules:
        inputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(episode))
        return Batches(keys(episode), modules[episode], inputs)
    return Quadratic({0: 1, 1: 20, 4: 16}[episode]).sample(keys(episode), dtype=torch.float64)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_update_for_all_architectures(make):
    assert assert_like_eager(make().double(), any_architecture, part="update", episodes=5) == 1


def test_one_update_for_all_architectures_by_inductor():
    assert assert_like_eager(small().double(), any_architecture, part="update", episodes=5) == 1


@pytest.mark.usefixtures("graphs_as_they_are")
def test_an_optimizer_that_minds_padding_is_compiled_for_each_architecture():
    class Whole(Adam):
        """Whose step depends on the number of coordinates."""

        takes_padding = False

        def update(self, params: Params, grads: Params, loss: Tensor | None, state: Any) -> Any:
            return super().update(params, grads.like(grads.flat - grads.flat.mean(1, keepdim=True)), loss, state)

    assert assert_like_eager(Whole(lr=0.05).double(), any_architecture, part="update", episodes=5) == 5


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("part", ["step", "update"])
@pytest.mark.parametrize("noise", ["shared", "per_problem"])
@pytest.mark.parametrize("kind", [ES, PES])
def test_particles(kind, noise, part, mnist_root):
    """Evolution strategies: two windows of an episode on mini-batches, with one compilation."""
    task = ImageClassification(hidden_sizes=(3,), activation=("relu", "tanh"), batch_size=4, data_dir=mnist_root)
    optimizer, problem = small().double(), task.sample(keys(0), dtype=torch.float64)
    estimator, executor = kind(noise=noise), Compiled(part)
    phi, objective = dict(optimizer.named_parameters()), OBJECTIVES["mean_log_loss"]
    carry = estimator.start(optimizer, problem)
    for window in range(2):
        asked = Window(optimizer, phi, problem, carry, window * K, K, objective)
        expected, found = estimator(asked), estimator(asked, executor)
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-9, atol=0)
        largest = max(g.abs().max() for g in expected.gradient.values())
        for name, gradient in expected.gradient.items():
            torch.testing.assert_close(found.gradient[name], gradient, rtol=1e-6, atol=1e-8 * largest)
        carry = expected.carry
        torch.testing.assert_close(found.carry.params.flat, carry.params.flat, rtol=1e-9, atol=1e-12)
    assert executor.num_compiled == 1


def assert_carries_equal(found, expected) -> None:
    torch.testing.assert_close(found.params.flat, expected.params.flat, rtol=1e-9, atol=1e-9)
    for x, y in zip(found.state, expected.state, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    tensors: Mapping[str, Tensor] = found.buffers
    assert set(tensors) == set(expected.buffers)
    for name, x in tensors.items():
        torch.testing.assert_close(x, expected.buffers[name], rtol=1e-9, atol=1e-9)


def test_by_inductor():
    assert_like_eager(small().double(), lambda e: rescaled(quadratics(e, noise=0.3), 0.5))


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
def test_second_order_on_every_kind_of_problem(make):
    assert assert_like_eager(small().double(), make) == 1  # one compilation for both episodes


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("name", ["hnn", "adam"])
def test_second_order_of_other_optimizers(name):
    assert_like_eager(OPTIMIZERS[name]().double(), quadratics)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_first_order():
    assert_like_eager(small().double(), lambda e: rescaled(quadratics(e), 0.5), order=1)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_images_with_mixed_activations(mnist_root):
    task = ImageClassification(hidden_sizes=(3,), activation=("relu", "tanh"), batch_size=4, data_dir=mnist_root)
    assert (
        assert_like_eager(small().double(), lambda e: task.sample(keys(e), dtype=torch.float64)) == 1
    )  # the networks' activations are data


def test_what_draws_random_numbers_is_refused_in_words(mnist_root):
    model = functools.partial(nn.Sequential, nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    task = ImageClassification(model=model, batch_size=4, data_dir=mnist_root)
    problem, optimizer, estimator = task.sample(keys(0)), small(), Truncated()
    phi, objective = dict(optimizer.named_parameters()), OBJECTIVES["mean_log_loss"]
    with pytest.raises(CompileError, match="random numbers"):
        estimator(Window(optimizer, phi, problem, start(optimizer, problem), 0, K, objective), Compiled())


@pytest.mark.usefixtures("graphs_as_they_are")
def test_updates_alone_do_not_mind_random_numbers(mnist_root):
    model = functools.partial(nn.Sequential, nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    task = ImageClassification(model=model, batch_size=4, data_dir=mnist_root)
    assert_like_eager(Adam(lr=0.05).double(), lambda e: task.sample(keys(e), dtype=torch.float64), part="update")


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("part", ["step", "update"])
def test_bounds_what_grows_as_eager_windows_do(part, order):
    def make(episode: int) -> Problem:
        return Landscape("rosenbrock", dim=4).sample(keys(episode), dtype=torch.float64)

    assert_like_eager(OPTIMIZERS["port_hamiltonian"]().double(), make, order, part=part, bound=0.3)


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_serves_all_problems_of_a_kind_of_saddle(kind):
    def make(episode: int) -> Problem:
        smaller = {"dim": 3} if kind == "octopus" else {}
        return Saddle(kind, **smaller).sample(keys(episode), dtype=torch.float64)

    assert_like_eager(Adam(lr=0.05).double(), make)


class Remembering(nn.Linear):
    """A buffer that is a function of the parameters, and enters the loss."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x) + 0.1 * self.last
        self.last.copy_(out.mean(0))
        return out


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("part", ["step", "update"])
def test_buffers_that_are_functions_of_the_parameters_are_refused(part):
    """Eager windows differentiate them if the order is 2; no window does if it is 1."""

    def make(episode: int) -> Problem:
        inputs = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(episode))
        return Batches(keys(episode), Remembering, inputs)

    optimizer = Adam(lr=0.05).double()
    with pytest.raises(CompileError, match="a buffer that is differentiable in the parameters, last"):
        assert_like_eager(optimizer, make, part=part)
    assert_like_eager(optimizer, make, order=1, part=part)
