"""The table of networks, and the choice by the input's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offmanifold.networks import conv
from offmanifold.networks.mlp import mlp
from offmanifold.networks.network import Network
from offmanifold.networks.residual import fcres2, resmlp
from offmanifold.parameters import InvalidParameter, choice

CONVOLUTIONAL: dict[str, Callable[[tuple[int, ...], int, int, float], tuple[Network, Network]]] = {
    "strided": conv.strided,
    "conv28": conv.conv28,
    "conv32": conv.conv32,
    "conv32big": conv.conv32big,
    "conv64": conv.conv64,
    "p1-grey": conv.p1_grey,
    "p1-colour": conv.p1_colour,
}
DENSE: dict[str, Callable[[tuple[int, ...], int, int, Sequence[int]], tuple[Network, Network]]] = {
    "resmlp": resmlp,
    "mlp": mlp,
    "fcres2": fcres2,
}
NETWORKS = (*DENSE, *CONVOLUTIONAL)

# Below this, three halvings leave nothing to convolve.
SMALLEST_PICTURE = 16


def for_images(shape: tuple[int, ...]) -> str:
    """Return the network for images ``(C, H, W)``: "mlp" for tiny ones, else "strided"."""
    return "strided" if min(shape[1:]) >= SMALLEST_PICTURE else "mlp"


def build(
    network: str,
    shape: tuple[int, ...],
    *,
    into_latent: int,
    latent_dim: int,
    hidden: Sequence[int],
    capacity: float = 1.0,
) -> tuple[Network, Network]:
    """Build encoder and decoder by name.

    Parameters
    ----------
    network : str
        A name of :data:`NETWORKS`.
    shape : tuple of int
        One row: ``(d,)`` or ``(C, H, W)``.
    into_latent, latent_dim : int
        Numbers that the encoder gives out and the decoder takes in.
    hidden : sequence of int
        Widths of dense networks.
    capacity : float
        Factor on the channel counts of convolutional networks (P0 and P4's α).

    Returns
    -------
    encoder, decoder : Network
        ``(n, *shape) → (n, into_latent)`` and ``(n, latent_dim) → (n, *shape)``.
    """
    choice("network", network, NETWORKS)
    if network in DENSE:
        return DENSE[network](shape, into_latent, latent_dim, hidden)
    if len(shape) != 3:
        raise InvalidParameter(
            f"network={network!r} takes images; the data are a table. Use {', '.join(map(repr, DENSE))}."
        )
    return CONVOLUTIONAL[network](shape, into_latent, latent_dim, capacity)
