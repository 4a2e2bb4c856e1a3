"""Divergences between distributions: closed forms, and the maximum mean discrepancy between samples."""

from __future__ import annotations

import torch
from torch import Tensor

from offmanifold.parameters import choice

KERNELS = ("gaussian", "inverse-multiquadric")


def kl_to_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std²) ‖ N(0, 1)) of each latent: same shape as ``mean``, in nats.

    ½ (σ² + μ² − 1) − log σ.
    """
    return 0.5 * ((2 * log_std).exp() + mean.square() - 1) - log_std


def kl_between_normals(mean: Tensor, log_std: Tensor, other_mean: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, std²) ‖ N(other mean, other std²)) of each latent, in nats."""
    ratio = (2 * (log_std - other_log_std)).exp()
    shift = (mean - other_mean).square() * (-2 * other_log_std).exp()
    return 0.5 * (ratio + shift - 1) - log_std + other_log_std


def mmd(x: Tensor, y: Tensor, *, kernel: str = "gaussian", bandwidth: float | None = None) -> Tensor:
    """Unbiased squared maximum mean discrepancy between samples (Gretton et al., 2012, Eq. 3).

    Parameters
    ----------
    x, y : (n, k) and (m, k)
        At least two rows each.
    kernel : {"gaussian", "inverse-multiquadric"}
        exp(−d²/2h²), or h²/(h² + d²).
    bandwidth : float, optional
        h. Default: the median distance within the pooled sample (the median heuristic).

    Returns
    -------
    scalar tensor
        Zero in expectation for equal distributions; may be negative.
    """
    choice("kernel", kernel, KERNELS)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"mmd needs at least two rows in each sample; got {len(x)} and {len(y)}.")
    pooled = torch.cat([x, y])
    squared = (pooled[:, None] - pooled[None]).square().sum(-1)
    if bandwidth is None:
        upper = torch.triu_indices(len(pooled), len(pooled), 1)
        h2 = squared[upper[0], upper[1]].median().clamp(min=torch.finfo(x.dtype).tiny)
    else:
        h2 = squared.new_tensor(bandwidth**2)
    values = (-squared / (2 * h2)).exp() if kernel == "gaussian" else h2 / (h2 + squared)
    n, m = len(x), len(y)
    within_x = (values[:n, :n].sum() - values[:n, :n].trace()) / (n * (n - 1))
    within_y = (values[n:, n:].sum() - values[n:, n:].trace()) / (m * (m - 1))
    return within_x + within_y - 2 * values[:n, n:].mean()
