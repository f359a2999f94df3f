"""Which meta-parameters are trained, windows of whole episodes, and what they are judged by."""

import math

import pytest
import torch
from test_learner import Kill, Killed

from ph_l2o.errors import CheckpointError
from ph_l2o.estimators import ES, OBJECTIVES, Truncated
from ph_l2o.meta import MetaLearner, MetaSettings, fit
from ph_l2o.optimizers import PortHamiltonian, PortHamiltonianKronecker
from ph_l2o.tasks import Quadratic

SMALL = {"num_problems": 3, "val_problems": 3, "val_horizon": 4, "val_every": 2}


def learner(form=PortHamiltonian, estimator=None, **settings) -> MetaLearner:
    torch.manual_seed(0)
    settings = MetaSettings(**{**SMALL, **settings})
    return MetaLearner(form(hidden_size=4), Quadratic(3, noise=0.1), estimator or Truncated(), settings, seed=0)


@pytest.mark.parametrize("form", [PortHamiltonian, PortHamiltonianKronecker])
@pytest.mark.parametrize("estimator", [Truncated(), ES(num_pairs=2)], ids=["truncated", "es"])
def test_only_what_is_named_is_trained(form, estimator, tmp_path):
    settings = {"outer_steps": 4, "horizons": (6,), "truncation": 3, "only": ("controller.4", "controller.powers")}
    made = learner(form, estimator, **settings)
    before = {name: p.detach().clone() for name, p in made.optimizer.named_parameters()}
    fit(made, tmp_path / "whole")
    changed = {name for name, p in made.optimizer.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"controller.4.weight", "controller.4.bias", "controller.powers"}
    with pytest.raises(Killed):
        fit(learner(form, estimator, **settings), tmp_path / "half", callbacks=[Kill(3)])
    resumed = learner(form, estimator, **settings)
    fit(resumed, tmp_path / "half", ckpt_path=tmp_path / "half" / "checkpoints" / "last.ckpt")
    for name, p in resumed.optimizer.named_parameters():
        assert torch.equal(p, made.optimizer.get_parameter(name)), name


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["controler.4"], r"meta.only=\['controler.4'\]: controler.4 is no meta-parameter and no module"),
        ([], r"meta.only=\[\]: must be a list of names"),
        ("controller.4", r"meta.only=controller.4: must be a list of names"),
        (3, r"meta.only=3: must be a list of names"),
        ([""], r"meta.only=\[''\]: must be a list of names"),
    ],
)
def test_names_that_make_no_sense_are_refused(only, message):
    with pytest.raises(ValueError, match=message):
        learner(only=only)


def test_a_resume_that_trains_something_else_is_refused(tmp_path):
    settings = {"outer_steps": 4, "horizons": (6,), "truncation": 3}
    with pytest.raises(Killed):
        fit(learner(only=["controller.0.bias"], **settings), tmp_path, callbacks=[Kill(3)])
    again = learner(only=["controller.2.bias"], **settings)
    with pytest.raises(CheckpointError, match=r"other meta-parameters than meta\.only says"):
        fit(again, tmp_path, callbacks=[], ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize("form", [PortHamiltonian, PortHamiltonianKronecker])
def test_windows_of_whole_episodes(form, tmp_path):
    """Without a truncation each outer step has an episode of its own, as with estimator=full."""
    made = learner(form, ES(), outer_steps=3, horizons=(4, 7), truncation=None, objective="late_log_loss")
    assert [made.meta.window_length(made.estimator, horizon) for horizon in (4, 7)] == [4, 7]
    assert made.meta.inner_steps(made.estimator) == 3 * 4
    fit(made, tmp_path)
    assert made._rotation.windows == 3 and made._rotation.current.number == 2  # one window for each episode
    assert all(p.isfinite().all() for p in made.optimizer.parameters())


def test_late_log_loss():
    losses = torch.rand(25, 3, dtype=torch.float64) + 0.1
    expected = sum(math.log(losses[-2:, b].mean().item() + 1e-9) for b in range(3)) / 3
    assert OBJECTIVES["late_log_loss"](losses).item() == pytest.approx(expected, rel=1e-12)
    for broken in (math.inf, math.nan, 1e30):
        losses[-1, 1] = broken
        rest = sum(math.log(losses[-2:, b].mean().item() + 1e-9) for b in (0, 2))
        assert OBJECTIVES["late_log_loss"](losses).item() == pytest.approx((rest + 20) / 3, rel=1e-12)
