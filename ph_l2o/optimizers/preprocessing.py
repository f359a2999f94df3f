"""What coordinatewise optimizers do to a gradient before their network sees it."""

from __future__ import annotations

import math

from torch import Tensor

_P = 10.0


def log_and_sign(x: Tensor, *, p: float = _P) -> tuple[Tensor, Tensor]:
    """Two inputs of order one for a number of any size: (log|x| / p, sign x), or (-1, eᵖ x) where |x| < e⁻ᵖ.

    Args:
        x: Tensor of any shape.
        p: How small numbers can be before they count as zero, in powers of e.

    Returns:
        The two inputs, each of x's shape. Both are continuous in x.

    Reference: Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent" (arXiv
    1606.04474), appendix A.
    """
    return x.abs().clamp_min(math.exp(-p)).log() / p, (x * math.exp(p)).clamp(-1, 1)
