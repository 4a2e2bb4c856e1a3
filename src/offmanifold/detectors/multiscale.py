"""Denoisers at many noise levels, learned and empirical: abnormal is what either cannot explain at some level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, InputSpec, Rows, evenly
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings
from offmanifold.networks.denoiser import Denoiser
from offmanifold.probability.missing import completed, filled, missing_cells, share_seen, without
from offmanifold.training.phases import Metrics, ParameterGroup, Phase, Update
from offmanifold.training.progress import Verbosity

SCALES, LARGEST, SMALLEST = 7, 3.0, (0.01, 0.05)
DROPOUT = 0.1
# Draws of noise in the denoising error, the same for every row.
DRAWS = 4
# Where cells are missing, what the denoiser was given for them is off by more than any noise below this level: its
# errors there say nothing.
CRUDE = 0.4
# The noise level at which the denoiser is asked for missing cells: a mean that is off is noise of that size.
COMPLETING = 1.0
# Rows evaluated at a time, and distances to stored rows held at a time.
PART, CELLS = 256, 2**20
# Features beyond so many spreads of the held-out rows say no more.
MOST = 20.0
TINY = 1e-9
# Stored rows that standardise the empirical denoiser's features.
STANDARDISED = 2000
# Evaluations, at least, that the held-out rows' loss is the mean of: with few rows, more draws of noise.
JUDGED = 2000
# Rows from which the distance between neighbours is learned.
NEIGHBOURS_FROM = 500


class MultiscaleModel(nn.Module):
    """A denoiser, the training rows, and how the features of normal rows are distributed.

    Parameters
    ----------
    denoiser : Denoiser
    scales : sequence of float
        Noise levels in standard deviations of the data.
    stored : int
        Training rows kept for the empirical denoiser; 0 leaves it out.
    dimensions : int
    shift, unit : float
        Rows are shifted and divided by these first (images; 0 and 1 for standardised tables).
    """

    rows: Tensor
    noise: Tensor
    centre: Tensor
    spread: Tensor
    scales: Tensor

    def __init__(
        self, denoiser: Denoiser, scales: Sequence[float], stored: int, dimensions: int, shift: float, unit: float
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.shift, self.unit = shift, unit
        self.register_buffer("scales", torch.tensor(scales))
        self.register_buffer("rows", torch.zeros(stored, dimensions))
        noise = torch.randn(DRAWS, dimensions, generator=torch.Generator().manual_seed(1))
        self.register_buffer("noise", noise)
        features = 2 * len(scales) * (2 if stored else 1)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))

    def flat(self, rows: Tensor) -> Tensor:
        """Return rows ``(n, d)`` of about unit variance."""
        return (rows.flatten(1) - self.shift) / self.unit

    def denoise(self, rows: Tensor, scale: float) -> Tensor:
        """Return D(x, σ) ``(n, *shape)``; pixels within [0, 1]."""
        flat = self.completed(self.flat(rows))
        found = self._once(flat, scale)
        restored = (found * self.unit + self.shift).reshape(rows.shape)
        return restored.clamp(0, 1) if rows.ndim > 2 else restored

    def completed(self, flat: Tensor) -> Tensor:
        """Return rows with what the denoiser makes of them in missing cells."""
        return completed(flat, lambda rows: self._once(rows, COMPLETING))

    def _once(self, flat: Tensor, scale: float) -> Tensor:
        found: Tensor = self.denoiser(flat, flat.new_full((len(flat), 1), scale))
        return found

    def learned(self, flat: Tensor) -> Tensor:
        """Return ‖x − D(x, σ)‖²/(dσ²) and the mean ‖x − D(x + σε, σ)‖²/d of each scale: ``(n, 2 · scales)``."""
        found = []
        missing, share = missing_cells(flat), share_seen(flat)
        flat = self.completed(flat)
        for sigma in self.scales:
            scale = 1 + sigma**2
            levels = flat.new_ones((len(flat), 1)) * sigma
            # x − D without subtracting D from x: at small σ they are nearly equal.
            residual = flat * sigma / scale - self.denoiser.network(flat, levels) / scale.sqrt()
            errors = []
            for noise in self.noise:
                network = self.denoiser.network(flat + sigma * noise, levels)
                errors.append((flat * sigma**2 - sigma * noise) / scale - sigma / scale.sqrt() * network)
            both = without(missing, residual.square()), without(missing, torch.stack(errors).square())
            found += [both[0].mean(1) / share, both[1].mean((0, 2)) / share]
        return torch.stack(found, 1)

    def empirical(self, flat: Tensor, own: Tensor | None = None) -> Tensor:
        """Return the same of the exact denoiser of the stored rows: ``(n, 2 · scales)``.

        ‖x − m‖²/d and the weighted mean of ‖x − xᵢ‖²/d, with m the stored rows' mean under weights
        exp(−‖x − xᵢ‖²/2σ²): for σ → 0 both are the distance to the nearest neighbour. Where the rows are stored ones,
        ``own`` ``(n,)`` says at which place, and each is left out of its own neighbours.
        """
        parts = []
        squares = self.rows.square().sum(1)
        # One product gives the weights' sums as well as the weighted means.
        stored = torch.cat([self.rows, self.rows.new_ones(len(self.rows), 1)], 1)
        size = max(1, CELLS // len(self.rows))
        for start in range(0, len(flat), size):
            whole = flat[start : start + size]
            missing, share = missing_cells(whole), share_seen(whole).reshape(-1, 1)
            part = filled(whole)
            distances = torch.addmm(squares, part, self.rows.T, alpha=-2)
            if missing is not None:
                distances.addmm_(missing.to(part.dtype), self.rows.square().T, alpha=-1)
            distances.add_(part.square().sum(1, keepdim=True)).clamp_(min=0).div_(share)
            if own is not None:
                here = own[start : start + size, None]
                distances = distances.scatter(1, here, distances.amax(1, keepdim=True).clamp(min=1e12))
            exponents = distances.amin(1, keepdim=True) - distances
            found = []
            for sigma in self.scales:
                weights = (exponents / (2 * sigma**2)).exp_()
                sums = weights @ stored
                total = sums[:, -1]
                residual = without(missing, (part - sums[:, :-1] / total[:, None]).square()).mean(1) / share[:, 0]
                found += [residual, torch.linalg.vecdot(weights, distances) / total / part.shape[1]]
            parts.append(torch.stack(found, 1))
        return torch.cat(parts)

    def features(self, rows: Tensor) -> Tensor:
        """Return the logarithms of all errors ``(n, features)``."""
        flat = self.flat(rows)
        parts = [self.learned(flat)] + ([self.empirical(flat)] if len(self.rows) else [])
        return (torch.cat(parts, 1) + TINY).log()

    def evidence(self, rows: Tensor) -> Tensor:
        """Return how many spreads each feature lies above the held-out rows' median: ``(n, features)``."""
        found = ((self.features(rows) - self.centre) / self.spread).clamp(-MOST, MOST)
        missing = missing_cells(rows)
        if missing is not None:
            crude = torch.zeros(found.shape[1], dtype=torch.bool, device=rows.device)
            crude[: 2 * len(self.scales)] = (self.scales < CRUDE).repeat_interleave(2)
            found = torch.where(missing.any(1, keepdim=True) & crude, -MOST, found)
        return found


