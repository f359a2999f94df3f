"""Does the guarantee of docs/theory.md hold? Weights nobody trained, gradients nobody would want, for long.

python benchmarks/adversary.py --json docs/results/adversary.json

For weight vectors as they are drawn, and randomly perturbed with standard deviations up to 3:

- `landscapes`: 1,000 weight vectors on a quadratic, a saddle and Rosenbrock's function, 3,000 steps;
- `tasks`: 32 weight vectors on each member of `task=pretrain`, 100 steps;
- `kronecker`: the same two for `port_hamiltonian_kronecker`, 600 steps and 20 steps;
- `attack`: 300,000 steps of gradients and losses chosen anew in each step, out of ten, for the largest ‖θ‖ or
  ‖π‖, or at random with some that are not finite; in balls of three sizes. Gradients that are 0, of all or of one
  tensor, and losses that end are among them;
- `drop_in`: the forms of `ph_l2o.optim.PortHamiltonian` in loops that change everything between steps (`_loops.py`).

After each step, in float64 from the tensors themselves: the account must not have increased; r² + ½‖π‖² + V(θ) must
not exceed E₀ (1 + tolerance), nor the account by more than that; ‖θ‖ not the radius of its ball; all parameters must be
finite. With a JSON file the run goes on where it was stopped. `--quick` takes seconds, and shows that the script works.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _loops
import _measure
import torch
from _violations import problem_steps, table, violations
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from ph_l2o.commands.configuration import register
from ph_l2o.commands.instantiate import build
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.compilation.functions import compile_function
from ph_l2o.inner import Carry, inner_step, start
from ph_l2o.keys import ProblemKeys
from ph_l2o.optimizers import PortHamiltonian, PortHamiltonianKronecker, map_state
from ph_l2o.params import Layout, Params
from ph_l2o.port_hamiltonian import energy
from ph_l2o.port_hamiltonian.state import PortHamiltonianState
from ph_l2o.tasks import Landscape, Quadratic, Task

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
MOST_STD = 3.0  # of what is added to the weights
WINDOW = 50  # steps whose mini-batches are drawn at once
CHUNK = 1000  # steps of an attack between two looks
CHOICES = 10  # gradients and losses among which an attack chooses
LAYOUT = Layout(("w", "b"), ((3, 2), (2,)))
ONE_TENSOR = torch.tensor([[1.0, 0.0]])
BALLS = ((100.0, 1000.0), (100.0, 2.0), (1.0, 2.0))  # budget and radius
LANDSCAPES: dict[str, Task] = {
    "quadratic": Quadratic(dim=10),
    "saddle": Landscape("saddle", 10),
    "rosenbrock": Landscape("rosenbrock", 10),
}


class Controllers(nn.Module):
    """W controllers at once: of the rows, the first 1/W belong to the first, and so on.

    Args:
        networks: The controllers.
        repeats: Problems of each.
    """

    def __init__(self, networks: list[Any], repeats: int):
        super().__init__()
        layers = [[layer for layer in n if isinstance(layer, nn.Linear)] for n in networks]
        self.weights = [
            torch.stack([layer.weight.detach().mT for layer in column]) for column in zip(*layers, strict=True)
        ]
        self.biases = [
            torch.stack([layer.bias.detach() for layer in column])[:, None] for column in zip(*layers, strict=True)
        ]
        powers = torch.stack([n.powers.detach() for n in networks])  # (W, 2)
        self.powers = powers.repeat_interleave(repeats, 0).T[..., None]
        self.clock = None

    def power(self, k: int) -> Tensor:
        """One of the powers, for each problem."""
        return self.powers[k]

    def forward(self, features: Tensor) -> Tensor:
        """From features to ports."""
        x = features.flatten(0, 1).unflatten(0, (len(self.weights[0]), -1))
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, torch.tanh(x) if k else x, weight)
        return x.view(*features.shape[:-1], -1)


def many(
    count: int, dtype: torch.dtype, repeats: int = 1, kind: type[PortHamiltonian] = PortHamiltonian
) -> PortHamiltonian:
    """An optimizer whose problems have weights of their own: every second one is randomly perturbed."""
    networks = []
    for i in range(count):
        torch.manual_seed(i)
        network = PortHamiltonian().controller
        if i % 2:
            with torch.no_grad():
                for p in network.parameters():
                    p += MOST_STD * (i + 1) / count * torch.randn_like(p)
        networks.append(network.to(dtype))
    optimizer = kind()
    optimizer.controller = Controllers(networks, repeats)  # type: ignore[assignment]
    return optimizer


class Watch(NamedTuple):
    """What was seen of each problem, float64 `(B,)`: steps that violated something, and extremes."""

    energy: Tensor  # E₀
    radius: Tensor
    account: Tensor  # steps in which it increased
    exceeded: Tensor  # in which the energy in use was above E₀ or the account
    outside: Tensor  # in which θ was outside of the ball
    broken: Tensor  # in which parameters were not finite
    most: Tensor  # energy in use above the account, over E₀
    farthest: Tensor  # ‖θ‖ / radius


def watch(state: PortHamiltonianState) -> Watch:
    """Before the first step."""
    zero = torch.zeros_like(state.energy, dtype=torch.float64)
    return Watch(state.energy.double(), state.radius().double(), zero, zero, zero, zero, zero - 1, zero)


def looked(
    seen: Watch, flat: Tensor, loss: Tensor, old: PortHamiltonianState, state: PortHamiltonianState, tolerance: float
) -> Watch:
    """After one more step."""
    theta, momentum, kappa = flat.double(), state.momentum.double(), state.stiffness.double()
    phi = (loss.double() / state.loss_unit.double()).clamp_min(1e-4)
    r_squared = state.trust.double().square() * energy.HEIGHT * torch.where(state.uses_loss > 0, phi, 1.0)
    square = theta.square().sum(1)
    spring = 0.5 * kappa * (square.sqrt() - state.rest_radius.double()).clamp_min(0).square()
    above = (r_squared + 0.5 * momentum.square().sum(1) + spring - state.energy.double()) / seen.energy
    above = torch.where(state.skipped > old.skipped, -1.0, above)  # φ is not that of r
    far = square.sqrt() / seen.radius
    return Watch(
        seen.energy,
        seen.radius,
        seen.account + (state.energy > old.energy),
        seen.exceeded + ~(above <= tolerance),
        seen.outside + ~(far <= 1 + tolerance),
        seen.broken + ~torch.isfinite(square),
        torch.fmax(seen.most, above),
        torch.fmax(seen.farthest, far),
    )


def summary(seen: Watch, state: PortHamiltonianState, steps: int, seconds: float) -> dict[str, Any]:
    """A line of the result."""
    return {
        "problems": len(seen.energy),
        "steps": steps,
        "account_increased": int(seen.account.sum()),
        "energy_exceeded": int(seen.exceeded.sum()),
        "outside_of_ball": int(seen.outside.sum()),
        "not_finite": int(seen.broken.sum()),
        "most_above_account": seen.most.max().item(),
        "farthest": seen.farthest.max().item(),
        "least_account": (state.energy.double() / seen.energy).min().item(),
        "skipped": int(state.skipped.sum()),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def on_task(
    task: Task, weights: int, steps: int, dtype: torch.dtype, kind: type[PortHamiltonian] = PortHamiltonian
) -> dict[str, Any]:
    """A problem for each weight vector."""
    began = time.perf_counter()
    optimizer = many(weights, dtype, kind=kind)
    problem = task.sample(ProblemKeys(0, "val", 0, range(weights)), dtype=dtype)
    carry = start(optimizer, problem)
    seen = watch(dynamics(carry))
    for first in range(0, steps, WINDOW):
        for batch in problem.batches(first, min(WINDOW, steps - first)):
            old = dynamics(carry)
            carry, loss = inner_step(optimizer, problem, carry, batch)
            seen = looked(seen, carry.params.flat, loss, old, dynamics(carry), TOLERANCE[dtype])
    return summary(seen, dynamics(carry), steps, time.perf_counter() - began)


def dynamics(carry: Carry) -> PortHamiltonianState:
    """The state of the dynamics, of either kind of optimizer."""
    return getattr(carry.state, "dynamics", carry.state)


class Attack(NamedTuple):
    """An attack on W problems with weights of their own."""

    carry: Carry
    loss: Tensor  # the last one chosen
    grad: Tensor  # the same
    seen: Watch


def new_attack(weights: int, dtype: torch.dtype) -> Attack:
    """Starts in balls of several sizes; every fourth problem's loss is hidden."""
    generator = torch.Generator().manual_seed(0)
    params = Params(torch.randn(weights, LAYOUT.numel, generator=generator, dtype=torch.float64).to(dtype), LAYOUT)
    states = [PortHamiltonian(budget=budget, radius=radius).init(params) for budget, radius in BALLS]
    number = torch.arange(weights)
    kind = number // 2 % len(BALLS)  # both kinds of weights in each ball
    state = map_state(lambda x: x, states[0])
    for k, other in enumerate(states):
        chosen = kind == k
        state = state._replace(
            energy=torch.where(chosen, other.energy, state.energy),
            stiffness=torch.where(chosen, other.stiffness, state.stiffness),
            rest_radius=torch.where(chosen, other.rest_radius, state.rest_radius),
        )
    state = PortHamiltonian().hide_loss(state, number % 4 == 3)
    return Attack(Carry(params, state, {}), torch.ones(weights, dtype=dtype), params.flat, watch(state))


