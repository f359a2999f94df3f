"""Every configuration file: a new one is tested without touching this file."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from ph_l2o import cli
from ph_l2o.commands.folders import register_resolvers
from ph_l2o.commands.instantiate import build
from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Window, start
from ph_l2o.keys import ProblemKeys

CONF = Path(cli.conf_dir())
NEEDS_OTHER_DATA = {"fashion_mnist", "cifar10"}  # their loaders are tested on files that tests make


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def composed(*overrides: str, command: str = "train"):
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(command, overrides=list(overrides))


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("task", [t for t in options("task") if t not in NEEDS_OTHER_DATA])
def test_every_optimizer_runs_three_steps_of_every_task(optimizer, task, mnist_root):
    cfg = composed(f"optimizer={optimizer}", f"task={task}", f"paths.data={mnist_root}")
    made_task, made = build(cfg.task, "task"), build(cfg.optimizer, "optimizer")
    made_task.prepare()
    problem = made_task.sample(ProblemKeys(0, "train", 0, range(2)))
    objective = OBJECTIVES[cfg.meta.objective]
    estimate = Truncated()(Window(made, dict(made.named_parameters()), problem, start(made, problem), 0, 3, objective))
    assert estimate.losses.shape == (3, 2)
    assert torch.isfinite(estimate.losses).all() and torch.isfinite(estimate.outer_loss)
    assert set(estimate.gradient) == {name for name, _ in made.named_parameters()}
    assert all(torch.isfinite(g).all() for g in estimate.gradient.values())
    assert any(g.abs().max() > 0 for g in estimate.gradient.values())


SPECIFIC = ("task_defaults", "optimizer_defaults", "task_optimizer")  # chosen by task and optimizer
GROUPS = [p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("hydra", "suite", "__pycache__")]


def is_for_evaluate(group: str, option: str) -> bool:
    return group == "experiment" and "override /suite" in (CONF / group / f"{option}.yaml").read_text()


@pytest.mark.parametrize(
    ("group", "option"),
    [(g, o) for g in GROUPS if g not in SPECIFIC for o in options(g) if not is_for_evaluate(g, o)],
)
def test_every_config_composes(group, option):
    cfg = composed(f"{group}={option}")
    for node in ("optimizer", "task", "estimator", "meta"):
        build(OmegaConf.masked_copy(cfg, [node, "paths"])[node], node)


@pytest.mark.parametrize(
    ("group", "option"),
    [("suite", o) for o in options("suite")]
    + [("experiment", o) for o in options("experiment") if is_for_evaluate("experiment", o)],
)
def test_every_suite_composes(group, option):
    cfg = composed(f"{group}={option}", command="evaluate")
    for name, entry in OmegaConf.masked_copy(cfg, ["suite", "paths"]).suite.items():
        assert set(entry) == {"task", "horizon"} and entry.horizon >= 1
        build(entry.task, name)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_file_says_what_it_is_for(path):
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# "), f"{path}: begin with a line that says what it is for"


def test_task_specific_files_name_real_choices():
    for path in (CONF / "task_optimizer").glob("*.yaml"):
        assert any(path.stem == f"{t}_{o}" for t in options("task") for o in options("optimizer")), path.name
    assert set(options("task_defaults")) <= set(options("task"))
    assert set(options("optimizer_defaults")) <= set(options("optimizer"))


def test_specific_defaults_apply_from_the_general_to_the_specific():
    assert composed("task=mnist", "optimizer=adam").meta.num_problems == 4  # of the task
    assert composed("task=mnist", "optimizer=adam").meta.learning_rate == 0.02  # of the optimizer
    assert composed("task=mnist", "optimizer=port_hamiltonian").meta.rescale == 0.7  # of both
    assert composed("task=mnist", "optimizer=adam", "meta.learning_rate=0.1").meta.learning_rate == 0.1  # typed
