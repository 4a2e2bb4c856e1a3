"""A denoiser at many noise levels, and stored rows: abnormal is what either cannot explain at some level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, InputSpec, Rows, evenly
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.denoising import PART, TINY, DenoisingModel, ImageModel, TableModel
from offmanifold.detectors.levelling import Levelling
from offmanifold.detectors.scorer import joined
from offmanifold.detectors.stored import CELLS, StoredRows
from offmanifold.networks.denoiser import DenseDenoiser, UNetDenoiser
from offmanifold.probability.distances import distance
from offmanifold.probability.missing import filled
from offmanifold.training.phases import Metrics, ParameterGroup, Phase, Update
from offmanifold.training.progress import Verbosity

# Noise levels, in standard deviations: the lowest is half the distance between neighbours, within bounds. The denoiser
# has a use for smaller levels than stored rows: there it sees how columns depend on each other, where they show the
# nearest row and no more. Noise in training goes up to LARGEST.
LEARNED_FROM, LEARNED, LARGEST = (0.01, 0.05), (0.39, 1.1), 3.0
STORED_LEVELS, STORED_FROM, STORED_TO = 3, (0.01, 0.2), 1.5
# Fewer stored rows are none: how far they lie from each other says nothing of what is normal.
FEWEST_STORED = 10
# Of images, whose smallest structures are far below their standard deviation.
IMAGE_LEVELS, IMAGE_SMALLEST = 8, 0.03
# Weights are averaged, and training ends after this share of its steps without better ones: on few rows, soon.
AVERAGE, PATIENCE = 0.99, 0.25
# Evaluations, at least, that the held-out rows' loss is the mean of: with few rows, more draws of noise.
JUDGED = 1000
# The noise level of reconstructions, unless another is asked for.
MODERATE = 0.4
# Rows from which the distance between neighbours is learned.
NEIGHBOURS_FROM = 500
# Cells of images stored at most: a thousand of them do as well as ten thousand (docs/defaults.md).
IMAGE_CELLS = 2**21
# Images smaller than this are for the dense network.
SMALLEST_PICTURE = 8


@final
class MultiscaleDenoiser(OutlierDetector):
    """Multi-scale denoiser: a row is abnormal where a denoiser cannot explain it at some noise level.

    Rows are judged from two sides. A network that was trained on all noise levels at once is asked what it would change
    in a row, ‖x − D(x, σ)‖², the slope of the energy, at three levels: half the distance between neighbours (within
    0.01 to 0.05 standard deviations), 0.39 and 1.1. And the energy of the training rows themselves under noise, a soft
    distance from the nearest of them, is taken at three levels from half that distance (within 0.01 to 0.2) to 1.5.
    Logarithms of all these are standardised by rows that were not learned from, and combined by log-mean-exp, for each
    side and over both: one that stands out is enough.

    Of images, the network is a U-Net and is asked otherwise. An image can be too easy to denoise as well as too hard:
    what counts is Mahalanobis' distance of the logarithms of its denoising errors, at eight noise levels from 0.03 to
    3, from those of images that were not learned from (as the multi-scale score matching of Mahmood et al., 2021, has
    it of score norms).

    Parameters
    ----------
    store_rows : bool
        Keep training rows (in the model file, too) to measure distances from, and some calibration rows for
        ``diagnose``. False leaves both out, where data must not travel.
    most_rows : int
        Keep at most so many of them; of images, two million pixels at most, too. Fewer than 10 are as good as none,
        and none are kept.
    network : {"auto", "resmlp", "unet"}
        "auto" is a U-Net for images of at least 8 pixels a side.
    hidden : sequence of int or "auto"
        Of "resmlp", one residual block an entry, all of one width. "auto" is (256, 256, 256).
    capacity : float
        Factor on the channels of the U-Net, of which there are 24 at full resolution.
    steps : int or "auto"
        "auto" is 600 for tables and 500 for images, fewer where the held-out rows gain nothing any more.
    learning_rate : float or "auto"
        Peak learning rate. "auto" is 1e-3, for tiny images 2e-3.
    precision : {"auto", "float32", "bfloat16"}
        As in :class:`~offmanifold.AE`, but tables are computed in float32 whatever it is.
    epochs, batch_size, optimizer, schedule, weight_decay, scale, false_alarm_rate, calibration_fraction, device, \
