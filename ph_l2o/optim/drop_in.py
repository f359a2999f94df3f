"""What the drop-in optimizers share: `torch.optim.Optimizer`'s contract, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ph_l2o.optim.adamw_options import INSTEAD, refuse_options
from ph_l2o.optim.group_options import check_options, warn_of_small_rates
from ph_l2o.optim.losses import Loss, as_number, mean_over_processes, returned_loss
from ph_l2o.optim.surroundings import leave_untraced, settings_of_our_own

Entry = tuple[str, Tensor, dict[str, Any]]  # name, parameter, group


class DropIn(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` whose step may use the loss.

    Args:
        params: As for `torch.optim.AdamW`.
        defaults: Options of the groups; `lr` is one of them.
        reduce_loss: Whether the loss is averaged over `process_group`, where torch.distributed is initialised.
        process_group: The processes that share the parameters; None for all.

    Attributes:
        is_read_out: Whether other values are in the parameters just now than those that steps start from.

    Raises:
        TypeError: If a parameter is complex, or in parts on several processes (FSDP, DTensor).
        ValueError: If an option is out of range, a parameter overlaps itself, and as `torch.optim.Optimizer` does.
    """

    is_read_out: bool = False
    _next_loss: Loss = None

    def __init__(self, params: Any, defaults: dict[str, Any], *, reduce_loss: bool, process_group: Any):
        self.reduce_loss, self.process_group = reduce_loss, process_group
        super().__init__(params, defaults)
        leave_untraced(type(self))
        warn_of_small_rates(type(self).__name__, self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            refuse_options(type(self), {key: x for key, x in group.items() if key in INSTEAD})
            check_options(group)
            for p in group["params"]:
                _check_param(p, type(self).__name__)
        except BaseException:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`; the tensors are copied, in their own types.

        Raises:
            RuntimeError: If the parameters are read out now.
            ValueError: If the state is of another optimizer or model, or of one with its tensors in another order.
        """
        self.check_iterates()
        loading = self._loading = dict[Tensor, dict[str, Any]]()
        check = self.register_load_state_dict_pre_hook(lambda _, given: loading.update(self._copied(given)))
        try:
            super().load_state_dict(state_dict)
        finally:
            check.remove()
            self._loading = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by `load_state_dict`, with a state whose tensors have the parameters' types."""
        super().__setstate__(state)
        leave_untraced(type(self))
        for p, memory in (self._loading or {}).items():
            self.state[p].update(memory)

    _loading: dict[Tensor, dict[str, Any]] | None = None

    def _copied(self, given: Mapping[str, Any]) -> dict[Tensor, dict[str, Any]]:
        """What a state dictionary has of the optimizer's own, checked, by parameter."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None, *, loss: Loss = None) -> Any:
        """Take a step.

        Args:
            closure: Computes the loss and its gradients anew; it runs once. It returns the loss, or a dict that has it
                as `loss`, or a tuple with it in front, or None.
            loss: The loss at the current parameters, one number; the step only looks at it. Without one it is
                `self.loss`, if that has been set since the last step.

        Returns:
            What the closure has returned, or the loss, as it came.

        Raises:
            RuntimeError: If the parameters are read out now.
            TypeError: If there are two losses, or what should be one is none, or a gradient is sparse.
            ValueError: If the loss is not one real number, a gradient has another shape than its parameter, or a
                group's option is out of range.
        """
        self.check_iterates()
        for group in self.param_groups:
            check_options(group)
        given = loss
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            if result is not None:  # that of a wrapper may only be there for its side effects
                if loss is not None:
                    raise TypeError("step(closure, loss=…): give one of them; what the closure returns is the loss")
                loss, given = result, returned_loss(result)
        if self.loss is not None:
            given, self.loss = self.loss if given is None else given, None
        # Others cost nothing, and may not even have a shape yet.
        entries = [
            entry
            for entry in self.named()
            if (entry[1].grad is not None or self.state.get(entry[1])) and entry[1].numel()
        ]
        with settings_of_our_own(*(p.device.type for _, p, _ in entries[:1])):
            value = self._shared(given)
            for name, p, _ in entries:
                grad = p.grad
                if grad is not None and not (
                    grad.shape == p.shape and grad.layout == torch.strided and _has_numbers(p)
                ):
                    raise _bad_gradient(name, p, grad)
            self._take_step(entries, value)
        return loss

    def check_iterates(self) -> None:
        """Raise RuntimeError where the parameters are read out now."""
        if self.is_read_out:
            raise RuntimeError(f"{type(self).__name__}: its averages are in the parameters now; leave averaged() first")

    @property
    def loss(self) -> Loss:
        """The loss for the next step, for loops that call `step()` without one; None once it has been used."""
        return self._next_loss

    @loss.setter
    def loss(self, value: Loss) -> None:
        self._next_loss = value

    def _take_step(self, entries: list[Entry], loss: float | None) -> None:
        """Change the parameters that have a gradient, of these, none of which is empty."""
        raise NotImplementedError

    def _shared(self, loss: Loss) -> float | None:
        """The loss as a number, averaged over processes."""
        number, joins = None if loss is None else as_number(loss), self._join_config is not None
        if self.reduce_loss and (number is not None or joins) and dist.is_available() and dist.is_initialized():
            if joins:
                from torch.distributed.algorithms.join import Join  # only there where torch has been built so

                Join.notify_join_context(self)  # type: ignore[arg-type]
            return self._mean(number)
        return None if number is None else number.item()

    def _mean(self, loss: Tensor | None) -> float | None:
        return mean_over_processes(loss, self.process_group, self.join_device)

    # What torch.distributed.algorithms.Join asks for, in which processes have different numbers of steps.
    _join_config: Any = None

    @property
    def join_device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for _, p, _ in self.named()), torch.device("cpu"))

    @property
    def join_process_group(self) -> Any:
        """The processes that share the parameters."""
        return dist.group.WORLD if self.process_group is None else self.process_group

    def join_hook(self, **options: Any) -> Any:
        """What a process does that has no more steps: it takes part in the others' averages of the loss."""
        del options
        return SimpleNamespace(main_hook=lambda: self._mean(None), post_hook=lambda is_last_joiner: None)

    def named(self) -> Iterable[Entry]:
        """Name, parameter and group of each tensor, in order, each once."""
        found = dict[int, Entry]()
        number = 0
        for group in self.param_groups:
            names, params = group.get("param_names", ()), group["params"]
            if len(names) != len(params):  # as where parameters were put in or taken out by hand
                names = map(str, range(number, number + len(params)))
            for name, p in zip(names, params, strict=True):
                found.setdefault(id(p), (name, p, group))
            number += len(params)
        return found.values()


def flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A flat view in memory as it is read, or a copy where type or strides ask for one."""
    if x.dtype == dtype and x.is_contiguous() and not x.is_neg():
        return x.view(-1)
    return x.to(dtype).resolve_neg().contiguous().view(-1)


def asks_for_a_state(gradients: Iterable[tuple[Tensor | None, Any]]) -> bool:
    """Whether a first step is only to make the state, as torch.distributed.checkpoint does: gradients and lr are 0."""
    return all(grad is None or (float(lr) == 0 and not grad.any()) for grad, lr in gradients)


def _has_numbers(p: Tensor) -> bool:
    return p.is_floating_point() and not p.is_meta


def _bad_gradient(name: str, p: Tensor, grad: Tensor) -> Exception:
    if grad.layout != torch.strided:
        return TypeError(
            f"the gradient of parameter {name}, of shape {tuple(p.shape)}, is {grad.layout}, and must be dense: set "
            "sparse=False where it comes from"
        )
    if not _has_numbers(p):
        return TypeError(f"parameter {name} is of {p.dtype} on {p.device}: only real numbers can be optimized")
    return ValueError(
        f"parameter {name} has shape {tuple(p.shape)}, and its gradient {tuple(grad.shape)}: call zero_grad() when its "
        "data is replaced"
    )


def _check_param(p: Tensor, name: str) -> None:
    if nn.parameter.is_lazy(p):  # its shape is to come
        return
    if p.layout != torch.strided:
        raise TypeError(f"{name} needs dense parameters, and one of shape {tuple(p.shape)} is {p.layout}")
    if any(stride == 0 and size > 1 for stride, size in zip(p.stride(), p.shape, strict=True)):
        raise ValueError(
            f"{name}: a parameter of shape {tuple(p.shape)} overlaps itself (expand); optimize a clone of it"
        )
    if p.is_complex():
        raise TypeError(f"{name} needs real parameters, and one is {p.dtype}; optimize torch.view_as_real of it")
    is_shard = hasattr(p, "placements") and hasattr(p, "device_mesh")  # a DTensor, without an import of seconds
    if is_shard or getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
        raise TypeError(f"{name} needs whole parameters, and one is sharded (FSDP or DTensor); use DDP, or AdamW")
