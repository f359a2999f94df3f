"""Each saddle is where it is said to be, and curved as it is said to be."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ph_l2o.inner import run, value_and_gradient
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import SGD
from ph_l2o.tasks import Saddle, SaddleProblem
from ph_l2o.tasks.saddles import KINDS

F64 = torch.float64
TAU = math.e


def keys(indices: Sequence[int] = range(3), *, seed: int = 0, split: Any = "train", episode: int = 0) -> ProblemKeys:
    return ProblemKeys(seed, split, episode, indices)


def draw(
    kind: str, indices: Sequence[int] = range(3), *, dtype: Any = F64, where: Any = None, **options: Any
) -> SaddleProblem:
    problem = Saddle(kind, **options).sample(keys(indices, **(where or {})), dtype=dtype)
    assert isinstance(problem, SaddleProblem)
    return problem


def at(problem: SaddleProblem, x: Tensor) -> Tensor:
    return problem.loss(problem.params.like(x.to(problem.params.flat).expand_as(problem.params.flat)), {}, None)[0]


def gradient(problem: SaddleProblem, x: Tensor) -> Tensor:
    return value_and_gradient(problem, problem.params.like(x), {}, None)[1].flat


def eigenvalues(problem: SaddleProblem, x: Tensor) -> Tensor:
    """Of the Hessian of each problem, ascending, `(B, N)`."""
    rows = [
        torch.autograd.functional.hessian(lambda y, k=k: at(problem, torch.cat([x[:k], y[None], x[k + 1 :]]))[k], x[k])
        for k in range(len(x))
    ]
    return torch.linalg.eigvalsh(torch.stack(rows))  # type: ignore[arg-type]


def unrotated(problem: SaddleProblem, z: Tensor) -> Tensor:
    assert problem.rotation is not None
    return (problem.rotation.mT @ z.to(F64).expand_as(problem.params.flat)[..., None])[..., 0]


# What is claimed of each kind: options, the value at the saddle, the smallest and the largest eigenvalue there.
GAMMA = 0.05
CLAIMS = {
    "strict": ({"curvature": GAMMA}, GAMMA / 4, -GAMMA, 1),
    "strict 3": ({"curvature": GAMMA, "directions": 3, "condition_number": 50}, 3 * GAMMA / 4, -GAMMA, 1),
    "monkey": ({"curvature": GAMMA}, GAMMA / 4, 0, 1),
    "octopus": ({"curvature": GAMMA, "dim": 3}, TAU**2 * (37 + 13 * GAMMA / 2) / 6, -GAMMA, 2),
    "deep_linear": ({"curvature": GAMMA}, GAMMA**2, 0, 0),
    "deep_linear strict": ({"curvature": GAMMA, "depth": 2}, GAMMA**2, -GAMMA, GAMMA),
    "deep_linear fitted": ({"curvature": GAMMA, "fitted": 1}, GAMMA**2 / 2, 0, 3),
    "matrix_factorisation": ({"curvature": GAMMA, "dim": 4}, GAMMA**2 / 2, -GAMMA, 2),
    "matrix_factorisation 0": ({"curvature": GAMMA, "dim": 4, "fitted": 0}, 1.5 * GAMMA**2, -GAMMA, GAMMA),
    "phase_retrieval": ({}, 2 / 3, -2, 2),
    "phase_retrieval 0": ({"place": "zero"}, 3 / 4, -3, -1),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_saddle_is_a_critical_point_with_these_eigenvalues(name):
    options, value, lowest, highest = CLAIMS[name]
    problem = draw(name.split()[0], **options)
    torch.testing.assert_close(problem.saddle_value, torch.full((3,), value, dtype=F64))
    for place in (problem.saddle, problem.last_saddle):
        assert gradient(problem, place).abs().max() < 1e-12
    if not name.startswith("octopus"):
        torch.testing.assert_close(problem.saddle, problem.last_saddle)
    for place in {id(p): p for p in (problem.saddle, problem.last_saddle)}.values():
        found = eigenvalues(problem, place)
        torch.testing.assert_close(found[:, 0], torch.full((3,), lowest, dtype=F64), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(found[:, -1], torch.full((3,), highest, dtype=F64), atol=1e-9, rtol=1e-9)


def test_a_strict_saddle_has_the_named_number_of_directions_down_and_the_condition_number_up():
    found = eigenvalues(p := draw("strict", dim=7, curvature=0.1, directions=2, condition_number=20), p.saddle)
    expected = [-0.1, -0.1, *sorted(20 ** (-k / 4) for k in range(5))]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64).expand(3, 7))


def test_losses_are_the_formulas():
    z = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    up = 10 ** -torch.linspace(0, 1, 5, dtype=F64)
    strict = draw("strict", dim=6, curvature=0.2)
    expected = 0.05 * (z[:, 0] ** 2 - 1) ** 2 + 0.5 * (up * z[:, 1:] ** 2).sum(1)
    torch.testing.assert_close(at(strict, unrotated(strict, z)), expected)
    monkey, (x, y) = draw("monkey", dim=6, curvature=0.2), z.T[:2]
    plane = x**3 - 3 * x * y**2 + 0.75 * (x**2 + y**2) ** 2 + 0.25
    up = 10 ** -torch.linspace(0, 1, 4, dtype=F64)
    torch.testing.assert_close(at(monkey, unrotated(monkey, z)), 0.2 * plane + 0.5 * (up * z[:, 2:] ** 2).sum(1))
    phase = draw("phase_retrieval", dim=6, place="zero")
    generator = np.random.default_rng(0)
    vectors = torch.from_numpy(generator.standard_normal((400_000, 6)))
    truth = phase._drawn[0]
    for row in range(3):
        sampled = (((vectors @ z[row]) ** 2 - (vectors @ truth[row]) ** 2) ** 2).mean() / 4
        assert abs(at(phase, z)[row] / sampled - 1) < 0.05
    finite = draw("phase_retrieval", dim=6, place="zero", measurements=9)
    truth, vectors = finite._drawn
    terms = [((vectors[0, k] @ z[0]) ** 2 - (vectors[0, k] @ truth[0]) ** 2) ** 2 for k in range(9)]
    torch.testing.assert_close(at(finite, z)[0], sum(terms, torch.zeros((), dtype=F64)) / 36)


def published_octopus(x: np.ndarray, gamma: float) -> float:
    """Equations (5) to (9) of Du et al. 2017, at a place of their domain, with ν d added."""
    d, big, tau = len(x), 1.0, TAU
    x = np.abs(x)

    def g1(v: float) -> float:
        cubic, quartic = (-14 * big + 10 * gamma) / (3 * tau), (5 * big - 3 * gamma) / (2 * tau**2)
        return -gamma * v**2 + cubic * (v - tau) ** 3 + quartic * (v - tau) ** 4

    def g2(v: float) -> float:
        t, c = (v - 2 * tau) / tau, big + gamma
        return -gamma - 10 * c * t**3 - 15 * c * t**4 - 6 * c * t**5

    nu = -g1(2 * tau) + 4 * big * tau**2
    i = next((k for k in range(d) if x[k] < 2 * tau), d)
    done = sum(big * (v - 4 * tau) ** 2 for v in x[:i]) - i * nu + d * nu
    if i == d:
        return done
    rest = sum(big * v**2 for v in x[i + 1 :])
    if x[i] <= tau:
        return done - gamma * x[i] ** 2 + rest
    if i == d - 1:
        return done + g1(x[i])
    return done + g1(x[i]) + (g2(x[i]) - big) * x[i + 1] ** 2 + rest


@pytest.mark.parametrize("gamma", [1.0, 0.1])
def test_the_octopus_is_the_published_one_where_that_is_defined(gamma):
    problem, generator = draw("octopus", dim=4, rotate=False, curvature=2 * gamma), np.random.default_rng(0)
    for stage in range(5):
        for _ in range(20):
            x = generator.uniform(-TAU, TAU, 4)
            x[:stage] = generator.uniform(2, 6, stage) * TAU * generator.choice([-1, 1], stage)
            if stage < 4:
                x[stage] = generator.uniform(-2, 2) * TAU
            np.testing.assert_allclose(at(problem, torch.from_numpy(x))[0], published_octopus(x, gamma), rtol=1e-12)


def test_the_octopus_is_twice_continuously_differentiable_everywhere():
    problem = draw("octopus", [0], dim=3, rotate=False)
    for border in (TAU, 2 * TAU):
        for other in (0.3, 1.3 * TAU, -1.7 * TAU, 3 * TAU):
            below, above = (torch.tensor([[border + s * 1e-9, other, 1.6 * TAU]], dtype=F64) for s in (-1, 1))
            torch.testing.assert_close(at(problem, below), at(problem, above), atol=1e-6, rtol=0)
            torch.testing.assert_close(gradient(problem, below), gradient(problem, above), atol=1e-5, rtol=0)
            torch.testing.assert_close(eigenvalues(problem, below), eigenvalues(problem, above), atol=1e-5, rtol=0)


ROOT3 = 3**0.5 / 2
MINIMA = {
    "strict": [torch.tensor([s, 0, 0, 0, 0], dtype=F64) for s in (-1.0, 1.0)],
    "monkey": [torch.tensor([a, b, 0, 0, 0], dtype=F64) for a, b in ((-1, 0), (0.5, ROOT3), (0.5, -ROOT3))],
    "octopus": [4 * TAU * torch.tensor(s, dtype=F64) for s in ([1.0] * 5, [1.0, -1, -1, 1, -1])],
}


@pytest.mark.parametrize("kind", MINIMA)
def test_minima_are_zero_where_they_are_said_to_be(kind):
    problem = draw(kind, dim=5)
    for place in MINIMA[kind]:
        x = unrotated(problem, place)
        assert at(problem, x).abs().max() < 1e-9 and gradient(problem, x).abs().max() < 1e-6
        assert (eigenvalues(problem, x) > 1e-5).all()


def test_minima_of_products_and_of_phase_retrieval():
    found: tuple[dict[str, Any], ...] = ({"measurements": 20, "place": "zero"}, {})
    for options in found:
        problem = draw("phase_retrieval", **options)
        assert at(problem, problem._drawn[0]).abs().max() < 1e-25 and at(problem, -problem._drawn[0]).max() < 1e-25
    for depth, kind in ((2, "matrix_factorisation"), (4, "deep_linear")):
        problem = draw(kind, curvature=0.3, **({"depth": depth} if kind == "deep_linear" else {}))
        left, values, right = torch.linalg.svd(problem._drawn[0])
        expected = [1.0, 1, 0.3] if depth == 2 else [0.3, 0.3]
        torch.testing.assert_close(values[:, : len(expected)], torch.tensor(expected, dtype=F64).expand(3, -1))
        assert values[:, len(expected) :].abs().max() < 1e-12
        width = problem.params["weight0"].shape[1]
        weights = {"weight0": right[:, :width] * values[:, :width, None]}
        for k in range(1, depth - 1):
            weights[f"weight{k}"] = torch.eye(width, dtype=F64).expand(3, -1, -1)
        weights[f"weight{depth - 1}"] = left[..., :width]
        assert [tuple(w.shape[1:]) for w in weights.values()] == list(problem.params.layout.shapes)
        x = torch.cat([w.flatten(1) for w in weights.values()], 1)
        assert at(problem, x).max() < 1e-25


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_below_zero_and_the_start_lies_at_the_distance(kind, dtype):
    problem = draw(kind, dtype=dtype, distance=0.02)
    torch.testing.assert_close(
        (problem.params.flat - problem.saddle).norm(dim=1), torch.full((3,), 0.02, dtype=dtype), rtol=1e-4, atol=0
    )
    assert len((problem.params.flat - problem.saddle).unique(dim=0)) == 3
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1e-2, 1.0, 5.0, 15.0):
        noise = size * torch.randn(30, *problem.params.flat.shape, generator=generator, dtype=dtype)
        assert all((at(problem, problem.saddle + x) >= 0).all() for x in noise)
    assert not problem.escaped(problem.saddle_value).any()
    assert not problem.escaped(at(problem, problem.params.flat)).any() and problem.escaped(torch.zeros(4, 3)).all()
    share = problem.saddle_value * torch.tensor([[0.49], [0.51]], dtype=dtype)
    assert problem.escaped(share).tolist() == [[True] * 3, [False] * 3]
    late = draw(kind, dtype=dtype, fall=0.9)
    assert late.escaped(0.2 * share).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind):
    problem = draw(kind)
    generator = torch.Generator().manual_seed(0)
    x = problem.saddle + torch.randn(problem.params.flat.shape, generator=generator, dtype=F64)
    direction = torch.randn(x.shape, generator=generator, dtype=F64)
    up, down = (at(problem, x + s * 1e-6 * direction) for s in (1, -1))
    torch.testing.assert_close((gradient(problem, x) * direction).sum(1), (up - down) / 2e-6, rtol=1e-6, atol=1e-9)
    flat = (0.1 * x).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y: at(problem, y).sum(), flat, rtol=1e-2)


@pytest.mark.parametrize("kind", ["strict", "monkey", "octopus"])
def test_gradient_descent_does_not_feel_the_rotation(kind):
    turned, straight = draw(kind), draw(kind, rotate=False)
    assert turned.rotation is not None and straight.rotation is None
    torch.testing.assert_close(turned.rotation @ turned.rotation.mT, torch.eye(10, dtype=F64).expand(3, 10, 10))
    assert not torch.allclose(turned.params.flat, straight.params.flat)
    gd = SGD(lr=0.05).double()
    torch.testing.assert_close(run(gd, turned, 40)[1], run(gd, straight, 40)[1])


def test_gradient_descent_leaves_a_strict_saddle_at_the_rate_of_its_curvature():
    problem = draw("strict", range(20), curvature=0.05, rotate=False)
    path = problem.params.flat[:, 0]
    for steps in (1, 10):
        carry, _ = run(SGD(lr=0.5).double(), problem, steps)
        growth = carry.params.flat[:, 0] / path
        torch.testing.assert_close(growth, torch.full((20,), (1 + 0.5 * 0.05) ** steps, dtype=F64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_key_alone(kind):
    whole, part = draw(kind, range(6)), draw(kind, [5, 1, 5])
    for of in (lambda p: p.params.flat, lambda p: p.saddle, lambda p: p.saddle_value, lambda p: p.curvature):
        assert torch.equal(of(part), of(whole)[[5, 1, 5]])
    starts = [draw(kind, where=w).params.flat for w in ({}, {"seed": 1}, {"split": "val"}, {"episode": 1})]
    assert len(torch.cat(starts).unique(dim=0)) == 12


def test_curvatures_are_drawn_log_uniformly_and_leave_the_rest_alone():
    problem = draw("strict", range(2000), curvature=[0.001, 0.1], dim=3)
    logs = problem.curvature.log10() + 3
    assert logs.min() >= 0 and logs.max() <= 2 and abs(logs.mean() - 1) < 0.05 and abs(logs.std() - 3**-0.5) < 0.03
    torch.testing.assert_close(problem.saddle_value, problem.curvature / 4)
    one, other = draw("strict", curvature=0.1), draw("strict", curvature=0.001)
    assert torch.equal(one.params.flat, other.params.flat) and (one.rotation == other.rotation).all()


@pytest.mark.parametrize("kind", KINDS)
def test_spec_is_plain_and_each_option_is_in_it(kind):
    task = Saddle(kind)
    assert json.dumps(task.spec(), sort_keys=True) == json.dumps(Saddle(kind).spec(), sort_keys=True)
    assert task.name == f"saddle_{kind}"
    assert Saddle(kind, distance=0.5).spec() != task.spec() != Saddle(kind, fall=0.4).spec()
    assert set(task.options) == {f.name for f in dataclasses.fields(KINDS[kind]) if f.init}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "stric"}, f"task.kind=stric: must be one of {', '.join(KINDS)}; did you mean strict?"),
        ({"depth": 3}, "task.depth=3: strict has no such option, it has dim, distance, curvature, directions, "
         "condition_number; leave it out"),
        ({"kind": "matrix_factorisation", "depth": 3}, "task.depth=3: matrix_factorisation has no such option, it has "
         "dim, distance, curvature, rank, width, fitted; leave it out"),
        ({"kind": "phase_retrieval", "curvature": 1.0}, "task.curvature=1.0: phase_retrieval has no such option, it "
         "has dim, distance, measurements, place; leave it out"),
        ({"dim": 1}, "task.dim=1: must be >= 2 (number of coordinates, or rows of a matrix)"),
        ({"distance": 0.0}, "task.distance=0.0: must be > 0 and finite (of the start from the saddle)"),
        ({"curvature": 0.0}, "task.curvature=0.0: must be a number > 0, or two of them, low and high"),
        ({"curvature": [0.1, 0.01]}, "task.curvature=[0.1, 0.01]: must be a number > 0, or two of them, low and high"),
        ({"fall": 1.0}, "task.fall=1.0: must be in (0, 1) (share of the saddle's value)"),
        ({"directions": 10}, "task.directions=10: must be below task.dim=10"),
        ({"condition_number": 0.5}, "task.condition_number=0.5: must be >= 1 and finite (of the positive curvatures)"),
        ({"kind": "deep_linear", "depth": 1}, "task.depth=1: must be >= 2 (layers)"),
        ({"kind": "deep_linear", "rank": 6}, "task.rank=6: must be <= task.dim=5 and <= task.width=5"),
        ({"kind": "deep_linear", "fitted": 2}, "task.fitted=2: must be below task.rank=2"),
        ({"kind": "phase_retrieval", "place": "one"}, "task.place=one: must be one of zero, orthogonal"),
        ({"kind": "phase_retrieval", "measurements": 5}, "task.place=orthogonal: that saddle is known for "
         "task.measurements=null alone; set task.place=zero"),
    ],
)  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(ValueError) as error:
        Saddle(**options)
    assert str(error.value) == message
