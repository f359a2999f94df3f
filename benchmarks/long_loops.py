"""Ten thousand steps of plain training loops with the drop-in: is anything driven apart, and what does it reach?

    python benchmarks/long_loops.py --json docs/results/long_loops.json

Small networks in a user's loop, on data that had no part in any training here: a one-layer transformer (width 32,
context 32) and a GRU on the characters of Python's own argparse.py and typing.py, a convolutional net with BatchNorm on
the 8 × 8 digits, and an MLP there that sees single examples. Each form runs with the loss and `total_steps`, and with
neither; AdamW, with warm-up and cosine, at the best of three learning rates. Reports the mean loss in tenths of the
run. Half an hour on one core; goes on with what the JSON file has.
"""

from __future__ import annotations

import argparse
import argparse as _source
import functools
import math
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _measure
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.optim import PortHamiltonian

STEPS, TENTHS, CONTEXT = 10_000, 10, 32
RATES = (1e-3, 3e-3, 1e-2)  # of AdamW
MODES = {"loss, total_steps": (True, True), "anytime": (False, False)}  # whether with the loss, with total_steps
Loss = Callable[[], Tensor]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    content = _measure.taken_up(arguments.json, {"steps": arguments.steps, "jobs": {}})
    for job in arguments.jobs.split(","):
        rows = content["jobs"].setdefault(job, {})
        for name, make in optimizers(arguments.steps):
            if name not in rows:
                rows[name] = trained(job, make, arguments.steps, with_loss=name.endswith("loss, total_steps"))
                _measure.say(f"{job}, {name}: {rows[name]}")
                _measure.write_json(arguments.json, content)
    print(table(content["jobs"]))


def optimizers(steps: int) -> list[tuple[str, Callable[..., Any]]]:
    """By name, what makes an optimizer of parameters."""
    found: list[tuple[str, Callable[..., Any]]] = []
    for form in ("kronecker", "default"):
        for mode, (_, scheduled) in MODES.items():
            total = steps if scheduled else None

            def make(params: Any, form: str = form, total: int | None = total) -> Any:
                return PortHamiltonian(params, pretrained=form, compile=True, total_steps=total)

            found.append((f"{form}: {mode}", make))
    return [
        *found,
        *((f"adamw: {rate:g}", lambda params, rate=rate: torch.optim.AdamW(params, rate)) for rate in RATES),
    ]


def trained(job: str, make: Callable[..., Any], steps: int, *, with_loss: bool) -> dict[str, Any]:
    """The mean loss in each tenth, ‖θ‖ at the end, and seconds."""
    torch.manual_seed(0)
    model, loss_of = JOBS[job](torch.Generator().manual_seed(0))
    began = time.perf_counter()
    losses = losses_of(make(model.parameters()), loss_of, steps, with_loss=with_loss)
    parts = torch.tensor(losses, dtype=torch.float64).view(TENTHS, -1).mean(1)
    size = math.sqrt(sum(p.detach().square().sum().item() for p in model.parameters()))
    seconds = round(time.perf_counter() - began, 1)
    return {"tenths": [float(f"{x:.5g}") for x in parts.tolist()], "size": round(size, 1), "seconds": seconds}


def losses_of(optimizer: Any, loss_of: Loss, steps: int, *, with_loss: bool) -> list[float]:
    """Of a plain training loop; an optimizer that is not ours has warm-up and cosine."""
    schedule, losses = None if isinstance(optimizer, PortHamiltonian) else cosine(optimizer, steps), list[float]()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        if with_loss:
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        if schedule:
            schedule.step()
        losses.append(loss.item())
    return losses


def cosine(optimizer: Any, steps: int) -> Any:
    """A scheduler: 5 % of warm-up, then half a cosine to 0."""
    rise = round(0.05 * steps)

    def factor(k: int) -> float:
        return (k + 1) / (rise + 1) if k < rise else 0.5 * (1 + math.cos(math.pi * (k - rise) / (steps - rise)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def table(jobs: dict[str, Any]) -> str:
    """The last tenth of each, and the best tenth where that was an earlier one by more than a tenth."""
    names = [f"{form}: {mode}" for form in ("kronecker", "default") for mode in MODES]
    lines = []
    for job, rows in jobs.items():
        best = min((rows[f"adamw: {rate:g}"] for rate in RATES if f"adamw: {rate:g}" in rows), key=_last, default=None)
        lines.append([job, *(_cell(rows.get(name)) for name in names), _cell(best)])
    return _measure.table(["", *names, "AdamW, best of 3"], lines)


def _last(row: dict[str, Any]) -> float:
    return row["tenths"][-1]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    last, best = _last(row), min(row["tenths"])
    return f"{last:.3g}" + (f" (best {best:.3g})" if last > 1.1 * best + 1e-3 else "")


class _Characters(nn.Module):
    """The next character, by what is in the middle."""

    def __init__(self, count: int, width: int, middle: Callable[[Tensor], Tensor] | nn.Module, out: int):
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(count, width), middle, nn.Linear(out, count)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.table(x)))


class _Transformer(nn.Module):
    """One causal pre-LN layer, with learned places."""

    def __init__(self, width: int):
        super().__init__()
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.norm(self.layer(x + self.places, src_mask=mask, is_causal=True))


class _GRU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gru = nn.GRU(width, hidden, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


@functools.cache
def text_codes() -> tuple[Tensor, int]:
    """The characters of argparse.py and typing.py as numbers, and how many kinds there are."""
    text = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (_source, typing))
    characters = sorted(set(text))
    return torch.tensor([characters.index(c) for c in text]), len(characters)


def _text(middle: Callable[[], nn.Module], out: int, generator: torch.Generator) -> tuple[nn.Module, Loss]:
    codes, count = text_codes()
    model = _Characters(count, 32, middle(), out)

    def loss() -> Tensor:
        starts = torch.randint(len(codes) - CONTEXT - 1, (8, 1), generator=generator)
        rows = codes[starts + torch.arange(CONTEXT + 1)]
        return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    return model, loss


def _digits(model: nn.Module, batch: int, generator: torch.Generator) -> tuple[nn.Module, Loss]:
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(found.target)

    def loss() -> Tensor:
        chosen = torch.randint(len(labels), (batch,), generator=generator)
        return F.cross_entropy(model(images[chosen]), labels[chosen])

    return model, loss


def _convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for channels in (1, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))


def _mlp(hidden: int) -> nn.Module:
    layers = [layer for _ in range(hidden) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))


JOBS: dict[str, Callable[[torch.Generator], tuple[nn.Module, Loss]]] = {
    "transformer": lambda generator: _text(lambda: _Transformer(32), 32, generator),
    "gru": lambda generator: _text(lambda: _GRU(32, 64), 64, generator),
    "conv_batchnorm": lambda generator: _digits(_convolutions(), 32, generator),
    "single_examples": lambda generator: _digits(_mlp(2), 1, generator),
}


if __name__ == "__main__":
    main()
