"""What detectors with an encoder and a decoder offer beside scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import TransformerMixin
from torch import Tensor

from offmanifold.data.inputs import Float64Array


class LatentMixin(TransformerMixin):  # type: ignore[misc]
    """For detectors with an encoder and a decoder: latent codes and reconstructions."""

    def transform(self: Any, X: Any) -> Float64Array:
        """Return latent codes ``(n, latent_dim)``: the posterior's means where codes are random."""
        return np.concatenate([codes.double().cpu().numpy() for codes in self._through("encode", X)])

    def reconstruct(self: Any, X: Any) -> Float64Array:
        """Return the rows as the model sees them, in the units and layout of ``X``."""
        return np.concatenate([self._restore(part) for part in self._through("reconstruct", X)])

    def _through(self: Any, method: str, X: Any) -> Iterator[Tensor]:
        with torch.no_grad():
            for rows, real in self._passes(self._fitted_rows(X)):
                yield getattr(self.module_, method)(rows)[:real]
