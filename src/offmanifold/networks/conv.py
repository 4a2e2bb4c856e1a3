"""Convolutional encoders and decoders of the papers.

Decoders give the raw output: a sigmoid, where a paper has one, belongs to the detector, because a Bernoulli
likelihood needs the logits. ``capacity`` multiplies every channel count (P0 and P4's α).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from offmanifold.networks import products
from offmanifold.networks.network import Network, Reshape
from offmanifold.parameters import InvalidParameter

Pair = tuple[Network, Network]


def _scaled(capacity: float, *channels: int) -> list[int]:
    return [max(1, round(capacity * count)) for count in channels]


def _pair(encoder: list[nn.Module], decoder: list[nn.Module]) -> Pair:
    return (
        Network(nn.Sequential(*encoder), convolutional=True),
        Network(nn.Sequential(*decoder), convolutional=True),
    )


def strided(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P0 and P4's network: 64, 128, 256 channels at stride 2, for images of any size.

    Each convolution halves the picture, rounding up (28 → 14 → 7 → 4); the decoder retraces the sizes.
    """
    channels, height, width = shape
    widths = _scaled(capacity, 64, 128, 256)
    sizes = [(height, width)]
    for _ in widths:
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))  # type: ignore[arg-type]
    rows, columns = sizes[-1]
    flat = widths[-1] * rows * columns
    encoder: list[nn.Module] = []
    for before, after in zip([channels, *widths], widths, strict=False):
        encoder += [products.Conv2d(before, after, 5, 2, 2), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(flat, into_latent)]
    decoder: list[nn.Module] = [nn.Linear(latent_dim, flat), nn.ReLU(), Reshape(widths[-1], rows, columns)]
    outputs = [*reversed(widths[:-1]), channels]
    for step, (before, after) in enumerate(zip([widths[-1], *outputs], outputs, strict=False)):
        small, large = sizes[-1 - step], sizes[-2 - step]
        extra = (large[0] - 2 * small[0] + 1, large[1] - 2 * small[1] + 1)
        decoder += [products.ConvTranspose2d(before, after, 5, 2, 2, output_padding=extra), nn.ReLU()]
    return _pair(encoder, decoder[:-1])


