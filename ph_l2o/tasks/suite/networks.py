"""Networks for `ImageClassification`'s `model`: `(batch, C, H, W)` to logits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ph_l2o.tasks.mlp import ACTIVATIONS
from ph_l2o.tasks.suite.attention import Block


class _Activation(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)


class Perceptron(nn.Sequential):
    """Affine layers; between them BatchNorm, an activation and dropout: rows `(batch, inputs)` → `(batch, outputs)`.

    Args:
        sizes: Units of each layer, inputs first.
        activation: A name of `ph_l2o.tasks.ACTIVATIONS`.
        batch_norm: Whether there is BatchNorm (Ioffe and Szegedy 2015); the layer before it keeps its bias.
        dropout: Share of units that are dropped (Srivastava et al. 2014).
    """

    def __init__(self, sizes: Sequence[int], activation: str, *, batch_norm: bool, dropout: float):
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes[:-1]):
            layers.append(nn.Linear(fan_in, fan_out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(fan_out))
            layers.append(_Activation(activation))
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))


class _ConvBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


class ResNet(nn.Sequential):
    """Convolutions with shortcuts and BatchNorm, on images averaged over 2 × 2 pixels.

    Args:
        channels: Of the first stage; the second has twice as many.
        classes: Number of classes.
        colors: Channels of the images.

    Reference: He et al. 2016.
    """

    def __init__(self, channels: int = 8, classes: int = 10, colors: int = 1):
        super().__init__(
            nn.AvgPool2d(2),
            nn.Conv2d(colors, channels, 3, padding=1),
            _ConvBlock(channels),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            _ConvBlock(2 * channels),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * channels, classes),
        )


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, width), nn.GELU(), nn.Linear(width, tokens))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    """An MLP-mixer: perceptrons across patches and within them, in turn.

    Args:
        size: Height and width of the images, a multiple of `patch`.
        patch: Height and width of a patch.
        width: Of a patch's embedding.
        depth: Blocks.
        classes: Number of classes.
        colors: Channels of the images.

    Reference: Tolstikhin et al. 2021.
    """

    def __init__(
        self, size: int = 28, patch: int = 7, width: int = 32, depth: int = 2, classes: int = 10, colors: int = 1
    ):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(colors * patch**2, width)
        self.blocks = nn.Sequential(*(_MixerBlock((size // patch) ** 2, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(_patches(images, self.patch))
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def _patches(images: Tensor, size: int) -> Tensor:
    """`(batch, C, H, W)` → `(batch, patches, C · size²)`."""
    patches = images.unfold(2, size, size).unfold(3, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class ViT(nn.Module):
    """A vision transformer, whose answer is of the mean over patches.

    Args:
        size: Height and width of the images, a multiple of `patch`.
        patch: Height and width of a patch.
        width: Of a patch's embedding, a multiple of 4.
        depth: Blocks.
        classes: Number of classes.
        colors: Channels of the images.

    Reference: Dosovitskiy et al. 2021; the mean in place of a token for the class as in Beyer et al. 2022.
    """

    def __init__(
        self, size: int = 28, patch: int = 7, width: int = 32, depth: int = 2, classes: int = 10, colors: int = 1
    ):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(colors * patch**2, width)
        self.places = nn.Parameter(0.1 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(_patches(images, self.patch)) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


class _WideBlock(nn.Module):
    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(F.silu(self.expand(self.norm(x))))


class ResidualMLP(nn.Sequential):
    """Perceptrons with shortcuts and LayerNorm, on images averaged over 2 × 2 pixels.

    Args:
        pixels: Of an image after that, over all channels.
        width: Of the residual stream.
        depth: Blocks.
        expansion: Hidden units of a block, in widths.
        classes: Number of classes.
    """

    def __init__(self, pixels: int = 196, width: int = 128, depth: int = 8, expansion: int = 4, classes: int = 10):
        super().__init__(
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(pixels, width),
            *(_WideBlock(width, expansion) for _ in range(depth)),
            nn.LayerNorm(width),
            nn.Linear(width, classes),
        )
