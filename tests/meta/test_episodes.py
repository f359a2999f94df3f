"""Several episodes under way at once, windows that an outer step averages, horizons that grow, hidden losses."""

import dataclasses

import pytest
import torch

from ph_l2o.errors import CheckpointError
from ph_l2o.meta import MetaSettings, fit
from ph_l2o.meta.episodes import EpisodeSource
from ph_l2o.optimizers import Adam, PortHamiltonian
from ph_l2o.tasks import Quadratic
from tests.meta.test_learner import Kill, Killed, _columns, checkpoint, learner

WHERE = {"rank": 0, "world_size": 1, "device": torch.device("cpu"), "dtype": torch.float32}


def test_horizons_grow():
    source = EpisodeSource(Quadratic(), seed=0, num_problems=2, horizons=(10, 20, 50, 100), curriculum=0.5)
    assert {source.horizon(e, 0.0) for e in range(20)} == {10}
    assert {source.horizon(e, 0.25) for e in range(20)} == {10, 20, 50}
    assert (
        {source.horizon(e, 0.5) for e in range(20)} == {source.horizon(e, 1.0) for e in range(20)} == {10, 20, 50, 100}
    )
    plain = EpisodeSource(Quadratic(), seed=0, num_problems=2, horizons=(30, 10))
    assert [plain.horizon(e, 0.0) for e in range(4)] == [30, 10, 30, 10]


def test_losses_are_hidden_in_part_of_the_problems():
    source = EpisodeSource(Quadratic(), seed=0, num_problems=400, horizons=(10,), hide_loss=0.3, rescale=0.5)
    episode = source.begin(3, PortHamiltonian(hidden_size=4), 10, **WHERE)
    share = 1 - episode.carry.state.uses_loss.mean()
    assert 0.2 < share < 0.4
    part = EpisodeSource(Quadratic(), seed=0, num_problems=400, horizons=(10,), hide_loss=0.3)
    half = part.begin(3, PortHamiltonian(hidden_size=4), 10, **WHERE | {"rank": 1, "world_size": 2})
    assert torch.equal(half.carry.state.uses_loss, episode.carry.state.uses_loss[200:])
    with pytest.raises(ValueError, match=r"meta.hide_loss: Adam cannot go without"):
        source.begin(3, Adam(), 10, **WHERE)


def test_resume_with_several_episodes_is_bitwise(tmp_path):
    settings = {"episodes": 3, "windows": 2, "horizons": (3, 6, 12), "curriculum": 0.5, "hide_loss": 0.5}
    fit(learner(**settings), tmp_path / "whole", callbacks=[])
    with pytest.raises(Killed):
        fit(learner(**settings), tmp_path / "resumed", callbacks=[Kill(9)])
    last = tmp_path / "resumed" / "checkpoints" / "last.ckpt"
    fit(learner(**settings), tmp_path / "resumed", callbacks=[], ckpt_path=last)
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "resumed")
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    assert any(whole["ph_l2o"]["episodes"])  # one is under way
    for a, b in zip(whole["ph_l2o"]["episodes"], resumed["ph_l2o"]["episodes"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a["age"], a["horizon"], a["number"]) == (b["age"], b["horizon"], b["number"])
    assert _columns(tmp_path / "whole") == _columns(tmp_path / "resumed")
    with pytest.raises(CheckpointError, match=r"it has 3 episodes under way, meta.episodes=2; resume with the set"):
        fit(learner(**settings | {"episodes": 2}), tmp_path / "other", callbacks=[], ckpt_path=last)


def test_an_outer_step_averages_windows_that_are_clipped_one_by_one(tmp_path):
    settings = {
        "horizons": (6,),
        "outer_steps": 1,
        "outer_optimizer": "sgd",
        "schedule": "constant",
        "learning_rate": 1.0,
    }
    clip = 0.05

    def change(name: str, **more: object) -> torch.Tensor:
        module = learner(Adam(lr=0.05), **settings, **more)
        before = torch.cat([p.detach().flatten().clone() for p in module.optimizer.parameters()])
        fit(module, tmp_path / name, callbacks=[])
        return torch.cat([p.detach().flatten() for p in module.optimizer.parameters()]) - before

    both = change("both", episodes=2, windows=2, gradient_clip=clip)
    # One by one: the second episode comes where the first one is left out.
    singles = []
    for number in (0, 1):
        module = learner(Adam(lr=0.05), **settings, gradient_clip=clip)
        module._rotation._next_number = number
        before = torch.cat([p.detach().flatten().clone() for p in module.optimizer.parameters()])
        fit(module, tmp_path / f"single{number}", callbacks=[])
        singles.append(torch.cat([p.detach().flatten() for p in module.optimizer.parameters()]) - before)
    assert all(s.norm() == pytest.approx(clip, rel=1e-4) for s in singles)
    torch.testing.assert_close(both, (singles[0] + singles[1]) / 2, rtol=1e-4, atol=1e-7)


class _SometimesBroken(Quadratic):
    """The second episode is not finite."""

    def sample(self, keys, **where):
        problem = super().sample(keys, **where)
        if keys.split == "train" and keys.episode == 1:
            problem.matrix = problem.matrix * torch.inf
        return problem


def test_a_broken_window_is_left_out(tmp_path, caplog):
    module = learner(task=_SometimesBroken(3), episodes=2, windows=2, outer_steps=3, val_every=3)
    fit(module, tmp_path, callbacks=[])
    assert module.windows_left_out == 1 and module.skipped_steps == 0 and module.global_step == 3
    assert "outer step 1: 1 of 2 windows without a finite meta-gradient left out" in caplog.text
    assert all(p.isfinite().all() for p in module.optimizer.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "meta.episodes=0: must be a whole number >= 1"),
        ({"windows": 0}, "meta.windows=0: must be a whole number >= 1"),
        ({"hide_loss": 1.5}, r"meta.hide_loss=1.5: must be in \[0, 1\]"),
        ({"curriculum": -0.1}, r"meta.curriculum=-0.1: must be in \[0, 1\]"),
        ({"curriculum": 0.5, "horizons": (20, 10)}, "meta.horizons=.*: must ascend where meta.curriculum > 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MetaSettings(), **settings)