def conv28(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P3's Conv28 as its published code has it: no padding, 28 → 26 → 24 → 12 → 10 → 8 → 4 → 1."""
    _require("conv28", shape, 28)
    a, b, c, wide = _scaled(capacity, 32, 64, 128, 1024)
    encoder: list[nn.Module] = [
        nn.Conv2d(shape[0], a, 3), nn.ReLU(), nn.Conv2d(a, b, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(b, b, 3), nn.ReLU(), nn.Conv2d(b, c, 3), nn.ReLU(), nn.MaxPool2d(2),
        products.Conv2d(c, wide, 4), nn.ReLU(), products.Conv2d(wide, into_latent, 1), nn.Flatten(),
    ]  # fmt: skip
    decoder: list[nn.Module] = [
        Reshape(latent_dim, 1, 1), products.ConvTranspose2d(latent_dim, c, 4), nn.ReLU(), _bilinear(),
        nn.ConvTranspose2d(c, b, 3), nn.ReLU(), nn.ConvTranspose2d(b, b, 3), nn.ReLU(), _bilinear(),
        nn.ConvTranspose2d(b, a, 3), nn.ReLU(), nn.ConvTranspose2d(a, shape[0], 3),
    ]  # fmt: skip
    return _pair(encoder, decoder)


def conv32(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P3's Conv32, its residual attention block at the latent end included."""
    _require("conv32", shape, 32)
    a, b, c, d = _scaled(capacity, 32, 64, 128, 256)
    encoder: list[nn.Module] = [
        nn.Conv2d(shape[0], a, 4, 2), nn.ReLU(), nn.Conv2d(a, b, 4, 2), nn.ReLU(),
        nn.Conv2d(b, c, 4, 2), nn.ReLU(), nn.Conv2d(c, d, 2, 2), nn.ReLU(),
        nn.Conv2d(d, into_latent, 1), nn.ReLU(), _ResAtt(into_latent, *_scaled(capacity, 1024)), nn.Flatten(),
    ]  # fmt: skip
    decoder: list[nn.Module] = [
        Reshape(latent_dim, 1, 1), products.ConvTranspose2d(latent_dim, d, 6), nn.ReLU(),
        nn.ConvTranspose2d(d, c, 4, 2), nn.ReLU(), nn.ConvTranspose2d(c, b, 4, 2), nn.ReLU(),
        nn.ConvTranspose2d(b, shape[0], 3),
    ]  # fmt: skip
    return _pair(encoder, decoder)


def conv32big(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P3's Conv32Big: spectrally normalised residual encoder, group-normalised residual decoder."""
    _require("conv32big", shape, 32)
    a, b = (max(8, 8 * round(width / 8)) for width in _scaled(capacity, 128, 256))
    encoder: list[nn.Module] = [
        nn.Conv2d(shape[0], a, 3, 1, 1), _Res(a, a), nn.AvgPool2d(2), _Res(a, a), _Res(a, b), nn.AvgPool2d(2),
        _Res(b, b), _Res(b, b), nn.AvgPool2d(2), _Res(b, b), nn.LeakyReLU(0.2), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(b, into_latent),
    ]  # fmt: skip
    for layer in [part for top in encoder for part in top.modules()]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            spectral_norm(layer)
    decoder: list[nn.Module] = [
        Reshape(latent_dim, 1, 1), products.ConvTranspose2d(latent_dim, a, 4), _ResUp(a), _ResUp(a), _ResUp(a),
        nn.GroupNorm(8, a), nn.ReLU(), nn.Conv2d(a, shape[0], 3, 1, 1),
    ]  # fmt: skip
    return _pair(encoder, decoder)


def conv64(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P3's Conv64, group-normalised with 8 groups on both sides."""
    _require("conv64", shape, 64)
    widths = [max(8, 8 * round(width / 8)) for width in _scaled(capacity, 256, 512, 1024, 2048)]
    encoder: list[nn.Module] = []
    for before, after in zip([shape[0], *widths], widths, strict=False):
        encoder += [nn.Conv2d(before, after, 5, 2), nn.GroupNorm(8, after), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(widths[-1], into_latent)]
    rising = [max(8, 8 * round(width / 8)) for width in _scaled(capacity, 1024, 512, 256, 128)]
    decoder: list[nn.Module] = [
        Reshape(latent_dim, 1, 1), products.ConvTranspose2d(latent_dim, rising[0], 8),
        nn.GroupNorm(8, rising[0]), nn.ReLU(),
    ]  # fmt: skip
    for before, after in itertools.pairwise(rising):
        decoder += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
    decoder.append(nn.ConvTranspose2d(rising[-1], shape[0], 1))
    return _pair(encoder, decoder)


def p1_grey(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P1's network for 28×28 grey images: 5×5 convolutions 8, 16, 32, 64, 64 (§IV-A and its reference)."""
    _require("p1-grey", shape, 28)
    widths = _scaled(capacity, 8, 16, 32, 64, 64)
    encoder: list[nn.Module] = []
    for before, after, stride in zip([shape[0], *widths], widths, (2, 1, 2, 1, 2), strict=False):
        encoder += [nn.Conv2d(before, after, 5, stride, 2), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(widths[-1] * 16, into_latent)]
    base, a, b = _scaled(capacity, 64, 32, 256)
    decoder: list[nn.Module] = [
        nn.Linear(latent_dim, base * 49), nn.ReLU(), Reshape(base, 7, 7),
        nn.ConvTranspose2d(base, a, 5, 2, 2, 1), nn.ReLU(), nn.ConvTranspose2d(a, a, 5, 2, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(a, b, 5, 1, 2), nn.ReLU(), products.Conv2d(b, shape[0], 5, 1, 2),
    ]  # fmt: skip
    return _pair(encoder, decoder)


def p1_colour(shape: tuple[int, ...], into_latent: int, latent_dim: int, capacity: float = 1.0) -> Pair:
    """Build P1's DCGAN-style network for 32×32 images (appendix A).

    The paper normalises over the batch; a row's energy must not depend on its batch, so each row is
    normalised by itself here (one group: the same count of learned scales and shifts).
    """
    _require("p1-colour", shape, 32)
    widths = _scaled(capacity, 32, 64, 128, 256)
    encoder: list[nn.Module] = []
    for before, after in zip([shape[0], *widths], widths, strict=False):
        encoder += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(1, after), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(widths[-1] * 4, into_latent)]
    base = widths[-1]
    decoder: list[nn.Module] = [nn.Linear(latent_dim, base * 16), Reshape(base, 4, 4)]
    rising = [base, *_scaled(capacity, 128, 64, 32)]
    for before, after in itertools.pairwise(rising):
        decoder += [nn.Upsample(scale_factor=2), *_same4(before, after), nn.GroupNorm(1, after), nn.ReLU()]
    decoder += _same4(rising[-1], shape[0])
    return _pair(encoder, decoder)


def _same4(before: int, after: int) -> list[nn.Module]:
    """Return a 4×4 convolution that keeps the size: one pixel of padding before, two after."""
    return [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(before, after, 4)]


def _require(name: str, shape: tuple[int, ...], size: int) -> None:
    if shape[1:] != (size, size):
        raise InvalidParameter(
            f"network={name!r} takes {size}×{size} images; got {shape[1]}×{shape[2]}. network='strided' takes any size."
        )


def _bilinear() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


class _Res(nn.Module):
    def __init__(self, before: int, after: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or after
        self.first = nn.Conv2d(before, hidden, 3, 1, 1)
        self.second = nn.Conv2d(hidden, after, 3, 1, 1)
        # The paper adds x itself, which needs equal widths; where they differ a 1×1 convolution carries it.
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.second(F.leaky_relu(self.first(F.leaky_relu(inputs, 0.2)), 0.2))
        return self.shortcut(inputs) + inner  # type: ignore[no-any-return]


class _ResAtt(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.value, self.gate = _Res(width, width, hidden), _Res(width, width, hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        gated: Tensor = self.value(inputs) * torch.sigmoid(self.gate(inputs))
        return inputs + gated


class _ResUp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        enlarged = F.interpolate(F.relu(self.before(inputs)), scale_factor=2)
        inner = self.second(F.relu(self.between(self.first(enlarged))))
        return F.interpolate(inputs, scale_factor=2) + inner  # type: ignore[no-any-return]
