"""Back-propagation through a whole episode."""

from __future__ import annotations

from typing import Literal

from ph_l2o.estimators.truncated import Truncated


class Full(Truncated):
    """The gradient of the outer loss of a whole episode: one window, as long as the horizon.

    With order 2 it is exact, so it has neither the bias of a truncation nor the variance of random perturbations; but
    its memory grows with the horizon, there is one outer step for each episode, and where the inner loop is chaotic
    the exact gradient explodes (Metz et al. 2019, "Understanding and correcting pathologies in the training of learned
    optimizers").

    Args:
        order: 1 or 2, as for `Truncated`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, *, order: Literal[1, 2] = 2):
        super().__init__(order=order)

    def window_length(self, truncation: int, horizon: int) -> int:
        """The whole episode, whatever the truncation."""
        del truncation
        return horizon
