"""Several processes that share the problems of a batch out: what they exchange, and the error when one is lost."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import signal
from collections.abc import Iterator

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch import distributed as dist

from ph_l2o.errors import ProcessError
from ph_l2o.estimators.exchange import num_processes
from ph_l2o.ranks import is_worker


class ProblemSharing(DDPStrategy):
    """Lightning's DDP, except that gradients are not averaged where each process has that of all problems already.

    Args:
        average: Average the gradients over processes.
        timeout: Seconds that a process waits for the others, > 0; more than the longest validation.
    """

    def __init__(self, *, average: bool = True, timeout: float = 300.0):
        super().__init__(timeout=datetime.timedelta(seconds=timeout))
        self.average = average

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

    def on_train_start(self) -> None:
        """Let SIGTERM end a worker at once; Lightning would first exchange something with the others."""
        if is_worker():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
