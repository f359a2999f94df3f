"""Small networks as optimizees: convolutional, recurrent, attention."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.checks import at_least, one_of
from ph_l2o.tasks.batched import BatchedModule, affine, checked_norm, normalized
from ph_l2o.tasks.mlp import ACTIVATIONS, checked_sizes
from ph_l2o.tasks.recurrent import CELLS, State

_GATES = {"gru": 3, "lstm": 4, "rnn_tanh": 1, "rnn_relu": 1}


class ConvNet(BatchedModule):
    """Convolutions of stride 2 with activations, the mean over places, logits: for images of any size.

    Args:
        channels: Of each convolution, each >= 1.
        kernel: Width of the kernels, odd, >= 1.
        norm: After each convolution: `batch` (of each channel, by the statistics of the batch at hand in tests too),
            `layer` (over the channels of each place), or None.
        activation: A name of `ph_l2o.tasks.ACTIVATIONS`.
        in_channels: Of the images.
        classes: Number of logits.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        channels: Sequence[int] = (8, 16),
        *,
        kernel: int = 3,
        norm: str | None = None,
        activation: str = "relu",
        in_channels: int = 1,
        classes: int = 10,
    ):
        super().__init__()
        if not checked_sizes(channels, "model.channels"):
            raise ValueError("task.model.channels=[]: must have at least one layer")
        if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"task.model.kernel={kernel}: must be an odd whole number >= 1")
        self.num_layers, self.kernel, self.norm = len(channels), kernel, checked_norm(norm, "model.norm")
        self.activation = one_of("task.model.activation", activation, ACTIVATIONS)
        for k, (fan_in, fan_out) in enumerate(itertools.pairwise((in_channels, *channels))):
            self.add_affine(str(k), fan_in * kernel**2, fan_out)
            if norm is not None:
                self.add_norm(str(k), fan_out)
        self.add_affine("_out", channels[-1], classes)

    def batched_forward(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """B networks at once: `(B, batch, C, H, W)` → `(B, batch, classes)`."""
        # Products with patches: convolutions in groups, one for each problem, take several times as long on a CPU.
        lead, images = inputs.shape[:2], inputs.flatten(0, 1)
        for k in range(self.num_layers):
            height, width = ((n - 1) // 2 + 1 for n in images.shape[2:])
            patches = F.unfold(images, self.kernel, padding=self.kernel // 2, stride=2)  # (B · batch, C k², places)
            rows = patches.transpose(1, 2).reshape(lead[0], -1, patches.shape[1])
            hidden = affine(tensors, str(k), rows)  # (B, batch · places, channels)
            if self.norm is not None:
                hidden = normalized(tensors, str(k), hidden, self.norm)
            hidden = ACTIVATIONS[self.activation](hidden)
            images = hidden.unflatten(1, (-1, height, width)).flatten(0, 1).permute(0, 3, 1, 2)
        return affine(tensors, "_out", images.mean((2, 3)).unflatten(0, lead))


class RecurrentNet(BatchedModule):
    """Recurrent layers and an affine output at each time: `(batch, time, inputs)` → `(batch, time, outputs)`.

    Args:
        inputs: Number of inputs at each time.
        outputs: Number of outputs at each time.
        length: Times; unused.
        hidden_size: Units of a layer, >= 1.
        num_layers: Layers, >= 1.
        cell: `gru`, `lstm`, `rnn_tanh` or `rnn_relu`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        length: int = 0,
        *,
        hidden_size: int = 16,
        num_layers: int = 1,
        cell: str = "gru",
    ):
        super().__init__()
        del length
        self.cell = one_of("task.model.cell", cell, _GATES)
        self.hidden_size = at_least("task.model.hidden_size", hidden_size, 1, "units of a layer")
        self.num_layers = at_least("task.model.num_layers", num_layers, 1, "layers")
        for k in range(num_layers):
            self.add_affine(f"_in{k}", inputs if k == 0 else hidden_size, _GATES[cell] * hidden_size)
            self.add_affine(f"_hidden{k}", hidden_size, _GATES[cell] * hidden_size)
        self.add_affine("_out", hidden_size, outputs)

    def batched_forward(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """B networks at once: `(B, batch, time, inputs)` → `(B, batch, time, outputs)`."""
        hidden = inputs
        zeros = inputs.new_zeros(*inputs.shape[:2], self.hidden_size)
        for k in range(self.num_layers):
            from_input = affine(tensors, f"_in{k}", hidden)
            state: State = (zeros, zeros) if self.cell == "lstm" else (zeros,)
            steps: list[Tensor] = []
            for x in from_input.unbind(2):
                state = CELLS[self.cell](x, affine(tensors, f"_hidden{k}", state[0]), state)
                steps.append(state[0])
            hidden = torch.stack(steps, 2)
        return affine(tensors, "_out", hidden)


class CausalAttention(BatchedModule):
    """A small causal transformer: `(batch, time, inputs)` → `(batch, time, outputs)`.

    Args:
        inputs: Number of inputs at each time.
        outputs: Number of outputs at each time.
        length: Times, >= 1, each with a learned embedding.
        width: Width of the residual stream, a multiple of `num_heads`.
        num_heads: Heads of each block, >= 1.
        num_layers: Blocks of attention and of an MLP with 2 · width hidden units, >= 1.
        norm: Whether a LayerNorm stands before each block and before the output.
        post_norm: Whether it stands after each block's sum instead (post-LN), and none before the output.
        zero_init: Whether the last map of each block starts at 0, so that the network starts as one without blocks.

    Raises:
        ValueError: If an argument is out of range.

    Reference: Vaswani et al. 2017, "Attention is all you need"; the norms before the blocks as in Xiong et al. 2020.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        length: int,
        *,
        width: int = 16,
        num_heads: int = 2,
        num_layers: int = 1,
        norm: bool = True,
        post_norm: bool = False,
        zero_init: bool = False,
    ):
        super().__init__()
        self.num_heads = at_least("task.model.num_heads", num_heads, 1, "heads of a block")
        self.num_layers = at_least("task.model.num_layers", num_layers, 1, "blocks")
        if at_least("task.model.width", width, 1, "of the residual stream") % num_heads:
            raise ValueError(f"task.model.width={width}: must be a multiple of num_heads={num_heads}")
        if post_norm and not norm:
            raise ValueError("task.model.post_norm=true: must be false where task.model.norm=false (there is no norm)")
        self.norm, self.post_norm = norm, post_norm
        self.add_affine("_in", inputs, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        for k in range(num_layers):
            self.add_affine(f"_attend{k}", width, 3 * width)
            self.add_affine(f"_mix{k}", width, width)
            self.add_affine(f"_up{k}", width, 2 * width)
            self.add_affine(f"_down{k}", 2 * width, width)
        for name in (*(f"_{part}{k}" for k in range(num_layers) for part in ("attend", "up")), "_out") * norm:
            if not (self.post_norm and name == "_out"):
                self.add_norm(name, width)
        self.add_affine("_out", width, outputs)
        with torch.no_grad():
            for name, x in self.named_parameters():
                if zero_init and ("_mix" in name or "_down" in name):
                    x.zero_()

    def batched_forward(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """B networks at once: `(B, batch, time, inputs)` → `(B, batch, time, outputs)`."""

        def before(name: str, x: Tensor) -> Tensor:
            return normalized(tensors, name, x) if self.norm and not self.post_norm else x

        def after(name: str, x: Tensor) -> Tensor:
            return normalized(tensors, name, x) if self.post_norm else x

        x = affine(tensors, "_in", inputs) + tensors["position"][:, None]
        for k in range(self.num_layers):
            attended = self._attend(affine(tensors, f"_attend{k}", before(f"_attend{k}", x)))
            x = after(f"_attend{k}", x + affine(tensors, f"_mix{k}", attended))
            hidden = F.gelu(affine(tensors, f"_up{k}", before(f"_up{k}", x)))
            x = after(f"_up{k}", x + affine(tensors, f"_down{k}", hidden))
        return affine(tensors, "_out", before("_out", x))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values `(B, batch, time, 3 · width)` → `(B, batch, time, width)`."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)  # (B, batch, heads, time, each)
        past = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~past, -math.inf)
        return (scores.softmax(-1) @ v).transpose(2, 3).flatten(-2)
