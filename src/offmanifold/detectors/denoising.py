"""What the multi-scale denoiser is made of: a trained denoiser, and how errors of normal rows are distributed."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from offmanifold.data.inputs import evenly
from offmanifold.detectors.stored import StoredRows
from offmanifold.networks.denoiser import Denoiser
from offmanifold.probability.missing import cells_seen, completed, missing_cells, share_seen, without

# Where cells are missing, what the denoiser was given for them is off by more than any noise below this level: its
# errors there say nothing.
CRUDE = 0.4
# The noise level at which the denoiser is asked for missing cells: a mean that is off is noise of that size.
COMPLETING = 1.0
# Rows evaluated at a time.
PART = 256
# Features beyond so many spreads of normal rows count by their logarithm, up to FARTHEST: of rows far off it can still
# be said which is the farthest, and no single feature's number is all that there is to see.
MOST, FARTHEST = 20.0, 1e4
TINY = 1e-9
# The two sides of the evidence.
SIDES = ("learned", "stored")
# Stored rows that standardise the distances from stored rows.
STANDARDISED = 2000
# Draws of noise in an image's denoising errors, the same for every image.
DRAWS = 2
# Added to the variance of the errors' logarithms: held-out images may be all alike.
SMALLEST_VARIANCE = 1e-6


class DenoisingModel(nn.Module, abc.ABC):
    """A row is abnormal to the learned denoiser, or far from the training rows themselves.

    Parameters
    ----------
    denoiser : Denoiser
        For rows that are shifted and divided by ``unit`` first.
    levels : sequence of float
        Its noise levels, in standard deviations of the data.
    stored : StoredRows
        Rows kept; where there are none they are left out.
    shift, unit : float
        0 and 1 for standardised tables.
    """

    denoiser: Denoiser
    levels: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        levels: list[float],
        stored: StoredRows,
        shift: float = 0.0,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shift, self.unit = shift, unit
        self.register_buffer("levels", torch.tensor(levels))
        self.stored = stored
        features = self.learned_features + stored.features
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    @property
    @abc.abstractmethod
    def learned_features(self) -> int:
        """How many features :meth:`learned` gives."""

    @abc.abstractmethod
    def learned(self, flat: Tensor) -> Tensor:
        """Return what speaks against rows to the learned denoiser, above 0: ``(n, learned_features)``."""

    def learned_from(self, held_out: Tensor) -> Tensor:
        """Return :meth:`learned` for rows held out of training, after learning from them what it takes."""
        return torch.cat([self.learned(self.flat(part)) for part in torch.split(held_out, PART)])

    def flat(self, rows: Tensor) -> Tensor:
        """Return rows ``(n, d)`` of about unit variance."""
        return (rows.flatten(1) - self.shift) / self.unit

    def denoise(self, rows: Tensor, sigma: float) -> Tensor:
        """Return D(x, σ) ``(n, *shape)``; pixels within [0, 1]."""
        found = self._once(self.completed(self.flat(rows)), sigma)
        restored = (found * self.unit + self.shift).reshape(rows.shape)
        return restored.clamp(0, 1) if rows.ndim > 2 else restored

    def completed(self, flat: Tensor) -> Tensor:
        """Return rows with what the denoiser makes of them in missing cells."""
        return completed(flat, lambda rows: self._once(rows, COMPLETING))

    def _once(self, flat: Tensor, sigma: float) -> Tensor:
        found: Tensor = self.denoiser(flat, flat.new_full((len(flat), 1), sigma))
        return found

    def store(self, rows: Tensor) -> None:
        """Keep rows to measure distances from."""
        parts = [self.completed(self.flat(part)) for part in torch.split(rows, PART)]
        self.stored.store(torch.cat(parts))

    def standardise(self, held_out: Tensor) -> None:
        """Learn how the features of rows that were not learned from are distributed."""
        seen = cells_seen(self.flat(held_out)) > 0
        if seen.any():  # a row that holds nothing has no errors
            held_out = held_out[seen]
        parts = [self.learned_from(held_out)]
        if len(self.stored):
            # Each stored row against all others: as good as a row that is not among them.
            some = torch.from_numpy(evenly(len(self.stored), STANDARDISED)).to(held_out.device)
            parts.append(self.stored.from_others(some))
        at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=held_out.device)
        low, middle, high = torch.cat([(part + TINY).log().double().quantile(at, dim=0) for part in parts], 1)
        self.centre = middle.float()
        self.spread = ((high - low) / 2.56 + 1e-3).float()

    def features(self, rows: Tensor) -> Tensor:
        """Return the logarithms of all errors ``(n, features)``."""
        flat = self.flat(rows)
        parts = [self.learned(flat)] + ([self.stored(flat)] if len(self.stored) else [])
        return (torch.cat(parts, 1) + TINY).log()

    def evidence(self, rows: Tensor) -> Tensor:
        """Return how many spreads each feature lies above the median of normal rows: ``(n, features)``.

        Of more than 20 those above it count by their logarithm, 20 (1 + log(spreads/20)).
        """
        spreads = ((self.features(rows) - self.centre) / self.spread).clamp(-MOST, FARTHEST)
        return torch.where(spreads > MOST, MOST * (1 + (spreads / MOST).clamp(min=1).log()), spreads)

    def energies(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the evidence combined, ``(n,)`` by side as they make it up: high = abnormal.

        The log-mean-exp of the learned denoiser's evidence and of the stored rows', and of the two: one feature that
        stands out is enough, and both sides count the same however many features they have.
        """
        evidence = self.evidence(rows)
        parts = [part for part in evidence.tensor_split([self.learned_features], 1) if part.shape[1]]
        sides = torch.stack([part.logsumexp(1) - math.log(part.shape[1]) for part in parts], 1)
        energy = sides.logsumexp(1) - math.log(len(parts))
        shares = sides.softmax(1)
        return {name: energy * shares[:, i] for i, name in enumerate(SIDES[: len(parts)])}


