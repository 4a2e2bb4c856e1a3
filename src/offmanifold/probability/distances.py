"""Distances between rows and their reconstructions, averaged over dimensions (P3: E is the mean, not the sum)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offmanifold.probability.missing import share_seen, standing_in

DISTANCES = ("squared", "l1", "ssim")


def distance(rows: Tensor, reconstructed: Tensor, kind: str) -> Tensor:
    """Mean squared error, mean absolute error, or 1 − SSIM of each row ``(n,)``; means are over the cells seen."""
    if kind == "ssim":
        return 1 - ssim(rows, reconstructed)
    return cells(rows, reconstructed, kind).flatten(1).mean(1) / share_seen(rows)


def cells(rows: Tensor, reconstructed: Tensor, kind: str) -> Tensor:
    """Squared or absolute error of each cell ``(n, *shape)``, 0 in missing ones. SSIM has none."""
    error = standing_in(rows, reconstructed) - reconstructed
    return error.square() if kind == "squared" else error.abs()


def parts(rows: Tensor, reconstructed: Tensor, kind: str) -> Tensor:
    """Return what each cell adds to the distance ``(n, *shape)``."""
    seen = share_seen(rows).reshape(-1, *[1] * (rows.ndim - 1))
    return cells(rows, reconstructed, kind) / (rows[0].numel() * seen)


def ssim(x: Tensor, y: Tensor, window: int = 7) -> Tensor:
    """Mean structural similarity of images ``(n, C, H, W)`` in [0, 1]: ``(n,)`` (Wang et al., 2004).

    Uniform windows of at most 7×7 pixels, unbiased variances, constants (0.01)² and (0.03)².
    """
    side = min(window, x.shape[-1], x.shape[-2])
    pixels = side * side
    pooled = F.avg_pool2d(torch.cat([x, y, x * x, y * y, x * y]), side, 1).chunk(5)
    mean_x, mean_y = pooled[0], pooled[1]
    unbiased = pixels / max(1, pixels - 1)
    var_x = unbiased * (pooled[2] - mean_x.square())
    var_y = unbiased * (pooled[3] - mean_y.square())
    covariance = unbiased * (pooled[4] - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    )
    return similarity.flatten(1).mean(1)
