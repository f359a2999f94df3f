"""Presets: each applies where its name says and nowhere else, and what is typed wins."""

import itertools
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ph_l2o import cli

CONF = Path(cli.conf_dir())
TABLE = OmegaConf.to_container(OmegaConf.load(CONF / "presets.yaml"))
PRESETS = TABLE.pop("preset")
NAMES = {  # what the names of presets are made of
    "for_optimizer": "{optimizer}",
    "meta/for_optimizer": "{optimizer}",
    "meta/for_task": "{preset}",
    "meta/for_both": "{preset}_{optimizer}",
    "evaluation/for_task": "{preset}",
    "estimator/for_both": "{estimator}_{preset}_{optimizer}",
    "optimizer/for_task": "{optimizer}_{preset}",
}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in TABLE.items() for name in names])
def test_a_preset_applies_where_its_name_says(composed, group, name):
    choices = [sorted(p.stem for p in (CONF / g).glob("*.yaml")) for g in ("optimizer", "estimator")]
    places = (
        dict(zip(("optimizer", "estimator", "preset"), c, strict=True)) for c in itertools.product(*choices, PRESETS)
    )
    place = next(p for p in places if NAMES[group].format(**p) == name)
    cfg = composed(*(f"{key}={option}" for key, option in place.items()))
    folder = group.rpartition("/")[0]
    keys = TABLE[group][name]
    assert {key: (cfg[folder] if folder else cfg)[key] for key in keys} == keys
    own = OmegaConf.load(CONF / (f"{folder}/{place.get(folder, 'default')}.yaml" if folder else "train.yaml"))
    assert any(own[key] != value for key, value in keys.items()), "it changes nothing"


def test_the_specific_wins_over_the_general_and_what_is_typed_over_both(composed):
    assert composed("task=mnist", "optimizer=adam").meta.num_problems == 4  # of the task
    assert composed("task=mnist", "optimizer=adam").meta.learning_rate == 0.02  # of the optimizer
    assert composed("task=mnist", "optimizer=lstm").meta.num_problems == 2  # of both
    typed = composed("task=mnist", "optimizer=lstm", "meta.num_problems=5", "estimator.order=2")
    assert typed.meta.num_problems == 5 and typed.estimator.order == 2 and typed.meta.truncation == 20
    assert composed("task=mnist", "preset=none").meta.truncation == 20
    assert composed("task=teacher", "preset=mnist").meta.truncation == 50
    assert composed("task=mnist", "meta=pretrain").meta.outer_steps == 1500
    assert composed("experiment=pretrain", "meta=mnist_study", "estimator=es").meta.outer_steps == 5000


OWN = {
    "task/mine": {"defaults": ["mnist"], "hidden_sizes": [3]},
    "meta/mine": {"_target_": "ph_l2o.meta.MetaSettings", "outer_steps": 7},
    "meta/built_on_ours": {"defaults": ["default"], "outer_steps": 7},
    "estimator/mine": {"_target_": "ph_l2o.estimators.Truncated"},
    "optimizer/mine": {"_target_": "ph_l2o.optimizers.HNN", "norm": True},
    "evaluation/mine": {"baselines": [], "horizon": 5, "num_problems": 6, "tuning_problems": None},
}


@pytest.fixture
def with_own(command, tmp_path):
    """The configuration as printed, with options of a user's."""
    for name, node in OWN.items():
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(node), path)

    def printed(*arguments, name="train"):
        outcome = command(name, "--config-dir", str(tmp_path / "own"), *arguments, "--cfg", "job")
        assert outcome.code == 0, outcome.err
        return OmegaConf.create(outcome.out)

    return printed


@pytest.mark.parametrize("experiment", ["quadratic_zeros", "hnn_study_mnist", "pretrain_kronecker"])
def test_nothing_is_written_into_options_of_users(with_own, experiment):
    groups = ("meta", "estimator", "optimizer", "evaluation")
    cfg = with_own(f"experiment={experiment}", "task=mnist", *(f"{group}=mine" for group in groups))
    for group in groups:
        assert cfg[group] == OWN[f"{group}/mine"]


def test_options_of_users_inherit_presets_with_what_they_are_built_on(with_own):
    cfg = with_own("task=mine", "meta=built_on_ours", "optimizer=lstm")
    assert (cfg.meta.outer_steps, cfg.meta.num_problems) == (7, 2)
    assert (cfg.estimator.order, cfg.evaluation.num_problems) == (1, 64)
    assert with_own("task=mine", name="evaluate").task.hidden_sizes == [3]


def test_evaluate_takes_no_presets(command, left_behind):
    assert command("evaluate", "preset=mnist").error == "preset=mnist: presets are for train.py"
    assert left_behind() == []


SMALL = ("debug=default", "compare=false")
MNIST = "task=mnist task.image_size=7 task.hidden_sizes=[4]"
MNIST = "task=mnist task.image_size=7 task.hidden_sizes=[4]"


@pytest.mark.parametrize(
    "arguments",
    [
        *(f"optimizer=lstm {MNIST} estimator={e}" for e in ("pes", "es", "es_single", "nres")),
        f"optimizer=lstm {MNIST} estimator=forward estimator.num_directions=2",
        f"optimizer=hnn {MNIST} estimator=pes",
        "experiment=hnn_study_mnist optimizer=lstm",
        f"experiment=lstm_study_quadratic {MNIST} optimizer=hnn",
        "experiment=hnn_study_quadratic estimator=nres",
        "experiment=mnist_study task=teacher estimator=full",
        "experiment=pretrain estimator=es task=logistic",
    ],
)
def test_combinations_that_once_crashed(command, run_folder, mnist_root, arguments):
    outcome = command("train", *arguments.split(), *SMALL, f"paths.data={mnist_root}")
    assert outcome.code == 0, outcome.err
    assert (run_folder() / "checkpoints" / "best.ckpt").is_file()
    cfg = OmegaConf.load(run_folder() / "config.yaml")
    assert (cfg.meta.outer_steps, cfg.meta.truncation) == (4, 3), "debug=default has the last word"


def test_a_line_says_which_presets_applied(command, mnist_root):
    lines = command("train", "optimizer=lstm", *MNIST.split(), *SMALL, f"paths.data={mnist_root}").out.splitlines()
    (line,) = [line for line in lines if "presets" in line]
    assert line == (
        "presets: evaluation/for_task=mnist, estimator/for_both=truncated_mnist_lstm, meta/for_both=mnist_lstm, "
        "meta/for_task=mnist"
    )
    assert "presets" not in command("train", "optimizer=lstm", "task=teacher", *SMALL).out


def test_help_shows_the_values_that_a_run_has(command):
    for arguments in (("experiment=pretrain", "seed=3"), ("task=mnist", "meta.num_problems=7")):
        cfg = OmegaConf.create(command("train", *arguments, "--cfg", "job").out)
        shown = command("train", *arguments, "--help").out
        for key in ("meta.outer_steps", "meta.num_problems", "meta.truncation", "meta.horizons", "seed", "compare"):
            value = OmegaConf.select(cfg, key)
            assert f" {key}={str(value).lower().replace(' ', '')}" in shown, (arguments, key)
    assert "meta.outer_steps=3000" in command("train", "--help").out
    assert "horizon=null  num_problems=5" in command("evaluate", "suite=generalise", "--help").out


def test_help_lists_the_options_of_users_and_no_presets(with_own, command, tmp_path):
    shown = command("train", "--help", "--config-dir", str(tmp_path / "own")).out
    assert "estimator: es, es_single, forward, full, mine, nres" in shown and "for_task" not in shown
