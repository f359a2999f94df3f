"""Run meta-training with Lightning, from the command line or from Python."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

from ph_l2o.checkpoints import read_checkpoint
from ph_l2o.checks import did_you_mean
from ph_l2o.errors import Interrupted, NonFiniteError
from ph_l2o.estimators import ESTIMATORS, Estimator
from ph_l2o.interruption import Interruption
from ph_l2o.meta.checkpoint_files import AtomicCheckpoints, RunCheckpoint, SaveWhenInterrupted
from ph_l2o.meta.learner import MetaLearner
from ph_l2o.meta.metrics_csv import MetricsCSV
from ph_l2o.meta.processes import ProblemSharing, lost_processes
from ph_l2o.meta.progress import MetaProgress
from ph_l2o.meta.resume import check_left, check_optimizer
from ph_l2o.meta.settings import MetaSettings
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.tasks import Task

_IGNORED_WARNINGS = (
    ".*does not have many workers.*",
    ".*You defined a `validation_step` but have no `val_dataloader`.*",
    ".*IterableDataset.*",
    ".*number of training batches.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*litlogger.*",
    ".*dataloader is not resumable.*",
    ".*callbacks used to create the checkpoint need to be provided.*",  # said, or left out by the user
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",  # of Lightning, on current torch
)


# Arguments of Lightning's trainer that are set elsewhere.
_SET_BY = {
    "max_steps": "meta.outer_steps",
    "max_epochs": "meta.outer_steps",
    "min_steps": "meta.outer_steps",
    "min_epochs": "meta.outer_steps",
    "val_check_interval": "meta.val_every",
    "check_val_every_n_epoch": "meta.val_every",
    "reload_dataloaders_every_n_epochs": "meta.val_every",
    "num_sanity_val_steps": "the checks before a training",
    "inference_mode": "the validation, which needs gradients",
    "gradient_clip_val": "meta.gradient_clip",
    "use_distributed_sampler": "strategy",
    "accelerator": "strategy",
    "devices": "strategy",
    "num_nodes": "strategy",
    "strategy": "strategy",
    "default_root_dir": "paths.runs",
    "logger": "logger",
    "callbacks": "callbacks",
    "plugins": "the checkpoints that every run writes",
    "enable_checkpointing": "the checkpoints that every run writes",
}


def check_trainer(arguments: Iterable[str]) -> None:
    """Raise ValueError for an argument of Lightning's trainer that is set elsewhere."""
    for name in arguments:
        if name in _SET_BY:
            raise ValueError(f"trainer.{name}=…: is set by {_SET_BY[name]}; leave it out")


