"""The shell around every encoder and decoder: arithmetic inside, float32 outside."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm


class Network(nn.Module):
    """A stack of layers that may compute in bfloat16 inside; what it returns is always float32.

    Parameters
    ----------
    body : Module
        The layers.
    convolutional : bool
        Whether inputs and weights profit from the channels-last arrangement.

    Attributes
    ----------
    compute_dtype : torch.dtype
        ``torch.float32`` (default) or ``torch.bfloat16``, set by the training loop.
    """

    def __init__(self, body: nn.Module, *, convolutional: bool = False) -> None:
        super().__init__()
        self.body = body
        self.convolutional = convolutional
        self.compute_dtype = torch.float32
        if convolutional:
            self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, inputs: Tensor) -> Tensor:
        if self.convolutional and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        if self.compute_dtype == torch.float32:
            return self.body(inputs)  # type: ignore[no-any-return]
        with torch.autocast(inputs.device.type, dtype=self.compute_dtype):
            outputs: Tensor = self.body(inputs)
        return outputs.float()


@contextlib.contextmanager
def steady(module: nn.Module) -> Iterator[None]:
    """Let ``module`` be one function within the block: its spectral norms are estimated once more, then stand still.

    In training every call improves their estimates. (PyTorch's own ``parametrize.cached`` holds the weights of every
    network there is, of those that other threads train, too.)
    """
    moving = [part for part in module.modules() if isinstance(part, parametrize.ParametrizationList) and part.training]
    with torch.no_grad():
        for part in moving:
            part()
            part.eval()
    try:
        yield
    finally:
        for part in moving:
            part.train()


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight anew from ``generator``: PyTorch's own distributions without its global state.

    Weights and biases of linear and convolutional layers are uniform on ±1/√fan_in; normalisations start
    as the identity, spectral ones with an estimate of the norm.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # (out, in/groups, …) for both; a transposed one has (in, out/groups, …): PyTorch uses dim 1 too.
            bound = 1 / math.sqrt(max(1, layer.weight[0].numel()))
            with torch.no_grad():
                weight = torch.empty_like(layer.weight).uniform_(-bound, bound, generator=generator)
                if parametrize.is_parametrized(layer, "weight"):
                    layer.weight = weight  # goes to what is behind the parametrisation
                else:
                    layer.weight.copy_(weight)
                if layer.bias is not None:
                    layer.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
            layer.reset_parameters()  # ones and zeros: nothing random
        elif isinstance(layer, parametrize.ParametrizationList):  # comes after the layer it belongs to
            for normalisation in layer:
                if isinstance(normalisation, _SpectralNorm):
                    _estimate_norm(normalisation, layer.original, generator)


def _estimate_norm(normalisation: _SpectralNorm, weight: Tensor, generator: torch.Generator) -> None:
    """Draw the power iteration's vectors and bring them near the singular ones, as PyTorch does when it makes them."""
    for vector in (normalisation._u, normalisation._v):
        torch.nn.functional.normalize(torch.empty_like(vector).normal_(generator=generator), dim=0, out=vector)
    normalisation._power_method(normalisation._reshape_weight_to_matrix(weight), 15)


class Reshape(nn.Module):
    """``(n, …)`` → ``(n, *shape)``."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1, *self.shape)
