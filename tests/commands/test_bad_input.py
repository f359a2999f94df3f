"""Bad input: one line that names key, value and remedy; nothing left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ph_l2o.optimizers import PortHamiltonian
from ph_l2o.tasks import Quadratic

BAD = [
    (
        ["optimizer=port_hamiltonien"],
        r"optimizer=port_hamiltonien: no such option; .* did you mean port_hamiltonian",
    ),
    (["task=mnits"], r"task=mnits: no such option; there are .*did you mean mnist"),
    (["meta.outer_stps=3"], r"meta.outer_stps: no such key; did you mean meta.outer_steps"),
    (
        ["optimizer=lstm", "optimizer.hidden_sise=3"],
        r"optimizer.hidden_sise: .*did you mean optimizer.hidden_size",
    ),
    (["outersteps=3"], r"outersteps: no such key"),
    (["+task.dim=3"], r"\+task.dim: the key exists"),
    (["logger=null"], r"a group has no option null; leave the group away, or choose an option"),
    (["seed=1,2"], r"seed=1,2: several values are a sweep, with --multirun; a list is 'seed=\[1,2\]'"),
    (["task.dim=[1"], r"task.dim=\[1: not understood"),
    (["task.dim=0"], r"task.dim=0: must be >= 1"),
    (["task.dim=-3"], r"task.dim=-3: must be >= 1"),
    (["task.dim=ten"], r"task.dim=ten: must be a whole number"),
    (["task.noise=-1"], r"task.noise=-1: must be >= 0"),
    (["task.init=ones"], r"task.init=ones: must be one of normal, zeros"),
    (["meta.outer_steps=0"], r"meta.outer_steps=0: must be a whole number >= 1"),
    (["meta.num_problems=-4"], r"meta.num_problems=-4: must be"),
    (["meta.horizons=[0]"], r"meta.horizons=\[0\]: must be"),
    (["meta.objective=mean"], r"meta.objective=mean: must be one of"),
    (["meta.truncation=300"], r"meta.truncation=300: must be <= the shortest of meta.horizons"),
    (["meta.truncation=0"], r"meta.truncation=0: must be a whole number >= 1"),
    (["estimator.truncation=50"], r"estimator.truncation: no such key; it is meta.truncation"),
    (["estimator.order=3"], r"estimator.order=3: must be 1"),
    (["optimizer.hidden_size=0"], r"optimizer.hidden_size=0: must be >= 1"),
    (["optimizer=adam", "optimizer.lr=-1"], r"optimizer.lr=-1.*: must be > 0"),
    (["evaluation.num_problems=1"], r"evaluation.num_problems=1: must be a whole number >= 2"),
    (["evaluation.horizon=0"], r"evaluation.horizon=0: must be a whole number >= 1"),
    (["evaluation.baselines=[adan]"], r"evaluation.baselines=\[…, adan\]: .*did you mean adam"),
    (["seed=-1"], r"seed=-1: must be a whole number >= 0"),
    (["num_threads=0"], r"num_threads=0: must be a whole number >= 1"),
    (
        ["strategy=ddp_cpu", "meta.num_problems=5"],
        r"meta.num_problems=5: must be a multiple of strategy.devices=2",
    ),
    (
        ["strategy=ddp_cpu", "strategy.num_nodes=3"],
        r"meta.num_problems=64: must be a multiple of strategy.devices=2 · strategy.num_nodes=3",
    ),
    (["strategy=ddp_cpu", "strategy.num_nodes=0"], r"strategy.num_nodes=0: must be a whole number >= 1"),
    (["strategy=ddp_cpu", "strategy.timeout=0"], r"strategy.timeout=0: must be > 0"),
    (["strategy=ddp_cpu", "strategy.devices=auto"], r"strategy.devices=auto: counts GPUs"),
    (["strategy=ddp_cpu", "strategy.devices=[0,1]"], r"strategy.devices=\[0, 1\]: must be a whole number >= 1"),
    (["strategy=ddp_cpu", "strategy.num_nodes=2"], r"strategy.num_nodes=2: start the command on each .* torchrun"),
    (["strategy=cpu", "strategy.devices=2"], r"strategy.devices=2: must be 1 with strategy=cpu; .*strategy=ddp_cpu"),
    (["strategy.devices=auto"], r"strategy.devices=auto: must be 1 with strategy=auto"),
    (["strategy=cpu", "+strategy.num_nodes=2"], r"strategy.num_nodes=2: must be 1 with strategy=cpu"),
    (["strategy.strategy=fsdp"], r"strategy.strategy=fsdp: must be auto \(one process\) or ddp"),
    (["strategy.accelerator=tpu"], r"strategy.accelerator=tpu: must be cpu, gpu or auto"),
    (["estimator=pes", "estimator.exchange=all"], r"estimator.exchange=all: must be scalars or gradient"),
    (
        ["weights=nowhere.ckpt"],
        r"weights=nowhere.ckpt: .*no such file; give default, kronecker, a .safetensors",
    ),
    (["weights=default", "optimizer=lstm"], r"weights=default: has other meta-parameters than LSTM"),
    (
        ["weights=default", "optimizer.hidden_size=7"],
        r"weights=default: has other .*than PortHamiltonian",
    ),
    (["optimizer.decay=[1]"], r"optimizer.decay=\[1\]: must be two finite numbers > 0"),
    (["ckpt_path=last"], r"ckpt_path=last: no run of quadratic_port_hamiltonian"),
    (["ckpt_path=nowhere.ckpt"], r"ckpt_path=nowhere.ckpt: no such file"),
    (["optimizer._target_=os.system"], r"optimizer._target_=os.system: must be in one of ph_l2o, torch"),
    (["task=mnist", "task.activation=reluu"], r"task.activation='?reluu'?: .*relu"),
    (["task=mnist", "task.batch_size=0"], r"task.batch_size=0: must be >= 1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda x: x[-1] if isinstance(x, list) else "")
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, arguments, message, left_behind):
    outcome = command("train", *arguments)
    assert re.match(message, outcome.error), outcome.error
    assert outcome.out == ""
    assert left_behind() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("strategy", ["gpu", "ddp"])
def test_gpu_without_a_gpu(command, tmp_path, strategy, left_behind):
    assert "no GPU is visible" in command("train", f"strategy={strategy}").error
    assert left_behind() == []


def test_ddp_inside_a_multirun(command):
    outcome = command("train", "--multirun", "strategy=ddp_cpu", "seed=1,2")
    assert "can't run inside a multirun" in outcome.error


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_folder_that_the_user_named_is_not_removed(command, tmp_path, monkeypatch, name, left_behind):
    (tmp_path / "thesis.tex").touch()
    for folder in (".", "own/one"):
        assert "task.dim=0" in command(name, "task.dim=0", f"hydra.run.dir={folder}").error
        assert left_behind() == ["thesis.tex"]


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_process_that_writes_nothing_removes_nothing(command, tmp_path, monkeypatch, name, left_behind):
    """Its folder is that of all runs."""
    (tmp_path / "runs" / "2030-01-01").mkdir(parents=True)
    monkeypatch.setenv("RANK", "1")
    assert "task.dim=0" in command(name, "task.dim=0").error
    assert left_behind() == ["runs", "runs/2030-01-01"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(("environment", "name"), [(TORCHRUN, "torchrun"), (SRUN, "srun")])
@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_one_process_started_several_times(command, monkeypatch, environment, name, script, left_behind):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert f"strategy=auto: runs in one process, but {name} started 2" in command(script).error
    assert left_behind() == []


def test_machines_that_do_not_add_up(command, monkeypatch, left_behind):
    for variable, value in {"NODE_RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(variable, value)
    outcome = command("train", "strategy=ddp_cpu", "strategy.num_nodes=2")
    assert outcome.error == "NODE_RANK=2: must be 0 to 1, with strategy.num_nodes=2"
    assert left_behind() == []


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 half a zip", b"\x80\x02}q\x00."])
def test_damaged_checkpoints(command, tmp_path, content, left_behind):
    path = tmp_path / "best.ckpt"
    path.write_bytes(content)
    for name, argument in (("train", f"ckpt_path={path}"), ("evaluate", f"optimizers=[{path}]")):
        assert re.match(f"{path}: (damaged|not a checkpoint)", command(name, argument).error)
    assert left_behind() == ["best.ckpt"]


def test_a_checkpoint_that_is_cut_off(command, tmp_path, run_folder):
    command("train", "debug=default", "compare=false")
    whole = (run_folder() / "checkpoints" / "last.ckpt").read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path}: damaged" in command("train", f"ckpt_path={path}").error


def test_foreign_checkpoints(command, tmp_path):
    path = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    assert "not a checkpoint of ph_l2o" in command("train", f"ckpt_path={path}").error


def test_a_checkpoint_never_executes_code(command, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    assert "damaged" in command("evaluate", f"optimizers=[{path}]").error
    assert not (tmp_path / "executed").exists()


def test_resume_with_another_optimizer_or_nothing_left_to_do(command, run_folder):
    command("train", "debug=default", "compare=false")
    last = run_folder() / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    outcome = command("train", "debug=default", f"ckpt_path={last}", "optimizer.hidden_size=5", "meta.outer_steps=9")
    assert "holds another optimizer" in outcome.error
    assert "has done 4 already" in command("train", "debug=default", f"ckpt_path={last}").error
    assert last.read_bytes() == before  # the run that was to be resumed is not touched


def test_unwritable_output(command, tmp_path, left_behind):
    (tmp_path / "file").touch()
    assert "choose another folder with paths.runs" in command("train", "paths.runs=file/runs").error
    assert left_behind() == ["file"]


@pytest.mark.parametrize("what", ["loss", "gradient", "shape"])
def test_nan_from_a_task(command, tmp_path, monkeypatch, what, left_behind):
    original = Quadratic.sample

    def sample(self, keys, **where):
        problem = original(self, keys, **where)
        loss = problem.loss

        def broken(params, buffers, batch):
            value, buffers = loss(params, buffers, batch)
            bent = {
                "loss": value * torch.nan,
                "gradient": value + (params.flat * 0).sqrt().sum(1),
                "shape": value.sum(),
            }
            return bent[what], buffers

        problem.loss = broken
        return problem

    monkeypatch.setattr(Quadratic, "sample", sample)
    expected = "the loss has shape" if what == "shape" else f"the {what} at the start θ₀ is "
    assert expected in command("train").error
    assert left_behind() == []


def test_damaged_data(command, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"damaged")
    assert "train-images-idx3-ubyte" in command("train", "task=mnist").error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizers=[adan]"], "neither a checkpoint file nor one of .*did you mean adam"),
        (["optimizers=[lstm]"], r"train some with `python train.py optimizer=lstm`"),
        (["optimizers=[nowhere.ckpt]"], "nowhere.ckpt: no such checkpoint"),
        (["optimizers=[]"], "name at least one"),
        (["strategy=ddp_cpu"], "strategy=ddp_cpu: evaluate.py runs in one process; use strategy=auto, cpu or gpu"),
        (["strategy.devices=2"], "strategy.devices=2: must be 1 with strategy=auto"),
        (["strategy.accelerator=mps"], "strategy.accelerator=mps: must be cpu, gpu or auto"),
        (["horizon=0"], "horizon=0: must be"),
        (["num_problems=1"], "num_problems=1: must be"),
        (["suite_tasks=[digits_mlp]"], r"suite_tasks=\['digits_mlp'\]: is for a suite"),
        (["suite=generalize"], "suite=generalize: no such option.*did you mean generalise"),
        (["suite=generalise", "suite_tasks=[digits_mpl]"], "suite_tasks=.*did you mean digits_mlp"),
        (["suite=generalise", "suite.digits_mlp.horizon=0"], "suite.digits_mlp.horizon=0: must be"),
        (["suite=generalise", "+suite.poisson.horizn=9"], "suite.poisson.horizn=…: no such key; did you mean horizon"),
        (["suite=generalise", "suite.digits_mlp.task.loss=hing"], "suite.digits_mlp.task.loss=hing: .* mean hinge"),
        (["suite=generalise", "+suite.more={horizon: 3}"], "suite.more=.*must have the keys task and horizon"),
        (["experiment=mnist_study"], "experiment=mnist_study: sets .*is for train.py"),
    ],
)
def test_bad_input_of_evaluate(command, tmp_path, arguments, message, left_behind):
    assert re.search(message, command("evaluate", *arguments).error)
    assert left_behind() == []


def test_an_experiment_of_evaluate_is_not_one_of_train(command, left_behind):
    assert "experiment=generalise: sets suite=, which train.py lacks" in command("train", "experiment=generalise").error
    assert left_behind() == []


def test_library_errors_follow_the_same_form():
    with pytest.raises(ValueError, match=r"optimizer.init_lr=-1: must be > 0"):
        PortHamiltonian(init_lr=-1)


def test_errors_of_the_real_script_go_to_stderr_with_code_1(tmp_path):
    """Once through a real process: nothing but the one line, and the exit status that scripts test."""
    code = "from ph_l2o.cli import train; train()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    call = [sys.executable, "-c", code, "task.dim=0"]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: task.dim=0: must be >= 1 (number of coordinates)\n"
