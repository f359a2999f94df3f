"""Random directions in the space of the meta-parameters, drawn from keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ph_l2o.inner.meta_parameters import size
from ph_l2o.keys import ProblemKeys, Purpose

Noise = Literal["shared", "per_problem"]

_ALL_PROBLEMS = 2**32 - 1  # stands for a problem's index in the keys of what all problems share


def check_noise(noise: Noise) -> Noise:
    """The same, or a ValueError if it is unknown."""
    if noise not in ("shared", "per_problem"):
        raise ValueError(f"estimator.noise={noise}: must be shared or per_problem")
    return noise


def draw(keys: ProblemKeys, phi: Mapping[str, Tensor], step: int, *, count: int, noise: Noise) -> Tensor:
    """Standard normal draws that belong to an inner step.

    Args:
        keys: Of the problems.
        phi: The meta-parameters.
        step: Number of the inner step.
        count: Draws for each problem, or for all.
        noise: `per_problem`: each problem has draws of its own; `shared`: the same for all.

    Returns:
        Tensor of shape `(B, count, D)`, or `(1, count, D)` with shared noise.
    """
    if noise == "shared":
        keys = dataclasses.replace(keys, indices=(_ALL_PROBLEMS,))
    total = count * size(phi)
    words = keys.words(Purpose.PERTURBATION, step, 1, -(-total // 2))[0]
    like = next(iter(phi.values()))
    return _normals(words, like.dtype)[:, :total].reshape(len(keys), count, -1).to(like.device)


def _normals(words: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Two standard normal numbers of each random word, `(B, W)` → `(B, 2W)`, by Box and Muller (1958).

    Of 32 random bits each, in torch's vectorised functions: draws take longer than a compiled window otherwise.
    """
    uniform, angle = torch.from_numpy(words.view(np.int32)).to(dtype).chunk(2, 1)
    # Never 0, whose logarithm is infinite; as a magnitude, since float32 is exact near 0 and not near 1.
    radius = uniform.abs().mul_(2.0**-31).clamp_min_(2.0**-33).log_().mul_(-2).sqrt_()
    angle = angle * (math.pi * 2.0**-31)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
