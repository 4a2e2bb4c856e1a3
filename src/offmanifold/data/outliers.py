"""Synthetic outliers, made from normal rows alone: what a detector can be watched by without a single real one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from offmanifold import parameters

Maker = Callable[[Tensor, torch.Generator], Tensor]


def _uniform(rows: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=rows.device)


def _others(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each row another one: a random rotation never gives a row itself."""
    shift = int(torch.randint(1, max(2, len(rows)), (), generator=generator, device=rows.device))
    return rows.roll(shift, 0)


def constant(rows: Tensor, generator: torch.Generator) -> Tensor:
    """One value an image and channel, uniform on [0, 1] (P3's ConstantGray)."""
    return _uniform(rows, generator, *rows.shape[:2], 1, 1).expand_as(rows).contiguous()


def erased(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Upper or lower half set to zero, in turn (P3's HalfMNIST)."""
    half = rows.shape[2] // 2
    made = rows.clone()
    made[0::2, :, :half] = 0
    made[1::2, :, half:] = 0
    return made


def mixed(rows: Tensor, generator: torch.Generator) -> Tensor:
    """The upper half of one image over the lower half of another."""
    half = rows.shape[2] // 2
    return torch.cat([rows[:, :, :half], _others(rows, generator)[:, :, half:]], 2)


def noise(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform pixels."""
    return _uniform(rows, generator, *rows.shape)


def patches(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Four quarters of each image in another order (the same one for all)."""
    half_h, half_w = rows.shape[2] // 2, rows.shape[3] // 2
    made = rows.clone()
    corners = [(0, 0), (0, half_w), (half_h, 0), (half_h, half_w)]
    for (top, left), (from_top, from_left) in zip(corners, corners[1:] + corners[:1], strict=True):
        made[:, :, top : top + half_h, left : left + half_w] = rows[
            :, :, from_top : from_top + half_h, from_left : from_left + half_w
        ]
    return made


def inverted(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Black for white."""
    return 1 - rows


def permuted(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Every column from another row: the margins stay, the dependence goes."""
    order = _uniform(rows, generator, *rows.shape).argsort(0)
    return rows.gather(0, order)


def exchanged(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the cells from another row."""
    return torch.where(_uniform(rows, generator, *rows.shape) < 0.2, _others(rows, generator), rows)


def jittered(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise of half a column's standard deviation."""
    drawn = torch.empty_like(rows).normal_(generator=generator)
    return rows + 0.5 * rows.std(0, correction=0) * drawn


def stretched(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows moved away from the mean by a factor of 1.5 to 3."""
    mean = rows.mean(0)
    return mean + (rows - mean) * (1.5 + 1.5 * _uniform(rows, generator, len(rows), 1))


FOR_IMAGES: dict[str, Maker] = {maker.__name__: maker for maker in (constant, erased, mixed, noise, patches, inverted)}
FOR_TABLES: dict[str, Maker] = {maker.__name__: maker for maker in (permuted, exchanged, jittered, stretched)}


def families(kind: str) -> dict[str, Maker]:
    """Return the makers for ``kind`` "table" or "image", by name."""
    return FOR_IMAGES if kind == "image" else FOR_TABLES


def make(family: str, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Make as many outliers of a family as there are rows ``(n, *shape)``: tables standardised, pixels in [0, 1]."""
    makers = families("image" if rows.ndim == 4 else "table")
    return makers[parameters.choice("family", family, makers)](rows, generator)