def attacked(optimizer: PortHamiltonian, attack: Attack, normal: Tensor, uniform: Tensor) -> Attack:
    """One step. Of the problems, a third each seeks the largest ‖θ‖, the largest ‖π‖, or nothing in particular.

    Args:
        optimizer: Its controllers have `CHOICES` problems each.
        attack: Before the step.
        normal: Normal numbers, `(W, 2, N)`.
        uniform: Uniform ones, `(W, CHOICES + 4)`.
    """
    (params, old, _), loss = attack.carry, attack.loss
    theta, momentum, weights = params.flat, old.momentum, len(params.flat)
    dtype, goal = theta.dtype, torch.arange(weights) % 3
    random = 10 ** (60 * uniform[:, :4] - 30)
    one_only = theta * (normal[:, 1] > 1)
    grads = torch.stack(
        [
            -theta, -momentum, -attack.grad, normal[:, 0], normal[:, 1] * random[:, 0, None], -1e30 * one_only,
            -1e-30 * theta, 0.1 * normal[:, 0] - theta, 0 * theta, -theta * (LAYOUT.expand(ONE_TENSOR.to(dtype)) > 0),
        ],
        1,
    )  # fmt: skip
    falling = torch.where(loss > 1e-30, 0.7 * loss, 1e30)
    rising = torch.where(loss < 1e30, 1.5 * loss, 1e-30)
    ones = torch.ones_like(loss)
    ending = torch.where(uniform[:, 3] < 1e-5, -ones, falling)  # a negative loss is not used any more, as if missing
    losses = [falling, falling, rising, ones, random[:, 1], random[:, 2], 0 * ones, loss, loss, ending]
    losses = torch.stack(losses, 1)
    turned = uniform[:, 4 + CHOICES - 1] > 0.5  # which loss comes with which gradient
    losses = torch.where(turned[:, None], losses.flip(1), losses)
    broken = (goal == 2) & (uniform[:, 3] < 0.01)
    grads = torch.where(broken[:, None, None] & (normal[:, :1] > 1), torch.nan, grads)
    # All choices are tried, and one is kept.
    many_old = map_state(lambda x: x.repeat_interleave(CHOICES, 0), old)
    new, state = optimizer.update(
        Params(theta.repeat_interleave(CHOICES, 0), LAYOUT),
        Params(grads.flatten(0, 1).to(dtype), LAYOUT),
        losses.flatten().to(dtype),
        many_old,
    )
    far, fast = (x.square().sum(1).unflatten(0, (weights, CHOICES)) for x in (new.flat, state.momentum))
    at_random = uniform[:, 4:].to(dtype)
    score = torch.where((goal == 0)[:, None], far, torch.where((goal == 1)[:, None], fast, at_random))
    best = score.argmax(1)
    rows = torch.arange(weights) * CHOICES + best

    def kept(x: Tensor) -> Tensor:
        return x.index_select(0, rows)

    after, flat, loss = map_state(kept, state), kept(new.flat), kept(losses.flatten().to(dtype))
    grad = kept(grads.flatten(0, 1)).to(dtype)
    grad = torch.where(torch.isfinite(grad), grad, 0.0)
    seen = looked(attack.seen, flat, loss, old, after, TOLERANCE[dtype])
    return Attack(Carry(params.like(flat), after, {}), loss, grad, seen)


