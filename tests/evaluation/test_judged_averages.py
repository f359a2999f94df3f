"""An optimizer that averages is judged at its average: against a loop with a torch module and torch's Adam."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from ph_l2o.evaluation import evaluate_optimizer
from ph_l2o.evaluation.modes import InMode
from ph_l2o.keys import ProblemKeys
from ph_l2o.meta.validation import validate
from ph_l2o.optimizers import Adam, Averaged, PortHamiltonian, Scheduled, ScheduleFreeAdamW
from ph_l2o.optimizers.averaged import POWER
from ph_l2o.tasks import Quadratic
from ph_l2o.tasks.suite import Tabular

STEPS, RENEWALS = 30, 50


def test_losses_and_held_out_rows_are_judged_at_the_average():
    task = Tabular("digits", hidden_sizes=[8], batch_norm=True, held_out=64)
    optimizer = Averaged(Adam(lr=0.05))
    result = evaluate_optimizer(optimizer, task, horizon=STEPS, num_problems=1, seed=0, dtype=torch.float64)
    plain = evaluate_optimizer(optimizer.optimizer, task, horizon=STEPS, num_problems=1, seed=0, dtype=torch.float64)

    problem = task.sample(ProblemKeys(0, "test", 0, range(1)), dtype=torch.float64)
    module = task.make_module([64, 8, 10]).double()
    module.load_state_dict({**{k: x[0] for k, x in problem.params.tensors().items()}, **module_buffers(problem)})
    mean, adam, expected = copy.deepcopy(module), torch.optim.Adam(module.parameters(), 0.05), []
    for k, batch in enumerate(problem.batches(0, STEPS + 1), start=1):
        expected.append(cross_entropy(mean(batch.rows[0][0]), batch.rows[1][0]).item())
        module.zero_grad()
        if k <= STEPS:
            cross_entropy(module(batch.rows[0][0]), batch.rows[1][0]).backward()
            adam.step()
        with torch.no_grad():
            for average, x in zip(mean.parameters(), module.parameters(), strict=True):
                average += (k <= STEPS) * (POWER + 1) / (POWER + k) * (x - average)
    assert result.losses[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert result.losses[-10:, 0].tolist() != pytest.approx(plain.losses[-10:, 0].tolist(), rel=1e-3)

    mean.load_state_dict({k: x for k, x in module.state_dict().items() if "running" in k}, strict=False)
    for batch in problem.final_batches(RENEWALS):
        mean(batch.rows[0][0])
    x, y = (t[-64:] for t in problem._arrays)
    held_out = cross_entropy(mean.eval()(x), y).item()
    assert result.metrics["test_loss"].item() == pytest.approx(held_out, rel=1e-6)
    mean.load_state_dict({k: x for k, x in module.state_dict().items() if "running" in k}, strict=False)
    assert cross_entropy(mean(x), y).item() != pytest.approx(held_out, rel=1e-3), "statistics of the iterates"


def module_buffers(problem):
    return {k: x[0] for k, x in problem.buffers.items()}


def test_the_suffix():
    made = InMode(PortHamiltonian(), ("average", "no_loss")).at(20)
    assert isinstance(made, Averaged) and made.optimizer.optimizer.total_steps is None and not made.needs_loss
    assert InMode(PortHamiltonian(), ("average", "total_steps")).at(20).optimizer.total_steps == 20
    with pytest.raises(ValueError, match=r"\+average: .*ScheduleFreeAdamW: averages already"):
        InMode(ScheduleFreeAdamW(), ("average",))
    assert Averaged(Scheduled(Adam(), horizon=3)).reads_out


def test_a_validation_is_of_the_average():
    task, optimizer = Quadratic(3, noise=0.5), Averaged(Adam(lr=0.1))
    where = {"rank": 0, "world_size": 1, "device": "cpu", "dtype": torch.float32}
    found = validate(optimizer, task, num_problems=8, horizon=STEPS, seed=0, **where)
    expected = evaluate_optimizer(optimizer, task, horizon=STEPS, num_problems=8, seed=0, split="val").final.mean()
    plain = evaluate_optimizer(Adam(lr=0.1), task, horizon=STEPS, num_problems=8, seed=0, split="val").final.mean()
    assert found["val/quadratic/final_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert plain != pytest.approx(expected, rel=1e-3)
