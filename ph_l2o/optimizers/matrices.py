"""Which tensors of an optimizee are matrices, for optimizers that treat these as such."""

from __future__ import annotations

import math

from ph_l2o.params import Layout

Shape = tuple[int, int]


def matrix_shapes(layout: Layout) -> tuple[Shape | None, ...]:
    """Shape of each tensor as a matrix: its first axis, and all others in one; None for vectors and scalars.

    So a convolution's kernel `(out, in, height, width)` is the matrix `(out, in·height·width)` of its linear map on
    patches.

    Examples:
        >>> matrix_shapes(Layout(("weight", "bias", "kernel"), ((784, 20), (20,), (8, 3, 5, 5))))
        ((784, 20), None, (8, 75))
    """
    return tuple((s[0], math.prod(s[1:])) if len(s) > 1 else None for s in layout.shapes)
