"""Convolutions as matrix products against PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offmanifold.networks import products


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(5, 2, 2), (3, 1, 1), (3, 2, 0), (4, 2, 1)])
@pytest.mark.parametrize("sides", [(7, 7), (8, 8), (9, 6)])
def test_the_weights_gradient_is_autograds(kernel: int, stride: int, padding: int, sides: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 4, *sides, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 4, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(rows, weight, None, stride, padding)
    slope = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(output, weight, slope)
    torch.testing.assert_close(products.weight_gradient(slope, rows, kernel, stride, padding), expected)
    # Transposed: the same windows, with the roles of input and output exchanged.
    codes = torch.randn(3, 5, *output.shape[2:], generator=generator, dtype=torch.float64)
    smallest = [(small - 1) * stride - 2 * padding + kernel for small in output.shape[2:]]
    extra = tuple(side - least for side, least in zip(sides, smallest, strict=True))
    if all(0 <= more < stride for more in extra):
        weight = weight.detach().requires_grad_()
        output = F.conv_transpose2d(codes, weight, None, stride, padding, extra)
        slope = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        (expected,) = torch.autograd.grad(output, weight, slope)
        torch.testing.assert_close(products.weight_gradient(codes, slope, kernel, stride, padding), expected)


LAYERS = [
    (products.Conv2d(6, 8, 5, 2, 2), nn.Conv2d(6, 8, 5, 2, 2), (3, 6, 7, 7)),
    (products.Conv2d(6, 8, 5, 2, 2), nn.Conv2d(6, 8, 5, 2, 2), (3, 6, 16, 12)),
    (
        products.ConvTranspose2d(6, 8, 5, 2, 2, output_padding=(1, 0)),
        nn.ConvTranspose2d(6, 8, 5, 2, 2, output_padding=(1, 0)),
        (3, 6, 4, 4),
    ),
]


def pair(
    kind: str, sizes: tuple[Any, ...], shape: tuple[int, ...], channels_last: bool
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Our layer and PyTorch's with the same weights, and rows for them."""
    ours, theirs = getattr(products, kind)(*sizes), getattr(nn, kind)(*sizes)
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if channels_last:
        ours, rows = ours.to(memory_format=torch.channels_last), rows.contiguous(memory_format=torch.channels_last)
    return ours, theirs, rows


def gradients(layer: nn.Module, rows: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    rows = rows.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = layer(rows)
    found = torch.autograd.grad(output.float().square().sum(), [rows, *layer.parameters()])
    return [output.detach().float(), *found]


@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_layers_are_pytorchs_in_either_arithmetic(
    ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    calls = []
    gradient = products.weight_gradient
    monkeypatch.setattr(products, "weight_gradient", lambda *args: calls.append(1) or gradient(*args))
    for own, other in zip(*(gradients(layer, rows, torch.float32) for layer in (ours, theirs)), strict=True):
        torch.testing.assert_close(own, other)
    assert not calls, "float32 takes PyTorch's own"
    for own, other in zip(*(gradients(layer, rows, torch.bfloat16) for layer in (ours, theirs)), strict=True):
        assert own.dtype == other.dtype == torch.float32
        assert (own - other).norm() <= 0.01 * other.norm()
    assert calls == [1]


@pytest.mark.parametrize(("ours", "theirs", "shape"), LAYERS)
def test_a_gradient_of_the_input_alone_costs_nothing_more(
    ours: nn.Module, theirs: nn.Module, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("the weights' gradient was computed")

    monkeypatch.setattr(products, "weight_gradient", never)
    rows = torch.randn(shape, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(rows)
    torch.autograd.grad(output.float().square().sum(), rows)
    with pytest.raises(AssertionError, match="was computed"), torch.autocast("cpu", torch.bfloat16):
        torch.autograd.grad(ours(rows).float().square().sum(), next(ours.parameters()))


@pytest.mark.parametrize(("side", "bias"), [(40, True), (8, False)])
def test_large_maps_and_layers_without_a_bias_are_pytorchs(
    side: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = (kind(2, 3, 5, 2, 2, bias=bias) for kind in (products.Conv2d, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(products, "weight_gradient", None)  # calling it would fail
    for own, other in zip(*(gradients(layer, rows, torch.bfloat16) for layer in (ours, theirs)), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "sizes", "shape"),
    [
        ("Conv2d", (6, 8, 4), (3, 6, 4, 4)),
        ("Conv2d", (6, 8, 1), (3, 6, 1, 1)),
        ("ConvTranspose2d", (6, 8, 4), (3, 6, 1, 1)),
    ],
)
def test_a_kernel_as_large_as_its_map_is_one_product(
    kind: str, sizes: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool
) -> None:
    ours, theirs, rows = pair(kind, sizes, shape, channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    for own, other in zip(*(gradients(layer, rows, dtype) for layer in (ours, theirs)), strict=True):
        assert own.shape == other.shape
        assert (own - other).norm() <= tolerance * other.norm()
    with torch.profiler.profile() as profile:
        ours(rows)
    assert not any("convolution" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kind", "sizes", "shape"),
    [
        ("Conv2d", (6, 1, 5, 1, 2), (3, 6, 9, 7)),
        ("Conv2d", (6, 1, 6, 1, 0), (3, 6, 9, 7)),
        ("ConvTranspose2d", (6, 1, 5, 2, 2, 1), (3, 6, 4, 5)),
        ("ConvTranspose2d", (6, 1, 5, 1, 1), (3, 6, 4, 5)),
        ("ConvTranspose2d", (6, 1, 5, 3, 0, (0, 2)), (3, 6, 4, 5)),
    ],
)
def test_one_channel_is_a_product_and_a_sum(
    kind: str, sizes: tuple[int, ...], shape: tuple[int, ...], channels_last: bool
) -> None:
    ours, theirs, rows = pair(kind, sizes, shape, channels_last)
    for own, other in zip(*(gradients(layer, rows, torch.float32) for layer in (ours, theirs)), strict=True):
        torch.testing.assert_close(own, other)
    with torch.profiler.profile() as profile:
        ours(rows)
    assert not any("convolution" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("sizes", [(6, 1, 5, 2, 2), (6, 2, 5, 1, 2), (6, 1, 3, 1, 1), (6, 1, 5, 1, 5)])
def test_other_convolutions_are_pytorchs(sizes: tuple[int, ...]) -> None:
    ours, theirs = products.Conv2d(*sizes), nn.Conv2d(*sizes)
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(3, 6, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(rows), theirs(rows))
