"""Synthetic outliers, made from normal rows alone: what a detector can be watched by without a single real one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
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


def blurred(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur of a twelfth of the shorter side."""
    sigma = min(rows.shape[2:]) / 12
    reach = max(1, math.ceil(2 * sigma))
    places = torch.arange(-reach, reach + 1, dtype=rows.dtype, device=rows.device)
    bell = (-0.5 * (places / sigma).square()).exp()
    channels = rows.shape[1]
    weights = (bell / bell.sum()).expand(channels, 1, -1)
    padded = F.pad(rows, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[:, :, :, None], groups=channels), weights[:, :, None], groups=channels)


def faded(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Two fifths of the contrast, about each image's mean."""
    mean = rows.mean((1, 2, 3), keepdim=True)
    return mean + 0.4 * (rows - mean)


def warped(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Each image drawn out and squeezed by a smooth random field of about a tenth of its side."""
    field = torch.empty(len(rows), 2, 4, 4, device=rows.device).normal_(0, 0.2, generator=generator)
    field = F.interpolate(field, size=rows.shape[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    straight = torch.eye(2, 3, device=rows.device).expand(len(rows), 2, 3)
    grid = F.affine_grid(straight, list(rows.shape), align_corners=False)
    moved = F.grid_sample(rows, (grid + field).to(rows.dtype), padding_mode="border", align_corners=False)
    return torch.clamp(moved, 0, 1)


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


def replaced(rows: Tensor, generator: torch.Generator) -> Tensor:
    """One cell a row, any, from another row."""
    where = _uniform(rows, generator, *rows.shape).argmax(1)
    here = torch.arange(rows.shape[1], device=rows.device) == where[:, None]
    return torch.where(here, _others(rows, generator), rows)


def extreme(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the cells at the least or the greatest value of their column."""
    low, high = rows.min(0).values, rows.max(0).values
    ends = torch.where(_uniform(rows, generator, *rows.shape) < 0.5, low, high)
    return torch.where(_uniform(rows, generator, *rows.shape) < 0.2, ends, rows)


def scattered(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in the box that the rows span."""
    low, high = rows.min(0).values, rows.max(0).values
    return low + (high - low) * _uniform(rows, generator, *rows.shape)


def displaced(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows moved together, as far as the data are wide, along one of the two directions in which they vary least.

    A new cluster off the data; a direction without any variance is left out where there is another.
    """
    centred = rows - rows.mean(0)
    _, widths, directions = torch.linalg.svd(centred.double(), full_matrices=False)
    kept = max(1, int((widths > 1e-6 * widths[0]).sum()))
    which = kept - 1 - int(torch.randint(min(2, kept), (), generator=generator, device=rows.device))
    width = float(centred.square().mean().sqrt())
    step: Tensor = 2 * width * directions[which].to(rows.dtype)
    return rows + step


# What a training can be watched by unless told otherwise: chosen in docs/defaults.md. Images in colour also by what is
# smoother than they are, the hole that autoencoders of photographs have.
SMOOTH: tuple[Maker, ...] = (blurred, faded)
WATCHED: dict[str, tuple[Maker, ...]] = {
    "image": (constant, erased, mixed, noise, patches, inverted),
    "table": (permuted, exchanged, jittered, stretched),
}
ALL: dict[str, tuple[Maker, ...]] = {
    "image": (*WATCHED["image"], *SMOOTH, warped),
    "table": (*WATCHED["table"], replaced, extreme, scattered, displaced),
}


def families(kind: str) -> dict[str, Maker]:
    """Return all makers for ``kind`` "table" or "image", by name."""
    return {maker.__name__: maker for maker in ALL[kind]}


def make(family: str, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Make as many outliers of a family as there are rows ``(n, *shape)``: tables standardised, pixels in [0, 1]."""
    makers = families("image" if rows.ndim == 4 else "table")
    return makers[parameters.choice("family", family, makers)](rows, generator)
