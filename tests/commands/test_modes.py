"""`evaluate.py` with modes of learned optimizers, untuned baselines, and the suite `jobs`."""

import json

import pytest
from omegaconf import OmegaConf


def test_the_command_takes_modes(command, run_folder):
    entries = "optimizers=[port_hamiltonian+total_steps, port_hamiltonian+no_loss, adam+untuned]"
    outcome = command("evaluate", entries, "horizon=5", "num_problems=2", "task.dim=3")
    assert outcome.code == 0, outcome.err
    rows = json.loads((run_folder() / "comparison.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["learned", "learned", "classical"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("optimizers=[port_hamiltonian+cosin]",), "optimizers=[…, port_hamiltonian+cosin]: +cosin: no mode has this"),
        (("optimizers=[adam+no_loss]",), "optimizers=[…, adam+no_loss]: no schedule has this name"),
        (("reference=adma",), "reference=adma: no baseline has this name; did you mean adam"),
    ],
)
def test_mistakes_are_one_line(command, words, message):
    outcome = command("evaluate", *words)
    assert outcome.code == 1 and outcome.error.startswith(message)


def test_jobs_are_both_halves(command):
    suites = {}
    for name in ("jobs", "jobs_validation", "jobs_test"):
        config = OmegaConf.create(command("evaluate", f"suite={name}", "--cfg", "job").out)
        assert (config.run_name, config.reference, config.horizon) == (f"evaluate_{name}", "adamw+cosine", None)
        suites[name] = list(config.suite)
    assert suites["jobs"] == suites["jobs_validation"] + suites["jobs_test"]


def test_jobs_smoke(command, run_folder, mnist_root):
    tasks = "suite_tasks=[cancer_dropout, cancer_unscaled]"
    entries = "optimizers=[port_hamiltonian+total_steps+no_loss, adamw+cosine, nadamw+cosine+untuned]"
    words = ("suite=jobs", tasks, entries, "horizon=3", "num_problems=2", f"paths.data={mnist_root}")
    outcome = command("evaluate", *words)
    assert outcome.code == 0, outcome.err
    result = json.loads((run_folder() / "suite.json").read_text())
    ours = result["summary"]["port_hamiltonian+total_steps+no_loss"]
    keys = ["ratio_to_adamw+cosine", "ratio_to_best_baseline", "ratio_to_best_untuned", "held_out_ratio", "speed_up"]
    assert list(ours) == keys and all(part["num_tasks"] == 2 for part in ours.values())
    assert (run_folder() / "suite_profile.png").is_file() and "suite_profile.png" in outcome.out
