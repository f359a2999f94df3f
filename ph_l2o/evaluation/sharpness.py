"""Sharpness: the largest eigenvalue of the Hessian of a loss, by Lanczos' method on products with vectors.

The Hessian is never formed: a product with a vector is one more backward pass. The largest and the smallest Ritz value
of the m-th Krylov space are found at once, so that a spectrum whose largest eigenvalue in absolute value is negative
needs no shift. Within the residual ρ = β_m |s_m| of a Ritz value there is an eigenvalue.

References: Lanczos 1950, "An iteration method for the solution of the eigenvalue problem of linear differential and
integral operators"; for networks, Pearlmutter 1994, "Fast exact multiplication by the Hessian", and Cohen et al. 2021,
"Gradient descent on neural networks typically occurs at the edge of stability" (arXiv 2103.00065).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ph_l2o.checks import at_least
from ph_l2o.evaluation.estimates import Array
from ph_l2o.params import Params
from ph_l2o.tasks.task import Buffers, Problem

_LOG = logging.getLogger(__name__)
_NOTHING = 1e-6  # relative to the spectrum, with which an eigenvalue counts as 0
_FEWEST = 5  # iterations, below which a small residual may be an accident

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Sharpness:
    """Eigenvalues of the Hessians of P problems.

    Attributes:
        largest: The largest eigenvalue, `(P,)`; nan where the Hessian is not finite.
        smallest: The smallest eigenvalue, `(P,)`, negative at saddles. Where its absolute value is less than that of
            `largest`, it is an upper bound, and no convergence is asked of it.
        converged: Whether the one of largest absolute value, and `largest`, have relative residuals within the
            tolerance, bool `(P,)`. Where not, `largest` is a lower bound.
        iterations: Products with the Hessian that it took.
    """

    largest: Array
    smallest: Array
    converged: np.ndarray
    iterations: int

    @property
    def dominant(self) -> Array:
        """The eigenvalue of largest absolute value, `(P,)`."""
        return np.where(np.abs(self.smallest) > np.abs(self.largest), self.smallest, self.largest)


def sharpness(
    problem: Problem,
    params: Params,
    buffers: Buffers,
    batches: Iterable[tuple[Any, int]],
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
) -> Sharpness:
    """Largest eigenvalues of the Hessian of each problem's loss, a mean over batches.

    Args:
        problem: The problems.
        params: Where, flat shape `(P, N)`.
        buffers: Buffers there.
        batches: Batches, with the numbers of examples by which they are weighted, such as
            `problem.training_sample(1000)`; all are held.
        tolerance: Of the relative residual, > 0.
        max_iterations: Products with the Hessian, >= 1.
        seed: Of the first vector, >= 0.

    Raises:
        ValueError: If an argument is out of range.
    """
    held = list(batches)
    total = sum(count for _, count in held)
    if not total:
        raise ValueError("batches=[]: must be at least one, with one example or more")

    def product(vector: Tensor) -> Tensor:
        summed = torch.zeros_like(params.flat)
        for batch, count in held:
            summed += count / total * _hessian_product(problem, params, buffers, batch, vector)
        return summed

    return eigenvalues(product, params.flat, tolerance=tolerance, max_iterations=max_iterations, seed=seed)


def eigenvalues(
    product: Product, like: Tensor, *, tolerance: float = 1e-3, max_iterations: int = 100, seed: int = 0
) -> Sharpness:
    """Extreme eigenvalues of P symmetric matrices of N rows, of which only products are known.

    Args:
        product: From vectors `(P, N)` to the matrices' products with them.
        like: A tensor of this shape, for type and device.
        tolerance: See `sharpness`.
        max_iterations: See `sharpness`.
        seed: See `sharpness`.

    Example:
        >>> diagonal = torch.tensor([[1.0, -5.0, 3.0]])
        >>> found = eigenvalues(lambda v: diagonal * v, diagonal)
        >>> found.largest.round(4), found.dominant.round(4)
        (array([3.]), array([-5.]))
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: must be > 0 (of the relative residual)")
    max_iterations = at_least("max_iterations", max_iterations, 1, "products with the Hessian")
    at_least("seed", seed, 0, "seed of the first vector")
    num_problems, size = like.shape
    rows = min(max_iterations, size)
    basis = like.new_zeros(num_problems, rows, size)  # orthonormal rows, and zeros where the space is exhausted
    diagonal, below = np.zeros((num_problems, rows)), np.zeros((num_problems, rows))
    start = np.random.default_rng(seed).standard_normal(size)
    vector = torch.from_numpy(start / np.linalg.norm(start)).to(like).expand(num_problems, -1)
    finite = np.ones(num_problems, dtype=bool)
    m = 0
    for m in range(1, rows + 1):
        basis[:, m - 1] = vector
        image = product(vector).detach()
        fine = image.isfinite().all(1, keepdim=True)
        finite &= fine[:, 0].cpu().numpy()
        image = torch.where(fine, image, 0.0)
        diagonal[:, m - 1] = _numbers((image * vector).sum(1))
        for _ in range(2):  # twice is enough to keep the rows orthogonal (Giraud et al. 2005)
            known = basis[:, :m]
            image = image - ((known @ image[..., None]).mT @ known)[:, 0]
        norm = image.norm(dim=1, keepdim=True)
        below[:, m - 1] = _numbers(norm[:, 0])
        found = _ritz(diagonal[:, :m], below[:, :m], tolerance)
        if (found.converged | ~finite).all() and m >= min(_FEWEST, rows):
            break
        scale = np.maximum(np.abs(found.dominant), np.finfo(np.float64).tiny)
        exhausted = torch.from_numpy(below[:, m - 1] <= scale * torch.finfo(like.dtype).eps * size).to(like.device)
        below[exhausted.cpu().numpy(), m - 1] = 0.0
        vector = torch.where(exhausted[:, None], 0.0, image / norm.clamp_min(torch.finfo(like.dtype).tiny))
    found = _ritz(diagonal[:, :m], below[:, :m], tolerance)
    undefined = np.where(finite, 0.0, np.nan)
    result = Sharpness(found.largest + undefined, found.smallest + undefined, found.converged & finite, m)
    if not result.converged.all():
        text = "sharpness: %d of %d problems are not within %g of an eigenvalue after %d products"
        _LOG.warning(text, (~result.converged).sum(), num_problems, tolerance, m)
    return result