def fit(
    learner: MetaLearner,
    output_dir: str | Path,
    *,
    ckpt_path: str | Path | None = None,
    loggers: Sequence[Logger] | None = None,
    callbacks: Sequence[Callback] | None = None,
    make_trainer: Callable[..., pl.Trainer] = pl.Trainer,
    **trainer: Any,
) -> pl.Trainer:
    """Train, writing `checkpoints/{best,last}.ckpt`.

    Args:
        learner: What is trained.
        output_dir: Folder of the run.
        ckpt_path: A checkpoint to go on from; the run continues bit for bit as if it had not stopped.
        loggers: Loggers; the default writes `metrics.csv` into the folder.
        callbacks: Callbacks beside the checkpoints; the default shows progress.
        make_trainer: Makes the trainer.
        trainer: Further arguments of `pytorch_lightning.Trainer`; `strategy="ddp"` means `ProblemSharing`, in the
            processes that `torchrun` or `srun` started, or that Lightning starts by running the script again.

    Returns:
        The trainer after the last outer step.

    Raises:
        ProcessError: If another process of the run is lost.
        NonFiniteError: If all outer steps were skipped.
        Interrupted: After a signal that asks the process to end; `last.ckpt` is written then.
    """
    own = [MetaProgress()] if callbacks is None else list(callbacks)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **getattr(make_trainer, "keywords", {}),
        **trainer,
        "max_steps": learner.meta.outer_steps,
        "max_epochs": -1,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
        "gradient_clip_val": learner.meta.gradient_clip,
        "use_distributed_sampler": False,
        "default_root_dir": str(output_dir),
        "logger": [MetricsCSV(output_dir)] if loggers is None else list(loggers),
        "callbacks": [*_checkpoints(Path(output_dir) / "checkpoints"), *own],
        "plugins": [AtomicCheckpoints()],
    }
    if settings.get("strategy") == "ddp":
        settings["strategy"] = ProblemSharing(average=not learner.estimator.averages_processes)
    with warnings.catch_warnings(), lost_processes(), _quick_look_for_gpus(), Interruption() as interruption:
        learner.interruption = interruption
        for text in _IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", text)
        made = make_trainer(**settings)
        made.fit(learner, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    if learner.skipped_steps >= learner.meta.outer_steps:
        raise NonFiniteError(
            f"none of {learner.meta.outer_steps} outer steps had a finite meta-gradient, so nothing was learned: "
            "lower meta.horizons or meta.truncation, or look into the task's loss"
        )
    return made


def _checkpoints(folder: Path) -> list[Callback]:
    """`best.ckpt` and `last.ckpt`, both at the validation whose score is in them, and `last.ckpt` after a signal."""
    common: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
    best = {"filename": "best", "monitor": "val/score", "mode": "min", "auto_insert_metric_name": False}
    last = RunCheckpoint(folder, filename="last", **common)
    return [RunCheckpoint(folder, **best, **common), last, SaveWhenInterrupted(folder / "last.ckpt")]


@contextlib.contextmanager
def _quick_look_for_gpus() -> Iterator[None]:
    """Where there is no GPU, do not ask NVIDIA's library again.

    Lightning has torch ask it, which loads the library anew each time, and Adam asks in every step.
    """
    variable = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(variable)
    if before is None or torch.cuda.is_available():
        yield
        return
    os.environ[variable] = "0"
    try:
        yield
    finally:
        os.environ[variable] = before


def meta_train(
    optimizer: LearnedOptimizer,
    task: Task,
    outer_steps: int = 600,
    *,
    estimator: str | Estimator = "truncated",
    seed: int = 0,
    output_dir: str | Path | None = None,
    device: str = "cpu",
    compile: str | bool = "auto",
    ckpt_path: str | Path | None = None,
    **settings: Any,
) -> LearnedOptimizer:
    """Train an optimizer on a task; the same loop as `train.py`, for notebooks.

    Ctrl-C, or a notebook's Stop, ends the training after the outer step before it: what is best so far is returned.

    Args:
        optimizer: Where training starts; it is left as it is.
        task: The distribution of problems to learn on.
        outer_steps: Updates of the learned optimizer, >= 1.
        estimator: An `Estimator`, or the name in `ph_l2o.estimators.ESTIMATORS` of one with its default settings:
            `truncated`, `full`, `forward`, `es`, `pes`, `es_single`, `nres`, or what was added to it.
        seed: Seed of every draw, >= 0.
        output_dir: Where metrics and checkpoints are kept; the default keeps none.
        device: `cpu` or `gpu`.
        compile: `auto`, `update`, `step` or False; see `MetaLearner`.
        ckpt_path: A checkpoint to go on from, such as `checkpoints/last.ckpt` in an earlier `output_dir`, with the same
            other arguments; in the same `output_dir`, it goes on as if it had not stopped.
        settings: Further fields of `MetaSettings`, such as `num_problems=16`.

    Returns:
        A trained copy, with the weights that were best on the validation split; with the last ones, if the training was
        stopped before the first validation.

    Raises:
        ValueError: If an argument is out of range, or the checkpoint has done all outer steps.
        CheckpointError: If the checkpoint is damaged, or of another optimizer.

    Example:
        >>> from ph_l2o.optimizers import PortHamiltonian
        >>> from ph_l2o.tasks import Quadratic
        >>> small = {"num_problems": 2, "horizons": (20,), "val_every": 2, "val_problems": 2, "val_horizon": 5}
        >>> trained = meta_train(PortHamiltonian(), Quadratic(), outer_steps=2, **small)
    """
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            hint = did_you_mean(estimator, ESTIMATORS, 1)
            raise ValueError(f"estimator={estimator}: must be one of {', '.join(ESTIMATORS)}, or an Estimator{hint}")
        estimator = ESTIMATORS[estimator]()
    made = MetaSettings(outer_steps=outer_steps, **settings)
    task.prepare()
    learner = MetaLearner(copy.deepcopy(optimizer), task, estimator, made, seed=seed, compile=compile)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if output_dir is None else output_dir)
        if ckpt_path is not None:
            content = read_checkpoint(ckpt_path)
            check_optimizer(content, optimizer, ckpt_path)
            check_left(content, made, ckpt_path)
        try:
            fit(learner, folder, accelerator=device, ckpt_path=ckpt_path)
        except Interrupted as error:
            if error.number != signal.SIGINT:
                raise
            last = "" if output_dir is None else f"; ckpt_path={folder / 'checkpoints' / 'last.ckpt'} goes on"
            print(f"stopped: returns the best weights so far{last}", file=sys.stderr)
        best = folder / "checkpoints" / "best.ckpt"
        if best.is_file():
            learner.load_state_dict(read_checkpoint(best)["state_dict"])
    return learner.optimizer.cpu().eval()
