"""Sides of a matrix in coordinates of their own, beside the whole matrices that they stand for."""

import pytest
import torch

from ph_l2o.optimizers.sides import LeadingSide, Side

SIDES = [Side(1, 6), Side(2, 6), LeadingSide(1, 6, 4), LeadingSide(2, 6, 4), LeadingSide(1, 6, 1)]


def whole(side: Side, q: torch.Tensor) -> torch.Tensor:
    """Q itself."""
    eye = torch.eye(side.size).double().expand(len(q[0]) if isinstance(q, tuple) else len(q), -1, -1)
    return side.turned(eye, q, back=side.axis == 1)


@pytest.fixture(params=SIDES, ids=str)
def case(request):
    """A side, three matrices, and two bases of each with their factors."""
    side = request.param
    torch.manual_seed(0)
    x = torch.randn(3, *((6, 4) if side.axis == 1 else (4, 6)), dtype=torch.float64)
    if isinstance(side, LeadingSide):
        old, factor = side.first(x[..., :1] if side.columns == 1 else x, None)
    else:
        factor = side.with_product(x, x.new_zeros(3, 6, 6), x)
        old = torch.linalg.eigh(factor).eigenvectors
    new, _, _ = side.improved(factor + torch.randn_like(factor), side.opened(old), 0.0)
    return side, x, side.opened(old), side.opened(new), factor


def test_bases_are_orthogonal_and_turn_back(case):
    side, x, _, new, _ = case
    q = whole(side, new)
    torch.testing.assert_close(q.mT @ q, torch.eye(6).double().expand_as(q), rtol=0, atol=1e-14)
    turned = side.turned(x, new)
    torch.testing.assert_close(turned, q.mT @ x if side.axis == 1 else x @ q, rtol=0, atol=1e-13)
    torch.testing.assert_close(side.turned(turned, new, back=True), x, rtol=0, atol=1e-13)


def test_a_change_of_bases(case):
    side, x, old, new, _ = case
    change, dense = side.change(old, new), whole(side, old).mT @ whole(side, new)
    expected = dense.mT @ x if side.axis == 1 else x @ dense
    torch.testing.assert_close(side.moved(x, change), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(change.product, dense[..., : side.rank], rtol=0, atol=1e-13)
    squares = x.square()
    moved = side.moved_variances(squares, change)
    expected = dense.square().mT @ squares if side.axis == 1 else squares @ dense.square()
    leading = slice(None), slice(side.rank)
    some = leading if side.axis == 1 else (slice(None), *leading)
    torch.testing.assert_close(moved[some], expected[some], rtol=1e-12, atol=0)
    torch.testing.assert_close(moved.sum(side.axis), squares.sum(side.axis), rtol=1e-12, atol=0)
    assert (moved >= 0).all()


def test_products(case):
    side, x, old, _, factor = case
    product = x @ x.mT if side.axis == 1 else x.mT @ x
    q = whole(side, old)[..., : side.rank]
    expected = product @ (q if isinstance(side, LeadingSide) else torch.eye(6).double())
    torch.testing.assert_close(side.with_product(x, factor, old) - factor, expected, rtol=0, atol=1e-13)


def test_leading_eigenvectors_are_found():
    """By power iterations on one matrix again and again, from those of its neighbour."""
    torch.manual_seed(1)
    side, x = LeadingSide(2, 9, 3), torch.randn(1, 3, 9, dtype=torch.float64)
    q, _ = side.first(x, None)
    x = x + 0.3 * torch.randn_like(x)
    for _ in range(60):
        opened = side.opened(q)
        q = side.improved(side.with_product(x, torch.zeros_like(q), opened), opened, 0.0)[0]
    expected = torch.linalg.svd(x).Vh.mT[..., :3]
    found = whole(side, side.opened(q))[..., :3]
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(1, 3).double(), rtol=0, atol=1e-9)
