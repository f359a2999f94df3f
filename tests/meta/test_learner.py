"""Meta-training in Lightning: resume, skipped steps, splits, memory."""

import functools
import gc
import math
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from ph_l2o import meta_train
from ph_l2o.checkpoints import load_checkpoint
from ph_l2o.estimators import ES, NRES, PES, ESSingle, Estimator, Forward, Full, Truncated
from ph_l2o.meta import MetaLearner, MetaSettings, NonFiniteError, fit
from ph_l2o.optimizers import Adam, PortHamiltonian
from ph_l2o.tasks import Problem, Quadratic

SMALL = {
    "outer_steps": 12,
    "num_problems": 4,
    "horizons": (5, 13),
    "truncation": 3,
    "val_every": 4,
    "val_problems": 4,
    "val_horizon": 5,
}


def learner(optimizer=None, task=None, order=2, seed=0, estimator: Estimator | None = None, **settings) -> MetaLearner:
    torch.manual_seed(0)
    estimator = estimator or Truncated(order=order)
    optimizer = PortHamiltonian(hidden_size=4) if optimizer is None else optimizer
    meta = MetaSettings(**{**SMALL, **settings})
    return MetaLearner(optimizer, task or Quadratic(3, noise=0.1), estimator, meta, seed=seed)


def checkpoint(folder: Path, name: str = "last") -> dict:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


class Killed(Exception):
    pass


class Kill(pl.Callback):
    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            raise Killed


@pytest.mark.parametrize(
    ("killed_at", "estimator"),
    [
        (5, Truncated()),
        (8, Truncated()),
        (11, Truncated()),
        (5, PES(num_pairs=2)),
        (11, PES(noise="shared")),
        (11, ES()),
        (11, ESSingle()),
        (11, NRES(reuse=6)),
        (11, Forward()),
        (5, Forward(num_directions=2)),
        (11, Forward(num_directions=2, noise="shared")),
        (11, Full()),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Estimator) else str(x),
)
def test_resume_continues_bitwise(tmp_path, killed_at, estimator):
    fit(learner(estimator=estimator), tmp_path / "whole", callbacks=[])
    with pytest.raises(Killed):
        fit(learner(estimator=estimator), tmp_path / "resumed", callbacks=[Kill(killed_at)])
    assert checkpoint(tmp_path / "resumed")["global_step"] == (killed_at - 1) // 4 * 4
    # Another seed of the weights: all that counts comes out of the file.
    fit(
        learner(estimator=estimator),
        tmp_path / "resumed",
        callbacks=[],
        ckpt_path=tmp_path / "resumed" / "checkpoints" / "last.ckpt",
    )
    whole, resumed = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "resumed")
    assert whole["global_step"] == resumed["global_step"] == 12
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    a, b = whole["ph_l2o"]["episodes"][0], resumed["ph_l2o"]["episodes"][0]
    assert (a is None) == (b is None) == isinstance(estimator, Full)  # its every window ends an episode
    if a is not None:
        assert a["number"] == b["number"] and a["age"] == b["age"] and torch.equal(a["params"], b["params"])
        assert all(torch.equal(x, y) for x, y in zip(a["state"], b["state"], strict=True))
    assert _columns(tmp_path / "whole") == _columns(tmp_path / "resumed")


def _columns(folder: Path) -> list[list[str]]:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    keep = [k for k, name in enumerate(lines[0]) if name != "train/task_steps_per_s"]
    return [[line[k] for k in keep] for line in lines]


def test_last_ckpt_is_last_and_best_is_best(tmp_path):
    trainer = fit(learner(learning_rate=0.5), tmp_path, callbacks=[])
    assert checkpoint(tmp_path)["global_step"] == 12 == trainer.global_step
    scores = [float(row[-1]) for row in _columns(tmp_path)[1:] if row[-1]]
    assert len(scores) == 3
    assert checkpoint(tmp_path, "best")["global_step"] == 4 * (1 + scores.index(min(scores)))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_validation_every_so_many_steps_and_at_a_ragged_end(tmp_path):
    fit(learner(outer_steps=6), tmp_path, callbacks=[])
    rows = _columns(tmp_path)
    assert [row[0] for row in rows[1:] if row[-1]] == ["4", "6"]
    assert len(rows) == 7


