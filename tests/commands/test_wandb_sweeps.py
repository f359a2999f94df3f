"""The sweeps in `conf/wandb_sweep/` by a stand-in for W&B's agent, which makes its command lines by W&B's own code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils
from wandb_stand_ins import files, written

from ph_l2o.cli import conf_dir

ROOT = Path(__file__).parents[2]
SWEEPS = sorted(Path(conf_dir(), "wandb_sweep").glob("*.yaml"))


def drawn(parameter: dict) -> object:
    return parameter["values"][-1] if "values" in parameter else parameter["min"] * 1.23456789


def agent_command(sweep: dict) -> list[str]:
    """As `wandb agent` runs it."""
    values = utils.create_sweep_command_args({"args": {k: {"value": drawn(p)} for k, p in sweep["parameters"].items()}})
    values |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    line: list[str] = []
    for part in utils.create_sweep_command(list(sweep["command"])):
        line += values[part[2:-1]] if part.startswith("${") else [part]
    return line


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_what_an_agent_types_is_a_configuration(path, composed):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["method"] in ("bayes", "grid", "random")
    head = agent_command(sweep)
    assert head[:3] == ["/usr/bin/env", "python", "train.py"]
    cfg = composed(*head[3:])
    assert "wandb" in cfg.logger
    if "metric" in sweep:
        assert sweep["metric"] == {"name": "val/score", "goal": "minimize"}


@pytest.mark.slow
def test_a_run_of_an_agent(tmp_path):
    """A process of its own, with the environment that an agent gives it."""
    sweep = yaml.safe_load(Path(conf_dir(), "wandb_sweep", "learning_rates.yaml").read_text())
    line = [*agent_command(sweep), "debug=default", "logger=wandb"]
    line[line.index("python")], line[line.index("train.py")] = sys.executable, str(ROOT / "train.py")
    chosen = {key: {"value": drawn(parameter)} for key, parameter in sweep["parameters"].items()}
    (tmp_path / "parameters.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **chosen}))
    agent = {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "run1", "WANDB_SWEEP_PARAM_PATH": "parameters.yaml",
             "WANDB_PROJECT": "of_the_sweep", "WANDB_MODE": "offline", "HOME": str(tmp_path)}  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **agent}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = written(files(tmp_path / "runs")[0])
    assert (run.run.run_id, run.run.sweep_id, run.run.project) == ("run1", "sweep1", "of_the_sweep")
    swept = "_".join(f"{key}-{chosen[key]['value']}" for key in sweep["parameters"])
    assert run.run.display_name == f"quadratic_port_hamiltonian_{swept}_seed0"
    assert run.summary["val/score"]["min"] and run.exit_code == 0
