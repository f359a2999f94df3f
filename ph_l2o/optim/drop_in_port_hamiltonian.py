"""The trained port-Hamiltonian optimizer as a `torch.optim.Optimizer`."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ph_l2o import checkpoints
from ph_l2o.errors import WeightsError
from ph_l2o.optim.drop_in import DropIn, flat
from ph_l2o.optim.loaded_state import ACCOUNT, checked_copy
from ph_l2o.optimizers.eigenbases import Eigenbases
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import PortHamiltonian as PurePortHamiltonian
from ph_l2o.port_hamiltonian import PortHamiltonianKronecker, in_place
from ph_l2o.port_hamiltonian.bases import bases_of
from ph_l2o.port_hamiltonian.blocks import BUFFERS, Block, RotatedBlock, dtype_of, new_memory
from ph_l2o.port_hamiltonian.controller import FrozenController
from ph_l2o.port_hamiltonian.fused import Fused, load_library
from ph_l2o.port_hamiltonian.kernels import Plain


class PortHamiltonian(DropIn):
    """A learned optimizer with an energy that cannot grow; there is no learning rate to tune.

    It goes where `torch.optim.AdamW` goes. `step()` needs no loss; with `step(loss=loss)` or `step(closure)` it is
    usually faster. Once a loss is missing or negative, losses are not used any more. A step with a gradient or loss
    that is not finite is skipped and counted, `optimizer.skipped`.

    ‖θ‖ over all parameters never exceeds `optimizer.radius()`, whatever the gradients are. A parameter without gradient
    takes no part in a step; its energy stays in the account. A group that is added later begins at rest. The energy of
    its springs is added to the account, as is that of springs which a larger `weight_decay` makes stiffer, and the
    radius grows by it.

    Half-precision parameters have a memory of float32, float64 ones of float64: four buffers for each parameter; with
    `kronecker` four numbers more for each entry of the factors, of a matrix of m × n 2 m² + 2 n².
    On a GPU a step waits for it four times, for a few numbers of each tensor.

    Args:
        params: Parameters, named parameters or groups of either; a group can have its own `lr` and `weight_decay`.
        lr: Factor of the squared step scale, >= 0; for schedules, 1 is what was trained. At 0 no parameter moves.
        weight_decay: Stiffness of a spring that ties the parameters to 0, in units of the loss, >= 0: the energy
            ½ · weight_decay · ‖θ‖² beside a loss of 1.
        pretrained: `default` or `kronecker`, weights in this package, or the path of a `.ckpt` of a training or of a
            `.safetensors`, or an optimizer of `ph_l2o.optimizers`. `kronecker` steps in the eigenbases of matrices
            (`PortHamiltonianKronecker`): better where weights are matrices, and dearer.
        compile: Whether to compile the loops over coordinates, with the C++ compiler that this needs; on the CPU.
        reduce_loss: Whether to average the loss over processes where torch.distributed is initialised, so that all
            take the same step. All must then give one. False where each trains parameters of its own.
        process_group: The processes that share the parameters; None for all.

    Raises:
        ValueError: If an argument is out of range, or as `torch.optim.AdamW` does.
        TypeError: If a parameter is complex, or in parts on several processes (FSDP, DTensor).
        FileNotFoundError: If there is no file of that name.
        WeightsError: If the weights are damaged or another optimizer's.
        CompilerError: If there is no C++ compiler and `compile` is set.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = PortHamiltonian(model.parameters())
        >>> loss = model(torch.ones(8, 3)).square().mean()
        >>> loss.backward()
        >>> _ = optimizer.step(loss=loss)
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        pretrained: str | Path | LearnedOptimizer = "default",
        compile: bool = False,
        *,
        reduce_loss: bool = True,
        process_group: Any = None,
    ):
        learned = pretrained if isinstance(pretrained, LearnedOptimizer) else checkpoints.load_weights(pretrained)
        if not is_port_hamiltonian(learned):
            raise WeightsError(
                f"pretrained={pretrained}: holds {type(learned).__name__}, not PortHamiltonian or "
                "PortHamiltonianKronecker; use ph_l2o.optim.load"
            )
        self._rotation: tuple[int, int] | None = None  # longest side that is rotated, steps between power iterations
        if isinstance(learned, PortHamiltonianKronecker):
            self._rotation = learned.max_preconditioner_dim, learned.precondition_frequency
        self._network = FrozenController(learned.controller)
        self._budget = (learned.budget, learned.radius)
        self._compile, self._kernels = compile, _kernels(compile)
        self._report: in_place.Report | None = None
        self._flats = dict[Tensor, tuple[list[Tensor], tuple[Tensor, ...]]]()
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults, reduce_loss=reduce_loss, process_group=process_group)

    @property
    def skipped(self) -> int:
        """Steps skipped, because the loss or the gradient was not finite."""
        return int(in_place.state_of(self._account()).skipped)

    def radius(self) -> float:
        """What ‖θ‖ over all parameters will never exceed from now on, but for parameters that are changed otherwise.

        Before the first step it is not known yet: NaN.
        """
        account = self._account()
        return in_place.state_of(account).radius() if account else math.nan

    def diagnostics(self) -> dict[str, Any]:
        """What happened in the last step, as plain numbers.

        `energy` is the account, which never grows; of it `kinetic`, `spring` and r² are in use, and `tank` is left.
        `trust` is r⁺ / √φ, by which the force of the step differs from the gradient's; `steps` and `skipped` count.
        `tensors` has for each tensor's name, or number if names were not given: the learning rate `lr`, the damping D
        (`damping`), the share of the averaged gradient (`mix`), how far each coordinate has a step size of its own
        (`rho`), and how far the step follows the gradient's size (`lean`).
        """
        return in_place.diagnostics(in_place.state_of(self._account()), self._report)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`; the tensors are copied.

        Raises:
            ValueError: If the state is of another optimizer or model, or of one with its tensors in another order.
        """
        loading = self._loading = dict[Tensor | str, dict[str, Any]]()
        check = self.register_load_state_dict_pre_hook(
            lambda _, given: loading.update(checked_copy(self, lambda p: self._bases(p) is not None, given))
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            check.remove()
            self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickle; see `torch.optim.Optimizer`."""
        names = ("_network", "_budget", "_rotation", "_compile", "reduce_loss", "process_group")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by `load_state_dict`, with a state whose tensors have the parameters' types."""
        super().__setstate__(state)
        self._report, self._flats = None, {}
        if "_compile" in state:
            self._kernels = _kernels(self._compile)
        if self._loading:
            self.state.clear()
            self.state.update(self._loading)  # type: ignore[arg-type]

    _loading: dict[Tensor | str, dict[str, Any]] | None = None

    def _account(self) -> dict[str, Any]:
        return self.state.get(ACCOUNT, {})  # type: ignore[call-overload]

    def _take_step(self, loss: float | None) -> None:
        blocks = [(p, self._block(name, p, group)) for name, p, group in self.named() if p.numel()]
        taking_part = [(p, block) for p, block in blocks if block.grad is not None]
        if not taking_part:
            return
        kernels = self._kernels if all(p.device.type == "cpu" for p, _ in blocks) else Plain
        tensors = [block for _, block in blocks]
        state = in_place.with_new_springs(self._account(), tensors, *self._budget)
        state, report = in_place.step(self._network, tensors, loss, state, kernels)
        self.state[ACCOUNT] = in_place.account_of(state, tensors)  # type: ignore[index]
        if report is None:
            return
        self._report = report
        for p, block in taking_part:
            theta = block.finish(state.gradient_unit)
            if theta.data_ptr() != p.data_ptr():
                p.copy_(theta.view(p.shape))
        # Compiled loops don't tell autograd.
        torch.autograd.graph.increment_version([p for p, _ in taking_part])

    def _block(self, name: str, p: Tensor, group: dict[str, Any]) -> Block:
        """A parameter for the step, with a memory from its first gradient on."""
        grad, dtype, memory = p.grad, dtype_of(p), self.state.get(p) or {}
        bases = None if self._rotation is None else self._bases(p)
        if grad is not None:
            grad = flat(grad, dtype)
            if not memory:
                memory = self.state[p] = new_memory(p, bases)
        flats = self._flat_memory(p, memory) if memory else ()
        theta, lr, decay = flat(p, dtype), float(group["lr"]), float(group["weight_decay"])
        block = Block(name, tuple(p.shape), theta, grad, memory, flats, lr, decay)
        if bases is None or self._rotation is None or grad is None:
            return block
        return RotatedBlock(block, bases, self._rotation[1])

    def _bases(self, p: Tensor) -> Eigenbases | None:
        """Those in which a parameter is seen, if there are any."""
        if self._rotation is None:
            return None
        bases = bases_of(Layout(("",), (tuple(p.shape),)), self._rotation[0])
        return bases if bases.sizes else None

    def _flat_memory(self, p: Tensor, memory: dict[str, Any]) -> tuple[Tensor, ...]:
        """Flat views of what is remembered, made anew if something has put other tensors there."""
        now = [memory[name] for name in BUFFERS]
        before, flats = self._flats.get(p, ((), ()))
        if len(before) != len(now) or any(map(operator.is_not, before, now)):
            flats = tuple(x.view(-1) for x in now)
            self._flats[p] = now, flats
        return flats


def is_port_hamiltonian(learned: LearnedOptimizer) -> TypeGuard[PurePortHamiltonian]:
    """Whether `PortHamiltonian` takes this optimizer's steps; a subclass may take others."""
    return type(learned) in (PurePortHamiltonian, PortHamiltonianKronecker)


def _kernels(compile: bool) -> type[Plain] | type[Fused]:
    if not compile:
        return Plain
    load_library()
    return Fused
