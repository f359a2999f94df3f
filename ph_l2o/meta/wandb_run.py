"""Weights & Biases, beside the CSV file."""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from ph_l2o.files import write_atomically
from ph_l2o.meta.wandb_file import Recorded, has_ended, recorded
from ph_l2o.meta.wandb_writer import WandbWriter

log = logging.getLogger(__name__)

_PATIENCE = 8.0  # seconds in which the server must answer
_UPLOAD_PATIENCE = 60.0  # seconds in which it must have taken everything at the end
_WRITING_PATIENCE = 10.0  # in which its process must have written the run's end
_MORE_PATIENCE = 15.0  # seconds for W&B's process beyond that
_MOST_POINTS = 500  # of a curve over inner steps
_OUTER, _INNER = "outer_step", "inner_step"
_SCORE = "val/score"  # whose minimum is in the summary
_ID_FILE = "wandb_id"
_TAGS = ("task", "optimizer", "estimator", "suite")  # choices that become tags
_LONGEST_NAME, _LONGEST_TAG = 128, 64  # characters

_open: list[WandbRun] = []


class WandbRun(WandbLogger):
    """Lightning's logger, whose calls a `WandbWriter` makes.

    Metrics of a training have the outer step, counted from 1 as in `metrics.csv`, as their axis, curves over an episode
    the inner step. Of a run that is resumed, only what its files lack is logged.

    Args:
        run: W&B's run.
        folder: Folder of the run.
        checkpoints: Whether checkpoints are kept in W&B.
        choices: Options of the configuration by group, for the run's config.
        before: What earlier starts have logged.
        rest: What the user can do with what is recorded if W&B fails.
    """

    def __init__(
        self, run: Any, folder: Path, *, checkpoints: bool, choices: Mapping[str, Any], before: Recorded, rest: str
    ):
        super().__init__(experiment=run, save_dir=str(folder))
        self._run, self._folder, self._checkpoints, self._choices = run, folder, checkpoints, dict(choices)
        self._before, self._next_row = before, before.row + 1 if before.row >= run.step else None
        self._families = set[str]()  # of metrics whose axis is defined
        self._writer = WandbWriter(rest)
        _open.append(self)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Set the run's config."""
        config = {**params, "choices": self._choices}
        self._writer.call(lambda: self._run.config.update(config, allow_val_change=True))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics of an outer step, from 0, or without a step."""
        if step is None:
            self._log(metrics)
            return
        number = step + 1
        new = {k: v for k, v in metrics.items() if number > self._before.outer_steps.get(k, 0) and k != "epoch"}
        if new:
            self._log({**new, _OUTER: number}, axis=_OUTER)

    @rank_zero_only
    def log_curves(self, curves: Mapping[str, Sequence[float]]) -> None:
        """Log curves over the inner steps of an episode, each by its name; of long ones, 500 points."""
        longest = max(map(len, curves.values()), default=0)
        for k in np.unique(np.linspace(0, longest - 1, min(longest, _MOST_POINTS)).round().astype(int)).tolist():
            self._log({_INNER: k} | {n: float(c[k]) for n, c in curves.items() if k < len(c)}, axis=_INNER)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Set values of the run as a whole, by which runs are sorted and compared."""
        self._writer.call(lambda: self._run.summary.update(dict(values)))

    @rank_zero_only
    def log_pictures(self, pictures: Mapping[str, Path]) -> None:
        """Log picture files by their names."""
        import wandb

        self._log({name: wandb.Image(str(path)) for name, path in pictures.items()})

    @rank_zero_only
    def log_checkpoints(self, folder: Path) -> None:
        """Keep `last.ckpt` and `best.ckpt` of a folder, as versions of the artifact `model-<run id>`."""
        for name in ("last", "best"):
            path = folder / f"{name}.ckpt"
            if self._checkpoints and path.is_file():
                self._writer.call(
                    lambda path=path, name=name: self._run.log_artifact(_artifact(path, self._run.id), aliases=[name])
                )

    @rank_zero_only
    def use_checkpoint(self, path: Path) -> None:
        """Note that this run uses a checkpoint of another run, which its folder names; else nothing is noted."""
        run_id = _read_id(path.absolute().parents[1]) if path.parent.name == "checkpoints" else None
        if self._checkpoints and run_id is not None:
            # W&B's use_artifact is for artifacts on the server. The same content makes the same version there.
            self._writer.call(
                lambda: self._run._log_artifact(_artifact(path, run_id), is_user_created=True, use_after_commit=True)
            )

    def finish(self, exit_code: int) -> None:
        """End the run: 0 for finished, else it is shown as failed."""
        if (text := self._folder / "run.log").is_file():
            self._writer.call(lambda: self._run.save(str(text), base_path=str(self._folder), policy="now"))
        self._writer.call(lambda: self._end(exit_code))
        self._writer.close(_UPLOAD_PATIENCE + _MORE_PATIENCE)

    def _end(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)
        path = Path(self._run.dir).parent / f"run-{self._run.id}.wandb"
        end = time.monotonic() + _WRITING_PATIENCE
        while path.is_file() and not has_ended(path):  # W&B's process does not tell of a full disk
            if time.monotonic() > end:
                raise OSError(f"{path.name} could not be written to its end, is the disk full?")
            time.sleep(0.05)

    def _log(self, row: Mapping[str, Any], axis: str | None = None) -> None:
        families = {key.partition("/")[0] for key in row if "/" in key} - self._families if axis else set()
        self._families |= families
        for family in sorted(families):
            if family == _SCORE.partition("/")[0]:
                self._writer.call(lambda: self._run.define_metric(_SCORE, step_metric=axis, summary="min"))
            self._writer.call(lambda family=family: self._run.define_metric(f"{family}/*", step_metric=axis))
        place: dict[str, Any] = {} if self._next_row is None else {"step": self._next_row, "commit": True}
        self._next_row = None
        self._writer.call(lambda: self._run.log(dict(row), **place))


