"""Noise-conditional denoisers with the preconditioning of Karras et al. (2022, Table 1), for data of unit variance."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offmanifold.networks.network import Network
from offmanifold.networks.residual import Block
from offmanifold.probability.missing import filled, missing_cells, share_seen, without

FREQUENCIES = 8
# Channels of the U-Net at its finest resolution, and in a group of its normalisations.
CHANNELS, GROUP = 24, 8


class Denoiser(nn.Module, abc.ABC):
    """D(y, σ): what y = x + σε most likely was, E[x | y].

    D = y/(1 + σ²) + σ/√(1 + σ²) · F(y/√(1 + σ²), σ), with F a network.
    """

    @abc.abstractmethod
    def network(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Return F ``(n, d)`` for rows ``(n, d)`` and levels ``(n, 1)``."""

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Return D(y, σ) ``(n, d)``."""
        scale = 1 + sigma**2
        return noisy / scale + sigma / scale.sqrt() * self.network(noisy, sigma)

    def loss(self, rows: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return (1 + σ²)/σ² · ‖D(x + σε, σ) − x‖²/d of each row ``(n,)``: 1 for a network that gives nothing.

        The mean is over the cells seen; in the others the network is given noise about the mean.
        """
        known = filled(rows)
        scale = 1 + sigma**2
        noisy = known + sigma * noise
        target = (known - noisy / scale) * scale.sqrt() / sigma
        errors = without(missing_cells(rows), (self.network(noisy, sigma) - target).square())
        return errors.mean(1) / share_seen(rows)


class DenseDenoiser(Denoiser):
    """A residual network that is told sines and cosines of log σ.

    Parameters
    ----------
    dimensions : int
    hidden : sequence of int
        One block for each entry, all of one width.
    """

    frequencies: Tensor

    def __init__(self, dimensions: int, hidden: Sequence[int]) -> None:
        super().__init__()
        width = hidden[0]
        self.enter = nn.Linear(dimensions, width)
        self.level = nn.Linear(2 * FREQUENCIES, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in hidden))
        self.leave = nn.Linear(width, dimensions)
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(4.0), FREQUENCIES))
        self.register_buffer("frequencies", frequencies)

    def network(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        angles = sigma.log() * self.frequencies
        inner = self.enter(noisy / (1 + sigma**2).sqrt()) + self.level(torch.cat([angles.sin(), angles.cos()], 1))
        found: Tensor = self.leave(self.blocks(inner))
        return found


class UNetDenoiser(Denoiser):
    """A U-Net of three resolutions, for images of any size, that is told log σ as one more channel.

    Parameters
    ----------
    shape : (C, H, W)
    capacity : float
        Factor on the channel counts.
    """

    def __init__(self, shape: tuple[int, ...], capacity: float) -> None:
        super().__init__()
        self.shape = tuple(shape)
        width = GROUP * max(1, round(capacity * CHANNELS / GROUP))
        self.body = Network(_UNet(shape[0] + 1, shape[0], width), convolutional=True)

    def network(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        images = (noisy / (1 + sigma**2).sqrt()).reshape(-1, *self.shape)
        level = (sigma.log() / 4).reshape(-1, 1, 1, 1).expand(-1, 1, *self.shape[1:])
        found: Tensor = self.body(torch.cat([images, level], 1)).flatten(1)
        return found


class _UNet(nn.Module):
    def __init__(self, channels: int, out: int, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.fine = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1), _Res(width))
        self.middle = nn.Sequential(nn.Conv2d(width, wide, 3, 2, 1), _Res(wide))
        self.coarse = nn.Sequential(nn.Conv2d(wide, wide, 3, 2, 1), _Res(wide))
        self.to_middle = nn.Sequential(nn.Conv2d(2 * wide, wide, 3, 1, 1), _Res(wide))
        self.to_fine = nn.Sequential(nn.Conv2d(wide + width, width, 3, 1, 1), _Res(width))
        self.leave = nn.Sequential(nn.GroupNorm(width // GROUP, width), nn.SiLU(), nn.Conv2d(width, out, 3, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        fine = self.fine(inputs)
        middle = self.middle(fine)
        inner = F.interpolate(self.coarse(middle), size=middle.shape[2:])
        inner = F.interpolate(self.to_middle(torch.cat([inner, middle], 1)), size=fine.shape[2:])
        found: Tensor = self.leave(self.to_fine(torch.cat([inner, fine], 1)))
        return found


class _Res(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [
            part
            for _ in range(2)
            for part in (nn.GroupNorm(width // GROUP, width), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1))
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.layers(inputs)  # type: ignore[no-any-return]
