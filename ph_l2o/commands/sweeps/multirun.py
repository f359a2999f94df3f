"""Sweeps: a job that fails is recorded and the others run; a table of all jobs at the end."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ph_l2o.commands.explain import explain
from ph_l2o.commands.recording import DIVERGED_SCORE, read_status, write_status
from ph_l2o.commands.reporting import report
from ph_l2o.commands.searches.search_space import is_search
from ph_l2o.commands.sweeps import sweep_folder
from ph_l2o.commands.sweeps.sweep_jobs import FINISHED
from ph_l2o.commands.sweeps.sweep_rows import SweepRows
from ph_l2o.commands.sweeps.sweep_summary import summarize_sweep, write_summary
from ph_l2o.errors import ConfigError, OtherRunError

log = logging.getLogger(__name__)

_TOLERANCE = "max_failure_rate"  # of sweepers that count failures themselves
_MAX_NAMED = 3  # jobs that failed
_underway: list[tuple[Path, bool]] = []  # the folder of this process's sweep, and whether it is one to launch again


def is_multirun() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def counts_failures() -> bool:
    """Whether the sweeper does, and so is to get the errors of its jobs."""
    return _TOLERANCE in HydraConfig.get().sweeper


def record_failure(error: Exception, message: str | None, folder: Path) -> float:
    """Tell and record that a job failed; the score that the sweep gets, lower is better.

    Args:
        error: What ended the job.
        message: The one line that explains it, if there is one.
        folder: Of the job.

    Raises:
        Exception: The error, where the sweeper counts failures.
    """
    log.error("error: %s", message or "".join(traceback.format_exception(error)))
    recorded = read_status(folder)
    if recorded.get("status") != "diverged":
        took = {"seconds": recorded["seconds"]} if "seconds" in recorded else {}
        write_status(folder, "error", error=message or repr(error), **took)
        if counts_failures():
            raise error
    return DIVERGED_SCORE


def record_end(code: int, error: str | None, folder: Path) -> float:
    """Record how the process of a job ended that did not end well; the score that the sweep gets.

    Args:
        code: Its exit status, negative for a signal that ended it.
        error: What it told, if it could.
        folder: Of the job.

    Raises:
        RuntimeError: If the sweeper counts failures.
    """
    recorded = read_status(folder)
    if code < 0 and recorded.get("status") not in FINISHED:
        hint = ", as by the system when memory runs out" if -code == signal.SIGKILL else ""
        error = f"its process was ended by {signal.Signals(-code).name}{hint}"
        write_status(folder, "killed", error=error)
        log.error("error: %s: %s", folder.name, error)
    elif recorded.get("status") in (None, "running"):
        error = error or f"its process ended with status {code}"
        write_status(folder, "error", error=error)
    if counts_failures():
        raise RuntimeError(error or recorded.get("error") or f"{folder.name}: ended with status {code}")
    return DIVERGED_SCORE


class SweepSummary(Callback):
    """Hydra callback: chooses the sweep's folder, keeps `summary.csv` of it, and prints a table at the end.

    The exit status is 1 if a job failed, unless the sweeper tolerates that. A search chooses its folder, which several
    processes share, and tells its end itself.
    """

    def __init__(self) -> None:
        self._rows = SweepRows()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose the folder, before anything is written."""
        try:
            sweep_folder.check_packages(config)
            if is_search(config.hydra):
                sweep_folder.have_jobs_use(config, Path(config.hydra.sweep.dir))
                return
            folder = sweep_folder.take(config, str(config.hydra.job.config_name))
        except (ConfigError, OSError) as error:
            sys.exit(f"error: {explain(error, str(config.hydra.job.config_name))}")
        except Exception as error:  # of which Hydra would make a warning, and run the jobs all the same
            log.error("%s", "".join(traceback.format_exception(error)))
            sys.exit(f"error: the sweep has no folder ({error!r})")
        is_parallel = "basic_launcher" not in config.hydra.launcher["_target_"]
        _underway[:] = [(folder, is_parallel and _TOLERANCE not in config.hydra.sweeper)]

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Add what the job left."""
        if config.hydra.mode == RunMode.MULTIRUN:
            write_summary(Path(config.hydra.sweep.dir), self._rows)
            job_return.cfg = job_return.hydra_cfg = None  # launchers keep what jobs return until the sweep's end

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what the jobs left."""
        if is_search(config.hydra):
            return
        folder = Path(config.hydra.sweep.dir)
        try:
            _end(folder, self._rows, tolerated=_TOLERANCE in config.hydra.sweeper)
        except Exception as error:  # of which Hydra would make a warning, and an exit status of 0
            reason = explain(error, str(config.hydra.job.config_name))
            if reason is None:
                log.error("%s", "".join(traceback.format_exception(error)))
            place = shlex.quote(os.path.relpath(folder))
            sys.exit(
                f"error: the jobs have ended, but not all is written of them ({reason or repr(error)}); "
                f"`python -m ph_l2o.report {place}` makes table and page"
            )
        finally:
            _underway.clear()
            sweep_folder.release(folder)


