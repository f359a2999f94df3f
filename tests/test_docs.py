"""What the documentation shows runs: Python blocks in this process, the files and commands of docs/extending.md."""

import logging
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ph_l2o import cli, report
from ph_l2o.commands.configuration import register
from ph_l2o.dashboard.__main__ import main as dashboard
from ph_l2o.data import DATASETS

ROOT = Path(__file__).parents[1]
DOCS = sorted(ROOT.glob("docs/*.md"))
SIZES = {
    "outer_steps": "2",
    "num_problems": "4",
    "tuning_problems": "2",
    "val_problems": "2",
    "val_every": "2",
    "val_horizon": "3",
    "horizon": "4",
    "horizons": "(20,)",
}
_FENCE = r"```{language}\n(.*?)^```"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(_FENCE.format(language=language), path.read_text(), re.M | re.S)


def shrunk(code: str) -> str:
    for name, size in SIZES.items():
        code = re.sub(rf"\b{name}=(\d[\d_]*|\([^)]*\))", f"{name}={size}", code)
    return code


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "python_api.md"], ids=lambda p: p.name)
def test_python_blocks_run(path, tmp_path, monkeypatch, mnist_root):
    """All blocks of a file, in order, as one session in an empty folder; sizes are made small."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(mnist_root)
    found = blocks(path, "python")
    assert found
    session: dict = {}
    for code in found:
        exec(compile(shrunk(code), f"{path.name}:\n{code}", "exec"), session)


EXTENDING = ROOT / "docs" / "extending.md"
_NAMED_FILE = r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```"
FILES = re.findall(_NAMED_FILE, EXTENDING.read_text(), re.M | re.S)
COMMANDS = [line for line in EXTENDING.read_text().splitlines() if line.startswith("python train.py")]
EVALUATIONS = [line for line in EXTENDING.read_text().splitlines() if re.match(r"python evaluate.py [^…]*$", line)]


def test_extending_shows_all_files_that_it_lists():
    (listed,) = [b for b in blocks(EXTENDING, "") if b.startswith("my_models.py")]
    assert sorted(listed.split()) == sorted(name for name, _ in FILES)
    assert len(COMMANDS) == 12


@pytest.fixture
def typed(tmp_path, monkeypatch):
    """Type a command in this process, in an empty folder from which Python imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before, handlers, modules = dict(os.environ), list(logging.getLogger().handlers), set(sys.modules)
    datasets = dict(DATASETS)

    def run(*words: str, command: str = "train") -> None:
        monkeypatch.setattr(sys, "argv", list(words))
        getattr(cli, command)()

    yield run
    GlobalHydra.instance().clear()
    torch.set_flush_denormal(False)
    for key in set(os.environ) - set(before):
        del os.environ[key]
    for handler in set(logging.getLogger().handlers) - set(handlers):
        handler.close()
    logging.getLogger().handlers[:] = handlers
    for name in [m for m in set(sys.modules) - modules if m.startswith("my_")]:
        del sys.modules[name]
    for name in DATASETS.keys() - datasets:
        del DATASETS[name]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: next(a for a in shlex.split(line) if "=" in a))
def test_extending_runs_as_written(line, typed, tmp_path, mnist_root):
    for name, content in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    typed(*shlex.split(line)[1:], "debug=default", f"paths.data={mnist_root}")
    (result,) = tmp_path.glob("runs/20*/*/comparison.json")
    assert '"kind": "learned"' in result.read_text()


@pytest.mark.parametrize("line", EVALUATIONS)
def test_extending_evaluates_as_written(line, typed, tmp_path):
    for name, content in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    typed(*shlex.split(line)[1:], "horizon=5", "num_problems=2", "tuning_problems=2", command="evaluate")
    (result,) = tmp_path.glob("runs/20*/*/comparison.json")
    assert '"kind": "baseline"' in result.read_text()


def test_reports_are_made_as_written(typed, tmp_path, monkeypatch):
    """Of a run in the folder that the page names, and of a sweep."""
    lines = re.findall(r"^python -m ph_l2o\.report (.*)", (ROOT / "docs" / "reports.md").read_text(), re.M)
    run, sweep = (tmp_path / line for line in lines)
    typed("train.py", "debug=default", "optimizer=sgd", "compare=false", f"hydra.run.dir={run}")
    (run / "report.html").unlink()
    sweep.mkdir(parents=True)
    run.rename(sweep / "0_job")
    (sweep / "summary.csv").write_text("job,status\n0_job,ok\n")
    for line, folder, title in ((lines[1], sweep, "Sweep of 1 job"), (lines[0], run, "quadratic_sgd")):
        if folder is run:
            (sweep / "0_job").rename(run)
        monkeypatch.setattr(sys, "argv", ["report", *shlex.split(line)])
        report.main()
        assert f"<title>{title}</title>" in (folder / "report.html").read_text()


def test_a_suite_of_ones_own_runs_as_written(typed, tmp_path):
    ((name, content),) = re.findall(_NAMED_FILE, (ROOT / "docs" / "comparison.md").read_text(), re.M | re.S)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(content)
    (words,) = re.findall(r"# .*:  python (.*)", content)
    line = shlex.split(words.replace("best.ckpt", "sgd"))
    typed(*line, "horizon=4", "num_problems=2", command="evaluate")
    (result,) = tmp_path.glob("runs/20*/*_evaluate_mine/suite.json")
    assert '"complete": true' in result.read_text()


