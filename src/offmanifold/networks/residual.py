"""Fully connected residual networks: a small one for tables, and P3's FCRes2 (Table 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from offmanifold.networks.network import Network, Reshape
from offmanifold.parameters import InvalidParameter


class Block(nn.Module):
    """h + L₂(SiLU(L₁(norm(h)))): each row is normalised by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.layers(inputs)  # type: ignore[no-any-return]


def resmlp(shape: tuple[int, ...], into_latent: int, latent_dim: int, hidden: Sequence[int]) -> tuple[Network, Network]:
    """Build a residual network with one block for each entry of ``hidden``, all of one width."""
    if len(set(hidden)) != 1:
        raise InvalidParameter(f"network='resmlp' takes hidden of one width, once for each block; got {tuple(hidden)}.")
    width, size = hidden[0], math.prod(shape)

    def blocks() -> list[nn.Module]:
        return [Block(width) for _ in hidden]

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, width), *blocks(), nn.Linear(width, into_latent))
    decoder = nn.Sequential(nn.Linear(latent_dim, width), *blocks(), nn.Linear(width, size), Reshape(*shape))
    return Network(encoder), Network(decoder)


class FCRes(nn.Module):
    """x + F₂(ReLU(F₁(ReLU(x)))): P3, appendix D.2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.layers(inputs)  # type: ignore[no-any-return]


def fcres2(shape: tuple[int, ...], into_latent: int, latent_dim: int, hidden: Sequence[int]) -> tuple[Network, Network]:
    """Build P3's FCRes2: six residual blocks in the encoder, five in the decoder.

    ``hidden`` is (width, width inside a block), (256, 1024) in the paper.
    """
    if len(hidden) != 2:
        raise InvalidParameter(f"network='fcres2' takes hidden=(width, block width); got {tuple(hidden)}.")
    width, inner = hidden
    size = math.prod(shape)

    def blocks(count: int) -> list[nn.Module]:
        return [FCRes(width, inner) for _ in range(count)]

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, width), *blocks(6), nn.ReLU(), nn.Linear(width, into_latent))
    decoder = nn.Sequential(
        nn.Linear(latent_dim, width), *blocks(5), nn.ReLU(), nn.Linear(width, size), Reshape(*shape)
    )
    return Network(encoder), Network(decoder)
