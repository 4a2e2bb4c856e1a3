"""Bounds on log p(x), one number a row, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def elbo(log_likelihood: Tensor, kl: Tensor, beta: float = 1.0) -> Tensor:
    """E_q[log p(x | z)] − β KL(q ‖ p): ``(n,)``, from log-likelihoods ``(n,)`` or ``(samples, n)``."""
    if log_likelihood.ndim == 2:
        log_likelihood = log_likelihood.mean(0)
    return log_likelihood - beta * kl


def iwae(log_weights: Tensor) -> Tensor:
    """log (1/S) Σ w_s: ``(n,)`` from log-weights log p(x, z_s) − log q(z_s | x) of shape ``(samples, n)``.

    Burda et al. (2016). At least the ELBO in expectation, and → log p(x) as S grows.
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def eubo(log_weights: Tensor) -> Tensor:
    """Σ ŵ log w with ŵ = w/Σw: ``(n,)`` from log-weights ``(samples, n)``.

    The evidence upper bound E_{p(z|x)} log w by self-normalised importance sampling (Ji & Shen, 2019; P1 §III-B prints
    an estimate that is p(x) times it). It is log mean w + KL(ŵ ‖ uniform): never below :func:`iwae`, the ELBO for one
    sample, and an upper bound only as the samples grow.
    """
    return (torch.softmax(log_weights, dim=0) * log_weights).sum(0)


def gaussian_log_weights(log_likelihood: Tensor, codes: Tensor, noise: Tensor, log_std: Tensor) -> Tensor:
    """log p(x | z) + log p(z) − log q(z | x) for z = mean + std · noise and p(z) = N(0, I).

    Parameters
    ----------
    log_likelihood : (samples, n)
    codes, noise : (samples, n, k)
    log_std : (n, k)
    """
    # The log 2π of prior and posterior cancel.
    return log_likelihood + (0.5 * (noise.square() - codes.square()) + log_std).sum(-1)


def bits_per_dim(log_prob: Tensor, dimensions: int, *, discrete_pixels: bool = False) -> Tensor:
    """−log p / (D ln 2): bits per dimension from nats per row.

    With ``discrete_pixels`` the density on [0, 1] is turned into a probability of 256 grey levels, which adds
    log₂ 256 = 8. (P0's tables carry an offset near 4: its bits do not compare with others'.)
    """
    return -log_prob / (dimensions * math.log(2)) + (8.0 if discrete_pixels else 0.0)