def finish_wandb(exit_code: int) -> None:
    """End the W&B run of this process, if there is one."""
    while _open:
        _open.pop().finish(exit_code)


def wandb_logger(
    folder: str | Path,
    *,
    project: str,
    name: str,
    entity: str | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] = (),
    notes: str | None = None,
    choices: Mapping[str, Any] | None = None,
    checkpoints: bool = True,
    offline: bool | None = None,
) -> Any:
    """A Lightning logger for W&B: online where an API key is configured and the server answers, else offline.

    Which of them is said in one line. What becomes of W&B later neither stops nor slows the run, and is said as well.

    Args:
        folder: Folder of the run; W&B's files lie in `wandb/` below it. Where `wandb_id` in it names a run, as after a
            resume, that run goes on.
        project: W&B project.
        name: Name of the run.
        entity: Team or user; None: the user's default.
        group: Group of the run, such as a sweep.
        job_type: What the run does, such as `train`.
        tags: Tags of the run, beside those of `choices`.
        notes: A text about the run.
        choices: Options of the configuration by group, which become a part of the run's config; those of task,
            optimizer, estimator and suite become tags.
        checkpoints: Whether checkpoints are kept in W&B, and which ones are used.
        offline: True, False, or None to decide by whether there is an API key, and a server.

    Raises:
        ValueError: If `tags` is no list; if `offline` is False and the server does not answer; if it does not know the
            key; if W&B refuses an argument.
    """
    if rank_zero_only.rank != 0:
        return WandbLogger(project=project, save_dir=str(folder))  # does nothing on the other processes
    if isinstance(tags, str):
        raise ValueError(f"logger.wandb.tags={tags}: must be a list, such as [{tags}]")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from wandb.errors import AuthenticationError, CommError, UsageError

    folder, choices = Path(folder), choices or {}
    run_id = _read_id(folder)
    mode = os.environ.get("WANDB_MODE")
    if offline is not None:
        mode = "offline" if offline else "online"
    elif mode is None:
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    labels = [str(label) for label in (*(choices.get(group) for group in _TAGS), *tags) if label not in (None, "null")]
    settings = {
        "project": project, "name": name[:_LONGEST_NAME], "entity": entity, "group": group, "notes": notes,
        "job_type": job_type, "tags": list(dict.fromkeys(label[:_LONGEST_TAG] for label in labels)),
        "dir": str(folder), "id": run_id, "resume": "allow" if run_id else None,
    }  # fmt: skip
    before = recorded(folder / "wandb", run_id, _OUTER) if run_id else Recorded(-1, {})
    why = "no API key, or asked for"
    try:
        run = _start(mode, settings)
    except CommError as error:
        why = f"no answer from {wandb.setup().settings.base_url}"
        if isinstance(error, AuthenticationError) or offline is False:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"logger.wandb.offline={offline}: {why} ({reason}); try true") from error
        mode, run = "offline", _start("offline", settings)
    except UsageError as error:
        raise ValueError(f"logger.wandb: {str(error).partition(chr(10))[0]}") from error
    except Exception as error:  # its process does not start, or can't write
        log.warning("W&B: does not start (%s), the run goes on without it", str(error).partition("\n")[0])
        mode, run = "disabled", _start("disabled", settings)
    upload = f"upload with `wandb sync {shlex.quote(os.path.relpath(Path(run.dir).parent))}`"
    log.info("W&B: %s", {"online": run.url, "offline": f"offline ({why}); {upload}"}.get(mode, mode))
    if mode != "disabled":
        write_atomically(folder / _ID_FILE, f"{run.id}\n")
    return WandbRun(run, folder, checkpoints=checkpoints, choices=choices, before=before, rest=upload)


def _read_id(folder: Path) -> str | None:
    """The W&B run that a folder belongs to."""
    path = folder / _ID_FILE
    text = path.read_text().strip() if path.is_file() else ""
    return text if re.fullmatch(r"[\w-]{1,64}", text) else None


def _artifact(path: Path, run_id: str) -> Any:
    import wandb

    artifact = wandb.Artifact(f"model-{run_id}", type="model")
    artifact.add_file(str(path), name=path.name)
    return artifact


def _start(mode: str, settings: Mapping[str, Any]) -> Any:
    """W&B's run. Lightning's own offline switch sets a mode that current W&B does not know."""
    import wandb

    noise = logging.getLogger("wandb")
    level = noise.level
    noise.setLevel(logging.CRITICAL + 1)  # it would show a traceback
    # Its capture of the terminal would wait, and fail, with W&B's process; run.log is uploaded instead.
    more = wandb.Settings(
        init_timeout=_PATIENCE, finish_timeout=_UPLOAD_PATIENCE, finish_timeout_raises=True, console="off"
    )
    try:
        return wandb.init(**settings, mode=mode, settings=more)  # type: ignore[arg-type]
    finally:
        noise.setLevel(level)
