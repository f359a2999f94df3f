from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ph_l2o.evaluation import evaluate_optimizer
from ph_l2o.keys import ProblemKeys
from ph_l2o.port_hamiltonian.diagonal import PortHamiltonian
from ph_l2o.tasks.quadratic import Quadratic

F64 = torch.float64


def test_losses_of_gradient_descent_on_a_parabola(descent: Any, bowl: Any) -> None:
    # θ_k = (1 - lr a)^k, so loss_k = ½ a (1 - lr a)^(2k): loss_0 is the start, loss_T the end.
    result = evaluate_optimizer(descent(lr=0.1), bowl(), horizon=25, num_problems=5, seed=0, dtype=F64)
    a, k = np.arange(1, 6), np.arange(26)[:, None]
    expected = 0.5 * a * (1 - 0.1 * a) ** (2 * k)
    assert result.losses == pytest.approx(expected, rel=1e-12)
    assert result.final == pytest.approx(expected[-1], rel=1e-12)
    assert result.last10.mean() == pytest.approx(expected[16:].mean())
    assert result.all.mean() == pytest.approx(expected[1:].mean())
    assert result.metrics["test_loss"] == pytest.approx((1 - 0.1 * a) ** 50, rel=1e-12)
    assert not result.diverged.any() and result.step_seconds > 0


def test_short_horizon_has_no_start_in_its_means(descent: Any, bowl: Any) -> None:
    result = evaluate_optimizer(descent(), bowl(), horizon=3, num_problems=2, seed=0)
    assert result.last10.mean() == result.all.mean() == pytest.approx(result.losses[1:].mean())


def test_final_loss_of_a_stochastic_task_is_of_fresh_batches(descent: Any, bowl: Any) -> None:
    task = bowl(noise=0.1)
    result = evaluate_optimizer(descent(), task, horizon=4, num_problems=3, seed=5, dtype=F64)
    quiet = evaluate_optimizer(descent(), bowl(), horizon=4, num_problems=3, seed=5, dtype=F64)
    fresh = task.sample(ProblemKeys(5, "test", 0, range(3)), dtype=F64).final_batches(10)
    assert result.final == pytest.approx(quiet.final + torch.stack(list(fresh)).mean(0).numpy())
    assert (result.final != result.losses[-1]).all()


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_chunks_do_not_matter(noise: float) -> None:
    torch.manual_seed(0)
    optimizer, task = PortHamiltonian(), Quadratic(4, noise=noise)
    settings: dict[str, Any] = {"horizon": 30, "num_problems": 64, "seed": 3, "dtype": F64}
    a = evaluate_optimizer(optimizer, task, chunk=7, **settings)
    b = evaluate_optimizer(optimizer, task, chunk=64, **settings)
    assert np.array_equal(a.losses[0], b.losses[0])
    assert a.losses == pytest.approx(b.losses, rel=1e-7, abs=1e-10)
    assert a.final == pytest.approx(b.final, rel=1e-7, abs=1e-10)


def test_same_problems_for_every_optimizer(descent: Any) -> None:
    settings: dict[str, Any] = {"horizon": 2, "num_problems": 9, "seed": 1}
    task = Quadratic(3)
    a = evaluate_optimizer(descent(lr=0.01), task, **settings)
    b = evaluate_optimizer(PortHamiltonian(), task, **settings)
    val = evaluate_optimizer(descent(lr=0.01), task, split="val", **settings)
    assert np.array_equal(a.losses[0], b.losses[0])
    assert not np.isin(val.losses[0], a.losses[0]).any()


def test_divergence_is_kept(descent: Any, bowl: Any) -> None:
    # |1 - lr a| > 1 for a > 2: the third problem grows slowly, later ones overflow.
    result = evaluate_optimizer(descent(lr=1.0), bowl(), horizon=100, num_problems=40, seed=0, dtype=F64)
    assert result.diverged.tolist() == [False, False] + [True] * 38
    assert np.isfinite(result.final[2]) and result.final[2] > result.losses[0, 2]
    assert np.isposinf(result.final[-1]) and np.isposinf(result.metrics["test_loss"][-1])
    assert not np.isnan(result.losses).any()
    assert result.last10.mean() == np.inf


def test_the_optimizer_is_not_changed() -> None:
    optimizer = PortHamiltonian().train()
    before = {name: value.clone() for name, value in optimizer.state_dict().items()}
    evaluate_optimizer(optimizer, Quadratic(2), horizon=2, num_problems=2, seed=0, dtype=F64)
    assert optimizer.training
    for name, value in optimizer.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


def test_progress_is_told(descent: Any, bowl: Any) -> None:
    told: list[tuple[int, int]] = []
    evaluate_optimizer(
        *(descent(), bowl()), horizon=1, num_problems=5, seed=0, chunk=2, progress=lambda *x: told.append(x)
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, r"horizon=0: must be >= 1 \(inner steps\)"),
        ({"horizon": 2.5}, r"horizon=2\.5: must be a whole number >= 1"),
        ({"num_problems": 0}, "num_problems=0: must be >= 1"),
        ({"seed": -1}, "seed=-1: must be >= 0"),
        ({"chunk": 0}, "chunk=0: must be >= 1"),
        ({"split": "tests"}, "split=tests: must be one of train, val, test"),
    ],
)
def test_bad_arguments(descent: Any, bowl: Any, change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"horizon": 1, "num_problems": 2, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        evaluate_optimizer(descent(), bowl(), **settings)