def pieces(attack: Attack) -> list[Tensor]:
    """All its tensors."""
    return [attack.carry.params.flat, *attack.carry.state, attack.loss, attack.grad, *attack.seen]


def together(tensors: list[Tensor]) -> Attack:
    """The attack of such tensors."""
    count = len(PortHamiltonianState._fields)
    flat, state, (loss, grad, *seen) = tensors[0], tensors[1 : 1 + count], tensors[1 + count :]
    return Attack(Carry(Params(flat, LAYOUT), PortHamiltonianState(*state), {}), loss, grad, Watch(*seen))


@torch.no_grad()
def by_attack(weights: int, steps: int, dtype: torch.dtype, kept: Path | None, compiled: bool) -> dict[str, Any]:
    """An attack; what it has come to is kept in a file, from which it goes on."""
    optimizer, attack, done, seconds = many(weights, dtype, CHOICES), new_attack(weights, dtype), 0, 0.0
    if kept is not None and kept.exists():
        content = torch.load(kept, weights_only=True)
        attack, done, seconds = together(content["tensors"]), content["done"], content["seconds"]

    def function(tensors: list[Tensor]) -> list[Tensor]:
        *state, normal, uniform = tensors
        return pieces(attacked(optimizer, together(state), normal, uniform))

    step: Callable[[list[Tensor]], Any] = function
    shape = (weights, 2, LAYOUT.numel), (weights, 4 + CHOICES)
    if compiled:
        step = compile_function(function, [*pieces(attack), torch.randn(shape[0], dtype=dtype), torch.rand(shape[1])])
    tensors = pieces(attack)
    while done < steps:
        began, count = time.perf_counter(), min(CHUNK, steps - done)
        generator = torch.Generator().manual_seed(done)
        normals = torch.randn(count, *shape[0], generator=generator, dtype=dtype)
        uniforms = torch.rand(count, *shape[1], generator=generator)
        for k in range(count):
            tensors = list(step([*tensors, normals[k], uniforms[k]]))
        done, seconds = done + count, seconds + time.perf_counter() - began
        if kept is not None and (done % (50 * CHUNK) == 0 and done < steps):
            torch.save({"tensors": [x.clone() for x in tensors], "done": done, "seconds": seconds}, kept)
            _measure.say(f"  {done:,} steps, {seconds:.0f} s")
    if kept is not None:
        kept.unlink(missing_ok=True)
    attack = together(tensors)
    found = summary(attack.seen, attack.carry.state, steps, seconds)
    for k, (budget, radius) in enumerate(BALLS):
        chosen = torch.arange(weights) // 2 % len(BALLS) == k
        found[f"farthest, budget {budget:g}, radius {radius:g}"] = attack.seen.farthest[chosen].max().item()
    return found


