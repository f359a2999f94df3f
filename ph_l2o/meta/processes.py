"""Several processes that share the problems of a batch out: what they exchange, and what happens when one is lost."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor
from torch import distributed as dist

from ph_l2o.errors import ProcessError
from ph_l2o.estimators.exchange import num_processes
from ph_l2o.ranks import STARTED_BY

_POLL = 0.5  # seconds between looks at the other processes
_GRACE = 10.0  # seconds in which a process should notice by itself that another is gone


class ProblemSharing(DDPStrategy):
    """Lightning's DDP, with two differences.

    Gradients are not averaged where an estimator gives every process the gradient of all problems. And where a
    process that this one started is lost, this one ends too, by an error of its own or after `on_lost`.

    Args:
        average: Average the gradients over processes.
        timeout: Seconds that a process waits for the others, > 0; more than the longest validation.
        on_lost: Called with a text before this process ends itself, where it is caught in a call that doesn't return.
    """

    def __init__(self, *, average: bool = True, timeout: float = 300.0, on_lost: Callable[[str], None] | None = None):
        super().__init__(timeout=datetime.timedelta(seconds=timeout))
        self.average, self.on_lost = average, on_lost

    def setup_environment(self) -> None:
        """Meet the other processes."""
        super().setup_environment()
        atexit.register(_leave)

    def configure_ddp(self) -> None:
        """Wrap the model; the weights of process 0 go to all."""
        super().configure_ddp()
        if not self.average:
            # Lightning registers hooks on GPUs only.
            self.model.register_comm_hook(None, _keep)  # type: ignore[union-attr,operator]

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes, self.on_lost)


def _leave() -> None:
    # Else threads of gloo can end a process with an abort after its work is done.
    if dist.is_initialized():
        dist.destroy_process_group()


def _keep(state, bucket):  # without annotations: DDP compares them with its classes, and here they are texts
    """A communication hook of DDP that communicates nothing."""
    del state
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine.

    Lightning's own kills this process without a word when another is lost, and changes the number of threads.
    """

    def __init__(self, environment: Any, processes: int, nodes: int, on_lost: Callable[[str], None] | None):
        super().__init__(environment, processes, nodes)
        self.on_lost = on_lost

    def launch(self, function: Callable, *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        del trainer
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if self.cluster_environment.creates_processes_externally:
            return function(*args, **kwargs)
        os.environ[STARTED_BY] = str(os.getpid())
        try:
            self._call_children_scripts()
        finally:
            del os.environ[STARTED_BY]
        threading.Thread(target=self._watch, daemon=True, name="watch-processes").start()
        try:
            return function(*args, **kwargs)
        except BaseException:
            self.kill(signal.SIGKILL)
            raise

    def _watch(self) -> None:
        while all(process.poll() in (None, 0) for process in self.procs):
            if all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(_POLL)
        time.sleep(_GRACE)
        lost = next(process for process in self.procs if process.returncode)
        if self.on_lost is not None:
            self.on_lost(f"process {lost.pid} of this run ended with status {lost.returncode}")
        self.kill(signal.SIGKILL)
        os._exit(1)


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of each number over all processes, in one exchange."""
    processes = num_processes()
    if processes > 1:
        dist.all_reduce(x)  # Lightning's own puts a barrier in front
    return x / processes


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Make a `ProcessError` of a collective call that fails because another process does not answer."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        raise ProcessError(f"another process of this run ended or does not answer ({_reason(str(error))})") from error


def _reason(text: str) -> str:
    return text.partition("] ")[2].partition(". ")[0] if text.startswith("[") else text.splitlines()[0]


def check_same_weights(module: torch.nn.Module) -> None:
    """Where each process computes the gradient for itself, their weights must stay the same.

    Raises:
        ProcessError: On all processes, if they differ.
    """
    flat = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    largest = torch.stack([flat, -flat])
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    if not torch.equal(largest[0], -largest[1]):
        raise ProcessError(
            "estimator.exchange=scalars: the processes' weights have come to differ, since their processors round "
            "differently; use estimator.exchange=gradient"
        )
