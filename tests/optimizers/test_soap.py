import pytest
import pytorch_optimizer
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ph_l2o.optimizers import SOAP, Adam, AdamW, Scheduled, map_state
from ph_l2o.params import Layout, Params

# Gradients whose L and R have no eigenvalue 0 twice, so that all eigenvectors are unique but for their signs.
LAYOUT = Layout(("square", "bias", "kernel", "tall"), ((4, 4), (3,), (3, 1, 3), (4, 3)))
ONE_SIDED = Layout(("tall", "wide", "large", "scale"), ((5, 3), (2, 6), (5, 5), ()))  # with longest side 3
pytestmark = pytest.mark.usefixtures("float64")
STEPS = 14


def problems(layout: Layout, num_problems: int = 3) -> tuple[Params, Tensor]:
    """Start, and gradients g_t = curvature θ - offset_t."""
    torch.manual_seed(0)
    return Params(torch.randn(num_problems, layout.numel), layout), torch.randn(STEPS, num_problems, layout.numel)


def gradient(flat: Tensor, offset: Tensor) -> Tensor:
    return flat * torch.linspace(0.5, 2, flat.shape[-1]) - offset


def run(optimizer, start: Params, offsets: Tensor, steps: int = STEPS, state=None):
    params, state = start, optimizer.init(start) if state is None else state
    with torch.no_grad():
        for offset in offsets[:steps]:
            params, state = optimizer.update(params, params.like(gradient(params.flat, offset)), None, state)
    return params, state


class Literal:
    """Algorithm 3 of arXiv 2409.11321 for one matrix: bases after the step, the first gradient moves nothing."""

    def __init__(self, shape, lr, beta1, beta2, eps, weight_decay, frequency, longest):
        self.lr, self.beta1, self.beta2, self.eps, self.decay = lr, beta1, beta2, eps, weight_decay
        self.frequency, self.is_in, self.t = frequency, [n <= longest for n in shape], 0
        self.gram = [torch.zeros(n, n) for n in shape]
        self.basis = [torch.eye(n) for n in shape]
        self.m, self.v = torch.zeros(shape), torch.zeros(shape)

    def step(self, weight: Tensor, g: Tensor, skip: bool) -> Tensor:
        q_left, q_right = self.basis
        if not skip:
            self.t += 1
            self.m = self.beta1 * self.m + (1 - self.beta1) * g  # in the original space, as the paper has it
            self.v = self.beta2 * self.v + (1 - self.beta2) * (q_left.T @ g @ q_right) ** 2
            m_hat = q_left.T @ self.m @ q_right / (1 - self.beta1**self.t)
            v_hat = self.v / (1 - self.beta2**self.t)
            n = q_left @ (m_hat / (v_hat.sqrt() + self.eps)) @ q_right.T
            weight = (1 - self.lr * self.decay) * weight - self.lr * n
        for side, product in enumerate((g @ g.T, g.T @ g)):
            self.gram[side] = self.beta2 * self.gram[side] + (1 - self.beta2) * product
            if not self.is_in[side]:
                continue
            if skip:
                self.basis[side] = torch.linalg.eigh(self.gram[side]).eigenvectors.fliplr()
            elif self.t % self.frequency == 0:
                old = self.basis[side]
                order = (old.T @ self.gram[side] @ old).diagonal().argsort(descending=True)
                self.basis[side] = torch.linalg.qr(self.gram[side] @ old[:, order]).Q
                self.v = self.v.index_select(side, order)
        return weight


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        (LAYOUT, {"precondition_frequency": 3}),
        (LAYOUT, {"precondition_frequency": 1, "beta1": 0.5, "weight_decay": 0.5, "eps": 0.01}),
        (LAYOUT, {"precondition_frequency": 100}),
        (ONE_SIDED, {"precondition_frequency": 4, "max_preconditioner_dim": 3}),
    ],
    ids=["every 3rd", "every", "first only", "one-sided"],
)
def test_matches_the_papers_algorithm(layout, settings):
    start, offsets = problems(layout)
    settings = {"lr": 0.1, "beta2": 0.9, **settings}
    optimizer = SOAP(**settings)
    ours = run(optimizer, start, offsets)[0].flat - start.flat
    h = [optimizer.hyperparameters[k].item() for k in ("lr", "beta1", "beta2", "eps", "weight_decay")]
    for i in range(start.num_problems):
        tensors = [t[i] for t in start.tensors().values()]
        matrices = [t.flatten(1) if t.dim() > 1 else t.reshape(-1, 1) for t in tensors]
        longest = optimizer.max_preconditioner_dim
        rules = [
            Literal(m.shape, *h, optimizer.precondition_frequency, longest if t.dim() > 1 else 0)
            for m, t in zip(matrices, tensors, strict=True)
        ]
        for k, offset in enumerate(offsets[:, i]):
            grads = gradient(torch.cat([m.flatten() for m in matrices]), offset).split(layout.sizes)
            matrices = [r.step(m, g.view_as(m), k == 0) for r, m, g in zip(rules, matrices, grads, strict=True)]
        theirs = torch.cat([m.flatten() for m in matrices]) - start.flat[i]
        assert theirs.abs().max() > 0.3
        torch.testing.assert_close(ours[i], theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("layout", "frequency", "longest"), [(LAYOUT, 3, 99), (LAYOUT, 1, 99), (ONE_SIDED, 4, 3)], ids=str
)
def test_matches_another_implementation(layout, frequency, longest, monkeypatch):
    """That of pytorch_optimizer, under a schedule; with eps = 0, which the two add at different places."""
    monkeypatch.setattr(torch, "float32", torch.float64)  # it makes new bases in float32
    start, offsets = problems(layout)
    settings = {"lr": 0.1, "eps": 0.0, "weight_decay": 0.0, "precondition_frequency": frequency}
    optimizer = SOAP(**settings, beta1=0.8, beta2=0.9, max_preconditioner_dim=longest)
    scheduled = Scheduled(optimizer, "linear", horizon=STEPS, warm_up=0)
    ours = run(scheduled, start, offsets)[0].flat - start.flat
    for i in range(start.num_problems):
        tensors = [(t[i].flatten(1) if t.dim() > 2 else t[i].reshape(-1)).clone() for t in start.tensors().values()]
        other = pytorch_optimizer.SOAP(tensors, **settings, betas=(0.8, 0.9), max_precondition_dim=longest)
        schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda k: 1 - k / STEPS)
        for offset in offsets[:, i]:
            grads = gradient(torch.cat([t.flatten() for t in tensors]), offset).split(layout.sizes)
            for t, g in zip(tensors, grads, strict=True):
                t.grad = g.view_as(t)
            other.step()
            schedule.step()
        theirs = torch.cat([t.flatten() for t in tensors]) - start.flat[i]
        torch.testing.assert_close(ours[i], theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("decay", "adam"), [(0.0, Adam), (0.2, AdamW)])