random_state, verbose
        As in :class:`~offmanifold.AE`.

    Notes
    -----
    The score is minus the combined evidence; its terms share it out between the two sides in the proportion in which
    they make it up.

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
    networks = ("resmlp", "unet")
    gaps = "learned"

    def __init__(
        self,
        *,
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
        store_rows: bool = True,
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
            store_rows=store_rows,
            device=device,
            precision=precision,
            random_state=random_state,
            verbose=verbose,
        )
        self.most_rows = most_rows

    @property
    def score_unit(self) -> str:
        """Minus the evidence, in spreads of normal rows."""
        return "spreads"

    def _settings(self, spec: InputSpec) -> Settings:
        settings = self._network_settings(
            spec,
            for_tables="resmlp",
            table_steps=600,
            table_rate=1e-3,
            image_steps=500,
            for_images=lambda shape: "unet" if min(shape[1:]) >= SMALLEST_PICTURE else "resmlp",
        )
        if settings["network"] == "unet" and spec.kind == "table":
            raise parameters.InvalidParameter("network='unet' takes images; the data are a table. Use 'resmlp'.")
        if self.hidden == "auto" and settings["network"] == "resmlp":
            settings["hidden"] = [256, 256, 256]
        if len(set(settings["hidden"])) != 1 and settings["network"] == "resmlp":
            raise parameters.InvalidParameter(
                f"hidden must be of one width, once for each block; got {tuple(settings['hidden'])}."
            )
        return settings | {"most_rows": parameters.integer("most_rows", self.most_rows, minimum=1)}

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        """Choose the noise levels, and where pixels lie."""
        settings |= {"stored": 0, "shift": 0.0, "unit": 1.0}
        if image := rows.ndim > 2:
            settings |= {"shift": float(rows.mean()), "unit": max(float(rows.std(correction=0)), 1e-3)}
            settings["most_rows"] = max(1, min(settings["most_rows"], IMAGE_CELLS // rows[0].numel()))
        rows = filled(rows[evenly(len(rows), settings["most_rows"])].flatten(1)) / settings["unit"]
        # The smallest distance is a row's to itself.
        nearest = [
            torch.cdist(part, rows).topk(min(2, len(rows)), largest=False).values[:, -1]
            for part in torch.split(rows[evenly(len(rows), NEIGHBOURS_FROM)], max(1, CELLS // len(rows)))
        ]
        half = float(torch.cat(nearest).median()) / rows.shape[1] ** 0.5 / 2

        smallest, stored = (min(max(half, low), high) for low, high in (LEARNED_FROM, STORED_FROM))
        of_images = np.geomspace(IMAGE_SMALLEST, LARGEST, IMAGE_LEVELS).tolist()
        settings["levels"] = of_images if image else [smallest, *LEARNED]
        settings["stored_levels"] = np.geomspace(stored, STORED_TO, STORED_LEVELS).tolist()

    def _build(self, spec: InputSpec, settings: Settings) -> DenoisingModel:
        if "stored_levels" not in settings:  # files of before format 5
            raise ValueError("it was saved by a version that compared rows with stored ones otherwise. Fit it again.")
        dimensions = math.prod(spec.shape)
        denoiser = (
            UNetDenoiser(spec.shape, settings["capacity"])
            if settings["network"] == "unet"
            else DenseDenoiser(dimensions, settings["hidden"])
        )
        made = ImageModel if spec.kind == "image" else TableModel
        stored = StoredRows(settings["stored"], dimensions, settings["stored_levels"])
        return made(denoiser, settings["levels"], stored, settings["shift"], settings["unit"])

    def _phases(self, model: DenoisingModel, settings: Settings) -> list[Phase]:
        low, high = math.log(settings["levels"][0]), math.log(LARGEST)

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            flat = model.flat(rows)
            sigma = flat.new_empty(len(flat), 1).uniform_(low, high, generator=generator).exp_()
            noise = torch.empty_like(flat).normal_(generator=generator)
            errors = model.denoiser.loss(flat, noise, sigma)
            return errors, {"denoising": errors.detach().mean()}

        def judge(held_out: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
            draws = math.ceil(JUDGED / len(held_out))
            many = held_out.repeat(draws, *[1] * (held_out.ndim - 1))
            errors = torch.cat([loss(part, generator)[0] for part in torch.split(many, PART)]).double()
            # Of the logarithm, as in the score: a few rows far off must not decide when to stop.
            return float((errors + TINY).log().mean()), {"held_out_denoising": float(errors.mean())}

        update = Update((ParameterGroup.of("denoiser", model.denoiser),), loss, self._optimizer(settings))
        steps, size = settings["steps"], settings["batch_size"]
        return [Phase("denoiser", (update,), steps, size, judge=judge, average=AVERAGE, patience=PATIENCE * steps)]

    def _finish(self, model: DenoisingModel, training: Tensor, held_out: Tensor, settings: Settings) -> None:
        """Store rows, and learn how the features of rows that were not learned from are distributed."""
        if settings["store_rows"]:
            # What the network was stopped by may well be known here.
            known = torch.cat([training, held_out])
            kept = evenly(len(known), settings["most_rows"])
            if len(kept) >= FEWEST_STORED:
                model.store(known[kept])
                settings["stored"] = len(kept)
        model.standardise(held_out)

    def _learn_levels(self, held_out: Tensor) -> Levelling | None:
        # The rows that levels are learned from may not find themselves among the stored ones.
        training = self.rows_["training"]
        kept = evenly(training + len(held_out), self.settings_["most_rows"])
        with self.module_.stored.first(int((kept < training).sum())):
            return super()._learn_levels(held_out)

    def _energy_terms(self, model: DenoisingModel, rows: Tensor) -> dict[str, Tensor]:
        return model.energies(rows)

    def _fit_report(self, rows: Rows, training: npt.NDArray[np.intp], held_out: npt.NDArray[np.intp]) -> dict[str, Any]:
        return {}  # stored rows are their own neighbours: their scores say nothing about the fit

    @property
    def stored_rows(self) -> int:
        """How many of the user's rows are part of the model: those that distances are measured from, too."""
        return super().stored_rows + int(self.settings_["stored"])

    def evidence(self, X: Any) -> Float64Array:
        """Return how abnormal each row is by each feature, in spreads of normal rows: ``(n, features)``.

        First the learned denoiser's: of tables what it would change, noise level by noise level, of images how unlike
        others' its errors are; then the distances from stored rows.
        """
        return joined(self._through(lambda model, rows: model.evidence(rows), self._fitted_rows(X)))

    def reconstruct(self, X: Any, *, sigma: float = MODERATE) -> Any:
        """Return D(x, σ): each row as the learned denoiser would have it, in the units and layout of ``X``.

        Pixels go from 0 to 1.

        Parameters
        ----------
        X : array-like
        sigma : float
            The noise level, in standard deviations.
        """
        parameters.real("sigma", sigma, above=0)
        rows = self._fitted_rows(X)
        parts = self._through(lambda model, part: model.denoise(part, sigma), rows)
        return self._restore(torch.cat([part.cpu() for part in parts]), rows.as_came)

    def reconstruction_errors(self, X: Any) -> Float64Array:
        """Return the mean squared difference between each row and D(x, 0.4), as the network sees them: ``(n,)``."""

        def errors(model: DenoisingModel, rows: Tensor) -> Tensor:
            return distance(rows, model.denoise(rows, MODERATE), "squared")

        return joined(self._through(errors, self._fitted_rows(X)))
