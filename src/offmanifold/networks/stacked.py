"""Many small networks of one shape, computed together: restarts of a study cost little more than one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedMLP(nn.Module):
    """``stack`` multi-layer perceptrons with leaky ReLU between layers; they share nothing but the call.

    Parameters
    ----------
    widths : sequence of int
        From input to output.
    generators : sequence of torch.Generator
        One a network, which draws its weights: PyTorch's uniform ±1/√fan_in, so that a network of a stack of one is the
        same network.
    dtype : torch.dtype
    """

    def __init__(
        self, widths: Sequence[int], generators: Sequence[torch.Generator], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in itertools.pairwise(widths):
            bound = 1 / math.sqrt(before)
            drawn = [
                (
                    torch.empty(before, after, dtype=dtype).uniform_(-bound, bound, generator=generator),
                    torch.empty(1, after, dtype=dtype).uniform_(-bound, bound, generator=generator),
                )
                for generator in generators
            ]
            self.weights.append(nn.Parameter(torch.stack([weight for weight, _ in drawn])))
            self.biases.append(nn.Parameter(torch.stack([bias for _, bias in drawn])))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(stack, n, in)`` → ``(stack, n, out)``."""
        return self._through(inputs, slice(None))

    def one(self, index: int, inputs: Tensor) -> Tensor:
        """What the network at ``index`` alone makes of ``(n, in)``: ``(n, out)``."""
        return self._through(inputs[None], slice(index, index + 1))[0]

    def _through(self, inputs: Tensor, chosen: slice) -> Tensor:
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = torch.baddbmm(bias[chosen], inputs, weight[chosen])
            if i < last:
                inputs = F.leaky_relu(inputs, 0.01)
        return inputs
