"""Memory of an episode, measured: the most bytes that tensors made in it hold at a time, graphs included."""

import weakref

import pytest
import torch
from test_truncated import make_double, quadratics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ph_l2o.estimators import ES, NRES, OBJECTIVES, PES, ESSingle, Estimator, Forward, Full, Truncated
from ph_l2o.inner import Window
from ph_l2o.optimizers import Adam

K = 2


class LiveBytes(TorchDispatchMode):
    """Counts storages from the operation that makes them until they are freed, whoever holds them."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size: int) -> None:
        self.live -= size


def peak(estimator: Estimator, truncation: int, horizon: int) -> int:
    """Of an episode, in bytes."""
    optimizer, phi = make_double(Adam)
    problem = quadratics(num_problems=4, dim=64)
    count = estimator.window_length(truncation, horizon)
    carry = estimator.start(optimizer, problem)
    with LiveBytes() as counted:
        for first in range(0, horizon, count):
            carry = estimator(Window(optimizer, phi, problem, carry, first, count, OBJECTIVES["mean_loss"])).carry
    return counted.peak


def test_the_counter_counts():
    """What a graph holds too, until it is gone."""
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)
    with LiveBytes() as counted:
        y = x.exp()
        z = y.view(10, 100).exp().exp()
        assert counted.live == 3 * 8000
        del y
        assert counted.live == 3 * 8000  # exp saves its result
        del z
        assert counted.live == 0 and counted.peak == 3 * 8000


GRAPHLESS = {
    "es": ES(num_pairs=2),
    "pes": PES(num_pairs=2),
    "es_single": ESSingle(num_pairs=2),
    "nres": NRES(num_pairs=2, reuse=4 * K),
    "forward": Forward(),
    "forward_random": Forward(num_directions=2),
}
TRUNCATED = {"truncated": Truncated(), "truncated_first_order": Truncated(order=1)}


@pytest.mark.parametrize("estimator", [*GRAPHLESS.values(), *TRUNCATED.values()], ids=[*GRAPHLESS, *TRUNCATED])
def test_flat_in_the_horizon(estimator):
    peak(estimator, K, K)  # fills the caches of constants
    assert peak(estimator, K, 32 * K) == peak(estimator, K, 8 * K)


@pytest.mark.parametrize("estimator", GRAPHLESS.values(), ids=GRAPHLESS)
def test_without_a_graph_flat_in_the_window_too(estimator):
    """Up to the losses, a number for each step, particle and problem."""
    peak(estimator, K, K)
    assert peak(estimator, 4 * K, 4 * K) < 1.02 * peak(estimator, K, K)


@pytest.mark.parametrize("estimator", [Full(), *TRUNCATED.values()], ids=["full", *TRUNCATED])
def test_graphs_grow(estimator):
    """`full` with the horizon, `truncated` with its window."""
    peak(estimator, K, K)
    assert peak(estimator, 16 * K, 16 * K) > 2.2 * peak(estimator, 4 * K, 4 * K)
