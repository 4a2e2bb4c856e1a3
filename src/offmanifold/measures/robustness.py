"""How a classifier fares against an adversary who may move each row a little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from offmanifold import parameters

Norm = Literal["l2", "linf"]
NORMS = ("l2", "linf")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return by how much the best wrong class beats the right one: ``(n,)``, positive where a row is misclassified."""
    right = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(right, -torch.inf).amax(1) - logits[right]


def pgd(
    classifier: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    radius: float,
    norm: Norm = "l2",
    steps: int = 20,
    step_size: float | None = None,
) -> Tensor:
    """Move rows, each within a ball of its own, to where a classifier errs the most (Madry et al., 2018).

    Projected gradient ascent on :func:`margin`, from the rows themselves: the cross-entropy has no gradient left where
    the classifier is sure. An attack on ``lambda x: classifier(project(x))`` goes through the projection; one on the
    classifier alone does not know of it.

    Parameters
    ----------
    classifier : callable
        ``(n, d)`` → logits ``(n, classes)``, row by row and differentiable.
    x : (n, d)
    y : (n,) int64
        The right classes.
    radius : float
        Of the ball around each row.
    norm : {"l2", "linf"}
        A step goes along the gradient, or along the signs of its parts.
    steps : int
    step_size : float, optional
        Default: 2.5 · radius / steps, so that the ball's other side can be reached.

    Returns
    -------
    (n, d)
        Of the rows visited, x included, those with the largest margin.

    Raises
    ------
    ValueError, TypeError
        Where a parameter is out of its range, or ``x`` or ``y`` is of another kind.
    """
    parameters.choice("norm", norm, NORMS)
    parameters.real("radius", radius, minimum=0)
    parameters.integer("steps", steps)
    if not (isinstance(x, Tensor) and x.ndim == 2 and x.is_floating_point()):
        raise TypeError("x must be a tensor of floats (n, d).")
    if not (isinstance(y, Tensor) and y.shape == x.shape[:1] and y.dtype == torch.int64):
        raise TypeError(f"y must be a tensor of classes ({len(x)},), int64.")
    length = 2.5 * radius / steps if step_size is None else step_size
    if step_size is not None:
        parameters.real("step_size", step_size, above=0)
    moved = worst = x = x.detach()
    most = torch.full_like(x[:, 0], -torch.inf)
    for step in range(steps + 1):
        place = moved.detach().requires_grad_()
        margins = margin(classifier(place), y)
        worse = margins.detach() > most
        most = torch.where(worse, margins.detach(), most)
        worst = torch.where(worse[:, None], place.detach(), worst)
        if step < steps:
            (gradient,) = torch.autograd.grad(margins.sum(), place)
            moved = x + _into_ball(place.detach() + length * _direction(gradient, norm) - x, radius, norm)
    return worst


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    return gradient.sign() if norm == "linf" else torch.nn.functional.normalize(gradient, dim=1)


def _into_ball(shift: Tensor, radius: float, norm: Norm) -> Tensor:
    if norm == "linf":
        return shift.clamp(-radius, radius)
    return torch.renorm(shift, 2, 0, radius)