class Underway:
    """The sweep that this process runs, if there is one, for the end that Hydra's callbacks are not told of."""

    def __init__(self) -> None:
        self._ended = -1  # jobs that had ended when the launcher failed the last time

    def goes_on(self, error: Exception) -> bool:
        """Whether what is left of the sweep is to be launched again, since its launcher lost processes.

        It is as long as jobs end in between. Hydra's own launcher has no processes to lose, and sweepers that count
        failures decide for themselves.

        Args:
            error: That the launcher or a job raised.
        """
        if not _underway or isinstance(error, OtherRunError):
            return False
        folder, is_parallel = _underway[0]
        jobs = sweep_folder.jobs_in(folder) if folder.is_dir() else []
        ended = sum(map(_has_ended, jobs))
        if not is_parallel or not jobs or ended <= self._ended:
            return False
        self._ended = ended
        log.warning("the launcher lost its processes (%s); going on with what is left", _first_line(error))
        self._release()
        return True

    def end(self, error: BaseException) -> str:
        """Print what is there of a sweep that is not at its end, and let others have it.

        Returns:
            What to do, for the user; empty where there is nothing to go on with, or no launcher that failed.
        """
        if not _underway:
            return ""
        folder, is_parallel = _underway[0]
        try:
            has_jobs = folder.is_dir() and bool(sweep_folder.jobs_in(folder))
            if has_jobs and isinstance(error, Exception):
                summarize_sweep(folder, SweepRows())
        finally:
            self._release()
        if isinstance(error, Exception) and not is_parallel:
            return ""
        how = "" if not isinstance(error, Exception) else "PH_L2O_TRACEBACK=1 shows where"
        return "the same command goes on with this sweep" if has_jobs else how

    def _release(self) -> None:
        sweep_folder.release(_underway.pop()[0])


def _has_ended(job: Path) -> bool:
    return read_status(job).get("status") not in (None, "running", "interrupted")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__


def _end(folder: Path, rows: SweepRows, *, tolerated: bool) -> None:
    if not sweep_folder.jobs_in(folder):
        return
    found = summarize_sweep(folder, rows)
    report(folder)
    failed = [row for row in found if row["status"] not in FINISHED]
    if not failed or tolerated:
        sweep_folder.finish(folder)
    if failed and not tolerated:
        reasons = {str(row["error"]) for row in failed}
        why = f": {reasons.pop()}" if len(reasons) == 1 else "; summary.csv says why"
        names = ", ".join(row["job"] for row in failed[:_MAX_NAMED])
        names += f" and {len(failed) - _MAX_NAMED} more" if len(failed) > _MAX_NAMED else ""
        sys.exit(f"error: {len(failed)} of {len(found)} jobs failed: {names}{why}")
