"""The trained port-Hamiltonian optimizer as a `torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import math
import operator
import warnings
import weakref
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from ph_l2o import checkpoints
from ph_l2o.errors import WeightsError
from ph_l2o.optim import averages
from ph_l2o.optim.adamw_options import refuse_options
from ph_l2o.optim.drop_in import DropIn, Entry, asks_for_a_state, flat
from ph_l2o.optim.group_options import rate
from ph_l2o.optim.loaded_state import check_memory, copied, saved_memories
from ph_l2o.optim.surroundings import construction
from ph_l2o.optimizers.eigenbases import Eigenbases
from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.params import Layout
from ph_l2o.port_hamiltonian import PortHamiltonian as PurePortHamiltonian
from ph_l2o.port_hamiltonian import PortHamiltonianKronecker, in_place, schedule
from ph_l2o.port_hamiltonian.bases import bases_of
from ph_l2o.port_hamiltonian.blocks import (
    BUFFERS,
    Block,
    Resting,
    dtype_of,
    foreach,
    memory_shapes,
    new_memory,
    wake,
)
from ph_l2o.port_hamiltonian.controller import FrozenController
from ph_l2o.port_hamiltonian.fused import load_library
from ph_l2o.port_hamiltonian.passes import passes_for
from ph_l2o.port_hamiltonian.turned import turned


class PortHamiltonian(DropIn):
    """A learned optimizer with an energy that cannot grow; there is no learning rate to tune.

    It goes where `torch.optim.AdamW` goes. With `total_steps`, where the length of the run is known, it warms up over
    5 % of it and then lets rates fall linearly to 0. `step()` needs no loss; with `step(loss=loss)`, `step(closure)`
    or, before a loop that calls `step()` itself, `optimizer.loss = loss` it is usually faster. Once a loss is missing
    or negative, losses are not used any more. A step with a gradient or loss that is not finite is skipped and
    counted, in `optimizer.skipped`.

    ‖θ‖ over all parameters that take part never exceeds `optimizer.radius()`, whatever the gradients are; within half
    of it nothing pulls at them. A parameter whose gradient is None or 0 stays as it is. What is changed otherwise, as
    by loading weights, is not taken back: the radius grows where it has to, as it does for parameters that are added.

    Half-precision parameters have a memory of float32, float64 ones of float64: four buffers for each parameter; with
    `kronecker` 2 m² + m n numbers more for a matrix of m × n, m < n and n > 128, 2 m² + 2 n² for
    others, and 2 n² for a vector of up to 128.
    On a GPU a step waits for it four times, for a few numbers of each tensor.

    Args:
        params: Parameters, named parameters or groups of either; a group can have its own `lr` and `weight_decay`.
        lr: Factor of the learned learning rates, >= 0; 1 is what was trained. At 0 no parameter moves. Schedulers of
            torch.optim set it.
        weight_decay: As AdamW's at its default learning rate, >= 0: each step takes the share lr · weight_decay / 1000
            of a parameter that has a gradient.
        pretrained: `default` or `kronecker`, weights in this package, or the path of a `.ckpt` of a training or of a
            `.safetensors`, or an optimizer of `ph_l2o.optimizers`. `kronecker` steps in the eigenbases of matrices
            (`PortHamiltonianKronecker`): better where weights are matrices, and dearer.
        compile: Whether to compile the loops over coordinates, with the C++ compiler that this needs; on the CPU.
        total_steps: Steps of the run, >= 1: the learning rates rise over the first 5 % and fall linearly to 0
            with the last; later steps change nothing, and the first of them warns. None: they fall as
            (1 + k/200)^(-1/2), for runs of any length, or as a scheduler of torch.optim says.
        average: Whether to keep averages of the parameters, for `averaged` and `averaged_state_dict`: for runs of which
            nobody knows how long they will be. Steps stay as they are.
        reduce_loss: Whether to average the loss over processes where torch.distributed is initialised, so that all
            take the same step. All must then give one. False where each trains parameters of its own.
        process_group: The processes that share the parameters; None for all.

    Raises:
        ValueError: If an argument is out of range, or as `torch.optim.AdamW` does.
        TypeError: If a parameter is complex, or in parts on several processes (FSDP, DTensor), or an option is AdamW's
            alone (`betas`, `maximize`, …).
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
        total_steps: int | None = None,
        average: bool = False,
        reduce_loss: bool = True,
        process_group: Any = None,
        **options: Any,
    ):
        refuse_options(type(self), options)
        if not isinstance(average, bool):
            raise ValueError(f"average={average!r}: must be True or False")
        with construction():
            learned = pretrained if isinstance(pretrained, LearnedOptimizer) else checkpoints.load_weights(pretrained)
        if not is_port_hamiltonian(learned):
            raise WeightsError(
                f"pretrained={pretrained}: holds {type(learned).__name__}, not PortHamiltonian or "
                "PortHamiltonianKronecker; use ph_l2o.optim.load"
            )
        self._rotation: tuple[int, int, float | None] | None = None  # frequency, longest side and rank of the bases
        if isinstance(learned, PortHamiltonianKronecker):
            self._rotation = learned.precondition_frequency, learned.max_preconditioner_dim, learned.basis_rank
        self._network = FrozenController(learned.controller)
        self._ball, self._anytime = (learned.budget, learned.radius), learned.anytime
        self._compile, self._average = compile, average
        if compile:
            load_library()
        self._report: in_place.Report | None = None
        self._flats = _Flats()
        defaults = {"lr": lr, "weight_decay": weight_decay, "total_steps": total_steps}
        super().__init__(params, defaults, reduce_loss=reduce_loss, process_group=process_group)

    @property
    def skipped(self) -> int:
        """Steps skipped, because the loss or the gradient was not finite."""
        return int(in_place.state_of(self._account()).skipped)

    def radius(self) -> float:
        """What ‖θ‖ over all parameters will never exceed from now on, but for parameters that are changed otherwise.

        Before the first step it is not known yet: NaN.
        """
        state = in_place.state_of(self._account())
        return state.radius() if state.step else math.nan

    def averaged(
        self, model: nn.Module | None = None, batches: Iterable[Any] | None = None
    ) -> AbstractContextManager[None]:
        """With the averages in the parameters; in the end the parameters are what they were, whatever happens inside.

        A parameter that has had no gradient yet stays as it is. Steps, loading a state and entering it once more are
        refused inside.

        Args:
            model: The model that is trained. The running statistics of its BatchNorm belong to its weights; inside they
                are those of the averages, in the end all its buffers are what they were.
            batches: Of which they are made, as by `torch.optim.swa_utils.update_bn`: inputs, or tuples with them in
                front, such as a DataLoader has.

        Raises:
            RuntimeError: If the optimizer was made without `average=True`, or the averages are in the parameters now.
            ValueError: If the model has BatchNorm and there are no batches, or is not the one that is trained.

        Example:
            >>> model = torch.nn.Linear(3, 1)
            >>> optimizer = PortHamiltonian(model.parameters(), average=True)
            >>> with optimizer.averaged(model):
            ...     outputs = model(torch.ones(8, 3))
        """
        if not self._average:
            raise RuntimeError("PortHamiltonian.averaged: there are no averages; make the optimizer with average=True")
        return averages.read_out(self, model, batches)

    def averaged_state_dict(self, model: nn.Module, batches: Iterable[Any] | None = None) -> dict[str, Any]:
        """A copy of the model's state dictionary with the averages in it, to be saved; see `averaged`."""
        with self.averaged(model, batches):
            return copy.deepcopy(model.state_dict())

    def diagnostics(self) -> dict[str, Any]:
        """What happened in the last step, as plain numbers.

        `energy` is the account, which never grows; of it `kinetic`, `spring` and r² are in use, and `tank` is left.
        `trust` is r⁺ / √φ, by which the force of the step differs from the gradient's; `steps` and `skipped` count.
        `tensors` has for each tensor's name, or number if names were not given: the learning rate `lr`, the damping D
        (`damping`), the share of the averaged gradient (`mix`), how far each coordinate has a step size of its own
        (`rho`), and how far the step follows the gradient's size (`lean`).
        """
        return in_place.diagnostics(in_place.state_of(self._account()), self._report)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickle; see `torch.optim.Optimizer`."""
        names = ("_network", "_ball", "_anytime", "_rotation", "_compile", "_average", "reduce_loss", "process_group")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `DropIn`."""
        super().__setstate__(state)
        self._report, self._flats = None, _Flats()
        if state.get("_compile"):
            load_library()

    def _copied(self, given: Mapping[str, Any]) -> dict[Tensor, dict[str, Any]]:
        found, accounts = dict[Tensor, dict[str, Any]](), dict[int, Tensor]()
        for name, p, memory in saved_memories(self, given, (in_place.ACCOUNT,)):
            shapes = memory_shapes(p, self._bases(p))
            if ("basis" in memory) != ("basis" in shapes):
                raise ValueError(
                    f"the loaded state of parameter {name} is of weights of the other kind: load it with "
                    f"pretrained={'kronecker' if 'basis' in memory else 'default'}, or what was given there"
                )
            if averages.AVERAGE in memory:
                if not self._average:
                    raise ValueError("the loaded state has averages: make the optimizer with average=True, as it was")
                shapes |= averages.shapes(p)
            check_memory(name, memory, shapes | {in_place.ACCOUNT: tuple(in_place.new_account().shape)})
            account = memory[in_place.ACCOUNT]
            if id(account) not in accounts:  # one for all parameters stays one
                accounts[id(account)] = account.detach().to("cpu", torch.float64, copy=True)
            found[p] = {key: copied(memory[key], p.device, dtype_of(p)) for key in shapes}
            found[p][in_place.ACCOUNT] = accounts[id(account)]
        return found

    def _account(self, entries: Iterable[Entry] = ()) -> Tensor | None:
        """The account of energy, if there has been a step."""
        memories = [self.state.get(p, {}) for _, p, _ in entries or self.named()]
        return in_place.account_of([memory for memory in memories if in_place.ACCOUNT in memory])

    def _take_step(self, entries: list[Entry], loss: float | None) -> None:
        taking_part = [p for _, p, _ in entries if p.grad is not None]
        if not taking_part:
            return
        account = self._account(entries)
        resting = [
            Resting(memory)
            for _, p, _ in entries
            if p.grad is None and (memory := self.state.get(p, {})).get("step") and in_place.ACCOUNT in memory
        ]
        account = in_place.new_account() if account is None else account
        state = in_place.state_of(account)
        self._warn_after_the_end(state.step)
        rates = {id(group): rate(group) * self._factor(group, state.step + 1) for group in self.param_groups}
        bases = list(map(self._bases, taking_part))
        active = [
            self._block(name, p, of_p, account, rates[id(group)], float(group["weight_decay"]))
            for (name, p, group), of_p in zip((e for e in entries if e[1].grad is not None), bases, strict=True)
        ]
        self._flats.keep(taking_part)
        averaging = self._begin_averages(entries) if self._average else []
        if loss is None and not state.step and asks_for_a_state((block.grad, block.rate) for block in active):
            return
        frequency = self._rotation[0] if self._rotation else 1
        seen_in_bases = turned(bases, active, frequency)
        make = passes_for((p.device for p in taking_part), self._compile)
        after, report = in_place.step(self._network, active, resting, seen_in_bases, loss, state, make, self._ball)
        if report is None:
            in_place.write(account, state._replace(skipped=after.skipped))
            return
        in_place.write(account, after)
        self._report = report
        for group in seen_in_bases:
            group.renew(after.gradient_unit)
        copies = [(p, block.home.view(p.shape)) for p, block in zip(taking_part, active, strict=True)
                  if block.home.data_ptr() != p.data_ptr()]  # fmt: skip
        if copies:
            foreach._foreach_copy_(*map(list, zip(*copies, strict=True)))
        # Compiled loops don't tell autograd.
        torch.autograd.graph.increment_version(taking_part)
        averages.advance(averaging)

    def _begin_averages(self, entries: list[Entry]) -> list[tuple[Tensor, dict[str, Any]]]:
        memories = [(name, p, self.state.get(p, {})) for name, p, _ in entries]
        return averages.begin(entry for entry in memories if in_place.ACCOUNT in entry[2])

    def _factor(self, group: dict[str, Any], step: float) -> float:
        """The schedule's, of a group; torch's schedulers are known by what they put into it."""
        anytime = schedule.Anytime() if "initial_lr" in group else self._anytime
        return schedule.factor(step, group["total_steps"] or 0, anytime)

    def _warn_after_the_end(self, steps: float) -> None:
        """Once, where the schedule of all groups is over."""
        totals = [group["total_steps"] for group in self.param_groups]
        if self._is_over or None in totals:
            return
        if steps >= max(totals):
            self._is_over = True
            text = f"PortHamiltonian: total_steps={max(totals)} steps are done, further ones change nothing"
            warnings.warn(text, stacklevel=5)

    _is_over = _average = False

    def _block(
        self, name: str, p: Tensor, bases: Eigenbases | None, account: Tensor, rate: float, weight_decay: float
    ) -> Block:
        """A parameter that takes part, with a memory from its first gradient on."""
        assert p.grad is not None
        dtype, memory = dtype_of(p), self.state[p]
        if "momentum" not in memory:
            memory.update(new_memory(p, bases))
            memory[in_place.ACCOUNT] = account
        flats = self._flats.of(name, p, dtype, bases, memory)
        wake(memory)
        theta, grad = flat(p, dtype), flat(p.grad, dtype)
        return Block(name, tuple(p.shape), theta, grad, memory, flats, rate, weight_decay)

    def _bases(self, p: Tensor) -> Eigenbases | None:
        """Those in which a parameter is seen, if there are any."""
        if self._rotation is None:
            return None
        bases = bases_of(Layout(("",), (tuple(p.shape),)), *self._rotation[1:])
        return bases if bases.sizes else None