def test_without_rotated_sides_it_is_adam(decay, adam):
    start, offsets = problems(LAYOUT)
    soap = SOAP(lr=0.05, beta2=0.9, weight_decay=decay, max_preconditioner_dim=0)
    ours, state = run(soap, start, offsets)
    assert state.gram.shape == state.basis.shape == (3, 0)
    expected = run(adam(lr=0.05, beta2=0.9, weight_decay=decay), start, offsets)[0]
    assert torch.equal(ours.flat, expected.flat)
    tensors = [t[0].clone().requires_grad_() for t in start.tensors().values()]
    theirs = torch.optim.AdamW(tensors, lr=0.05, betas=(0.9, 0.9), weight_decay=decay)
    for offset in offsets[:, 0]:
        flat = torch.cat([t.detach().flatten() for t in tensors])
        for t, g in zip(tensors, gradient(flat, offset).split(LAYOUT.sizes), strict=True):
            t.grad = g.view_as(t)
        theirs.step()
    flat = torch.cat([t.detach().flatten() for t in tensors])
    torch.testing.assert_close(ours.flat[0], flat, rtol=1e-10, atol=1e-12)


def test_bases_are_orthogonal_and_made_when_due(monkeypatch):
    start, offsets = problems(LAYOUT)
    made = []
    for name in ("eigh", "qr"):
        plain = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, lambda x, name=name, plain=plain: made.append(name) or plain(x))
    optimizer = SOAP(precondition_frequency=3)
    params, state = run(optimizer, start, offsets, 1)
    assert torch.equal(params.flat, start.flat) and made == ["eigh"] * 6
    counts = []
    for offset in offsets[1:]:
        params, state = run(optimizer, params, offset[None], state=state)
        counts.append(made.count("qr"))
    assert counts == [6 * (k // 3) for k in range(1, STEPS)] and made.count("eigh") == 6
    for basis in (state.basis[:, :16].unflatten(1, (4, 4)), state.basis[:, -9:].unflatten(1, (3, 3))):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]).expand_as(basis))


def test_problems_at_different_steps_in_one_batch():
    start, offsets = problems(LAYOUT)
    optimizer = SOAP(precondition_frequency=3, lr=0.1)
    alone = []
    for i, steps in enumerate((0, 3, 5)):
        one = Params(start.flat[i : i + 1], LAYOUT)
        alone.append(run(optimizer, one, offsets[:, i : i + 1], steps))
    params = Params(torch.cat([p.flat for p, _ in alone]), LAYOUT)
    state = type(alone[0][1])(*(torch.cat(rows) for rows in zip(*(s for _, s in alone), strict=True)))
    together, _ = run(optimizer, params, offsets, 7, state)
    for i, (one, before) in enumerate(alone):
        expected, _ = run(optimizer, one, offsets[:, i : i + 1], 7, before)
        torch.testing.assert_close(together.flat[i : i + 1], expected.flat, rtol=1e-9, atol=1e-11)


