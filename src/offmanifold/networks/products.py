"""Convolutions as matrix products, where that is faster. Parameters and results are PyTorch's.

*The weights' gradient of small maps* is one product in bfloat16 on a processor. There PyTorch's own takes 2 to 10 times
as long (5×5 at stride 2, 128 → 256 channels, batch 64, one core with AMX: 7×7 → 4×4 17 ms against 3, 14×14 → 7×7 with
64 → 128 channels 5.7 against 4.2); from maps of about 10 pixels on it catches up.

*A kernel as large as its map* sees one place: the whole layer is one product, in any arithmetic (4×4 → 1×1, 128 → 1024
channels, batch 128, two cores with AVX2, float32: forwards 37 ms as a channels-last convolution, 8 as a product).

*One channel comes out* of every image decoder's last layer on grey images: one product gives what each pixel adds to
each of its neighbours, and ``fold`` adds it up. It pays for kernels of 5×5 in float32 on a processor (one core with
AVX2, forwards and with both gradients: 64 → 1 channels at 28×28, batch 50, 34 and 81 ms against 11 and 31; transposed
at stride 2, 14×14 → 28×28, batch 128, 45 and 58 against 11 and 31), not for 3×3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Side of the smaller of a layer's two maps, at most.
LARGEST = 8
# Side of a kernel from which a layer with one channel of output is a product and a sum.
SUMMED_KERNEL = 5


def windows(rows: Tensor, kernel: int, stride: int, padding: int, sides: tuple[int, int]) -> Tensor:
    """Return what each place of the smaller map sees of ``rows`` ``(n, C, H, W)``: ``(n · places, kernel² · C)``."""
    (high, wide), (n, channels, height, width) = sides, rows.shape
    below, right = (stride * (side - 1) + kernel - padding for side in (high, wide))
    padded = F.pad(rows.permute(0, 2, 3, 1), (0, 0, padding, right - width, padding, below - height))
    a, b, c, d = padded.stride()
    seen = padded.as_strided((n, high, wide, kernel, kernel, channels), (a, stride * b, stride * c, b, c, d))
    return seen.reshape(n * high * wide, -1)


def weight_gradient(small: Tensor, large: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Return the gradient of weights ``(channels of small, channels of large, kernel, kernel)``.

    For a convolution ``small`` is the output's gradient and ``large`` the input; for a transposed one ``small`` is the
    input and ``large`` the output's gradient.
    """
    sides = (small.shape[2], small.shape[3])
    places = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
    product = places.t() @ windows(large, kernel, stride, padding, sides)
    return product.view(small.shape[1], kernel, kernel, large.shape[1]).permute(0, 3, 1, 2)


class _ParameterTerm(torch.autograd.Function):
    """Zero, with a convolution's gradient with respect to weights and bias.

    A node of its own, so that a gradient with respect to the input alone (a chain's) never computes it; the bias too,
    because PyTorch's gradient of a bias alone takes as long as that of the weights.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, rows: Tensor, output: Tensor, settings: tuple[int, int, bool]
    ) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.settings = weight.shape[2], *settings
        return output.new_zeros(()).expand(output.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        kernel, stride, padding, transposed = ctx.settings
        rows = rows.to(gradient.dtype)
        small, large = (rows, gradient) if transposed else (gradient, rows)
        of_weight = weight_gradient(small, large, kernel, stride, padding)
        return of_weight, gradient.sum((0, 2, 3), dtype=torch.float32), None, None, None


def _gains(rows: Tensor, small: int) -> bool:
    return (
        small <= LARGEST
        and rows.device.type == "cpu"
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )


def _with_parameters(
    layer: nn.Conv2d | nn.ConvTranspose2d, rows: Tensor, output: Tensor, settings: tuple[int, int, bool]
) -> Tensor:
    """Return ``output``, made of detached weights and bias, with the gradient of those that are not."""
    return output + _ParameterTerm.apply(layer.weight, layer.bias, rows.detach(), output.detach(), settings)  # type: ignore[no-any-return, no-untyped-call]


def _biased(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias[:, None, None]


def _sums(layer: nn.Conv2d | nn.ConvTranspose2d, rows: Tensor) -> bool:
    return (
        layer.out_channels == 1
        and layer.kernel_size[0] >= SUMMED_KERNEL
        and rows.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    )


def _summed(rows: Tensor, kernels: Tensor, size: tuple[int, int], stride: int, padding: int) -> Tensor:
    """Return the map ``(n, 1, *size)`` where each pixel of ``rows (n, C, H, W)`` adds ``kernels (C, 1, k, k)``."""
    spread = rows.permute(0, 2, 3, 1).flatten(1, 2) @ kernels.flatten(1)
    return F.fold(spread.transpose(1, 2), size, kernels.shape[2:], padding=padding, stride=stride)


class Conv2d(nn.Conv2d):
    """A square convolution with a bias, no dilation, no groups; see the module."""

    def forward(self, rows: Tensor) -> Tensor:
        """Return the output's map."""
        stride, padding = self.stride[0], int(self.padding[0])
        if padding == 0 and rows.shape[2:] == self.kernel_size:
            # Channels last in rows and weights alike: neither is copied where it lies so already.
            places, weight = (tensor.permute(0, 2, 3, 1).flatten(1) for tensor in (rows, self.weight))
            return F.linear(places, weight, self.bias)[:, :, None, None]
        reach = self.kernel_size[0] - 1
        if stride == 1 and padding <= reach and _sums(self, rows):
            size = rows.shape[2] + 2 * padding - reach, rows.shape[3] + 2 * padding - reach
            # Seen from a pixel of the input, the kernel is turned round.
            turned = self.weight.flip(2, 3).transpose(0, 1)
            return _biased(_summed(rows, turned, size, 1, reach - padding), self.bias)
        if self.bias is None or not _gains(rows, max(rows.shape[2:]) // stride):
            return super().forward(rows)
        output = F.conv2d(rows, self.weight.detach(), self.bias.detach(), stride, padding)
        return _with_parameters(self, rows, output, (stride, padding, False))


class ConvTranspose2d(nn.ConvTranspose2d):
    """A square transposed convolution with a bias, no dilation, no groups; see the module."""

    def forward(self, rows: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the output's map."""
        stride, padding = self.stride[0], int(self.padding[0])
        if padding == 0 and rows.shape[2:] == (1, 1) and output_size is None and self.output_padding == (0, 0):
            product = rows.flatten(1) @ self.weight.permute(0, 2, 3, 1).flatten(1)
            return _biased(product.view(-1, *self.kernel_size, self.out_channels).permute(0, 3, 1, 2), self.bias)
        if output_size is None and _sums(self, rows):
            least = stride * (rows.shape[2] - 1) + self.kernel_size[0] - 2 * padding
            more = least + stride * (rows.shape[3] - rows.shape[2])
            size = (least + self.output_padding[0], more + self.output_padding[1])
            return _biased(_summed(rows, self.weight, size, stride, padding), self.bias)
        if self.bias is None or output_size is not None or not _gains(rows, max(rows.shape[2:])):
            return super().forward(rows, output_size)
        weight, bias = self.weight.detach(), self.bias.detach()
        output = F.conv_transpose2d(rows, weight, bias, stride, padding, self.output_padding)
        return _with_parameters(self, rows, output, (stride, padding, True))
