"""A job of a parallel launcher in a process of its own, so that what kills it ends nothing else of the sweep.

Launchers give up on all of their jobs when one of their processes dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ph_l2o.errors import Interrupted, OtherRunError
from ph_l2o.files import json_text
from ph_l2o.interruption import raised_at_once
from ph_l2o.lazy import resolve

_JOB, _RESULT = "job.pickle", "result.json"
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from ph_l2o.commands.sweeps.job_process import main; main(sys.argv.pop())"
)
_OTHER_RUN = 3  # exit status
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def is_wanted() -> bool:
    """Whether this is a job of a sweep that another launcher than Hydra's own, which has one process, runs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    config = HydraConfig.get()
    return config.mode == RunMode.MULTIRUN and "basic_launcher" not in config.launcher["_target_"]


def run_in_process(job: Callable[[Any], float | None], cfg: Any) -> float | None:
    """Run a job in a new process, and wait for it; a killed one is recorded as such.

    Args:
        job: Called there with `cfg`.
        cfg: Configuration of the job.

    Returns:
        What the job returned; a sweep's score of a failure, if it was ended by a signal.

    Raises:
        OtherRunError: If its folder belongs to another run.
        RuntimeError: If the job failed, and the sweeper counts failures.
    """
    cloudpickle = resolve("cloudpickle")  # which every such launcher has
    from hydra.core.singleton import Singleton

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / _JOB).write_bytes(cloudpickle.dumps((Singleton.get_state(), job, cfg)))
        sys.stdout.flush()
        command = [sys.executable, "-c", _START, scratch, json.dumps(sys.path)]
        process = subprocess.Popen(command)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it writes a checkpoint
            process.wait()
            raise
        result = Path(scratch) / _RESULT
        if code == 0:
            return json.loads(result.read_text())["score"]
        error = json.loads(result.read_text())["error"] if result.is_file() else None
        if code == _OTHER_RUN:
            raise OtherRunError(error)
    return resolve("ph_l2o.commands.sweeps.multirun:record_end")(code, error, Path(cfg.paths.output_dir))


def end_with_parent() -> None:
    """Have this process asked to end when that which started it ends, by whatever; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(scratch: str) -> None:
    """What the new process does."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import configure_log, setup_globals

    end_with_parent()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    state, job, cfg = pickle.loads((Path(scratch) / _JOB).read_bytes())
    setup_globals()
    Singleton.set_state(state)
    config: Any = HydraConfig.get()
    configure_log(config.job_logging, config.verbose)
    result = Path(scratch) / _RESULT
    try:
        with raised_at_once():
            score = job(cfg)
        result.write_text(json_text({"score": score}))
    except (KeyboardInterrupt, Interrupted) as error:
        sys.exit(128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT))
    except Exception as error:
        result.write_text(json_text({"error": str(error)}))
        sys.exit(_OTHER_RUN if isinstance(error, OtherRunError) else 1)
