"""The network of "Can we learn gradients by Hamiltonian Neural Networks?", as a baseline.

Timofeev, Afonin and Liu 2020 (arXiv 2111.00565). It is coordinatewise, with weights that all coordinates
share. With n = 1, or n = 2 where inputs are preprocessed (`log_and_sign`), for each coordinate:

    [D_q, D_p] = D [v(q); p]
    h = [h_q; h_p] = [p - D_q ; (-v(q) - D_p + gv(q)) M],  M = W_L W_Lᵀ
    θ⁺ = θ + output_scale · u · [h_q; q],  p⁺ = w · h + b

Symbols (code ↔ the paper): q ↔ the gradient of the loss, p ↔ a number carried from step to step, 0 at first
(both through the preprocessing, if there is one); `potential` ↔ v and `control` ↔ gv, n → n → n with a ReLU
between; `dissipation` ↔ D, 2n → 2n without bias; `mass` ↔ L, of which only the weight W_L acts; `output` ↔ u,
2n → 1 without bias; `carry` ↔ (w, b), 2n → 1. These are 19 numbers, or 55 with preprocessing.

**What it is not: a port-Hamiltonian system.** v is not the gradient of any energy H, D is neither symmetric
nor positive semidefinite, q is not a state that the system moves but an input, and no integrator ties p⁺ to
h. So nothing bounds what it does; `PortHamiltonian` is what has these properties.

**Where this form departs from the study's code**, whose function it computes:

- Gradients flow through the carried p. The code cuts them where it preprocesses, so that 23 of its 55 numbers
  never train; `detach_carry` does the same.
- q is an input like any other: constant in a meta-gradient of first order, as in the study, but not in one of
  second order.
- `norm` divides p⁺ by its norm over the coordinates of a tensor, and leaves p⁺ = 0 as it is, where the code
  divides by zero. (With it the optimizer is no longer coordinatewise.)
- No gradient buffer is shared with what the optimizer remembers, which corrupts the code's meta-gradient.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ph_l2o.optimizers.learned_optimizer import LearnedOptimizer
from ph_l2o.optimizers.preprocessing import log_and_sign
from ph_l2o.params import Layout, Params


class HNNState(NamedTuple):
    """What the network carries.

    Attributes:
        p: The carried number of each coordinate, `(B, N)`.
    """

    p: Tensor


class HNN(LearnedOptimizer):
    """The "Hamiltonian" network of Timofeev et al. 2020; see the module's text.

    Args:
        output_scale: Factor of what is added to the parameter, > 0.
        preprocess: Whether q and p enter as `log_and_sign`, so that n = 2.
        norm: Whether the carried p is divided by its norm over each tensor.
        detach_carry: Whether gradients stop at the carried p.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Timofeev, Afonin and Liu 2020, "Can we learn gradients by Hamiltonian Neural Networks?" (arXiv
    2111.00565).
    """

    takes_padding: ClassVar[bool] = True

    def __init__(
        self,
        *,
        output_scale: float = 0.001,
        preprocess: bool = True,
        norm: bool = False,
        detach_carry: bool = False,
    ):
        super().__init__()
        if not output_scale > 0:
            raise ValueError(f"optimizer.output_scale={output_scale}: must be > 0")
        self.output_scale, self.preprocess, self.norm = output_scale, preprocess, norm
        self.detach_carry = detach_carry
        n = 2 if preprocess else 1
        self.control = _Network(n)
        self.potential = _Network(n)
        self.dissipation = nn.Linear(2 * n, 2 * n, bias=False)
        self.mass = nn.Linear(n, n)
        self.output = nn.Linear(2 * n, 1, bias=False)
        self.carry = nn.Linear(2 * n, 1)

    def init(self, params: Params) -> HNNState:
        return HNNState(torch.zeros_like(params.flat))

    def update(self, params: Params, grads: Params, loss: Tensor | None, state: HNNState) -> tuple[Params, HNNState]:
        q = self._inputs(grads.flat)
        p = self._inputs(state.p.detach() if self.detach_carry else state.p)
        inner_weight, inner_bias, weight, bias = self._two_layers()
        # One column for each coordinate: thin products over long rows are what a CPU does fast.
        active = torch.addmm(inner_bias, inner_weight, q).relu()
        step, carried = torch.addmm(bias, weight, torch.cat([active, p, q])).unbind()
        carried = carried.view_as(state.p)
        if self.norm:
            carried = carried / _norm(carried, params.layout)
        new = params.flat + self.output_scale * step.view_as(params.flat)
        return params.like(new), HNNState(carried)

    def _inputs(self, x: Tensor) -> Tensor:
        x = x.flatten()
        return torch.stack(log_and_sign(x)) if self.preprocess else x[None]

    def _two_layers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights and biases of the same function as two layers, since all but the ReLU is linear.

        The first maps q to the hidden units of gv and v; the second maps these, p and q to the step and p⁺.
        """
        (gv_in, gv_out), (v_in, v_out) = self.control.layers(), self.potential.layers()
        n = self.mass.in_features
        root = self.mass.weight
        zero, one = torch.zeros_like(root), torch.eye(n, dtype=root.dtype, device=root.device)
        # Rows: what is computed; columns: hidden units of gv, hidden units of v, p, constant.
        v = torch.cat([zero, v_out.weight, zero, v_out.bias[:, None]], 1)
        p = torch.cat([zero, zero, one, zero[:, :1]], 1)
        gv = torch.cat([gv_out.weight, zero, zero, gv_out.bias[:, None]], 1)
        d_q, d_p = (self.dissipation.weight @ torch.cat([v, p])).split(n)
        mass = root @ root.t()
        h_q, h_p = p - d_q, mass @ (gv - v - d_p)

        of_h, of_q = self.output.weight.split(n, 1)
        step = torch.cat([of_h @ h_q, of_q], 1)
        carried = torch.cat([self.carry.weight @ torch.cat([h_q, h_p]), torch.zeros_like(of_q)], 1)
        hidden, constant, q = torch.cat([step, carried]).split((3 * n, 1, n), 1)
        bias = constant + torch.stack([torch.zeros_like(self.carry.bias), self.carry.bias])
        return (
            torch.cat([gv_in.weight, v_in.weight]),
            torch.cat([gv_in.bias, v_in.bias])[:, None],
            torch.cat([hidden, q], 1),
            bias,
        )


class _Network(nn.Module):
    """n → n → n with a ReLU between."""

    def __init__(self, n: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(n, n), nn.Linear(n, n)

    def layers(self) -> tuple[nn.Linear, nn.Linear]:
        return self.inner, self.outer


def _norm(x: Tensor, layout: Layout) -> Tensor:
    """Euclidean norm over each tensor, for each of its coordinates; 1 where it is 0."""
    squares = layout.sum(x * x)
    return layout.expand(torch.where(squares > 0, squares, 1.0).sqrt())
