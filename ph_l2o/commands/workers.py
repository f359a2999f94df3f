"""The processes of `strategy=ddp` and `ddp_cpu` on this machine: torch's elastic agent starts, watches and ends them.

The command that the user typed checks everything, and then runs itself again in each of these workers, which see the
environment of `torchrun`. An error that ends a worker goes to the command, which tells it once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ph_l2o.commands.folders import LAST
from ph_l2o.commands.recording import saved_config
from ph_l2o.errors import ConfigError, Interrupted, NonFiniteError, ProcessError, WorkerError
from ph_l2o.files import write_atomically
from ph_l2o.interruption import SIGNALS
from ph_l2o.ranks import CHECKPOINT, RUN_FOLDER, has_own_folder, is_worker

# Exit statuses of workers whose error is told in one line. The last one stands for all other errors.
_STATUS = {NonFiniteError: 3, ProcessError: 4, ConfigError: 5}
_PATIENCE = 6  # seconds in which a worker must end after a signal; it has written a checkpoint then
_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>


def run_workers(
    processes: int, folder: Path, checkpoint: Path | None = None, *, num_nodes: int = 1, timeout: float = 300.0
) -> None:
    """Run this command again in several processes, and wait until all have ended.

    Args:
        processes: How many on this machine, >= 1.
        folder: The run's folder.
        checkpoint: What to resume from.
        num_nodes: Machines, of which this one is the `NODE_RANK`-th; they meet at `MASTER_ADDR` and `MASTER_PORT`.
        timeout: Seconds in which the machines must meet.

    Raises:
        NonFiniteError: If meta-training cannot go on.
        ProcessError: If one of the processes was lost, or the machines don't meet.
        ConfigError: If a worker ended by any other error that one line explains.
        WorkerError: If only a traceback explains the error.
        Interrupted: After a signal that asks this process to end.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import launch_agent

    # The agent fills in "${local_rank}" as string.Template does.
    command = [argument.replace("$", "$$") for argument in sys.orig_argv[1:]]
    received: list[int] = []
    with tempfile.TemporaryDirectory() as scratch, _surroundings(folder, checkpoint, received):
        try:
            launch_agent(_launch_config(processes, num_nodes, timeout, scratch), sys.executable, command)
        except ChildFailedError as error:
            raise _cause(error.failures, folder) from None
        except SignalException:
            raise Interrupted(received[0] if received else signal.SIGINT) from None
        except (RendezvousError, DistError) as error:
            raise ProcessError(f"the machines of this run do not meet ({str(error).splitlines()[0]})") from error


def _launch_config(processes: int, nodes: int, timeout: float, scratch: str) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    where, rank = ("c10d", "localhost:0"), {}
    if nodes > 1:
        where = ("static", f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}")
        rank = {"rank": int(os.environ["NODE_RANK"])}
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=processes,
        run_id="ph_l2o",
        rdzv_backend=where[0],
        rdzv_endpoint=where[1],
        rdzv_configs={"timeout": max(1, int(timeout)), **rank},
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=scratch),
        local_addr="localhost" if nodes == 1 else None,
        signals_to_handle="SIGINT",
    )


@contextlib.contextmanager
def _surroundings(folder: Path, checkpoint: Path | None, received: list[int]) -> Iterator[None]:
    """What workers inherit; and a silent agent, which hands Ctrl-C on for every signal that asks this process to end.

    The workers agree on the outer step after which they write a checkpoint and end.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    def end(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        received.append(number)
        raise SignalException(f"signal {number}", sigval=signal.SIGINT)

    variables = {RUN_FOLDER: str(folder.absolute()), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_PATIENCE)}
    if checkpoint is not None:
        variables[CHECKPOINT] = str(checkpoint)
    agent = logging.getLogger("torch.distributed.elastic")
    agent.propagate = False
    agent.addHandler(logging.NullHandler())
    before = {number: signal.signal(number, end) for number in SIGNALS}
    os.environ.update(variables)
    try:
        yield
    finally:
        for variable in variables:
            del os.environ[variable]
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(failures: dict[int, Any], folder: Path) -> Exception:
    """The error that ended the run; the others end by it, by a `ProcessError` or a signal of the agent."""

    def follows(failure: Any) -> int:
        if failure.exitcode in (-signal.SIGTERM, _STATUS[ProcessError]):
            return 2
        return int(failure.exitcode > 0)

    rank, failure = min(failures.items(), key=lambda item: follows(item[1]))
    told = failure.error_file_data["message"] if Path(failure.error_file).is_file() else None
    if told is None:
        killed = failure.exitcode < 0
        how = f"was ended by {failure.signal_name()}" if killed else f"ended with status {failure.exitcode}"
        return ProcessError(f"process {rank} of this run (id {failure.pid}) {how}; {how_to_resume(folder)}")
    kinds = [kind for kind, status in _STATUS.items() if status == failure.exitcode]
    return (kinds[0] if kinds else WorkerError)(told)


def how_to_resume(folder: Path) -> str:
    """What to do after a run ended because of one of its processes."""
    if (folder / LAST).is_file():
        plugins = (saved_config(folder) or {}).get("plugins")
        more = f" 'plugins=[{', '.join(plugins)}]'" if plugins else ""
        return f"resume with `python train.py ckpt_path={os.path.relpath(folder / LAST)}{more}`"
    if (folder / "config.yaml").is_file():
        return "no checkpoint was written yet, so start the run anew"
    return "resume with ckpt_path=last"  # the folder of process 0 is elsewhere


def set_up_worker() -> None:
    """Use the folder and the checkpoint of the command that started this process, and end when it is killed.

    A process that others than the command started writes no files of Hydra, unless it is process 0.
    """
    if is_worker():
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        more = [f"hydra.run.dir=${{oc.env:{RUN_FOLDER}}}", "hydra.output_subdir=null"]
        if CHECKPOINT in os.environ:
            more.append(f"ckpt_path=${{oc.env:{CHECKPOINT}}}")
        _override(more)
    elif not has_own_folder():
        _override(["hydra.output_subdir=null"])


def _override(more: list[str]) -> None:
    # Right after the user's own: what stands behind an option such as --config-dir is not read.
    own = [i for i, argument in enumerate(sys.argv) if i and "=" in argument and not argument.startswith("-")]
    at = max(own, default=0) + 1
    sys.argv[at:at] = more


def hand_over(error: Exception, message: str | None) -> NoReturn:
    """End this worker, and leave its error to the command: one line, or a traceback where there is none."""
    content = {"message": message or traceback.format_exc(), "timestamp": int(time.time())}
    # Another worker's end can end this one at any moment, and half a file could not be read.
    write_atomically(os.environ["TORCHELASTIC_ERROR_FILE"], json.dumps(content))
    kinds = [kind for kind in _STATUS if isinstance(error, kind)] or [ConfigError]
    sys.exit(1 if message is None else _STATUS[kinds[0]])