@final
class MultiscaleDenoiser(OutlierDetector):
    """Multi-scale denoiser: a row is abnormal where a denoiser cannot explain it at some noise level.

    Two denoisers are asked at seven noise levels: a network trained on all levels at once, and the exact one of the
    training rows themselves, whose limit is the nearest neighbour. Each gives the residual ‖x − D(x)‖² and the error
    of denoising; their logarithms are standardised by rows held out of training, and combined by log-mean-exp: one
    that stands out is enough. Noise levels reach from the distance between neighbours (0.01 to 0.05 standard
    deviations) to 3.

    Parameters
    ----------
    store_rows : bool
        Keep the training rows (in the model file, too) for the empirical denoiser. False leaves that part out, where
        data must not travel.
    most_rows : int
        Keep at most so many of them.
    hidden : sequence of int or "auto"
        One residual block an entry, all of one width. "auto" is (256, 256, 256).
    network : {"auto", "resmlp"}
    steps : int or "auto"
        "auto" is 1 500 for tables.
    capacity
        Not used.
    epochs, batch_size, learning_rate, optimizer, schedule, weight_decay, scale, false_alarm_rate, \
calibration_fraction, device, precision, random_state, verbose
        As in :class:`~offmanifold.AE`.

    Notes
    -----
    The score is minus the combined evidence; its terms share it out between the two denoisers in the proportion in
    which they make it up.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import MultiscaleDenoiser
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(500, 3))
    >>> detector = MultiscaleDenoiser(random_state=0, steps=200, verbose=False).fit(X)
    >>> detector.predict([[1.0, 2.0, -1.0], [1.0, -2.0, 1.0]]).tolist()
    [1, -1]
    """

    key = "multiscale-denoiser"
    gaps = "learned"

    def __init__(
        self,
        *,
        store_rows: bool = True,
        most_rows: int = 50_000,
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 1.0,
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 256,
        learning_rate: float | str = "auto",
        optimizer: str = "adamw",
        schedule: str = "one-cycle",
        weight_decay: float = 0.01,
        scale: str | None = "standard",
        false_alarm_rate: float = 0.05,
        calibration_fraction: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: Verbosity = "auto",
    ) -> None:
        super().__init__(
            network=network,
            hidden=hidden,
            capacity=capacity,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            schedule=schedule,
            weight_decay=weight_decay,
            scale=scale,
            false_alarm_rate=false_alarm_rate,
            calibration_fraction=calibration_fraction,
            device=device,
            precision=precision,
            random_state=random_state,
            verbose=verbose,
        )
        self.store_rows = store_rows
        self.most_rows = most_rows

    @property
    def score_unit(self) -> str:
        """Minus the evidence, in spreads of the held-out rows."""
        return "spreads"

    def _settings(self, spec: InputSpec) -> Settings:
        parameters.choice("network", self.network, ("auto", "resmlp"))
        if not isinstance(self.store_rows, bool | np.bool_):
            raise TypeError(f"store_rows must be True or False; got {self.store_rows!r}.")
        settings = self._network_settings(
            spec, for_tables="resmlp", table_steps=1500, table_rate=1e-3, for_images=lambda shape: "resmlp"
        )
        if isinstance(self.hidden, str):
            settings["hidden"] = [256, 256, 256]
        if len(set(settings["hidden"])) != 1:
            raise ValueError(f"hidden must be of one width, once for each block; got {tuple(settings['hidden'])}.")
        return settings | {
            "store_rows": bool(self.store_rows),
            "most_rows": parameters.integer("most_rows", self.most_rows, minimum=1),
        }

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        """Choose the scales, and where pixels lie."""
        flat = rows.flatten(1)
        shift, unit = 0.0, 1.0
        if rows.ndim > 2:
            shift, unit = float(flat.mean()), max(float(flat.std(correction=0)), 1e-3)
        flat = filled((flat[evenly(len(flat), settings["most_rows"])] - shift) / unit)
        # The smallest distance is a row's to itself.
        nearest = [
            torch.cdist(part, flat).topk(min(2, len(flat)), largest=False).values[:, -1]
            for part in torch.split(flat[evenly(len(flat), NEIGHBOURS_FROM)], max(1, CELLS // len(flat)))
        ]
        neighbour = float(torch.cat(nearest).median()) / flat.shape[1] ** 0.5
        smallest = min(max(neighbour, SMALLEST[0]), SMALLEST[1])
        settings |= {
            "shift": shift,
            "unit": unit,
            "scales": np.geomspace(smallest, LARGEST, SCALES).tolist(),
            "stored": 0,
        }

    def _build(self, spec: InputSpec, settings: Settings) -> MultiscaleModel:
        dimensions = math.prod(spec.shape)
        return MultiscaleModel(
            Denoiser(dimensions, settings["hidden"], DROPOUT),
            settings["scales"],
            settings["stored"],
            dimensions,
            settings["shift"],
            settings["unit"],
        )

    def _phases(self, model: MultiscaleModel, settings: Settings) -> list[Phase]:
        low, high = math.log(settings["scales"][0]), math.log(LARGEST)

        def judge(held_out: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
            draws = math.ceil(JUDGED / len(held_out))
            many = held_out.repeat(draws, *[1] * (held_out.ndim - 1))
            errors = torch.cat([loss(part, generator)[0] for part in torch.split(many, 10 * PART)])
            return float(errors.double().mean()), {}

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            flat = model.flat(rows)
            sigma = flat.new_empty(len(flat), 1).uniform_(low, high, generator=generator).exp_()
            noise = torch.empty_like(flat).normal_(generator=generator)
            errors = model.denoiser.loss(flat, noise, sigma, generator if model.training else None)
            return errors, {"denoising": errors.detach().mean()}

        update = Update((ParameterGroup.of("denoiser", model.denoiser),), loss, self._optimizer(settings))
        return [Phase("denoiser", (update,), settings["steps"], settings["batch_size"], judge=judge)]

    def _finish(self, model: MultiscaleModel, training: Tensor, held_out: Tensor, settings: Settings) -> None:
        """Store rows, and learn how the features of rows that were not trained on are distributed."""
        if settings["store_rows"]:
            kept = evenly(len(training), settings["most_rows"])
            stored = model.flat(training[kept])
            model.rows = torch.cat([model.completed(part) for part in torch.split(stored, PART)]).contiguous()
            settings["stored"] = len(kept)
        parts = [torch.cat([model.learned(model.flat(part)) for part in torch.split(held_out, PART)])]
        if settings["stored"]:
            # Each stored row against all others: as good as rows held out, and there are more of them.
            some = torch.from_numpy(evenly(settings["stored"], STANDARDISED)).to(training.device)
            parts.append(model.empirical(model.rows[some], some))
        at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=training.device)
        found = [(part + TINY).log().double().quantile(at, dim=0) for part in parts]
        low, middle, high = torch.cat(found, 1)
        model.centre = middle.float()
        model.spread = ((high - low) / 2.56 + 1e-3).float()

    def _energy_terms(self, model: MultiscaleModel, rows: Tensor) -> dict[str, Tensor]:
        evidence = model.evidence(rows)
        energy = evidence.logsumexp(1) - math.log(evidence.shape[1])
        share = evidence.softmax(1)[:, : 2 * SCALES].sum(1)
        terms = {"learned": energy * share}
        if len(model.rows):
            terms["empirical"] = energy * (1 - share)
        return terms

    def _fit_report(self, rows: Rows, training: npt.NDArray[np.intp], held_out: npt.NDArray[np.intp]) -> dict[str, Any]:
        # Stored rows are their own neighbours: their scores say nothing about the fit.
        return {"rows_in_the_model_file": self.settings_["stored"]}

    def evidence(self, X: Any) -> Float64Array:
        """Return how abnormal each row is by each feature, in spreads of the held-out rows: ``(n, 14 or 28)``.

        For each noise level in turn the learned denoiser's residual and denoising error, then the empirical one's.
        """
        rows = self._fitted_rows(X)
        with torch.no_grad():
            parts = [self.module_.evidence(part)[:real].double().cpu() for part, real in self._passes(rows)]
        return torch.cat(parts).numpy()

    def reconstruct(self, X: Any, *, sigma: float = 0.4) -> Any:
        """Return D(x, σ): each row as the learned denoiser would have it, in the units and layout of ``X``.

        Parameters
        ----------
        X : array-like
        sigma : float
            The noise level, in standard deviations.
        """
        check_is_fitted(self, "module_")
        parameters.real("sigma", sigma, above=0)
        with torch.no_grad():
            parts = [
                self.module_.denoise(part, sigma)[:real].cpu() for part, real in self._passes(self._fitted_rows(X))
            ]
        return self._restore(torch.cat(parts))
