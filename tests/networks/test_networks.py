"""Shapes, sizes and initialisation of the papers' networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from offmanifold.networks import choose
from offmanifold.networks.network import Network, initialise

# Network, input shape, latent size, parameters (encoder, decoder) by the papers' tables, biases included.
KNOWN = [
    # conv 9·1·32+32, 9·32·64+64, 9·64·64+64, 9·64·128+128, 16·128·1024+1024, 1024·32+32
    ("conv28", (1, 28, 28), 32, 320 + 18_496 + 36_928 + 73_856 + 2_098_176 + 32_800,
     65_664 + 73_792 + 36_928 + 18_464 + 289),
    ("strided", (1, 28, 28), 16, 1_664 + 204_928 + 819_456 + 16 * 4096 + 16,
     16 * 4096 + 4096 + 25 * 256 * 128 + 128 + 25 * 128 * 64 + 64 + 25 * 64 + 1),
    ("p1-grey", (1, 28, 28), 10, 208 + 3_216 + 12_832 + 51_264 + 102_464 + 10_250,
     11 * 3136 + 51_232 + 25_632 + 205_056 + 6_401),
]  # fmt: skip
SHAPES = [("conv28", (1, 28, 28)), ("conv32", (3, 32, 32)), ("conv32big", (3, 32, 32)), ("conv64", (3, 64, 64)),
          ("p1-grey", (1, 28, 28)), ("p1-colour", (3, 32, 32)), ("strided", (1, 28, 28)), ("strided", (3, 33, 47)),
          ("strided", (1, 16, 64)), ("resmlp", (7,)), ("mlp", (7,)), ("mlp", (1, 8, 8)), ("fcres2", (2,))]  # fmt: skip


HIDDEN = {"mlp": (16, 32), "fcres2": (16, 32), "resmlp": (16, 16)}


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "shape", "latent", "encoder_size", "decoder_size"), KNOWN)
def test_parameter_counts_are_the_papers(
    name: str, shape: tuple[int, ...], latent: int, encoder_size: int, decoder_size: int
) -> None:
    encoder, decoder = choose.build(name, shape, into_latent=latent, latent_dim=latent, hidden=())
    assert (size(encoder), size(decoder)) == (encoder_size, decoder_size)


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_shapes_and_independence_of_rows(name: str, shape: tuple[int, ...]) -> None:
    hidden = HIDDEN.get(name, ())
    encoder, decoder = choose.build(name, shape, into_latent=6, latent_dim=3, hidden=hidden, capacity=1 / 8)
    rows = torch.rand(3, *shape)
    encoder.eval()  # spectral norms take a power step at every training call
    codes = encoder(rows)
    made = decoder(torch.randn(3, 3))
    assert codes.shape == (3, 6)
    assert made.shape == rows.shape
    assert made.is_contiguous() or made.is_contiguous(memory_format=torch.channels_last)
    # A row's output, hence its energy, is its own.
    torch.testing.assert_close(encoder(rows[:1]), codes[:1], rtol=1e-4, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in [*encoder.modules(), *decoder.modules()])


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_initialisation_depends_on_the_generator_alone(name: str, shape: tuple[int, ...]) -> None:
    hidden = HIDDEN.get(name, ())
    states = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        pair = nn.ModuleList(choose.build(name, shape, into_latent=6, latent_dim=3, hidden=hidden, capacity=1 / 8))
        initialise(pair, torch.Generator().manual_seed(7))
        states.append(pair.state_dict())
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]), key
    weights = [tensor for tensor in states[0].values() if tensor.ndim > 1]
    assert all(weight.std() > 0 for weight in weights)


def test_initialisation_has_pytorchs_spread() -> None:
    layer = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(8, 64, 5), nn.ConvTranspose2d(32, 16, 3))
    ours = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(8, 64, 5), nn.ConvTranspose2d(32, 16, 3))
    initialise(ours, torch.Generator().manual_seed(0))
    for expected, found in zip(layer.parameters(), ours.parameters(), strict=True):
        if expected.ndim > 1:
            assert found.std().item() == pytest.approx(expected.std().item(), rel=0.05)


def test_a_spectral_norm_is_estimated_before_its_first_use() -> None:
    layer = spectral_norm(nn.Conv2d(16, 32, 3))
    initialise(layer, torch.Generator().manual_seed(0))
    layer.eval()  # no power step here
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    assert largest.item() == pytest.approx(1.0, abs=0.02)  # vectors as they are drawn leave it at 10 and more


def test_the_choice_and_its_errors() -> None:
    assert choose.for_images((1, 8, 8)) == "mlp"
    assert choose.for_images((3, 32, 32)) == "strided"
    build = lambda name, shape, **o: choose.build(name, shape, into_latent=2, latent_dim=2, hidden=(4,), **o)  # noqa: E731
    with pytest.raises(ValueError, match="Did you mean 'conv28'"):
        build("conv288", (1, 28, 28))
    with pytest.raises(ValueError, match="takes 28×28 images; got 32×32"):
        build("conv28", (1, 32, 32))
    with pytest.raises(ValueError, match="takes images; the data are a table"):
        build("conv28", (5,))
    with pytest.raises(ValueError, match="hidden=\\(width, block width\\)"):
        build("fcres2", (5,))
    with pytest.raises(ValueError, match="one width"):
        choose.build("resmlp", (5,), into_latent=2, latent_dim=2, hidden=(4, 8))
    assert isinstance(build("mlp", (5,))[0], Network)
