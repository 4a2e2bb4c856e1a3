"""Shapes, sizes and initialisation of the papers' networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from offmanifold.networks import choose, conv, residual
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


# Every layer in the order of the papers' tables: P3's Table 10 (Conv28 as its published code has it, Conv64's "245"
# read as 256), P1 §IV-A and appendix A, P0 and P4. C and T: convolution and transposed one, in>out side/stride/padding.
LAYERS = {
    "conv28": ((1, 28, 28), 32,
        "C1>32 3/1/0, R, C32>64 3/1/0, R, M2, C64>64 3/1/0, R, C64>128 3/1/0, R, M2, C128>1024 4/1/0, R, "
        "C1024>32 1/1/0",
        "T32>128 4/1/0, R, bilinear, T128>64 3/1/0, R, T64>64 3/1/0, R, bilinear, T64>32 3/1/0, R, T32>1 3/1/0"),
    "conv32": ((3, 32, 32), 64,
        "C3>32 4/2/0, R, C32>64 4/2/0, R, C64>128 4/2/0, R, C128>256 2/2/0, R, C256>64 1/1/0, R, ResAtt 64>1024>64",
        "T64>256 6/1/0, R, T256>128 4/2/0, R, T128>64 4/2/0, R, T64>3 3/1/0"),
    "conv32big": ((3, 32, 32), 64,
        "C3>128 3/1/1, Res 128>128, A2, Res 128>128, Res 128>256, A2, Res 256>256, Res 256>256, A2, Res 256>256, L0.2, "
        "A4, F256>64",
        "T64>128 4/1/0, ResUp 128, ResUp 128, ResUp 128, G8, R, C128>3 3/1/1"),
    "conv64": ((3, 64, 64), 64,
        "C3>256 5/2/0, G8, R, C256>512 5/2/0, G8, R, C512>1024 5/2/0, G8, R, C1024>2048 5/2/0, G8, R, F2048>64",
        "T64>1024 8/1/0, G8, R, T1024>512 4/2/1, G8, R, T512>256 4/2/1, G8, R, T256>128 4/2/1, G8, R, T128>3 1/1/0"),
    "p1-grey": ((1, 28, 28), 10,
        "C1>8 5/2/2, R, C8>16 5/1/2, R, C16>32 5/2/2, R, C32>64 5/1/2, R, C64>64 5/2/2, R, F1024>10",
        "F10>3136, R, T64>32 5/2/2, R, T32>32 5/2/2, R, T32>256 5/1/2, R, C256>1 5/1/2"),
    "p1-colour": ((3, 32, 32), 100,
        "C3>32 4/2/1, G1, R, C32>64 4/2/1, G1, R, C64>128 4/2/1, G1, R, C128>256 4/2/1, G1, R, F1024>100",
        "F100>4096, nearest, pad 1212, C256>128 4/1/0, G1, R, nearest, pad 1212, C128>64 4/1/0, G1, R, nearest, "
        "pad 1212, C64>32 4/1/0, G1, R, pad 1212, C32>3 4/1/0"),
    "strided": ((1, 28, 28), 16,
        "C1>64 5/2/2, R, C64>128 5/2/2, R, C128>256 5/2/2, R, F4096>16",
        "F16>4096, R, T256>128 5/2/2, R, T128>64 5/2/2, R, T64>1 5/2/2"),
    "fcres2": ((2,), 3,
        "F2>256, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, R, "
        "F256>3",
        "F3>256, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, FCRes 256>1024, R, F256>2"),
    "mlp": ((7,), 2, "F7>256, S, F256>1024, S, F1024>2", "F2>1024, S, F1024>256, S, F256>7"),
}  # fmt: skip


def told(layer: nn.Module) -> str:
    """Return a layer as LAYERS has it; nothing of what only changes the arrangement."""
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        ends = f"{'C' if isinstance(layer, nn.Conv2d) else 'T'}{layer.in_channels}>{layer.out_channels}"
        return f"{ends} {layer.kernel_size[0]}/{layer.stride[0]}/{layer.padding[0]}"
    if isinstance(layer, nn.Linear):
        return f"F{layer.in_features}>{layer.out_features}"
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return f"{kind[0]}{layer.kernel_size}"
    if isinstance(layer, nn.GroupNorm):
        return f"G{layer.num_groups}"
    if isinstance(layer, nn.LeakyReLU):
        return f"L{layer.negative_slope:g}"
    if isinstance(layer, nn.Upsample):
        return {("bilinear", True): "bilinear", ("nearest", None): "nearest"}[layer.mode, layer.align_corners]
    if isinstance(layer, nn.ZeroPad2d):
        return "pad " + "".join(map(str, layer.padding))
    if isinstance(layer, residual.FCRes):
        return f"FCRes {layer.layers[1].in_features}>{layer.layers[1].out_features}"  # type: ignore[union-attr]
    if isinstance(layer, conv._Res):
        return f"Res {layer.first.in_channels}>{layer.second.out_channels}"
    if isinstance(layer, conv._ResAtt):
        inner = layer.gate.first
        return f"ResAtt {inner.in_channels}>{inner.out_channels}>{layer.value.second.out_channels}"
    if isinstance(layer, conv._ResUp):
        return f"ResUp {layer.first.in_channels}"
    return {"ReLU": "R", "SiLU": "S", "Flatten": "", "Reshape": ""}[kind]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_papers(name: str) -> None:
    shape, latent, *wanted = LAYERS[name]
    hidden = (256, 1024) if name in ("fcres2", "mlp") else ()
    pair = choose.build(name, shape, into_latent=latent, latent_dim=latent, hidden=hidden)
    for network, layers in zip(pair, wanted, strict=True):
        assert ", ".join(filter(None, map(told, network.body))) == layers  # type: ignore[arg-type]
    weighted = [layer for layer in pair[0].modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert all(parametrize.is_parametrized(layer) == (name == "conv32big") for layer in weighted)
    assert not any(parametrize.is_parametrized(layer) for layer in pair[1].modules())


def test_blocks_are_the_papers() -> None:
    """By P3's formulas (appendix D.2), with layers of fixed weights."""
    x = torch.tensor([[-1.0, 2.0]])
    block = residual.FCRes(2, 2)
    with torch.no_grad():
        for layer, weight in (
            (block.layers[1], [[1.0, 1.0], [1.0, -1.0]]),
            (block.layers[3], [[1.0, 0.0], [0.0, 1.0]]),
        ):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    # ReLU(x) = (0, 2) → (2, −2) → ReLU (2, 0) → added to x.
    assert block(x).tolist() == [[1.0, 2.0]]

    def alike(layer: nn.Module) -> nn.Module:
        """Set 3 × 3 convolutions to pass their input on."""
        with torch.no_grad():
            for part in layer.modules():
                if isinstance(part, nn.Conv2d):
                    part.weight.zero_()
                    part.weight[:, :, 1, 1] = torch.eye(part.out_channels, part.in_channels)
                    part.bias.zero_()  # type: ignore[union-attr]
        return layer

    image = torch.tensor([-1.0, 2.0]).repeat(4).view(1, 8, 1, 1)
    leaky = [-0.2 * 0.2, 2.0]  # both LReLUs of slope .2
    torch.testing.assert_close(alike(conv._Res(8, 8))(image), image + torch.tensor(leaky).repeat(4).view(1, 8, 1, 1))
    gate = torch.sigmoid(torch.tensor([-1 + leaky[0], 4.0]))
    gated = image.flatten() + (gate * torch.tensor([-1 + leaky[0], 4.0])).repeat(4)
    torch.testing.assert_close(alike(conv._ResAtt(8, 8))(image).flatten(), gated)
    wide = torch.randn(1, 16, 1, 1, generator=torch.Generator().manual_seed(0))
    inner = F.relu(F.group_norm(F.interpolate(F.relu(F.group_norm(wide, 8)), scale_factor=2), 8))
    torch.testing.assert_close(alike(conv._ResUp(16))(wide), wide.expand(1, 16, 2, 2) + inner)


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
