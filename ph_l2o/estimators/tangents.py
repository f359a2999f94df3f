"""Many directional derivatives at once, from reverse-mode differentiation alone.

torch's forward mode is not used: on torch 2.11 it cannot pass through `vmap`, by which modules run as problems. The
directions are a leading axis P, batched over a backward pass that is plain operations by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ph_l2o.optimizers.learned_optimizer import State, map_state


def jacobian_times(outputs: Sequence[Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    """Tangents of a graph's outputs, J v = ∂/∂u ⟨Jᵀu, v⟩ (the double-backward trick).

    Args:
        outputs: What was computed, with its graph.
        inputs: Leaves of the graph that require a gradient.
        tangents: P directions of each input, `(P, *shape)`.

    Returns:
        P tangents of each output, `(P, *shape)`; zeros for what depends on none of the inputs.

    Reference: Townsend 2017, "A new trick for calculating Jacobian vector products".
    """
    count = tangents[0].shape[0]
    found = [y.new_zeros(count, *y.shape) for y in outputs]
    live = [k for k, y in enumerate(outputs) if y.requires_grad]
    if not live:
        return found
    with torch.enable_grad():
        # Jᵀu is linear in u, so that its value there does not matter.
        dual = [torch.zeros_like(outputs[k]).requires_grad_() for k in live]
        back = torch.autograd.grad([outputs[k] for k in live], inputs, dual, create_graph=True, allow_unused=True)
    pairs = [(b, t) for b, t in zip(back, tangents, strict=True) if b is not None and b.requires_grad]
    if pairs:
        parts = _batched([b for b, _ in pairs], dual, [t for _, t in pairs])
        for k, part in zip(live, parts, strict=True):
            found[k] = found[k] if part is None else part
    return found


def hessian_times(gradient: Tensor, at: Tensor, tangents: Tensor) -> Tensor:
    """Tangents of a loss's gradient, by one backward pass, because a Hessian is symmetric.

    Args:
        gradient: Gradient of the losses, `(B, N)`, with its graph.
        at: The leaf it was taken at, `(B, N)`.
        tangents: P directions there, `(P, B, N)`.

    Returns:
        Tensor of shape `(P, B, N)`; zeros where the losses are linear.
    """
    (product,) = _batched([gradient], [at], [tangents]) if gradient.requires_grad else (None,)
    return torch.zeros_like(tangents) if product is None else product


def _batched(outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, vectors, is_grads_batched=True, allow_unused=True)


def is_differentiable(x: Tensor) -> bool:
    """Whether a tensor of a state can have a tangent; a counter of whole numbers has none."""
    return x.is_floating_point()


def as_leaves(state: State) -> State:
    """A state at which can be differentiated."""
    return map_state(lambda x: x.detach().requires_grad_(is_differentiable(x)), state)