WANDB = [line.partition("#")[0] for block in blocks(ROOT / "docs" / "wandb.md", "") for line in block.splitlines()]


@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces
@pytest.mark.parametrize("line", [line for line in WANDB if line.startswith("python ") and "--multirun" not in line])
def test_commands_for_wandb_are_configurations(line, typed, tmp_path, capsys, monkeypatch):
    words = shlex.split(line)
    if words[1] == "-m":
        monkeypatch.chdir(tmp_path)
        dashboard([*words[3:], "--dry-run"])
        assert "nothing was sent" in capsys.readouterr().out
        return
    typed(*words[1:], "--cfg", "job", command=Path(words[1]).stem)
    assert "_target_: ph_l2o.meta.wandb_logger" in capsys.readouterr().out or "logger=csv" in line


def test_sweeps_for_wandb_exist():
    named = [shlex.split(line)[2] for line in WANDB if line.startswith("wandb sweep")]
    assert sorted(named) == sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("conf/wandb_sweep/*.yaml"))


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda p: p.name)
def test_links_and_named_files_exist(path):
    text = path.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        if not target.endswith(".png"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for name in re.findall(r"`((?:conf|benchmarks|ph_l2o|tests|docs)/[\w./]+\.(?:py|yaml|md))`", text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda p: p.name)
def test_named_options_exist(path):
    """`task=…`, `optimizer=…` and the other groups name options that exist, or that the same text makes."""
    text = path.read_text()
    own = {Path(name).stem for name in re.findall(r"^`(my_[\w./]+)`:$", text, re.M)} | {Path(n).stem for n, _ in FILES}
    for group, names in re.findall(
        r"\b(task|suite|optimizer|experiment|debug|strategy|logger|hparams_search|estimator)=([a-z][\w,]*)", text
    ):
        for name in names.split(","):
            exists = (ROOT / "conf" / group / f"{name}.yaml").exists()
            assert exists or name in own, f"{path.name}: {group}={name}"


def test_walks_through_the_code_lead_somewhere():
    """Each of at most six files, in which the functions that are named are defined."""
    text = (ROOT / "docs" / "architecture.md").read_text().partition("## A reader's walks")[2].partition("\n## ")[0]
    walks = re.findall(r"(?:^\d\. .*\n(?:   .*\n)*)+", text, re.M)
    assert len(walks) == 3
    for walk in walks:
        stops = re.findall(r"^\d\. `([\w/.]+)` ((?:`\w+`(?:, )?)+):", walk, re.M)
        assert 3 <= len(stops) == walk.count("\n") <= 6
        for path, functions in stops:
            for name in re.findall(r"\w+", functions):
                assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(), re.M), f"{path}: {name}"


SWEEPS = [line for line in (ROOT / "docs" / "sweeps.md").read_text().splitlines() if line.startswith("python train.py")]


def test_a_sweep_runs_as_written(typed, tmp_path):
    """The first command, which stands there twice, as it goes on; two values of each key."""
    assert len(SWEEPS) == 5 and SWEEPS[0] == SWEEPS[1]
    words = [re.sub(r"=([^,]+,[^,]+).*", r"=\1", word) for word in shlex.split(SWEEPS[0])[1:]]
    words = [word.replace("port_hamiltonian,lstm", "sgd,adam") for word in words]
    typed(*words, "debug=default", "compare=false")
    (table,) = tmp_path.glob("runs/multirun/*/*/summary_over_seeds.csv")
    assert table.read_text().startswith(
        "optimizer,meta.learning_rate,seeds,ok,val/score,val/score_low,val/score_high\n"
    )
    assert (table.parent / "sweep.png").is_file()
    assert (table.parent / "3_quadratic_sgd_meta.learning_rate-0.003_seed2" / "config.yaml").is_file()


@pytest.mark.parametrize("line", SWEEPS[2:], ids=lambda line: re.findall(r"launcher=(\w+)", line)[0])
def test_launchers_compose_as_written(line):
    """Their keys exist. tests/commands/test_launchers.py runs them."""
    register()
    GlobalHydra.instance().clear()
    words = [word for word in shlex.split(line)[3:] if word.startswith("hydra")]
    with initialize_config_dir(cli.conf_dir(), version_base="1.3"):
        launcher = compose("train", overrides=words, return_hydra_config=True).hydra.launcher
    assert words[0].partition("=")[2].partition("_")[0] in launcher["_target_"]


SCALING = (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"(?:python (?:train|evaluate)\.py|train\.py) [^`\n…]+", SCALING))
def test_commands_of_several_processes_compose_as_written(line):
    """Their keys and options exist; of what is swept, the first value. Tests of the commands run them."""
    script, *words = shlex.split(line.removeprefix("python "))
    words = [re.sub(r"^(\w+=\[.*?\]),.*", r"\1", word) for word in words if word != "--multirun"]
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(cli.conf_dir(), version_base="1.3"):
        composed = compose(script.removesuffix(".py"), overrides=words, return_hydra_config=True)
    assert composed.hydra.overrides.task or composed.hydra.overrides.hydra
