"""Do small transformers train in every mode of the drop-in? BERT, GPT-2, pre-LN and post-LN encoders of width 32.

    python benchmarks/small_transformers.py --json docs/results/small_transformers.json

Two layers and four heads, started as their papers start them, on the characters of Python's own argparse.py and
typing.py: BERT fills in one character in seven that is masked, which nothing learns in so few steps, GPT-2 predicts
the next one. BERT and the encoders also read half of the pixels of handwritten digits, 32 of them with 17 levels of
grey, and name the digit. Each form of the drop-in runs with and without the loss, with and without `total_steps`;
AdamW, with warm-up and cosine, at three learning rates. A network that has learned nothing reaches the entropy of
single characters, of digits ln 10 = 2.30. Reports the mean loss in the last tenth of 1,000 steps for each seed. An
hour on one core; goes on with what the JSON file has.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _measure
import torch
import torch.nn.functional as F
from long_loops import CONTEXT, Loss, losses_of, text_codes
from torch import Tensor, nn

from ph_l2o.commands.numerics import set_up_torch
from ph_l2o.optim import PortHamiltonian

STEPS, SEEDS, BATCH, WIDTH, LAYERS = 1000, 4, 16, 32, 2
RATES = (1e-3, 3e-3, 1e-2)  # of AdamW
# Whether LayerNorm comes first, whether weights start with .02
MODELS = {
    "BERT": (False, True),
    "BERT, digits": (False, True),
    "GPT-2": (True, True),
    "pre-LN, digits": (True, False),
    "post-LN, digits": (False, False),
}
MODES = {
    f"{form}, {loss} loss, {length}": (form, loss == "with", length == "total_steps")
    for form in ("kronecker", "default")
    for loss in ("with", "without")
    for length in ("total_steps", "anytime")
}


class Transformer(nn.Module):
    """Characters `(batch, time)` to logits; BERT and GPT-2 tie an output of characters to the embedding.

    Args:
        count: Characters.
        classes: What the first place tells apart; None: every place tells characters.
        norm_first: Whether LayerNorm stands before attention and MLP.
        tied: Whether it starts as BERT and GPT-2 do: normal weights of standard deviation .02, zero biases, tied
            output.
        causal: Whether a place sees those before it alone.
    """

    def __init__(self, count: int, classes: int | None = None, *, norm_first: bool, tied: bool, causal: bool):
        super().__init__()
        self.table, self.places = nn.Embedding(count, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm, self.head, self.causal = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, classes or count), causal
        for block in self.blocks.layers:  # the encoder copies one layer
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    part.reset_parameters()
        if tied:
            for name, p in self.named_parameters():
                if p.dim() > 1:
                    depth = math.sqrt(2 * LAYERS) if causal and ("out_proj" in name or "linear2" in name) else 1.0
                    nn.init.normal_(p, std=0.02 / depth)
                elif "bias" in name:
                    nn.init.zeros_(p)
            if classes is None:
                self.head.weight = self.table.weight
        self.before = norm_first  # a last norm; without it the first, of the embedding
        self.places_told = slice(None) if classes is None else 0

    def forward(self, codes: Tensor) -> Tensor:
        x = self.table(codes) + self.places.weight[: codes.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(codes.shape[1]) if self.causal else None
        x = self.blocks(x if self.before else self.norm(x), mask=mask, is_causal=self.causal)
        return self.head((self.norm(x) if self.before else x)[:, self.places_told])


def trained(model_name: str, seed: int, make: Any, *, with_loss: bool) -> float:
    """The mean loss in the last tenth."""
    torch.manual_seed(seed)
    model, loss = (_digits if model_name.endswith("digits") else _characters)(model_name)
    losses = losses_of(make(model.parameters()), loss, STEPS, with_loss=with_loss)
    return sum(losses[-STEPS // 10 :]) / (STEPS // 10)


def _characters(model_name: str) -> tuple[nn.Module, Loss]:
    norm_first, tied = MODELS[model_name]
    codes, count = text_codes()
    causal = model_name == "GPT-2"
    model = Transformer(count + 1, norm_first=norm_first, tied=tied, causal=causal)  # and one for what is masked

    def loss() -> Tensor:
        starts = torch.randint(len(codes) - CONTEXT - 1, (BATCH, 1))
        rows = codes[starts + torch.arange(CONTEXT + 1)]
        if causal:
            inputs, targets = rows[:, :-1], rows[:, 1:]
        else:
            inputs, hidden = rows[:, :-1], torch.rand(BATCH, CONTEXT) < 1 / 7
            targets = inputs.masked_fill(~hidden, -100)
            inputs = inputs.masked_fill(hidden, count)
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    return model, loss


def _digits(model_name: str) -> tuple[nn.Module, Loss]:
    from sklearn.datasets import load_digits

    norm_first, tied = MODELS[model_name]
    found: Any = load_digits()
    pixels, labels = torch.tensor(found.images).flatten(1)[:, ::2].long(), torch.tensor(found.target)
    model = Transformer(17, 10, norm_first=norm_first, tied=tied, causal=False)

    def loss() -> Tensor:
        chosen = torch.randint(len(labels), (BATCH,))
        return F.cross_entropy(model(pixels[chosen]), labels[chosen])

    return model, loss


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    set_up_torch(1)
    content = _measure.taken_up(arguments.json, {"steps": STEPS, "seeds": SEEDS, "entropy": entropy(), "models": {}})
    for model in MODELS:
        rows = content["models"].setdefault(model, {})
        for name, make, with_loss in optimizers():
            if name not in rows:
                rows[name] = [trained(model, seed, make, with_loss=with_loss) for seed in range(SEEDS)]
                _measure.say(f"{model}, {name}: {', '.join(f'{x:.3f}' for x in rows[name])}")
                _measure.write_json(arguments.json, content)
    print(table(content))


def optimizers() -> list[tuple[str, Any, bool]]:
    """Name, what makes an optimizer of parameters, whether it is given the loss."""
    found: list[tuple[str, Any, bool]] = []
    for name, (form, with_loss, known) in MODES.items():
        total = STEPS if known else None

        def make(params: Any, form: str = form, total: int | None = total) -> Any:
            return PortHamiltonian(params, pretrained=form, compile=True, total_steps=total)

        found.append((name, make, with_loss))
    return [*found, *((f"adamw, {r:g}", lambda params, r=r: torch.optim.AdamW(params, r), False) for r in RATES)]


def entropy() -> float:
    """Of single characters, in nats: the loss of a network that has learned nothing else."""
    shares = torch.bincount(text_codes()[0]).double() / len(text_codes()[0])
    return -(shares * shares.clamp_min(1e-12).log()).sum().item()


def table(content: Mapping[str, Any]) -> str:
    """Largest and smallest of the seeds; AdamW at the rate with the best mean."""
    lines = []
    for name in (*MODES, "AdamW, best of 3"):
        cells = [name]
        for rows in content["models"].values():
            rates = [rows[f"adamw, {rate:g}"] for rate in RATES if f"adamw, {rate:g}" in rows]
            found = rows.get(name) if name in MODES else min(rates, key=sum, default=None)
            cells.append(f"{min(found):.3g} – {max(found):.3g}" if found else "")
        lines.append(cells)
    return _measure.table(["", *content["models"]], lines)


if __name__ == "__main__":
    main()