class TableModel(DenoisingModel):
    """What the learned denoiser would change in a row, ‖x − D(x, σ)‖², noise level by noise level."""

    @property
    def learned_features(self) -> int:
        """One a noise level."""
        return len(self.levels)

    def learned(self, flat: Tensor) -> Tensor:
        """Return ‖x − D(x, σ)‖²/(dσ²) for each noise level: ``(n, levels)``."""
        missing, share = missing_cells(flat), share_seen(flat)
        flat = self.completed(flat)
        found = []
        for sigma in self.levels:
            scale = 1 + sigma**2
            levels = flat.new_ones((len(flat), 1)) * sigma
            # x − D without subtracting D from x: at small σ they are nearly equal.
            residual = flat * sigma / scale - self.denoiser.network(flat, levels) / scale.sqrt()
            found.append(without(missing, residual.square()).mean(1) / share)
        return torch.stack(found, 1)

    def evidence(self, rows: Tensor) -> Tensor:
        """Return how many spreads each feature lies above the median of normal rows: ``(n, features)``."""
        found = super().evidence(rows)
        missing = missing_cells(rows)
        if missing is not None:
            crude = torch.zeros(found.shape[1], dtype=torch.bool, device=rows.device)
            crude[: len(self.levels)] = self.levels < CRUDE
            found = torch.where(missing.any(1, keepdim=True) & crude, -MOST, found)
        return found


class ImageModel(DenoisingModel):
    """How unlike others' an image's denoising errors are: Mahalanobis' distance of their logarithms.

    An image can be *too* easy to denoise: one that is smooth, or has less in it than those that were learned. So what
    counts is how far the errors at all noise levels lie from held-out images', to either side.
    """

    noise: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, *own: Any, **more: Any) -> None:
        super().__init__(*own, **more)
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("noise", torch.randn(DRAWS, self.stored.rows.shape[1], generator=generator))
        self.register_buffer("mean", torch.zeros(len(self.levels)))
        self.register_buffer("whitening", torch.eye(len(self.levels)))

    @property
    def learned_features(self) -> int:
        """The distance alone."""
        return 1

    def errors(self, flat: Tensor) -> Tensor:
        """Return log ‖x − D(x + σε, σ)‖²/d for each noise level, the mean over ε: ``(n, levels)``."""
        found = []
        for sigma in self.levels:
            levels = flat.new_ones((len(flat), 1)) * sigma
            errors = [(flat - self.denoiser(flat + sigma * noise, levels)).square().mean(1) for noise in self.noise]
            found.append(torch.stack(errors).mean(0))
        return (torch.stack(found, 1) + TINY).log()

    def learned_from(self, held_out: Tensor) -> Tensor:
        """Return :meth:`learned` for images held out of training, after learning their errors' mean and covariance."""
        errors = torch.cat([self.errors(self.flat(part)) for part in torch.split(held_out, PART)])
        found = errors.double()
        self.mean = found.mean(0).to(self.mean)
        covariance = torch.eye(found.shape[1], dtype=torch.float64) * SMALLEST_VARIANCE
        if len(found) > 1:
            covariance += torch.from_numpy(LedoitWolf().fit(found.cpu().numpy()).covariance_)
        self.whitening = torch.linalg.cholesky(torch.linalg.inv(covariance)).to(self.whitening)
        return self._distance(errors)

    def learned(self, flat: Tensor) -> Tensor:
        """Return Mahalanobis' distance of the errors, squared, a noise level: ``(n, 1)``, about 1 for normal images."""
        return self._distance(self.errors(flat))

    def _distance(self, errors: Tensor) -> Tensor:
        return ((errors - self.mean) @ self.whitening).square().mean(1, keepdim=True)