def test_vmap_gives_the_same():
    start, offsets = problems(LAYOUT)
    optimizer = SOAP(precondition_frequency=2)
    rates = torch.tensor([0.1, 0.03])
    given = dict(optimizer.named_parameters())

    def episode(log_lr: Tensor) -> Tensor:
        params, state = start, optimizer.init(start)
        for offset in offsets[:5]:
            grads = params.like(gradient(params.flat, offset))
            params, state = functional_call(optimizer, {**given, "log_lr": log_lr}, (params, grads, None, state))
        return params.flat

    with torch.no_grad():
        together = vmap(episode)(rates.log())
    for rate, flat in zip(rates, together, strict=True):
        expected, _ = run(optimizer.with_hyperparameters(lr=rate), start, offsets, 5)
        torch.testing.assert_close(flat, expected.flat, rtol=1e-9, atol=1e-11)


def test_a_problem_that_diverges_leaves_the_others_alone():
    start, offsets = problems(LAYOUT)
    expected, _ = run(SOAP(precondition_frequency=2), start, offsets)
    for step, value in ((0, torch.nan), (0, torch.inf), (4, torch.nan), (4, 1e200)):
        wrong = offsets.clone()
        wrong[step, 1] = value
        params, _ = run(SOAP(precondition_frequency=2), start, wrong)
        torch.testing.assert_close(params.flat[::2], expected.flat[::2], rtol=1e-9, atol=1e-11)
        assert not params.flat[1].isfinite().all() or value == 1e200


def test_one_batch_with_different_hyperparameters():
    start, offsets = problems(LAYOUT)
    values = {n: torch.tensor([0.1, 0.3, 0.02]) for n in SOAP().hyperparameters}
    together, _ = run(SOAP(precondition_frequency=2).with_hyperparameters(**values), start, offsets)
    for i in range(3):
        alone = SOAP(precondition_frequency=2, **{n: v[i].item() for n, v in values.items()})
        expected, _ = run(alone, Params(start.flat[i : i + 1], LAYOUT), offsets[:, i : i + 1])
        torch.testing.assert_close(together.flat[i : i + 1], expected.flat, rtol=1e-8, atol=1e-10)


def test_update_is_pure_and_differentiable():
    start, offsets = problems(LAYOUT)
    optimizer = SOAP(precondition_frequency=2, weight_decay=0.1)
    offsets[:, 0] = gradient(start.flat[0], torch.zeros(()))  # a gradient of 0 at first
    params, state = run(optimizer, start, offsets, 2)
    grads = params.like(gradient(params.flat, offsets[2]))
    before = [t.clone() for t in (params.flat, grads.flat, *state)]
    first, second = (optimizer.update(params, grads, None, state) for _ in range(2))
    assert torch.equal(first[0].flat, second[0].flat)
    assert all(torch.equal(a, b) for a, b in zip(before, (params.flat, grads.flat, *state), strict=True))
    assert all(s.shape[0] == start.num_problems for s in first[1])
    leaves = map_state(lambda x: x.detach().requires_grad_(), state)
    first = optimizer.update(params, grads, None, leaves)
    assert not first[1].gram.requires_grad and not first[1].basis.requires_grad
    first[0].flat.square().sum().backward()
    for name, p in optimizer.named_parameters():
        assert p.grad is not None and p.grad.isfinite() and p.grad != 0, name


def test_low_rank_in_float32():
    # As at an input layer of which most inputs are 0: float32 eigenvectors of such a matrix were seen to be NaN.
    torch.manual_seed(0)
    start = Params(torch.zeros(2, 200 * 3, dtype=torch.float32), Layout(("weight",), ((200, 3),)))
    optimizer, params = SOAP(lr=0.01).float(), start
    state = optimizer.init(start)
    for _ in range(12):
        grads = 1e-4 * torch.randn(2, 200, 3, dtype=torch.float32)
        grads[:, 20:] = 0
        params, state = optimizer.update(params, params.like(grads.flatten(1)), None, state)
    assert params.flat.isfinite().all() and params.flat.abs().max() < 0.2


def test_arguments_out_of_range():
    for name, value, allowed in [
        ("beta2", 1.0, "must be in [0, 1)"),
        ("precondition_frequency", 0, "must be >= 1 (steps)"),
        ("max_preconditioner_dim", -1, "must be >= 0 (coordinates)"),
    ]:
        with pytest.raises(ValueError) as error:
            SOAP(**{name: value})
        assert str(error.value) == f"optimizer.{name}={value}: {allowed}"
    assert len(SOAP.grid["lr"]) >= 8
