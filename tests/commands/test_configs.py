"""Every configuration file, and every combination of them: a new one is tested without touching this file."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from ph_l2o import cli
from ph_l2o.commands.instantiate import build
from ph_l2o.commands.validate import check_counts
from ph_l2o.estimators import OBJECTIVES, Truncated
from ph_l2o.inner import Window, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.tasks import Quadratic

CONF = Path(cli.conf_dir())
NEEDS_OTHER_DATA = {"fashion_mnist", "cifar10"}  # their loaders are tested on files that tests make
NODES = ("optimizer", "task", "estimator", "meta")


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def is_for_evaluate(group: str, option: str) -> bool:
    return group == "experiment" and "override /suite" in (CONF / group / f"{option}.yaml").read_text()


def has_claims(option: str) -> bool:
    return "override /claim" in (CONF / "experiment" / f"{option}.yaml").read_text()


EXPERIMENTS = [e for e in options("experiment") if not (is_for_evaluate("experiment", e) or has_claims(e))]


def different(group: str) -> list[str]:
    """Options that differ in kind: one of each class."""
    usable = [o for o in options(group) if o not in NEEDS_OTHER_DATA]
    targets = {o: OmegaConf.load(CONF / group / f"{o}.yaml").get("_target_") for o in usable}
    return sorted({target: option for option, target in targets.items() if target}.values())


def nodes_of(cfg: DictConfig) -> dict[str, Any]:
    part = OmegaConf.masked_copy(cfg, [*NODES, "evaluation", "paths"])
    return {name: OmegaConf.to_container(part[name], resolve=True) for name in (*NODES, "evaluation")}


def check(nodes: dict[str, Any]) -> None:
    """Whether all objects of a training can be made of its configuration."""
    made = {name: build(nodes[name], name) for name in NODES}
    made["meta"].check_truncation(made["estimator"])
    check_counts(OmegaConf.create(nodes["evaluation"]), "evaluation.")


def pairwise(groups: list[list[str]]) -> list[tuple[str, ...]]:
    """Combinations of one option of each group, in which each pair of options of two groups is met once at least."""
    sides = [*itertools.combinations(range(len(groups)), 2)]
    missing = {((i, a), (j, b)) for i, j in sides for a in groups[i] for b in groups[j]}
    rows = []
    while missing:
        row = dict(min(missing))
        for k in set(range(len(groups))) - set(row):
            new = {c: sum(tuple(sorted([(k, c), other])) in missing for other in row.items()) for c in groups[k]}
            row[k] = max(new, key=new.__getitem__)
        missing -= {((i, row[i]), (j, row[j])) for i, j in sides}
        rows.append(tuple(row[k] for k in range(len(groups))))
    return rows


GROUPS = {"optimizer": options("optimizer"), "task": options("task"), "estimator": options("estimator")}
ROWS = pairwise([*GROUPS.values(), EXPERIMENTS])


def test_the_combinations_have_every_pair():
    assert len(ROWS) < 1.2 * len(GROUPS["optimizer"]) * len(GROUPS["task"])
    assert {(o, e) for o, _, e, _ in ROWS} == set(itertools.product(GROUPS["optimizer"], GROUPS["estimator"]))
    assert {(t, x) for _, t, _, x in ROWS} == set(itertools.product(GROUPS["task"], EXPERIMENTS))


@pytest.fixture(scope="module")
def combination(composing, mnist_root) -> Callable[[tuple[str, ...]], dict[str, Any]]:
    """The nodes of a combination, composed once."""

    @functools.cache
    def nodes(row: tuple[str, ...]) -> dict[str, Any]:
        arguments = [f"{group}={option}" for group, option in zip([*GROUPS, "experiment"], row, strict=True)]
        with composing() as composed:
            return nodes_of(composed(*arguments, f"paths.data={mnist_root}"))

    return nodes


@pytest.mark.parametrize("optimizer", GROUPS["optimizer"])
def test_every_combination_composes(combination, optimizer):
    for row in ROWS:
        if row[0] == optimizer:
            try:
                check(combination(row))
            except Exception as error:
                raise AssertionError(row) from error


NOT_OF_TRAIN = ("hydra", "suite", "wandb_sweep", "__pycache__")
TRAIN_GROUPS = [p.name for p in CONF.iterdir() if p.is_dir() and p.name not in NOT_OF_TRAIN]


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in TRAIN_GROUPS for o in options(g) if not is_for_evaluate(g, o)]
)
def test_every_config_composes(composed, group, option):
    check(nodes_of(composed(f"{group}={option}")))


@pytest.mark.parametrize("task", options("task"))
def test_every_task_is_one_of_evaluate(composed, task):
    cfg = composed(f"task={task}", command="evaluate")
    build(OmegaConf.masked_copy(cfg, ["task", "paths"]).task, "task")
    assert not {"meta", "evaluation", "estimator", "preset"} & set(cfg)


@pytest.mark.parametrize(
    "arguments",
    [(f"{g}={o}", f"task={t}") for g in ("suite", "experiment") for o in options(g) for t in ("quadratic", "mnist")
     if g == "suite" or is_for_evaluate(g, o)],
)  # fmt: skip
def test_every_suite_composes(composed, arguments):
    cfg = composed(*arguments, command="evaluate")
    for name, entry in OmegaConf.masked_copy(cfg, ["suite", "paths"]).suite.items():
        assert set(entry) == {"task", "horizon"} and entry.horizon >= 1
        build(entry.task, name)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_file_says_what_it_is_for(path):
    lines = path.read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# "), f"{path}: begin with a line that says what it is for"


@pytest.mark.parametrize("optimizer", different("optimizer"))
@pytest.mark.parametrize("task", different("task"))
def test_every_optimizer_runs_three_steps_of_every_task(combination, optimizer, task):
    nodes = combination(next(row for row in ROWS if row[:2] == (optimizer, task)))
    made_task, made = build(nodes["task"], "task"), build(nodes["optimizer"], "optimizer")
    made_task.prepare()
    problem = made_task.sample(ProblemKeys(1, "train", 0, range(2)))  # of the mixture a network
    objective = OBJECTIVES["mean_log_loss"]
    estimate = Truncated()(Window(made, dict(made.named_parameters()), problem, start(made, problem), 0, 3, objective))
    assert estimate.losses.shape == (3, 2)
    assert torch.isfinite(estimate.losses).all() and torch.isfinite(estimate.outer_loss)
    assert set(estimate.gradient) == {name for name, _ in made.named_parameters()}
    assert all(torch.isfinite(g).all() for g in estimate.gradient.values())
    assert any(g.abs().max() > 0 for g in estimate.gradient.values())


@pytest.mark.parametrize("estimator", different("estimator"))
@pytest.mark.parametrize("optimizer", different("optimizer"))
def test_every_estimator_takes_three_outer_steps_with_every_optimizer(combination, estimator, optimizer):
    nodes = combination(next(row for row in ROWS if row[::2][:2] == (optimizer, estimator)))
    fewer = {"num_directions": 1} if estimator == "forward" else {}
    made, estimates = build(nodes["optimizer"], "optimizer"), build(nodes["estimator"] | fewer, "estimator")
    problem = Quadratic(2).sample(ProblemKeys(0, "train", 0, range(2)))
    outer, phi = torch.optim.SGD(made.parameters(), lr=1e-3), dict(made.named_parameters())
    before = {name: value.detach().clone() for name, value in phi.items()}
    count = estimates.window_length(2, 6)
    carry = estimates.start(made, problem)
    for step in range(3):
        first = step * count % 6
        estimate = estimates(Window(made, phi, problem, carry, first, count, OBJECTIVES["mean_log_loss"]))
        assert estimate.losses.shape == (count, 2) and torch.isfinite(estimate.losses).all()
        for name, value in phi.items():
            value.grad = estimate.gradient[name]
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0, error_if_nonfinite=True)
        outer.step()
        carry = estimate.carry if count < 6 else estimates.start(made, problem)
    assert any(not torch.equal(before[name], value) for name, value in phi.items())
