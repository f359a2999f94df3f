"""Modes of learned optimizers, baselines that are not tuned, and optimizers that read out other parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ph_l2o.checkpoints import load_weights
from ph_l2o.evaluation import compare, compare_suite, evaluate_optimizer
from ph_l2o.evaluation.baselines import named_optimizers, ready
from ph_l2o.evaluation.modes import InMode
from ph_l2o.inner import Carry, inner_step, run, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import RMSprop, RNNprop, Scheduled, ScheduleFreeAdamW
from ph_l2o.tasks import Quadratic
from ph_l2o.tasks.suite import Tabular

SETTINGS: dict[str, Any] = {"horizon": 12, "num_problems": 3, "seed": 0}


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_weights("default")


def losses(optimizer: Any) -> torch.Tensor:
    return torch.from_numpy(evaluate_optimizer(optimizer, Quadratic(3), **SETTINGS).losses)


def test_with_total_steps(shipped):
    by_hand = copy.deepcopy(shipped)
    by_hand.total_steps = 12
    assert torch.equal(losses(InMode(shipped, ("total_steps",)).at(12)), losses(by_hand))
    assert not torch.equal(losses(by_hand), losses(shipped)) and shipped.total_steps is None


def test_without_the_loss_it_is_hidden(shipped):
    problem = Quadratic(3).sample(ProblemKeys(0, "test", 0, range(3)))
    carry = start(shipped, problem)
    carry = Carry(carry.params, shipped.hide_loss(carry.state, torch.ones(3, dtype=torch.bool)), carry.buffers)
    hidden = run(shipped, problem, 12, carry=carry)[1].double()
    without = losses(InMode(shipped, ("no_loss",)).at(12))
    assert torch.equal(without, hidden) and not torch.equal(without, losses(shipped))


def test_modes_combine_in_any_order(shipped):
    both = [losses(InMode(shipped, words).at(12)) for words in (("total_steps", "no_loss"), ("no_loss", "total_steps"))]
    assert torch.equal(*both) and not torch.equal(both[0], losses(InMode(shipped, ("total_steps",)).at(12)))


@pytest.mark.parametrize(
    ("optimizer", "mode", "message"),
    [
        (RNNprop(), "total_steps", "[+]total_steps: RNNprop has no total_steps"),
        (RNNprop(), "no_los", "[+]no_los: no mode has this name; did you mean no_loss"),
    ],
)
def test_a_mode_that_does_not_fit_is_one_line(optimizer, mode, message):
    with pytest.raises(ValueError, match=message):
        InMode(optimizer, (mode,))


def test_one_that_needs_the_loss_cannot_go_without(shipped):
    needy = copy.deepcopy(shipped)
    needy.needs_loss = True
    with pytest.raises(ValueError, match=r"[+]no_loss: PortHamiltonian cannot go without the loss"):
        InMode(needy, ("no_loss",))


def test_in_a_suite_the_horizon_is_the_tasks(shipped):
    suite = {"short": (Quadratic(3), 6), "long": (Quadratic(3), 12)}
    made = compare_suite({"ours": InMode(shipped, ("total_steps",)), "adam": "adam"}, suite, num_problems=3)
    assert made.roles == {"ours": "learned", "adam": "baseline"}
    for task, horizon in (("short", 6), ("long", 12)):
        found = losses(InMode(shipped, ("total_steps",)).at(horizon)) if horizon == 12 else None
        if found is not None:
            assert made.tasks[task].runs["ours"].losses.tolist() == pytest.approx(found[-1].tolist())
    assert named_optimizers([InMode(shipped, ("no_loss",))]).keys() == {"porthamiltonian+no_loss"}
    rows = compare([InMode(shipped, ("total_steps",))], Quadratic(3), horizon=6, num_problems=3).rows
    assert rows[0]["kind"] == "learned" and rows[0]["optimizer"] == "porthamiltonian+total_steps"


def test_untuned_rows_run_as_they_are():
    suite = {"a": (Quadratic(3), 12), "b": (Quadratic(5), 12)}
    made = compare_suite(["adam", "rmsprop+cosine+untuned", "sgd+untuned"], suite, num_problems=3)
    assert made.roles == {"adam": "baseline", "rmsprop+cosine+untuned": "untuned", "sgd+untuned": "untuned"}
    expected = losses(Scheduled(RMSprop(), horizon=12))[-1].tolist()
    assert made.tasks["a"].runs["rmsprop+cosine+untuned"].losses.tolist() == pytest.approx(expected)
    assert set(made.tasks["a"].tuned) == {"adam"} and made.tasks["a"].best_baseline == "adam"
    by_name = {row["optimizer"]: row for row in made.rows if row["task"] == "a"}
    best = min(by_name[n]["loss"] for n in by_name if n != "adam")
    assert by_name["adam"]["ratio_to_best_untuned"]["ratio"] == pytest.approx(best / by_name["adam"]["loss"])
    assert by_name["sgd+untuned"]["hyperparameters"] is None and by_name["sgd+untuned"]["kind"] == "untuned"
    assert made.summary["adam"]["best_untuned"].num_tasks == 2 and "to best untuned" in str(made)
    assert ready("adam", 3) is None
    rows = compare(["adam+untuned"], Quadratic(3), horizon=6, num_problems=3).rows
    assert rows[0]["kind"] == "classical" and rows[0]["learning_rate"] == pytest.approx(0.01)


def test_the_reference_can_be_chosen():
    suite = {"a": (Quadratic(3), 12)}
    made = compare_suite(["adam", "sgd+linear"], suite, num_problems=3, reference="sgd+linear")
    adam, sgd = made.rows
    assert adam["ratio_to_sgd+linear"]["ratio"] == pytest.approx(sgd["loss"] / adam["loss"])
    assert "ratio_to_adam" not in adam and made.settings["reference"] == "sgd+linear"
    with pytest.raises(ValueError, match=r"reference=adam[+]untuned: must be a baseline that is tuned"):
        compare_suite(["adam"], suite, reference="adam+untuned")
    with pytest.raises(ValueError, match=r"reference=adma: .*did you mean adam"):
        compare_suite(["adam"], suite, reference="adma")


def test_what_is_read_out_is_judged_with_its_own_statistics():
    """Losses of each step and at the end, and BatchNorm in evaluation mode, are those of the average."""
    task = Tabular("digits", hidden_sizes=[8], batch_norm=True, held_out=64)
    optimizer, keys = ScheduleFreeAdamW(lr=0.05), ProblemKeys(0, "test", 0, range(3))
    result = evaluate_optimizer(optimizer, task, **SETTINGS)
    problem = task.sample(keys)
    carry = start(optimizer, problem)
    with torch.no_grad():
        for batch in problem.batches(0, 12):
            carry, _ = inner_step(optimizer, problem, carry, batch)
        average = optimizer.readout(carry.params, carry.state)
        last = problem.loss(average, carry.buffers, next(problem.batches(12, 1)))[0]
    torch.testing.assert_close(torch.from_numpy(result.losses[-1]).float(), last)
    stale = problem.test_metrics(average, carry.buffers)["test_loss"]
    assert not torch.allclose(torch.from_numpy(result.metrics["test_loss"]).float(), stale)
    buffers = carry.buffers
    for batch in problem.final_batches(400):
        _, buffers = problem.loss(average, buffers, batch)
    fresh = problem.test_metrics(average, buffers)["test_loss"]
    torch.testing.assert_close(torch.from_numpy(result.metrics["test_loss"]).float(), fresh, rtol=0.1, atol=0)
