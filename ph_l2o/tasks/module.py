"""Any `nn.Module` as an optimizee."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from ph_l2o.keys import ProblemKeys, Purpose
from ph_l2o.params import Params
from ph_l2o.tasks.embeddings import PlainEmbedding
from ph_l2o.tasks.factory import own_generator, seeded
from ph_l2o.tasks.module_errors import NO_HOOKS, explained
from ph_l2o.tasks.recurrent import PlainRecurrence
from ph_l2o.tasks.task import Buffers, Problem


class ModuleProblem(Problem):
    """B copies of a module, each with its own start; a subclass adds data and loss.

    The copies come from B calls of the factory under seeds of their own, so a module starts as it does by itself, and
    the same on every device. A forward pass is `vmap` of `functional_call`, or the module's own
    `batched_forward(tensors, inputs)` where it has one. Attention takes the math kernel, the only one that can be
    differentiated twice; recurrent layers run as a loop over time; BatchNorm's running statistics are carry.

    A module with dropout runs for one problem after the other, each under a seed of its own in each step: so its draws
    depend neither on the other problems of the batch nor on their number. A module that draws random numbers other than
    by torch's layers says so with an attribute `draws_randomly = True`.

    Parameters with `requires_grad=False` are constants: each problem has its own, as its module was made, and nothing
    changes them.

    Args:
        keys: Keys of the B problems.
        factory: Makes one module.
        device: Where the problems are.
        dtype: Floating-point type of parameters and buffers.

    Attributes:
        training: Whether the modules are in training mode; see `evaluating`.

    Raises:
        ValueError: If the factory fails, or its modules have no parameters to optimise, complex ones, or lazy ones, or
            differ in their tensors; on the first forward pass, if the module fails, or torch cannot run it for several
            problems at once.
    """

    training: bool = True

    def __init__(
        self,
        keys: ProblemKeys,
        factory: Callable[[], nn.Module],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.keys = keys
        modules = [_checked(seeded(factory, keys.torch_seed(Purpose.MODULE, i))) for i in keys.indices]
        # A skeleton for functional_call; its own values are never used.
        self._module = modules[0].to(device=device, dtype=dtype)
        self.draws_randomly = any(_draws_randomly(m) for m in self._module.modules())
        self._device, self._dtype = torch.device(device), dtype
        self._modes = [mode for kinds, mode in _MODES if any(isinstance(m, kinds) for m in self._module.modules())]

        def stack(tensors: list[Tensor]) -> Tensor:
            stacked = torch.stack([t.detach().cpu() for t in tensors])
            return stacked.to(device=device, dtype=dtype if stacked.is_floating_point() else None)

        def stacked(tensors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            _check_alike(tensors)
            return {name: stack([t[name] for t in tensors]) for name in tensors[0]}

        named = [dict(m.named_parameters()) for m in modules]
        optimised = stacked([{k: p for k, p in n.items() if p.requires_grad} for n in named])
        if not optimised:
            frozen = "; all have requires_grad=False" if named[0] else ""
            raise ValueError(f"task.model={type(self._module).__name__}: has no parameters to optimise{frozen}")
        self.params = Params.from_tensors(optimised)
        self._frozen = stacked([{k: p for k, p in n.items() if not p.requires_grad} for n in named])
        self.buffers = stacked([dict(m.named_buffers()) for m in modules])

    def scale_weights(self, scale: tuple[float, float]) -> None:
        """Multiply the initial weights, tensors with two axes or more, by a factor of each problem.

        Args:
            scale: The factor is log-uniform between these two.
        """
        low, high = scale
        if (low, high) == (1.0, 1.0):
            return
        share = np.array([self.keys.generator(Purpose.PROBLEM, i).uniform() for i in self.keys.indices])
        factor = torch.from_numpy(low * (high / low) ** share).to(self.params.flat)[:, None]
        layout = self.params.layout
        is_weight = torch.tensor([len(shape) > 1 for shape in layout.shapes], device=factor.device)
        self.params = self.params.like(self.params.flat * torch.where(layout.expand(is_weight), factor, 1.0))

    def evaluating(self) -> Self:
        """The same problems with their modules in evaluation mode."""
        other = copy.copy(self)
        other.training = False
        return other

    def outputs(
        self, params: Params, buffers: Buffers, inputs: Tensor, *, seeds: Sequence[int] = ()
    ) -> tuple[Tensor, Buffers]:
        """Forward pass of all B modules, in the mode of the problems.

        Args:
            params: Parameters.
            buffers: Buffers.
            inputs: One batch for each problem, shape `(B, batch, …)`.
            seeds: Of what each problem's module draws itself, such as dropout; unused where it draws nothing.

        Returns:
            Outputs of shape `(B, batch, …)`, and the next buffers.
        """
        tensors = {**params.tensors(), **self._frozen}
        seeded = self.draws_randomly and self.training
        if seeded and len(seeds) != self.num_problems:
            raise ValueError(f"seeds: must hold one for each of {self.num_problems} problems, not {len(seeds)}")
        try:
            batched = getattr(self._module, "batched_forward", None)
            if batched is not None:
                return batched(tensors, inputs), buffers
            self._module.train(self.training)
            with contextlib.ExitStack() as stack:
                for context in (sdpa_kernel(SDPBackend.MATH), _no_attention_fast_path(), *(m() for m in self._modes)):
                    stack.enter_context(context)
                if seeded:
                    found = self._one_by_one(tensors, buffers, inputs, seeds)
                else:
                    stack.enter_context(disable_saved_tensors_hooks(NO_HOOKS))
                    found = vmap(self._one)(tensors, dict(buffers), inputs)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # a module can fail in any way
            raise ValueError(explained(type(self._module).__name__, error, inputs)) from error
        if torch.is_grad_enabled() and params.flat.requires_grad and not found[0].requires_grad:
            raise ValueError(
                f"task.model={type(self._module).__name__}: its outputs don't depend on its parameters; look for "
                "detach() and no_grad() in its forward pass"
            )
        return found

    def _one(self, tensors: dict[str, Tensor], buffers: Buffers, x: Tensor) -> tuple[Tensor, Buffers]:
        buffers = {name: b.clone() for name, b in buffers.items()}  # the module changes them in place
        out = functional_call(self._module, (tensors, buffers), (x,))
        if not isinstance(out, Tensor):
            raise TypeError(f"it returns a {type(out).__name__}, must return one tensor")
        return out, buffers

    def _one_by_one(
        self, tensors: dict[str, Tensor], buffers: Buffers, inputs: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Buffers]:
        results: list[tuple[Tensor, Buffers]] = []
        with own_generator(self._device) as generator:
            for k, seed in enumerate(seeds):
                generator.manual_seed(seed)
                results.append(self._one(_at(tensors, k), _at(buffers, k), inputs[k]))
        return (
            torch.stack([out for out, _ in results]),
            {name: torch.stack([b[name] for _, b in results]) for name in buffers},
        )


_MODES = (((nn.RNNBase, nn.RNNCellBase), PlainRecurrence), ((nn.Embedding, nn.EmbeddingBag), PlainEmbedding))


def _checked(module: nn.Module) -> nn.Module:
    """A module whose tensors can be stacked."""
    name = type(module).__name__
    for key, x in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(x):
            raise ValueError(f"task.model={name}: {key} has no shape yet; give lazy layers their sizes")
        if x.device.type == "meta":
            raise ValueError(f"task.model={name}: {key} is on the meta device, without numbers; make it on the CPU")
        if x.is_complex() and isinstance(x, nn.Parameter):
            raise ValueError(f"task.model={name}: {key} is complex; give it a last axis of two real numbers instead")
    return module


def _at(tensors: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    return {name: t[k] for name, t in tensors.items()}


def checked_init_scale(scale: float | Sequence[float]) -> tuple[float, float]:
    """Range of a factor of the initial weights, from a number or a range.

    Raises:
        ValueError: If it is neither.
    """
    pair = (scale, scale) if isinstance(scale, int | float) else tuple(scale)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] < math.inf:
        raise ValueError(f"task.init_scale={scale}: must be a number > 0, or two of them, low and high")
    return float(pair[0]), float(pair[1])


def _check_alike(tensors: Sequence[Mapping[str, Tensor]]) -> None:
    shapes = [{name: t.shape for name, t in one.items()} for one in tensors]
    if any(s != shapes[0] for s in shapes):
        raise ValueError("task.model: must make modules with the same tensors in every call")


@contextlib.contextmanager
def _no_attention_fast_path() -> Iterator[None]:
    """Attention in evaluation mode otherwise takes fused kernels that vmap cannot batch."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _draws_randomly(module: Any) -> bool:
    """Whether a module draws random numbers in training, as far as its class shows."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return bool(getattr(module, "draws_randomly", False))
