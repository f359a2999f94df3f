"""Processes that the command starts: what they see, how an error of one is told, and that none is left."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ph_l2o.commands import workers
from ph_l2o.commands.folders import LAST
from ph_l2o.errors import ConfigError, Interrupted, NonFiniteError, ProcessError, WorkerError

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def own_variables() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "TORCHELASTIC_SIGNALS_TO_HANDLE"}  # the agent leaves it


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run Python code in two workers; the functions `tell(error)` and `others()` are there."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start = (
        "import json, os, signal, sys, time\n"
        "from pathlib import Path\n"
        "def wait(): Path(f'{os.environ[\"RANK\"]}.pid').write_text(str(os.getpid())); time.sleep(60)\n"
    )

    def run(code: str, *arguments: str, checkpoint: Path | None = None) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "orig_argv", ["python", "-c", start + code, *arguments])
        before, handlers = own_variables(), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        try:
            workers.run_workers(2, tmp_path / "run", checkpoint)
        finally:
            assert not any(scratch.iterdir())
            assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
            assert own_variables() == before
            assert not any(is_running(int(path.read_text())) for path in tmp_path.glob("*.pid"))

    return run


SEEN = (
    "keys = ['RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'TORCHELASTIC_RUN_ID', 'PH_L2O_RUN_FOLDER', 'PH_L2O_CHECKPOINT']\n"
    "Path(f'{os.environ[\"RANK\"]}.json').write_text(json.dumps([*map(os.environ.get, keys), *sys.argv[1:]]))"
)


def test_workers_see_the_environment_of_torchrun_and_the_command_line(run, tmp_path, capfd):
    arguments = ["a=1", "b=${c}", "${local_rank}", "$$ 'x'"]
    run(SEEN, *arguments, checkpoint=Path("last.ckpt"))
    for rank in "01":
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == [rank, "2", rank, "ph_l2o", str(tmp_path / "run"), "last.ckpt", *arguments]
    assert capfd.readouterr() == ("", "")


def hand_over(error: str, message: str) -> str:
    return (
        "from ph_l2o.commands.workers import hand_over\nfrom ph_l2o.errors import *\n"
        f"try: raise {error}\nexcept Exception as error: hand_over(error, {message})"
    )


@pytest.mark.parametrize(
    ("error", "message", "kind", "text"),
    [
        ("NonFiniteError()", "'no step'", NonFiniteError, "no step"),
        ("ProcessError()", "'gone'", ProcessError, "gone"),
        ("CheckpointError()", "'x: damaged'", ConfigError, "x: damaged"),
        ("KeyError('a bug')", "None", WorkerError, "Traceback .*KeyError: 'a bug'\n"),
    ],
)
def test_an_error_is_told_by_the_command_alone(run, capfd, error, message, kind, text):
    with pytest.raises(kind, match=f"(?s)^{text}$"):
        run(hand_over(error, message))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("dies", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "was ended by SIGTERM"),
        ("os._exit(3)", "ended with status 3"),
    ],
)
def test_the_other_one_is_ended_with_a_lost_one(run, capfd, dies, how):
    """As where it waits for the lost one in vain."""
    with pytest.raises(ProcessError, match=rf"^process 1 of this run \(id \d+\) {how}; resume with ckpt_path=last$"):
        run(f"time.sleep(.2) or {dies} if os.environ['RANK'] == '1' else wait()")
    assert capfd.readouterr() == ("", "")


def test_the_cause_is_told_and_not_what_follows_from_it(run):
    """The other process notices first that its neighbour does not answer."""
    follows = hand_over("ProcessError()", "'does not answer'").replace("\n", "\n ")
    with pytest.raises(ProcessError, match=r"process 1 of this run .* SIGKILL"):
        run(f"if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\nelse:\n {follows}")


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 2), ("SIGTERM", 15)])
def test_a_signal_interrupts_all(run, tmp_path, number, status):
    """Both end as at Ctrl-C, with time to leave things in order."""
    ends = f"""
def mark():
    try: wait()
    except KeyboardInterrupt: Path(os.environ['RANK'] + '.interrupted').touch()
if os.environ['RANK'] == '1':
    while not (Path('0.pid').exists() and Path('0.pid').read_text()): time.sleep(.01)
    os.kill(os.getppid(), signal.{number})
mark()
"""
    with pytest.raises(Interrupted) as error:
        run(ends)
    assert error.value.number == status
    assert (tmp_path / "0.interrupted").exists()


@LINUX
def test_workers_end_when_the_command_is_killed(tmp_path):
    code = """
import os, signal, sys, time
from pathlib import Path
from ph_l2o.commands import workers
if "RANK" in os.environ:
    workers.set_up_worker()
    Path(os.environ["RANK"] + ".pid").write_text(str(os.getpid()))
    time.sleep(60)
workers.run_workers(2, Path.cwd())
"""
    command = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    ids = [int(wait_until(lambda f=f: f.exists() and f.read_text())) for f in (tmp_path / "0.pid", tmp_path / "1.pid")]
    assert all(map(is_running, ids))
    command.kill()
    command.wait()
    wait_until(lambda: not any(map(is_running, ids)), 10)


@pytest.mark.parametrize(("argv", "expected"), [
    (["train.py"], ["train.py", "+"]),
    (["train.py", "task=mnist"], ["train.py", "task=mnist", "+"]),
    (["train.py", "a=1", "b=2", "--config-dir", "own"], ["train.py", "a=1", "b=2", "+", "--config-dir", "own"]),
])  # fmt: skip
def test_overrides_stand_where_hydra_reads_them(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("RANK", "1")
    workers.set_up_worker()
    assert [("+" if a == "hydra.output_subdir=null" else a) for a in sys.argv] == expected


def test_a_worker_uses_the_folder_and_the_checkpoint_of_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "ckpt_path=last", "hydra.run.dir=x"])
    monkeypatch.setattr(sys, "platform", "other")  # else this process would end with its parent
    monkeypatch.setenv("PH_L2O_RUN_FOLDER", "/a b/'run'")
    monkeypatch.setenv("PH_L2O_CHECKPOINT", "last.ckpt")
    workers.set_up_worker()
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from ph_l2o.commands.configuration import register
    from ph_l2o.commands.folders import conf_dir

    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        cfg = compose("train", sys.argv[1:], return_hydra_config=True)
    GlobalHydra.instance().clear()
    assert (cfg.hydra.run.dir, cfg.ckpt_path, cfg.hydra.output_subdir) == ("/a b/'run'", "last.ckpt", None)


def test_how_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    assert workers.how_to_resume(run) == "resume with ckpt_path=last"
    (run / "config.yaml").touch()
    assert workers.how_to_resume(run) == "no checkpoint was written yet, so start the run anew"
    (run / LAST).parent.mkdir()
    (run / LAST).touch()
    assert workers.how_to_resume(run) == f"resume with `python train.py ckpt_path={Path('runs') / 'a' / LAST}`"
    (run / "config.yaml").write_text("plugins: [mine]")
    assert workers.how_to_resume(run).endswith("last.ckpt 'plugins=[mine]'`")