def _hessian_product(problem: Problem, params: Params, buffers: Buffers, batch: Any, vector: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = params.flat.detach().requires_grad_()
        loss, _ = problem.loss(params.like(leaf), buffers, batch)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        if not gradient.requires_grad:  # the loss is linear
            return torch.zeros_like(leaf)
        (product,) = torch.autograd.grad(gradient, leaf, vector, allow_unused=True)
    return torch.zeros_like(leaf) if product is None else product


def _ritz(diagonal: Array, below: Array, tolerance: float) -> Sharpness:
    """Of tridiagonal matrices `(P, m)`; the last of `below` is what they lack."""
    problems, m = diagonal.shape
    matrix = np.zeros((problems, m, m))
    index = np.arange(m)
    matrix[:, index, index] = diagonal
    matrix[:, index[1:], index[:-1]] = matrix[:, index[:-1], index[1:]] = below[:, :-1]
    largest, smallest, converged = np.zeros(problems), np.zeros(problems), np.zeros(problems, dtype=bool)
    for k, one in enumerate(matrix):
        # Rows of zeros after the space is exhausted would be eigenvalues of 0.
        last = int(np.argmax(below[k] == 0)) + 1 if (below[k] == 0).any() else m
        values, vectors = np.linalg.eigh(one[:last, :last])
        residuals = below[k, last - 1] * np.abs(vectors[-1])
        most = np.abs(values).max()
        top = int(np.argmax(np.abs(values)))
        largest[k], smallest[k] = values[-1], values[0]
        bound = tolerance * max(abs(values[-1]), _NOTHING * most)
        converged[k] = residuals[-1] <= bound and residuals[top] <= tolerance * most
    return Sharpness(largest, smallest, converged, m)


def _numbers(x: Tensor) -> Array:
    return x.detach().cpu().double().numpy()