class _Flats:
    """Flat views of what is remembered of parameters, since making them takes long; they go with their parameter."""

    def __init__(self) -> None:
        self._views = dict[int, tuple[weakref.ref[Tensor], list[Tensor], tuple[Tensor, ...]]]()

    def of(
        self, name: str, p: Tensor, dtype: torch.dtype, bases: Eigenbases | None, memory: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """The views, made anew if something has put other tensors there, or if the parameter has changed.

        Raises:
            ValueError: If what is remembered does not fit the parameter any more.
        """
        now = [memory[key] for key in BUFFERS]
        _, before, views = self._views.get(id(p), (None, (), ()))
        if before and not any(map(operator.is_not, before, now)):
            x = now[0]
            if x.dtype is dtype and x.shape == p.shape and x.device == p.device:
                return views
        for key, shape in memory_shapes(p, bases).items():
            x = memory.get(key)
            if not isinstance(x, Tensor):
                continue
            if tuple(x.shape) != shape:
                raise ValueError(
                    f"parameter {name} has shape {tuple(p.shape)} now, and what is remembered of it is of another, "
                    f"{key} of {tuple(x.shape)}: put there what fits it, or delete it, del optimizer.state[p]"
                )
            memory[key] = x.to(p.device, dtype).contiguous()
        now, of_all, number = [memory[key] for key in BUFFERS], self._views, id(p)
        views = tuple(x.view(-1) for x in now)
        of_all[number] = weakref.ref(p, lambda _: of_all.pop(number, None)), now, views
        return views

    def keep(self, params: list[Tensor]) -> None:
        """Forget all others."""
        if len(self._views) > len(params):
            for key in self._views.keys() - set(map(id, params)):
                del self._views[key]


def is_port_hamiltonian(learned: LearnedOptimizer) -> TypeGuard[PurePortHamiltonian]:
    """Whether `PortHamiltonian` takes this optimizer's steps; a subclass may take others."""
    return type(learned) in (PurePortHamiltonian, PortHamiltonianKronecker)