def test_surrogate_has_the_meta_gradient(tmp_path):
    """The gradients that reach the outer optimizer are those of the estimator."""
    seen = []

    class Spy(Truncated):
        def __call__(self, *args):
            estimate = super().__call__(*args)
            seen.append(estimate.gradient)
            return estimate

    class Grads(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            for name, p in module.optimizer.named_parameters():
                assert torch.equal(p.grad, seen[-1][name]), name

    made = learner(outer_steps=3, estimator=Spy())
    fit(made, tmp_path, callbacks=[Grads()])
    assert len(seen) == 3
    assert any(g.abs().max() > 0 for g in seen[-1].values())


class Exploding(Quadratic):
    """Quadratics whose loss is NaN in chosen episodes."""

    bad: tuple[int, ...] = (1,)

    def sample(self, keys, **where):
        problem = super().sample(keys, **where)
        if keys.split == "train" and keys.episode in self.bad:
            problem.matrix = problem.matrix * torch.nan
        return problem


def test_a_step_that_is_not_finite_is_skipped_counted_and_said(tmp_path, caplog):
    made = learner(task=Exploding(3))
    start = {k: v.clone() for k, v in made.optimizer.state_dict().items()}
    fit(made, tmp_path, callbacks=[])
    assert made.skipped_steps == 1
    assert caplog.text.count("step skipped") == 1
    assert "outer step 3" in caplog.text  # episode 0 has two windows
    assert all(torch.isfinite(p).all() for p in made.optimizer.parameters())
    assert any(not torch.equal(v, start[k]) for k, v in made.optimizer.state_dict().items())
    assert checkpoint(tmp_path)["ph_l2o"]["skipped_steps"] == 1


def test_a_skipped_step_changes_nothing(tmp_path):
    task = Exploding(3)
    task.bad = (0,)
    made = learner(task=task, outer_steps=1)
    start = {k: v.clone() for k, v in made.optimizer.state_dict().items()}
    with pytest.raises(NonFiniteError, match="none of 1 outer steps had a finite meta-gradient"):
        fit(made, tmp_path, callbacks=[])
    assert all(torch.equal(v, start[k]) for k, v in made.optimizer.state_dict().items())


def test_only_nan_ends_with_one_error(tmp_path):
    task = Exploding(3)
    task.bad = tuple(range(100))
    with pytest.raises(NonFiniteError, match="in a row"):
        fit(learner(task=task, outer_steps=50), tmp_path, callbacks=[])


def test_trainer_test_has_gradients(tmp_path):
    """An L2O test step needs gradients, which Lightning's inference mode would forbid."""
    made = learner()
    trainer = fit(made, tmp_path, callbacks=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = trainer.test(made, verbose=False)
    assert math.isfinite(found["val/quadratic/final_loss"])


def test_checkpoint_loads_weights_only_and_holds_the_configuration(tmp_path):
    made = learner()
    made.config = {"optimizer": {"_target_": "ph_l2o.optimizers.PortHamiltonian", "hidden_size": 4}}
    fit(made, tmp_path, callbacks=[])
    assert checkpoint(tmp_path)["ph_l2o"]["config"] == made.config


def test_memory_flat_over_outer_steps(tmp_path):
    """No graph stays alive from one window to the next."""
    counts: list[int] = []

    class Count(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in (50, 200):
                gc.collect()
                counts.append(sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()))

    # horizons that 50 and 200 fall at the same age of
    fit(learner(outer_steps=200, val_every=200, horizons=(6,)), tmp_path, callbacks=[Count()])
    assert len(counts) == 2
    assert counts[1] <= counts[0] + 5


def test_seed_decides_everything(tmp_path):
    fit(learner(seed=1), tmp_path / "a", callbacks=[])
    fit(learner(seed=1), tmp_path / "b", callbacks=[])
    fit(learner(seed=2), tmp_path / "c", callbacks=[])
    a, b, c = (_columns(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_meta_train_learns_adams_learning_rate():
    """`optimizer=adam` meta-learns: from a rate that is far too low to one that is better on fresh problems."""
    start = Adam(lr=1e-3)
    trained = meta_train(
        start, Quadratic(3), outer_steps=60, truncation=10, learning_rate=0.1, num_problems=16,
        horizons=(20,), val_every=30, val_problems=16, val_horizon=20, gradient_clip=None,
    )  # fmt: skip
    assert isinstance(trained, Adam)
    assert trained.hyperparameters["lr"].item() > 0.02
    assert math.isclose(start.hyperparameters["lr"].item(), 1e-3, rel_tol=1e-5)  # the given one is left as it is


def test_a_checkpoint_of_meta_train_can_be_rebuilt(tmp_path):
    made = PortHamiltonian(hidden_size=5, budget=50.0)
    trained = meta_train(made, Quadratic(3), estimator=Truncated(), output_dir=tmp_path, **SMALL)
    rebuilt, config = load_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert config["optimizer"] == {"_target_": "ph_l2o.optimizers.PortHamiltonian", **RECIPE}
    assert isinstance(rebuilt, PortHamiltonian) and rebuilt.budget == 50.0
    for name, value in trained.state_dict().items():
        assert torch.equal(value, rebuilt.state_dict()[name])


RECIPE = {"hidden_size": 5, "budget": 50.0}


def test_meta_train_in_float64():
    made = PortHamiltonian(hidden_size=4).double()
    trained = meta_train(made, Quadratic(3), estimator=Truncated(), **SMALL)
    assert next(trained.parameters()).dtype == torch.float64


@pytest.mark.parametrize("name", ["full", "forward", "es", "pes", "es_single", "nres"])
def test_estimators_by_name(name):
    """Any of them takes Adam from a learning rate that is too low to a higher one."""
    trained = meta_train(
        Adam(lr=1e-3), Quadratic(3), outer_steps=20, estimator=name, learning_rate=0.1, num_problems=16,
        horizons=(20,), val_every=20, val_problems=8, val_horizon=20, gradient_clip=None,
    )  # fmt: skip
    assert isinstance(trained, Adam)
    assert trained.hyperparameters["lr"].item() > 2e-3


def test_an_unknown_estimator_is_named():
    with pytest.raises(
        ValueError, match=r"estimator=pess: must be one of truncated, full, forward, es, pes, es_single, nres"
    ):
        meta_train(Adam(), Quadratic(3), estimator="pess")


def test_full_has_one_outer_step_for_each_episode(tmp_path):
    lengths = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            assert module.episode.is_over and module.episode.age == module.episode.horizon
            lengths.append(module.episode.age)

    fit(learner(estimator=Full(), truncation=50, outer_steps=4), tmp_path, callbacks=[Watch()])
    assert lengths == [5, 13, 5, 13]


def test_validation_uses_its_own_split():
    keys = []

    class Watched(Quadratic):
        def sample(self, key, **where) -> Problem:
            keys.append((key.split, key.episode))
            return super().sample(key, **where)

    meta_train(PortHamiltonian(hidden_size=4), Watched(3), estimator=Truncated(), **SMALL)
    assert {split for split, _ in keys} == {"train", "val"}
    assert {episode for split, episode in keys if split == "val"} == {0}
    trained = [episode for split, episode in keys if split == "train"]
    assert trained == sorted(set(trained))  # each episode is fresh


def test_schedule_and_outer_optimizer(tmp_path):
    """Gradient descent with warm-up and cosine: weights move by rate · gradient, at the rates of the formula."""
    rates, moves = [], []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.before = torch.cat([p.detach().flatten().clone() for p in module.optimizer.parameters()])
            self.grad = torch.cat([p.grad.flatten() for p in module.optimizer.parameters()])
            rates.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer, module, *_):
            after = torch.cat([p.detach().flatten() for p in module.optimizer.parameters()])
            moves.append((after - self.before + rates[-1] * self.grad).abs().max().item())

    settings = {"outer_optimizer": "sgd", "learning_rate": 0.01, "warmup_steps": 3, "gradient_clip": None}
    fit(learner(PortHamiltonian(hidden_size=4).double(), **settings), tmp_path, callbacks=[Watch()])
    expected = [0.01 * min(1, (k + 1) / 4) * (0.5 + 0.5 * math.cos(math.pi * k / 12)) for k in range(12)]
    assert rates == pytest.approx(expected)
    assert max(moves) < 1e-12


def test_objective_outer_optimizer_and_schedule_of_ones_own(tmp_path):
    """A schedule of torch.optim's steps with each outer step; the weights move by what the outer optimizer does."""
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append((type(optimizer), optimizer.param_groups[0]["lr"]))

    def last_two(losses):
        return losses[-2:].mean()

    settings = {
        "objective": last_two,
        "outer_optimizer": functools.partial(torch.optim.RMSprop, alpha=0.9),
        "schedule": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
        "learning_rate": 0.01,
    }
    made = learner(outer_steps=5, **settings)
    assert made.meta.outer_loss is last_two
    fit(made, tmp_path, callbacks=[Watch()])
    assert rates == [(torch.optim.RMSprop, 0.01 * 0.5 ** (k // 2)) for k in range(5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup_steps": 2, "schedule": torch.optim.lr_scheduler.StepLR},
            r"meta.warmup_steps=2: must be 0 where",
        ),
        ({"outer_steps": 0}, r"meta.outer_steps=0: must be a whole number >= 1"),
        ({"num_problems": -1}, r"meta.num_problems=-1: must be a whole number >= 1"),
        ({"horizons": ()}, r"meta.horizons=\[\]: must be whole numbers >= 1"),
        ({"horizons": (2, 8)}, r"meta.truncation=3: must be <= the shortest of meta.horizons=\[2, 8\]"),
        ({"objective": "mean_los"}, r"meta.objective=mean_los: must be one of .*; did you mean mean_loss\?"),
        ({"learning_rate": 0.0}, r"meta.learning_rate=0.0: must be > 0"),
        ({"gradient_clip": 0.0}, r"meta.gradient_clip=0.0: must be > 0, or null"),
        ({"outer_optimizer": "lion"}, r"meta.outer_optimizer=lion: must be one of adam, adamw, sgd"),
        ({"schedule": "linear"}, r"meta.schedule=linear: must be one of cosine, constant, or a node"),
        ({"rescale": -0.1}, r"meta.rescale=-0.1: must be >= 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        learner(**settings)
