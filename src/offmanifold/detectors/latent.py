"""What detectors with an encoder and a decoder offer beside scores."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import Tensor

from offmanifold.data.inputs import Float64Array
from offmanifold.detectors.scorer import joined
from offmanifold.probability.distances import distance
from offmanifold.training.precision import ordinary


class LatentMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):  # type: ignore[misc]
    """For detectors with an encoder and a decoder: latent codes and reconstructions."""

    @property
    def _n_features_out(self: Any) -> int:
        """How many codes :meth:`transform` returns, for scikit-learn: they are called vae0, vae1, …"""
        return int(self.settings_["latent_dim"])

    @property
    def latent_prior(self: Any) -> str | None:
        """What codes are meant to follow: "euclidean" for N(0, I), "sphere" for uniform, None for nothing."""
        return "sphere" if self.settings_["latent"] == "sphere" else None

    def transform(self: Any, X: Any) -> Float64Array:
        """Return latent codes ``(n, latent_dim)``: the posterior's means where codes are random.

        Missing cells are as the model completes them.
        """
        return joined(self._through(lambda model, rows: model.encode(model.completed(rows)), self._fitted_rows(X)))

    def reconstruct(self: Any, X: Any) -> Any:
        """Return the rows as the model sees them, in the units and layout of ``X``; missing cells as it completes them.

        An array, of images with pixels from 0 to 1; a polars frame where not all columns are numbers.
        """
        rows = self._fitted_rows(X)
        parts = self._through(lambda model, part: model.reconstruct(part), rows)
        return self._restore(torch.cat([part.cpu() for part in parts]), rows.as_came)

    def reconstruction_errors(self: Any, X: Any) -> Float64Array:
        """Return each row's mean squared error ``(n,)`` in what the network sees: see :meth:`prepared`."""

        def errors(model: Any, rows: Tensor) -> Tensor:
            return distance(rows, model.reconstruct(rows), "squared")

        return joined(self._through(errors, self._fitted_rows(X)))

    def prepared(self: Any, X: Any) -> Float64Array:
        """Return the rows as the network sees them ``(n, D)``: prepared columns with NaN where missing, or pixels."""
        return joined(part[:real].flatten(1) for part, real in self._passes(self._fitted_rows(X)))

    @ordinary()
    @torch.no_grad()
    def _probe_rows(self: Any) -> Tensor:
        """Return random rows and what the model makes of them: rows that score high, as normal ones do."""
        rows = super()._probe_rows()
        return torch.cat([rows, self.module_.reconstruct(rows.to(self._device)).cpu()])

    def _decoded(self: Any, codes: Tensor, generator: torch.Generator) -> Tensor:
        """Return rows ``(n, *shape)`` as the network sees them: the decoder's means for codes ``(n, latent_dim)``."""
        decoded: Tensor = self.module_.decode(codes)
        return decoded
