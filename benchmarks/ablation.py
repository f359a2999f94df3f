"""Which energy the port-Hamiltonian optimizer should have: variants, meta-trained and measured on validation tasks.

python benchmarks/ablation.py --task mnist --variants tracked,normal --seeds 0,1 --json ablation.json

All variants have the controller, its features and the dynamics of `PortHamiltonian`; what differs is the port:

- `tracked`: r² follows max(f, c), c = s g / (2 √f), one r for a problem (`PortHamiltonian` itself);
- `tracked tensor`: the same with an r and a tank for each tensor;
- `normal`: without units. u = ĝ / √v̄ · (v̄ / v)^q with v̄ the mean of v over the tensor, c = β u / (2 √n), r² follows 1,
  and θ moves by lr √n / β times the momentum, n the number of coordinates; β is a further output of the controller. The
  tank is `BUDGET` times r²;
- `normal tensor`: the same with an r and a tank for each tensor, n its size;
- `ratio`: as `tracked`, with energies in units of the loss: c = s g / (2 √f), r² follows 1, θ moves by s √f times the
  momentum; the tank is `BUDGET` times r²;
- `ratio average`: the same with the loss's average for f; `ratio average tensor`: and an r for each tensor;
- `spent`: as `ratio`, with the average energy of a step's force, Σ s² ĝ², in place of the loss: the loss is a feature
  only; `spent blind`: not even that;
- `gated tensor`: as `normal tensor`; where the loss is above its average, r² follows their ratio;
- `blind tensor`: as `normal tensor`, without the loss among the features.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ph_l2o import meta_train
from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.estimators import Truncated
from ph_l2o.inner import run
from ph_l2o.optimizers import port_hamiltonian as base
from ph_l2o.optimizers.port_hamiltonian import PortHamiltonian, PortHamiltonianState
from ph_l2o.params import Layout, Params
from ph_l2o.random import ProblemKeys
from ph_l2o.tasks import ImageClassification, Quadratic, Task

BUDGET = 100.0
_BETA_RANGE = (-4.0, 2.0)  # of log β


class Variant(PortHamiltonian):
    """A port with an r of its own for each tensor, or with forces without units.

    Args:
        normal: Forces without units.
        tensor: An r for each tensor.
        gated: r² follows the loss where it rises.
        blind: The loss is no feature.
        ratio: Energies in units of the loss `now`, of its `average`, or of what steps have `spent`.
        init_lr: As for `PortHamiltonian`; with `normal` it is that of Adam.
    """

    takes_padding: ClassVar[bool] = False

    def __init__(
        self,
        *,
        normal: bool = False,
        tensor: bool = False,
        gated: bool = False,
        blind: bool = False,
        ratio: str = "",
        init_lr: float = 0.02,
    ):
        super().__init__(init_lr=init_lr)
        self.normal, self.tensor, self.gated, self.blind, self.ratio = normal, tensor, gated, blind, ratio
        last = self.controller[-1]
        assert isinstance(last, nn.Linear)
        if normal:
            more = nn.Linear(last.in_features, base._NUM_OUTPUTS + 1)
            with torch.no_grad():
                more.weight.mul_(0.05)
                # log lr, log β, mix, 1 / (1 + D) and q before their sigmoids
                more.bias.copy_(torch.tensor([2 * last.bias[0], -0.7, 0.0, 1.5, 1.0]))
            self.controller[-1] = more

    def init(self, params: Params) -> PortHamiltonianState:
        """Zeros; an r, a tank and a kinetic energy for each account."""
        state = super().init(params)
        account = params.flat.new_zeros(params.num_problems, params.layout.num_tensors if self.tensor else 1)
        return state._replace(r_squared=account, tank=account, kinetic=account)

    def update(
        self, params: Params, grads: Params, loss: Tensor | None, state: PortHamiltonianState
    ) -> tuple[Params, PortHamiltonianState]:
        """One step."""
        assert loss is not None
        flat, grad, layout = params.flat, grads.flat, params.layout
        step, first = state.step + 1, (state.step == 0)[:, None]
        weights = base._average_weights(step)
        averages = torch.lerp(state.averages, grad[:, None], weights[:, : len(base._DECAYS), None])
        second = torch.lerp(state.second, grad * grad, weights[:, len(base._DECAYS), None])
        loss_average = torch.lerp(state.loss_average, loss, weights[:, -1])
        loss_start = torch.where(first[:, 0], loss, state.loss_start)
        statistics = base._statistics(flat, grad, averages, second, state.momentum, layout)
        seen = torch.stack([loss, loss_average, loss_average if self.ratio == "spent" else loss_start], 1)
        seen = torch.ones_like(seen) if self.blind else seen.clamp_min(0) + base._TINY_LOSS
        inputs = base._inputs(statistics, torch.cat([seen, step[:, None]], 1), step, layout)
        features = inputs @ base._feature_matrix(inputs.device, inputs.dtype)
        out = self.controller(features).unflatten(0, (-1, layout.num_tensors))  # (B, T, outputs)
        free, bounded = out.split((2 if self.normal else 1, out.shape[2] - (2 if self.normal else 1)), 2)
        if self.normal:
            log_lr, log_beta = free.unbind(2)
            mix, damping, exponent = bounded.unbind(2)
        else:
            log_lr, (mix, damping, exponent) = free[..., 0], bounded.unbind(2)

        keep, exponent = damping.sigmoid(), exponent.sigmoid() * (0.5 if self.normal else 0.25)
        mixed = torch.lerp(grad, averages[:, base._MIXED], layout.expand(mix))
        keep_each = layout.expand(keep)
        log_second = (second + base._TINY_SQUARE).log()
        if self.normal:
            sizes = layout.table(base._sizes, flat)
            n = sizes if self.tensor else sizes.sum().expand(layout.num_tensors)
            beta = log_beta.clamp(*_BETA_RANGE).exp()
            log_mean = (statistics[..., 3 + len(base._DECAYS)] + base._TINY_SQUARE).log()  # of v over the tensor
            lead = layout.expand(beta / n.sqrt() * ((exponent - 0.5) * log_mean).exp())
            push = mixed * lead * (-layout.expand(exponent) * log_second).exp()  # 2 c R with R = 1
            move = layout.expand(log_lr.clamp(-20, 6).exp() * n.sqrt() / beta)
            target = torch.ones_like(state.r_squared)
            if self.gated:
                ratio = (loss_average.clamp_min(0) + base._TINY_LOSS) / (loss.clamp_min(0) + base._TINY_LOSS)
                target = target * ratio.clamp_max(1)[:, None]
            budget, unit = BUDGET * torch.ones_like(target), torch.ones_like(target)
        else:
            scale = layout.expand(log_lr) - layout.expand(exponent) * log_second
            move = scale.clamp(*base._LOG_SCALE_RANGE).exp()
            push = move * mixed
            if self.ratio:
                if self.ratio == "spent":
                    now = (push * push).sum(1)
                    loss_start = spent = torch.lerp(state.loss_start, now, weights[:, -1])
                    root = spent.clamp_min(base._TINY_ENERGY).sqrt()[:, None]
                else:
                    followed_loss = loss if self.ratio == "now" else loss_average
                    root = followed_loss.clamp_min(self.loss_offset).sqrt()[:, None]
                push, move = push / root, move * root
            target = loss.clamp_min(self.loss_offset)[:, None].expand_as(state.r_squared)
            budget, unit = self.tank * target, target
            if self.ratio:
                target = unit = torch.ones_like(target)
                budget = BUDGET * target
        damped = push * keep_each

        refill = (1 - 1 / step)[:, None]
        r_squared = torch.where(first, target, state.r_squared)
        tank = torch.where(first, budget, state.tank)
        followed = torch.minimum(target, r_squared + tank)
        raised = followed - r_squared
        tank = tank - torch.maximum(raised, refill * raised)
        r_squared = followed.clamp_min(base._TINY_ENERGY)

        # In units of √unit: ratio = r⁺ / √unit.
        half = 0.5 / unit
        gain = (r_squared / unit).sqrt() + half * self._sum(damped * state.momentum, layout)
        ratio = gain / (1 + half * self._sum(damped * push, layout))
        ratio_each = layout.expand(ratio) if self.tensor else ratio
        momentum = state.momentum * keep_each - damped * ratio_each
        new = flat + move * momentum
        kinetic = 0.5 * self._sum(momentum * momentum, layout)
        r_after = ratio * ratio * unit
        tank = tank + refill * (r_squared - r_after + (state.kinetic - kinetic))
        return params.like(new), PortHamiltonianState(
            step, averages, second, momentum, loss_start, loss_average, r_after, tank, kinetic
        )

    def _sum(self, x: Tensor, layout: Layout) -> Tensor:
        return layout.sum(x) if self.tensor else x.sum(-1, keepdim=True)


VARIANTS: dict[str, dict[str, Any]] = {
    "tracked": {},
    "tracked tensor": {"tensor": True},
    "ratio": {"ratio": "now"},
    "ratio average": {"ratio": "average"},
    "ratio average tensor": {"ratio": "average", "tensor": True},
    "spent": {"ratio": "spent"},
    "spent blind": {"ratio": "spent", "blind": True},
    "normal": {"normal": True},
    "normal tensor": {"normal": True, "tensor": True},
    "gated tensor": {"normal": True, "tensor": True, "gated": True},
    "blind tensor": {"normal": True, "tensor": True, "blind": True},
}
ACTIVATIONS = ("sigmoid", "relu", "tanh")


def made(name: str, seed: int, init_lr: float) -> PortHamiltonian:
    """An optimizer before its training."""
    torch.manual_seed(seed)
    return PortHamiltonian(init_lr=init_lr) if name == "tracked" else Variant(**VARIANTS[name], init_lr=init_lr)


def quadratic(name: str, seed: int, outer_steps: int, data: Path) -> dict[str, float]:
    """Trained on quadratics; mean and geometric mean after 100 steps, the largest loss after 1,000."""
    del data
    optimizer = made(name, seed, 0.05)
    trained = meta_train(
        optimizer, Quadratic(), outer_steps, estimator=Truncated(20), seed=seed, compile="step", num_problems=64,
        horizons=(20, 60, 100, 100, 200), val_every=max(outer_steps // 6, 1), val_problems=256, val_horizon=100,
    )  # fmt: skip
    problem = Quadratic().sample(ProblemKeys(1, "val", 1, range(2000)))
    _, losses = run(trained, problem, 1000)
    after = losses[100].double()
    return {
        "mean": after.mean().item(),
        "geometric mean": after.clamp_min(1e-12).log().mean().exp().item(),
        "median at 1,000": losses[1000].median().item(),
        "largest at 1,000": losses[1000].max().item(),
    }


def mnist(name: str, seed: int, outer_steps: int, data: Path) -> dict[str, float]:
    """Trained on three activations; the mean of the last 10 of 100 steps, and of 50 at 1,000 steps."""
    task = functools.partial(ImageClassification, data_dir=data)
    trained = meta_train(
        made(name, seed, 0.02), task(activation=ACTIVATIONS), outer_steps, estimator=Truncated(50), seed=seed,
        compile="step", num_problems=4, horizons=(100, 200), rescale=0.7, val_every=max(outer_steps // 4, 1),
        val_problems=12, val_horizon=100,
    )  # fmt: skip
    found: dict[str, float] = {}
    tests: dict[str, tuple[Task, int]] = {a: (task(activation=a), 100) for a in ACTIVATIONS}
    tests["width 100"] = task(activation="relu", hidden_sizes=(100,)), 100
    tests["three layers"] = task(activation="relu", hidden_sizes=(20, 20, 20)), 100
    tests["sigmoid at 1,000"] = task(activation="sigmoid"), 1000
    for test, (problems, horizon) in tests.items():
        count, last = (24, 10) if horizon == 100 else (8, 50)
        _, losses = run(trained, problems.sample(ProblemKeys(1, "val", 1, range(count))), horizon)
        found[test] = losses[-last:].mean().item()
        if horizon == 100:
            found[f"{test}, all"] = losses[1:].mean().item()
    return found


TASKS = {"quadratic": (quadratic, 600), "mnist": (mnist, 160)}


def main() -> None:
    """Train and measure what is asked for; the JSON file grows with each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="default: all")
    parser.add_argument("--seeds", default="0", help="default: 0")
    parser.add_argument("--outer-steps", type=int, help="default: 600 on quadratics, 160 on MNIST")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    measure, outer_steps = TASKS[arguments.task]
    rows: list[dict[str, Any]] = []
    for name in arguments.variants.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            began = time.perf_counter()
            found = measure(name, seed, arguments.outer_steps or outer_steps, arguments.data)
            rows.append({"variant": name, "seed": seed, **found})
            numbers = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            print(f"{name}, seed {seed}: {numbers} ({time.perf_counter() - began:.0f} s)", flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps({"task": arguments.task, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