def members(data: Path) -> dict[str, Task]:
    """The members of `task=pretrain`."""
    register()
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", ["task=pretrain", f"paths.data={data.resolve()}"])
    return build(config.task, "task").tasks


def parts(
    kinds: list[str], quick: bool, data: Path, kept: Path | None
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What is to be run, by name."""
    weights, steps = (32, 100) if quick else (1000, 3_000)
    if "landscapes" in kinds:
        for dtype in TOLERANCE:
            for name, task in LANDSCAPES.items():
                yield f"{name}, {_short(dtype)}", functools.partial(on_task, task, weights, steps, dtype)
    if "tasks" in kinds:
        chosen = members(data)
        for name in ["gru_markov", "teacher_small"] if quick else chosen:
            yield name, functools.partial(on_task, chosen[name], 32, 20 if quick else 100, torch.float32)
    if "kronecker" in kinds:
        kind = PortHamiltonianKronecker
        for dtype in TOLERANCE:
            for name, task in LANDSCAPES.items():
                label = f"kronecker, {name}, {_short(dtype)}"
                yield label, functools.partial(on_task, task, weights, steps // 5, dtype, kind)
        chosen = members(data)
        for name in ["gru_markov", "teacher_small"] if quick else chosen:
            run = functools.partial(on_task, chosen[name], 32, 20, torch.float32, kind)
            yield f"kronecker, {name}", run
    if "attack" in kinds:
        for dtype in TOLERANCE:
            file = None if kept is None else kept.with_suffix(f".{_short(dtype)}.pt")
            run = functools.partial(by_attack, 24, 200 if quick else 300_000, dtype, file, not quick)
            yield f"attack, {_short(dtype)}", run
    if "drop_in" in kinds:
        for form in _loops.FORMS:
            yield f"drop-in, {form}, float32", functools.partial(_loops.run, form, *((2, 50) if quick else (16, 2000)))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> int:
    """Run what is missing, and say whether anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="landscapes,attack,tasks,kronecker,drop_in", help="default: all")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path, help="goes on with what is there")
    arguments = parser.parse_args()
    set_up_torch(1)
    before = None
    if arguments.json is not None and arguments.json.exists():
        found = json.loads(arguments.json.read_text())
        before = found if found["quick"] == arguments.quick else None
    content = before or {"quick": arguments.quick, "parts": {}}
    content |= _measure.made_with(1, before)
    rows = content["parts"]
    for name, run in parts(arguments.parts.split(","), arguments.quick, arguments.data, arguments.json):
        if name in rows:
            continue
        _measure.say(name)
        rows[name] = run()
        _measure.say(f"  {rows[name]}")
        _measure.write_json(arguments.json, content)
    print(table(rows))
    print(f"\n{problem_steps(rows.values()):,} problem-steps, {violations(rows.values())} violations")
    return 1 if violations(rows.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
