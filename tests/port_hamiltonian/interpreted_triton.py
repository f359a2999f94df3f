"""What `test_triton.py` runs in a process of its own: the kernels on CPU tensors, by Triton's interpreter."""

import copy
import sys

import numpy as np
import pytest
import torch

from ph_l2o.optim import PortHamiltonian, drop_in_port_hamiltonian
from ph_l2o.optimizers import PortHamiltonian as Learned
from ph_l2o.optimizers import PortHamiltonianKronecker
from ph_l2o.port_hamiltonian import bases
from ph_l2o.port_hamiltonian.blocks import Block
from ph_l2o.port_hamiltonian.kernels import Plain

IMPORTED_EARLY = "triton" in sys.modules

from ph_l2o.port_hamiltonian import triton_passes  # noqa: E402
from ph_l2o.port_hamiltonian.triton_passes import Triton  # noqa: E402

# Of numpy, for numbers that are not finite; of the interpreter's own code.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
ODD, ROUND = (1, 64, 65, 7, 300, 63), (16, 64, 320)  # chunks are of 64 coordinates
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(triton_passes, "LENGTH", 64)
    monkeypatch.setattr(triton_passes, "_BYTES", 128)
    monkeypatch.setattr(triton_passes, "_ROWS", 4)
    triton_passes._chunks.cache_clear()


def make_blocks(sizes, *dtypes, turned=None):
    """Random ones; tensor `turned` has its θ elsewhere than the parameter's, where there is nothing yet."""
    torch.manual_seed(0)
    found = []
    for k, size in enumerate(sizes):
        theta, grad, *flats = torch.randn(6, size, dtype=dtypes[k % len(dtypes)]).unbind()
        flats[2].square_()
        found.append(Block(str(k), (size,), theta, grad, {}, tuple(x.clone() for x in flats), 1.0, 0.0))
        if k == turned:
            found[-1].theta = torch.full_like(theta, torch.nan)
    return found


def same(blocks, others, sums, other_sums, rtol):
    np.testing.assert_allclose(other_sums, sums, rtol=rtol, atol=rtol * np.abs(sums).max())
    for block, other in zip(blocks, others, strict=True):
        for x, y in zip((block.theta, block.home, *block.flats), (other.theta, other.home, *other.flats), strict=True):
            torch.testing.assert_close(y, x, rtol=rtol, atol=rtol, equal_nan=True)


def test_triton_is_not_imported_with_the_package():
    assert not IMPORTED_EARLY


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64,), (torch.float32, torch.float64)])
@pytest.mark.parametrize("sizes", [ODD, ROUND, (5,)])
@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("pulls", [False, True])
def test_each_pass_is_that_of_plain_operations(dtypes, sizes, factor, pulls):
    blocks, others = (make_blocks(sizes, *dtypes, turned=None if pulls else len(sizes) - 1) for _ in range(2))
    plain, triton = Plain(blocks), Triton(others)
    rtol = max(TOLERANCES[dtype] for dtype in dtypes)
    numbers = np.random.default_rng(0).random((9, len(sizes)))
    weights, predicted, moves = numbers[:3].T, numbers[3:5].T, numbers[5:].T * (1, 1, pulls, 1)
    assert triton.largest() == plain.largest()
    same(blocks, others, plain.absorb(factor, weights), triton.absorb(factor, weights), rtol)
    same(blocks, others, plain.predict(factor, predicted, pulls), triton.predict(factor, predicted, pulls), rtol)
    found = [passes.move(factor, predicted, moves, pulls) for passes in (plain, triton)]
    same(blocks, others, *found, rtol)


def test_float64_keeps_its_digits():
    """Also of the numbers that are given, which Triton would take for float32."""
    blocks = make_blocks((3,), torch.float64)
    expected = (blocks[0].grad / 3).square().sum().item()
    assert Triton(blocks).absorb(1 / 3, np.zeros((1, 3)))[0, 0] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_largest_value_is_not_finite_where_one_is_not(value):
    blocks = make_blocks(ODD, torch.float32, torch.float64)
    for place in (0, 4, 5):
        others = copy.deepcopy(blocks)
        others[place].grad[-1] = value
        assert not np.isfinite(Triton(others).largest())


def test_a_tensor_without_a_spring_may_be_anything_where_others_are_pulled():
    blocks = make_blocks((70, 3), torch.float32)
    moves = np.array([[0.9, 0.1, 0.2, 0.0], [0.9, 0.1, 0.0, 0.0]])
    blocks[1].theta[0] = torch.inf
    Triton(blocks).move(1.0, np.full((2, 2), 0.5), moves, True)
    assert all(block.flats[3].isfinite().all() for block in blocks)


def test_the_same_sums_each_time():
    found = [Triton(make_blocks(ODD, torch.float32)).absorb(0.3, np.full((len(ODD), 3), 0.5)) for _ in range(2)]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grad", torch.ones(5, dtype=torch.float64)),
        ("theta", torch.ones(5, dtype=torch.bfloat16)),
        ("grad", torch.ones(4)),
        ("grad", torch.ones(10)[::2]),
        ("theta", torch.ones(5, device="meta")),
    ],
)
def test_other_tensors_are_refused_in_one_line(field, value):
    (block,) = make_blocks((5,), torch.float32)
    setattr(block, field, value)
    message = f"tensor 0: .*{value.numel()} numbers of {value.dtype} on {value.device}.*; must be dense and alike"
    with pytest.raises(ValueError, match=message):
        Triton([block])


@pytest.mark.parametrize(
    ("learned", "dtype", "radius"),
    [
        (Learned, torch.float64, 10.0),
        (Learned, torch.bfloat16, 10.0),
        (Learned, torch.float32, 2.0),
        (PortHamiltonianKronecker, torch.float64, 10.0),
        (PortHamiltonianKronecker, torch.float64, 2.0),
    ],
)
@torch.no_grad()
def test_whole_steps_are_those_of_plain_operations(learned, dtype, radius, monkeypatch):
    """Of parameters of several shapes, one of them not contiguous, with weight decay, with and without a spring."""
    monkeypatch.setattr(bases, "WHOLE", 0)
    monkeypatch.setattr(triton_passes, "LENGTH", 512)  # the interpreter's time goes with the chunks
    monkeypatch.setattr(triton_passes, "_BYTES", 4096)
    ends, springs = [], []
    torch.manual_seed(7)
    learned = learned(hidden_size=8, radius=radius, init_lr=30.0 if radius < 5 else 1.0)
    for make in (Plain, Triton):
        monkeypatch.setattr(drop_in_port_hamiltonian, "passes_for", lambda *_, make=make: make)
        torch.manual_seed(3)
        start = [torch.randn(s, dtype=torch.float64) for s in ((30, 20), (30,), (3, 2, 2), (), (1,), (6, 9))]
        tensors = [x.to(dtype).requires_grad_() for x in [*start[:-1], start[-1].T]]
        optimizer = PortHamiltonian(tensors, pretrained=learned, weight_decay=0.5)
        for k in range(20):
            for p in tensors:
                p.grad = (torch.randn(p.shape, dtype=torch.float64) - 0.3 * p).to(dtype)
            optimizer.step(loss=3 - 0.05 * k)
            springs.append(optimizer.diagnostics()["spring"])
        ends.append(torch.cat([p.double().flatten() for p in tensors]))
    assert any(springs) == (radius < 5)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 2e-2}[dtype]
    assert (ends[0] - ends[1]).norm() <= tolerance * ends[0].norm()
