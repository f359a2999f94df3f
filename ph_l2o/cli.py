"""Entry points of `train.py`, `evaluate.py` and the console scripts. What is heavy is imported when work starts."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ph_l2o.commands.configuration import register
from ph_l2o.commands.explain import explain
from ph_l2o.commands.folders import conf_dir, remove_if_untouched
from ph_l2o.commands.recording import close_log_files
from ph_l2o.commands.sweeps.job_process import is_wanted, run_in_process
from ph_l2o.commands.workers import hand_over, set_up_worker
from ph_l2o.errors import Interrupted, OtherRunError, WorkerError
from ph_l2o.interruption import raised_at_once
from ph_l2o.lazy import resolve
from ph_l2o.ranks import is_worker


def train() -> None:
    """`python train.py` and `ph-l2o-train`."""
    _main("train", _train)


def evaluate() -> None:
    """`python evaluate.py` and `ph-l2o-evaluate`."""
    _main("evaluate", _evaluate)


def _train(cfg: Any) -> float | None:
    return resolve("ph_l2o.commands.train:run_training")(cfg)


def _evaluate(cfg: Any) -> None:
    resolve("ph_l2o.commands.evaluate:run_evaluation")(cfg)


class _Job:
    """What Hydra runs with a configuration, here or in a process of a parallel launcher."""

    def __init__(self, config_name: str, work: Callable[[Any], float | None]):
        self.config_name, self.work = config_name, work

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        register()

    def __call__(self, cfg: Any) -> float | None:
        if is_wanted():
            return run_in_process(self.run, cfg)
        return self.run(cfg)

    def run(self, cfg: Any) -> float | None:
        """The job itself."""
        try:
            return self.work(cfg)
        except BaseException as error:
            folder = Path(cfg.paths.output_dir)
            if isinstance(error, Exception) and not isinstance(error, OtherRunError) and _is_job():
                record_failure = resolve("ph_l2o.commands.sweeps.multirun:record_failure")
                return record_failure(error, _message(error, self.config_name), folder)
            if not is_worker():
                close_log_files()
                remove_if_untouched(folder)
            if isinstance(error, Exception):
                _stop(error, self.config_name)
            raise


def _is_job() -> bool:
    return resolve("ph_l2o.commands.sweeps.multirun:is_multirun")()


def _message(error: Exception, config_name: str) -> str | None:
    return None if os.environ.get("PH_L2O_TRACEBACK") else explain(error, config_name)


def _stop(error: Exception, config_name: str) -> NoReturn:
    message = _message(error, config_name)
    if is_worker():
        hand_over(error, message)
    if isinstance(error, WorkerError):
        sys.exit(str(error).rstrip())
    if message is None:
        raise error
    sys.exit(f"error: {message}")


def _main(config_name: str, work: Callable[[Any], float | None]) -> None:
    import hydra

    register()
    set_up_worker()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over, and they become one line here
    run = hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(_Job(config_name, work))
    underway = resolve("ph_l2o.commands.sweeps.multirun:Underway")()
    try:
        with raised_at_once():
            while not _ran(run, underway):
                pass
    except (KeyboardInterrupt, Interrupted) as error:
        number, what = (error.number, error.what) if isinstance(error, Interrupted) else (signal.SIGINT, "")
        what = underway.end(error) or what
        if not is_worker():
            print(f"interrupted by {signal.Signals(number).name}" + (f"; {what}" if what else ""), file=sys.stderr)
        gc.freeze()  # Python looks through all objects when it ends, which takes seconds with those of a compiler
        sys.exit(128 + number)
    except Exception as error:
        how = underway.end(error)
        if how and _message(error, config_name) is None and not os.environ.get("PH_L2O_TRACEBACK"):
            reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"
            sys.exit(f"error: the launcher failed ({reason}); {how}")
        _stop(error, config_name)


def _ran(run: Callable[[], Any], underway: Any) -> bool:
    """Whether a command is done; False for a sweep that is to go on."""
    try:
        run()
    except Exception as error:
        if not underway.goes_on(error):
            raise
        resolve("hydra.core.global_hydra:GlobalHydra").instance().clear()
        return False
    return True
