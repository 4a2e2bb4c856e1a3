"""The penalty family of regularised autoencoders, L_{g,h} (P4 Eq. 7; P0 Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-6


def _ratio(u: Tensor) -> Tensor:
    return u / (u + 0.1)


def _huber(u: Tensor) -> Tensor:
    return torch.where(u < 1, 0.5 * u.square(), u - 0.5)


PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda u: u,
    "sqrt": lambda u: (u + EPSILON).sqrt(),
    "log": lambda u: (u + EPSILON).log(),
    "ratio": _ratio,
    "huber": _huber,
}


def penalised_mean(values: Tensor, penalty: str) -> Tensor:
    """Return per-row losses whose mean is g(mean of ``values``), and whose mean gradient is its gradient.

    g is applied to an average over the rows, which couples them; its tangent at the current average does
    not: ℓᵢ = g(m) + g′(m) (vᵢ − m), with m held fixed in g and g′.

    Parameters
    ----------
    values : (n,) or (n, k)
        Columns are penalised one by one.
    """
    if penalty == "identity":
        return values
    mean = values.detach().mean(0)
    with torch.enable_grad():
        point = mean.requires_grad_()
        value = PENALTIES[penalty](point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return value.detach() + slope * (values - mean.detach())
