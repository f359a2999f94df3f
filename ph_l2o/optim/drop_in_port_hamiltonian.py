"""The trained port-Hamiltonian optimizer as a `torch.optim.Optimizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ph_l2o import checkpoints
from ph_l2o.errors import WeightsError
from ph_l2o.optim import account
from ph_l2o.optim.drop_in import DropIn, flat
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.port_hamiltonian import PortHamiltonianKronecker, in_place
from ph_l2o.port_hamiltonian import diagonal as scheme
from ph_l2o.port_hamiltonian import single_problem as numbers
from ph_l2o.port_hamiltonian.fused import Fused, load_library
from ph_l2o.port_hamiltonian.kernels import AVERAGES, Plain, Slot
from ph_l2o.port_hamiltonian.rotation import Rotation, Turned


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
        if not takes(learned):
            raise WeightsError(
                f"pretrained={pretrained}: holds {type(learned).__name__}, not PortHamiltonian or "
                "PortHamiltonianKronecker; use ph_l2o.optim.load"
            )
        self._rotation: Rotation | None = None
        if isinstance(learned, PortHamiltonianKronecker):
            self._rotation = Rotation(learned.max_preconditioner_dim, learned.precondition_frequency)
        self._network = numbers.Controller(learned.controller)
        self._budget = (learned.budget, learned.radius)
        self._compile, self._kernels = compile, _kernels(compile)
        self._report: in_place.Report | None = None
        self._flats = dict[Tensor, tuple[list[Tensor], tuple[Tensor, ...]]]()
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(params, defaults, reduce_loss=reduce_loss, process_group=process_group)

    @property
    def skipped(self) -> int:
        """Steps skipped, because the loss or the gradient was not finite."""
        return int(account.numbers(self._account()).skipped)

    def radius(self) -> float:
        """What ‖θ‖ over all parameters will never exceed from now on, but for parameters that are changed otherwise.

        Before the first step it is not known yet: NaN.
        """
        return account.numbers(self._account()).radius()

    def rotates(self, param: Tensor) -> bool:
        """Whether a parameter is seen in the coordinates of bases."""
        return self._rotation is not None and self._rotation.bases(tuple(param.shape)) is not None

    def diagnostics(self) -> dict[str, Any]:
        """What happened in the last step, as plain numbers.

        `energy` is the account, which never grows; of it `kinetic`, `spring` and r² are in use, and `tank` is left.
        `trust` is r⁺ / √φ, by which the force of the step differs from the gradient's; `steps` and `skipped` count.
        `tensors` has for each tensor's name, or number if names were not given: the learning rate `lr`, the damping D
        (`damping`), the share of the averaged gradient (`mix`), how far each coordinate has a step size of its own
        (`rho`), and how far the step follows the gradient's size (`lean`).
        """
        return in_place.diagnostics(account.numbers(self._account()), self._report)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`; the tensors are copied.

        Raises:
            ValueError: If the state is of another optimizer or model, or of one with its tensors in another order.
        """
        loading = self._loading = dict[Tensor | str, dict[str, Any]]()
        check = self.register_load_state_dict_pre_hook(lambda _, given: loading.update(account.checked(self, given)))
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
        return self.state.get(account.KEY, {})  # type: ignore[call-overload]

    def _take_step(self, loss: Tensor | None) -> None:
        slots, kernels = list[Slot](), self._kernels
        changed: list[tuple[Tensor, Tensor, Turned | None, Slot]] = []
        for name, p, group in self.named():
            if not p.numel():
                continue
            memory = self.state.get(p)
            dtype, turned = in_place.dtype_of(p), None
            theta, grad = flat(p, dtype), None if p.grad is None else flat(p.grad, dtype)
            bases = self._rotation and self._rotation.bases(tuple(p.shape))
            if grad is not None and not memory:
                memory = self.state[p] = in_place.new_memory(p)
                if self._rotation and bases:
                    self._rotation.begin(memory, bases, theta)
            if p.device.type != "cpu":
                kernels = Plain
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            flats = self._flat_memory(p, memory) if memory else ()
            slots.append(Slot(name, tuple(p.shape), theta, grad, memory, flats, lr, decay))
            if grad is None or memory is None:
                continue
            if self._rotation and bases:
                turned = Turned(self._rotation, bases, theta, grad, memory)
                slots[-1].theta, slots[-1].grad = turned.theta, turned.grad
            changed.append((p, theta, turned, slots[-1]))
        if not changed:
            return
        state = account.opened(self._account(), slots, *self._budget)
        value = None if loss is None else loss.item()
        state, report = in_place.step(self._network, slots, value, state, kernels)
        self.state[account.KEY] = account.shown(state, slots)  # type: ignore[index]
        if report is None:
            return
        self._report = report
        for p, theta, turned, slot in changed:
            if turned is not None:
                theta.add_(turned.move())
                turned.renew(slot, state.gradient_unit)
            if theta.data_ptr() != p.data_ptr():
                p.copy_(theta.view(p.shape))
        # Compiled loops don't tell autograd.
        torch.autograd.graph.increment_version([p for p, *_ in changed])

    def _flat_memory(self, p: Tensor, memory: dict[str, Any]) -> tuple[Tensor, ...]:
        """Flat views of what is remembered, made anew if something has put other tensors there."""
        now = [memory[name] for name in AVERAGES]
        before, flats = self._flats.get(p, ((), ()))
        if len(before) != len(now) or any(a is not b for a, b in zip(before, now, strict=True)):
            flats = tuple(x.view(-1) for x in now)
            self._flats[p] = now, flats
        return flats


def takes(learned: LearnedOptimizer) -> TypeGuard[scheme.PortHamiltonian]:
    """Whether `PortHamiltonian` takes this optimizer's steps; a subclass may take others."""
    return type(learned) in (scheme.PortHamiltonian, PortHamiltonianKronecker)


def _kernels(compile: bool) -> in_place.Kernels:
    if not compile:
        return Plain
    load_library()
    return Fused
