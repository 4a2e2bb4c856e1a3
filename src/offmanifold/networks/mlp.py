"""Multi-layer perceptrons, for tables and tiny images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from offmanifold.networks.network import Network, Reshape


def mlp(shape: tuple[int, ...], into_latent: int, latent_dim: int, hidden: Sequence[int]) -> tuple[Network, Network]:
    """Build an encoder with hidden layers ``hidden`` and a decoder with the same ones in reverse.

    Parameters
    ----------
    shape : tuple of int
        One row.
    into_latent : int
        Numbers that the encoder gives out (twice ``latent_dim`` for a mean and a log deviation).
    latent_dim : int
        Numbers that the decoder takes in.
    hidden : sequence of int
        Widths of the encoder's hidden layers. SiLU between them.
    """
    size = math.prod(shape)
    encoder = [nn.Flatten(), *_layers([size, *hidden, into_latent])]
    decoder = [*_layers([latent_dim, *reversed(hidden), size]), Reshape(*shape)]
    return Network(nn.Sequential(*encoder)), Network(nn.Sequential(*decoder))


def _layers(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return layers[:-1]
