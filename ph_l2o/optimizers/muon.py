"""Muon: momentum whose matrices are orthogonalised, with Adam for all that is not a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ph_l2o.optimizers.classical import ClassicalOptimizer, adam_step, decades
from ph_l2o.optimizers.matrices import Shape, matrix_shapes
from ph_l2o.params import Params

# Jordan's quintic: 5 iterations bring singular values between about 0.005 and 1 to between about 0.7 and 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_LEAST_NORM = 1e-7

AdjustLR = Literal["none", "match_rms_adamw", "original", "spectral_unclamped"]
_FACTORS: dict[str, Callable[[int, int], float]] = {
    "none": lambda rows, columns: 1.0,
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1, rows / columns)),
    "spectral_unclamped": lambda rows, columns: math.sqrt(rows / columns),
}
_PRECISIONS = ("same", "bfloat16")


class MuonState(NamedTuple):
    """What Muon remembers.

    Attributes:
        step: Steps done, `(B,)`.
        first: Average of the gradient, `(B, N)`: with decay `momentum` in matrices, `beta1` elsewhere.
        second: Average of the squared gradient of the N' coordinates outside of matrices, `(B, N')`.
    """

    step: Tensor
    first: Tensor
    second: Tensor


class Muon(ClassicalOptimizer):
    """Muon, M ← momentum M + (1 - momentum) G, W ← (1 - lr weight_decay) W - lr c NS(momentum M + (1 - momentum) G).

    NS is five Newton–Schulz iterations, which bring all singular values near 1; the factor c depends on the matrix's
    shape. The rule is that of `torch.optim.Muon`, which takes 2-D tensors alone. Here tensors with more axes, such as
    kernels of convolutions, are flattened to matrices (`matrix_shapes`), and vectors and scalars get AdamW, whose
    learning rate is `adam_lr_ratio` lr. All matrices are Muon's, first and last layers too, since what a matrix is
    used for cannot be seen from here.

    torch's choices for c are `original` √max(1, r/k), `match_rms_adamw` 0.2 √max(r, k) and `spectral_unclamped`
    √(r/k) for r rows and k columns; the first and the last take rows for outputs, as `nn.Linear` stores them, while
    this package's MLP stores `(in, out)`. The default `none`, c = 1, is `original` wherever a layer has no more outputs
    than inputs, and needs not know which axis is which. On MNIST it also came out better than `match_rms_adamw`, each
    tuned for 100 steps.

    `torch.optim.Muon` iterates in bfloat16. The default here is the parameters' own type, which differs from that in
    rounding errors only and is no slower on small matrices; `newton_schulz="bfloat16"` rounds as torch does.

    Args:
        lr: Learning rate, > 0.
        momentum: Decay of M, in [0, 1).
        beta1: Decay of Adam's average of the gradient, in [0, 1).
        beta2: Decay of Adam's average of the squared gradient, in [0, 1).
        eps: Added to Adam's √v̂, >= 0.
        weight_decay: Decay of the parameters, in units of the learning rate, >= 0.
        adam_lr_ratio: Adam's learning rate as a multiple of `lr`, >= 0.
        nesterov: Whether NS takes the gradient in once more, as above, or M as it is.
        adjust_lr_fn: c: `none`, `original`, `match_rms_adamw` or `spectral_unclamped`.
        newton_schulz: Type in which NS runs, `same` as the parameters', or `bfloat16`.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"
    (kellerjordan.github.io/posts/muon); Liu et al. 2025, "Muon is scalable for LLM training" (arXiv 2502.16982).
    """

    takes_padding: ClassVar[bool] = False  # where matrices lie is part of the rule

    grid: ClassVar[dict[str, tuple[float, ...]]] = {"lr": decades(-3.5, 0.5), "momentum": (0.8, 0.9, 0.95)}

    def __init__(
        self,
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_lr_ratio: float = 0.3,
        nesterov: bool = True,
        adjust_lr_fn: AdjustLR = "none",
        newton_schulz: Literal["same", "bfloat16"] = "same",
    ):
        super().__init__(
            lr=lr, momentum=momentum, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
            adam_lr_ratio=adam_lr_ratio,
        )  # fmt: skip
        if adjust_lr_fn not in _FACTORS:
            raise ValueError(f"optimizer.adjust_lr_fn={adjust_lr_fn}: must be one of {', '.join(_FACTORS)}")
        if newton_schulz not in _PRECISIONS:
            raise ValueError(f"optimizer.newton_schulz={newton_schulz}: must be one of {', '.join(_PRECISIONS)}")
        self.nesterov, self.adjust_lr_fn, self.newton_schulz = nesterov, adjust_lr_fn, newton_schulz

    def init(self, params: Params) -> MuonState:
        flat, shapes = params.flat, matrix_shapes(params.layout)
        num_others = sum(n for n, s in zip(params.layout.sizes, shapes, strict=True) if s is None)
        return MuonState(torch.zeros_like(flat[:, 0]), torch.zeros_like(flat), flat.new_zeros(len(flat), num_others))

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: MuonState) -> tuple[Params, MuonState]:
        h, layout = self.hyperparameters, params.layout
        shapes, step = matrix_shapes(layout), state.step + 1
        parts = [list(x.split(layout.sizes, 1)) for x in (grads.flat, state.first)]
        steps: list[Tensor] = []
        firsts: list[Tensor] = []
        for shape, grad, old in zip(shapes, *parts, strict=True):
            firsts.append(torch.lerp(grad, old, h["beta1"] if shape is None else h["momentum"]))
            if shape is not None:
                steps.append(h["lr"] * self._direction(grad, firsts[-1], h["momentum"], shape))
        second = state.second
        if second.shape[1]:
            sizes = [n for n, s in zip(layout.sizes, shapes, strict=True) if s is None]
            grad, first = (
                torch.cat([x for x, s in zip(row, shapes, strict=True) if s is None], 1) for row in (parts[0], firsts)
            )
            second = torch.lerp(grad * grad, second, h["beta2"])
            adam = {**h, "lr": h["lr"] * h["adam_lr_ratio"]}
            others = iter(adam_step(first, second, step[:, None], adam).split(sizes, 1))
            matrices = iter(steps)
            steps = [next(others if shape is None else matrices) for shape in shapes]
        flat = params.flat * (1 - h["lr"] * h["weight_decay"]) - torch.cat(steps, 1)
        return params.like(flat), MuonState(step, torch.cat(firsts, 1), second)

    def _direction(self, grad: Tensor, first: Tensor, momentum: Tensor, shape: Shape) -> Tensor:
        """Of one matrix c NS(…), `(B, rows·columns)`."""
        matrix = (torch.lerp(grad, first, momentum) if self.nesterov else first).unflatten(1, shape)
        if self.newton_schulz == "bfloat16":
            unit = orthogonalized(matrix.bfloat16()).to(grad.dtype)
        else:
            unit = orthogonalized(matrix)
        return _FACTORS[self.adjust_lr_fn](*shape) * unit.flatten(1)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Newton–Schulz iterations X ← (a + b XXᵀ + c (XXᵀ)²) X from X = matrix / ‖matrix‖.

    Args:
        matrix: Shape `(B, rows, columns)`.

    Returns:
        About UVᵀ of the singular value decomposition USVᵀ: singular values lie within 0.7 … 1.2, but lower where they
        were below 0.005 of the norm. Zeros stay zeros.
    """
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[1] > matrix.shape[2]
    x = matrix.mT if tall else matrix  # XXᵀ is the smaller product then
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
