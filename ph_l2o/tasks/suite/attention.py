"""A block of a transformer, of the kinds that people train."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and a perceptron, each beside a shortcut: `(batch, length, width)` → the same.

    Args:
        width: Of the residual stream, a multiple of `heads`.
        heads: Of the attention.
        causal: Whether a place sees only itself and those before it.
        post_norm: LayerNorm after each sum (Vaswani et al. 2017), not before attention and perceptron (Radford et al.
            2019, section 2.3).
        zero_branches: Both end in matrices and biases of 0, so that a block starts as the identity (Zhang, Dauphin and
            Ma 2019).
    """

    def __init__(self, width: int, heads: int, *, causal: bool, post_norm: bool = False, zero_branches: bool = False):
        super().__init__()
        self.heads, self.causal, self.post_norm = heads, causal, post_norm
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if zero_branches:
            for tensor in (*self.merge.parameters(), *self.contract.parameters()):
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self._attend(x))
            return self.norm2(x + self._perceive(x))
        x = x + self._attend(self.norm1(x))
        return x + self._perceive(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.merge(mixed.transpose(1, 2).reshape(batch, length, width))

    def _perceive(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(x)))
