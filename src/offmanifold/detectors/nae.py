"""The Normalized Autoencoder: an autoencoder whose reconstruction error is a normalised energy (P3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec, evenly
from offmanifold.detectors import presets
from offmanifold.detectors.autoencoder import check_autoencoder, noise_range, noised, unit_of
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.chains import (
    SAMPLING_FACTOR,
    Chain,
    Range,
    accepted,
    accepted_half,
    chain_bounds,
    chain_settings,
    check_replay,
    check_starts,
    families_to_watch,
    holes,
    noise_within,
    settle_bounds,
    warn_of_acceptance,
    warn_of_bounds,
)
from offmanifold.detectors.configured import Settings, latent_size
from offmanifold.detectors.contrastive import contrastive_phase, dequantised, sum_of_squares, untold
from offmanifold.detectors.density import GridDensityMixin
from offmanifold.detectors.explanations import Cells
from offmanifold.detectors.latent import LatentMixin
from offmanifold.detectors.normalized_autoencoder import (
    NormalizedAutoencoder,
    on_manifold,
    training_chain,
    visible_chain,
    without_data,
)
from offmanifold.networks import choose
from offmanifold.probability.distances import distance, parts
from offmanifold.probability.missing import filled
from offmanifold.sampling.starts import FromData, OnManifold
from offmanifold.training.phases import Loss, Metrics, ParameterGroup, Phase, Update
from offmanifold.training.precision import ordinary
from offmanifold.training.progress import Verbosity

NEGATIVES = ("omi", "cd", "pcd", "pcd-restart")
AUTO = ("auto",)
# A learned log T has a rate of its own: P3's is 1e-3, 100 times the weights' (appendix D.3); ten times that finds T in
# hundreds of steps instead of thousands, whatever the weights' rate.
TEMPERATURE_RATE = 1e-2
# Codes of training rows that stay with a model whose chains on z start at such: those of samples, too.
KEPT_CODES = 256
# Share of chains that start anew: the paper's, and where that is at codes of data (docs/defaults.md).
RESTART, RESTART_AT_CODES = 0.05, 0.5


@final
class NAE(LatentMixin, GridDensityMixin, OutlierDetector):
    """Normalized Autoencoder: rows off the manifold may not be reconstructed either (P3).

    A plain autoencoder reconstructs much that it never saw. This one is a density, p(x) = exp(−E(x)/T)/Ω with E the
    reconstruction error: after a phase as an autoencoder, chains look for what it reconstructs too well, and training
    raises the error there. The score is minus the error, at the cost of one pass.

    Training is watched: at every check, weights (their running average) are judged by the AUROC against synthetic
    outliers made from held-out normal rows, and the best are kept. Training stops where three quarters of its steps
    brought no better ones, and a run that diverges, or no longer reconstructs, goes back to the best and on at half the
    rate. ``history_`` says what happened, ``offmanifold.detectors.contrastive.watching`` has the rule in full.

    Parameters
    ----------
    preset : {"auto", "images", "tables", "2d", "mnist", "cifar10", "celeba"}
        What every "auto" below means. "auto" is "images" or "tables", measured for minutes on a laptop; the last four
        follow P3, for a GPU: chains, steps and rates are its own, but for batches of 128 everywhere, and for "2d" ten
        times the rate of the temperature, bounds of at least ±4 and latent chains from data; those of colour images are
        dequantised in training.
    negatives : {"omi", "cd", "pcd", "pcd-restart"}
        Where chains start: on the decoder's manifold (a chain on z, from a replay buffer of z, comes first); at the
        data; where the batch before's ended ("pcd"), or at ends of many earlier ones, with restarts. Chains on z that
        are not from the buffer start from the latent space's prior; with preset "2d" at codes of data, which follow no
        prior.
    latent_dim : int or "auto"
        Size of the code. "auto" is three quarters of a table's columns, 32 for grey images, 64 for those in colour; 3
        for "2d".
    latent : {"auto", "euclidean", "sphere"}
        Where codes live. "auto" is the sphere for images.
    network : str
        As in :class:`~offmanifold.AE`, but for images of 28 × 28 "auto" takes P3's Conv28, with its presets also
        Conv32 and Conv64 for images of their sizes, and with preset "2d" its FCRes2.
    hidden : sequence of int or "auto"
        As in :class:`~offmanifold.AE`; (256, 1024) for "fcres2".
    capacity : float or "auto"
        Factor on the channels of convolutional networks. "auto" is 0.5, 1 in the paper.
    distance : {"squared", "l1", "ssim"}
    temperature : float, "learned" or "auto"
        T. "auto" is 1, with preset "2d" "learned". Where the chain on x has another σ² than 2λ, as in the paper's on
        images and in ours on tables, T is 1 and means nothing by itself.
    latent_chain : (int, float, float) or "auto"
        Steps, step size λ and noise σ of the chain on z. "auto" is (10, 0.2, 0.05) for grey images, (10, 1, 0.02) for
        those in colour, (10, 0.005, 0.1) for tables.
    visible_chain : (int, float, float) or "auto"
        The same of the chain on x. "auto" is (15, 0.0128 d, 0.05) for rows of d dimensions, (15, 0.00326 d, 0.02) for
        images in colour: λ = 10 for MNIST and for CIFAR-10.
    adjusted : bool or "auto"
        Metropolis's correction in the chain on x. Proposals out of bounds are then refused instead of clamped. "auto"
        is True with preset "2d" alone.
    bounds : (float, float) or "auto"
        Where x may go, in the units the network sees. "auto": [0, 1] for images; for tables ±4, or the largest absolute
        value among the training rows where that is more.
    replay_size : int
        0 starts every chain anew.
    restart : float or "auto"
        Share of the chains that start anew, where they do ("omi" and "pcd-restart"). "auto" is 0.05, as in the paper,
        and 0.5 where that is at codes of data.
    energy_penalty : float
        α on the negatives' squared energy.
    encoder_penalty : float or "auto"
        Factor on the sum of the encoder's squared weights. "auto" is 1e-4 for images, 0 for tables.
    noise : float, (float, float) or "auto"
        Standard deviation of the noise that the autoencoder learns to undo in the first phase, as in
        :class:`~offmanifold.AE`. "auto" is (0.05, 3) for tables, and 0 for images, as in the paper.
    latent_penalty : float
        Factor on the squared norm of data's codes, which keeps them where a euclidean prior is (P3 §6.1, which gives no
        number; 0 in its presets here).
    updates_per_chain : int or "auto"
        Updates of the weights against the samples of one run of the chains, each on fresh rows. "auto" is 8 for images,
        4 for tables, 1 in the paper.
    average : float or "auto"
        Factor of the weights' running average, taken once a step; 0 keeps raw weights. "auto" is 0.985, 0 in the paper.
    watch : str, sequence of str, "auto" or None
        Families of synthetic outliers that judge training: for images "constant", "erased", "mixed", "noise",
        "patches", "inverted", in colour also "blurred" and "faded"; for tables "permuted", "exchanged", "jittered",
        "stretched". "auto" is all of these; the other makers of ``offmanifold.data.outliers`` can be named too.
        Leave out what you will report; with none at all (None) the last weights are kept.
    pretraining_steps : int or "auto"
        Steps of the first phase: "auto" is 5 000 for images, 500 for tables.
    pretraining_rate : float or "auto"
        Its peak learning rate. "auto" is 1e-3 for images, 2e-3 for tables.
    steps : int or "auto"
        Of training against samples, at most, a step for each run of the chains. "auto" is 240 for images, 480 for those
        in colour, 60 for tables.
    epochs : int, optional
        The same as passes over the training rows, of which a step takes ``updates_per_chain`` batches; wins over
        ``steps``.
    learning_rate : float or "auto"
        Peak learning rate of training against samples. "auto" is 5e-5 for images, 2e-4 for tables.
    schedule : {"auto", "one-cycle", "constant", "cosine"}
        "auto" is one-cycle, constant in the paper. The first phase goes by it, too.
    batch_size, optimizer, weight_decay, scale, false_alarm_rate, calibration_fraction, store_rows, \
device, precision, random_state, verbose
        As in :class:`~offmanifold.AE`.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import NAE
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(500, 3))
    >>> detector = NAE(random_state=0, verbose=False).fit(X)
    >>> detector.predict([[1.0, 2.0, -1.0], [1.0, -2.0, 1.0]]).tolist()
    [1, -1]
    """

    key = "nae"
    gaps = "scored"

    def __init__(
        self,
        *,
        preset: str = "auto",
        negatives: str = "omi",
        latent_dim: int | str = "auto",
        latent: str = "auto",
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float | str = "auto",
        distance: str = "squared",
        temperature: float | str = "auto",
        latent_chain: Sequence[float] | str = "auto",
        visible_chain: Sequence[float] | str = "auto",
        adjusted: bool | str = "auto",
        bounds: Range | str = "auto",
        replay_size: int = 10_000,
        restart: float | str = "auto",
        energy_penalty: float = 1.0,
        encoder_penalty: float | str = "auto",
        noise: float | Sequence[float] | str = "auto",
        latent_penalty: float = 0.0,
        updates_per_chain: int | str = "auto",
        average: float | str = "auto",
        watch: Sequence[str] | str | None = "auto",
        pretraining_steps: int | str = "auto",
        pretraining_rate: float | str = "auto",
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float | str = "auto",
        optimizer: str = "adam",
        schedule: str = "auto",
        weight_decay: float = 0.0,
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
        self.preset = preset
        self.negatives = negatives
        self.latent_dim = latent_dim
        self.latent = latent
        self.distance = distance
        self.temperature = temperature
        self.latent_chain = latent_chain
        self.visible_chain = visible_chain
        self.adjusted = adjusted
        self.bounds = bounds
        self.replay_size = replay_size
        self.restart = restart
        self.energy_penalty = energy_penalty
        self.encoder_penalty = encoder_penalty
        self.noise = noise
        self.latent_penalty = latent_penalty
        self.updates_per_chain = updates_per_chain
        self.average = average
        self.watch = watch
        self.pretraining_steps = pretraining_steps
        self.pretraining_rate = pretraining_rate

    @property
    def score_unit(self) -> str:
        """Minus the mean over dimensions of this."""
        return unit_of(self)

    # --- settings --------------------------------------------------------------------------------------

    def _settings(self, spec: InputSpec) -> Settings:
        table = spec.kind == "table"
        preset = presets.resolve(self.preset, spec)

        def auto(argument: str) -> Any:
            value = getattr(self, argument)
            return preset[argument] if isinstance(value, str) and value == "auto" else value

        parameters.choice("negatives", self.negatives, NEGATIVES)
        if self.negatives.startswith("pcd") and self.replay_size == 0:
            raise parameters.InvalidParameter(
                f"negatives={self.negatives!r} goes on from the replay buffer, which replay_size=0 leaves out. "
                "Use a larger one, or negatives='cd'."
            )
        latent, latent_dim = auto("latent"), latent_size(auto("latent_dim"), spec)
        check_autoencoder(self.distance, latent, latent_dim, table=table)
        latent_penalty = parameters.real("latent_penalty", self.latent_penalty, minimum=0)
        if latent == "sphere" and latent_penalty:
            raise parameters.InvalidParameter(
                f"latent_penalty={self.latent_penalty!r} has nothing to act on: codes on the sphere have norm 1. "
                "Use 0, or latent='euclidean'."
            )
        updates_per_chain = parameters.integer("updates_per_chain", auto("updates_per_chain"), words=AUTO)
        starts_at_codes = latent == "euclidean" and preset["starts_at_codes"]
        restart = self.restart
        if isinstance(restart, str) and restart == "auto":
            restart = RESTART_AT_CODES if starts_at_codes and self.negatives == "omi" else RESTART
        temperature = auto("temperature")
        if temperature != "learned":
            # What float32 holds with room for what is divided by it.
            temperature = parameters.real(
                "temperature", temperature, minimum=1e-30, maximum=1e30, words=("learned", "auto")
            )
        adjusted = auto("adjusted")
        if not isinstance(adjusted, bool | np.bool_):
            raise parameters.InvalidParameter(f"adjusted must be True, False or 'auto'; got {adjusted!r}.")
        chain = chain_settings("visible_chain", auto("visible_chain"), fewest=1)
        if adjusted and chain[2] == 0:
            raise parameters.InvalidParameter("visible_chain[2], the noise, must be above 0 with adjusted=True; got 0.")
        network = self._network_settings(
            spec,
            for_tables=preset["network"],
            table_steps=preset["steps"],
            table_rate=preset["rate"],
            image_steps=preset["steps"],
            image_rate=preset["rate"],
            for_images=lambda _: str(preset["network"]),
        )
        return {
            "negatives": self.negatives,
            "latent_dim": latent_dim,
            "latent": latent,
            "distance": self.distance,
            "temperature": temperature,
            "latent_chain": chain_settings("latent_chain", auto("latent_chain"), fewest=0),
            "visible_chain": chain,
            "anneal": preset["anneal"] and not bool(adjusted),  # smaller noise at the same step size is hardly accepted
            "clip": preset["clip"],
            "adjusted": bool(adjusted),
            "bounds": chain_bounds(self.bounds, table),
            "replay_size": parameters.integer("replay_size", self.replay_size, minimum=0),
            "starts_at_codes": starts_at_codes,
            "restart": parameters.real("restart", restart, minimum=0, maximum=1, words=AUTO),
            "energy_penalty": parameters.real("energy_penalty", self.energy_penalty, minimum=0),
            "encoder_penalty": parameters.real("encoder_penalty", auto("encoder_penalty"), minimum=0, words=AUTO),
            "noise": noise_range(self.noise, preset["noise"]),
            "latent_penalty": latent_penalty,
            "updates_per_chain": updates_per_chain,
            "batches_a_step": updates_per_chain,
            "average": parameters.real("average", auto("average"), minimum=0, below=1, words=AUTO),
            "watch": families_to_watch(self.watch, spec.kind, colour=spec.colour),
            "pretraining_steps": parameters.integer(
                "pretraining_steps", auto("pretraining_steps"), minimum=0, words=AUTO
            ),
            "pretraining_rate": parameters.real("pretraining_rate", auto("pretraining_rate"), above=0, words=AUTO),
            **network,
            "capacity": parameters.real("capacity", auto("capacity"), above=0, words=AUTO),
            "schedule": auto("schedule"),
            "dequantise": preset["dequantise"] and not table,
        }

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        settle_bounds(rows, settings)
        check_replay(rows, settings)
        check_starts(rows, settings)

    # --- model and training ----------------------------------------------------------------------------

    def _build(self, spec: InputSpec, settings: Settings) -> NormalizedAutoencoder:
        encoder, decoder = choose.build(
            settings["network"],
            spec.shape,
            into_latent=settings["latent_dim"],
            latent_dim=settings["latent_dim"],
            hidden=settings["hidden"],
            capacity=settings["capacity"],
        )
        return NormalizedAutoencoder(
            encoder,
            decoder,
            latent=settings["latent"],
            sigmoid=spec.kind == "image",
            kind=settings["distance"],
            temperature=settings["temperature"],
            kept_codes=(kept, settings["latent_dim"]) if (kept := settings.get("kept_codes")) else None,
        )

    def _phases(self, model: NormalizedAutoencoder, settings: Settings) -> list[Phase]:
        penalty = sum_of_squares(model.encoder)
        factor = settings["encoder_penalty"]

        def weight_penalty() -> Tensor:
            scaled: Tensor = factor * penalty()
            return scaled

        noise, norm_factor = settings["noise"], settings["latent_penalty"]

        def norm_penalty(rows: Tensor) -> Tensor:
            scaled: Tensor = norm_factor * model.encode(rows).square().sum(1)
            return scaled

        dequantise = dequantised if settings["dequantise"] else None

        def reconstruction(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            if dequantise is not None:
                rows = dequantise(rows, generator)
            errors = distance(rows, model.reconstruct(noised(rows, noise, generator)), settings["distance"])
            metrics: Metrics = {"reconstruction": errors.detach().mean()}
            if factor:
                errors = errors + weight_penalty()
            if norm_factor:
                errors = errors + norm_penalty(rows)
            return errors, metrics

        def of_the_mean(rows: Tensor) -> Tensor:
            return distance(rows, rows.mean(0).expand_as(rows), settings["distance"])

        networks = (ParameterGroup.of("encoder", model.encoder), ParameterGroup.of("decoder", model.decoder))
        phases = []
        if settings["pretraining_steps"]:
            optimizer = self._optimizer({**settings, "learning_rate": settings["pretraining_rate"]})
            pretraining: Loss = reconstruction
            phases.append(
                Phase(
                    "autoencoder",
                    (Update(networks, pretraining, optimizer),),
                    settings["pretraining_steps"],
                    settings["batch_size"],
                    remedy="Try a smaller pretraining_rate, or precision='float32'.",
                )
            )
        groups: tuple[ParameterGroup, ...] = networks
        if settings["temperature"] == "learned":
            scale = TEMPERATURE_RATE / settings["learning_rate"]
            groups = (*networks, ParameterGroup("temperature", (model.log_temperature,), scale, decays=False))
        phases.append(
            contrastive_phase(
                "normalisation",
                energy=model.energy,
                chain=training_chain(model, settings, self._network_spec.shape),
                groups=groups,
                optimizer=self._optimizer(settings),
                steps=settings["steps"],
                batch_size=settings["batch_size"],
                average=settings["average"],
                watch=settings["watch"],
                negative_penalty=settings["energy_penalty"],
                weight_penalty=weight_penalty if factor else None,
                row_penalty=norm_penalty if norm_factor else None,
                updates_per_chain=settings["updates_per_chain"],
                temperature=model.temperature,
                of_the_mean=of_the_mean if self._network_spec.kind == "image" else None,
                noisy=dequantise,
            )
        )
        return phases

    def _finish(self, model: NormalizedAutoencoder, training: Tensor, held_out: Tensor, settings: Settings) -> None:
        if settings["starts_at_codes"] and settings["store_rows"]:
            kept = training[torch.from_numpy(evenly(len(training), KEPT_CODES)).to(training.device)]
            model.codes, settings["kept_codes"] = model.encode(kept), len(kept)

    @property
    def stored_rows(self) -> int:
        """How many of the user's rows are part of the model: those whose codes are kept, too."""
        return super().stored_rows + int(self.settings_.get("kept_codes", 0))

    def _energy_terms(self, model: NormalizedAutoencoder, rows: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": model.energy(rows)}

    def _energy_cells(self, model: NormalizedAutoencoder, rows: Tensor) -> Cells | None:
        if model.kind == "ssim":
            return None
        return Cells(parts(rows, model.reconstruct(rows), model.kind))

    # --- samples ---------------------------------------------------------------------------------------

    @ordinary()
    def sample(
        self,
        n: int,
        *,
        latent_steps: int | None = None,
        visible_steps: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Any:
        """Draw ``n`` rows from the model, in the user's units and layout; pixels go from 0 to 1.

        A latent chain from the prior, eight times as long as in training, then the chain on x (P3, appendix D.3). With
        preset "2d" the latent chain starts at codes of training rows, of which 256 are part of the model; with
        ``store_rows=False`` there are none, and it starts from the prior.

        Parameters
        ----------
        n : int
        latent_steps, visible_steps : int, optional
            Other lengths of the two chains. 0 leaves one out: with no chain on x the decoded ends of the latent chain
            come back, with neither the decoded starts (P3, Fig. 7).
        random_state : int or RandomState, optional
            Up to 256 rows, the same one begins with the same codes, whatever the lengths.
        """
        check_is_fitted(self, "module_")
        parameters.integer("n", n)
        chain = self._fresh_chain(SAMPLING_FACTOR)
        if latent_steps is not None:
            chain.start.steps = parameters.integer("latent_steps", latent_steps, minimum=0)
        if visible_steps is not None:
            chain.steps = parameters.integer("visible_steps", visible_steps, minimum=0)
        generator = self._generator(random_state)
        # Starts on the manifold need to know how many, and nothing else.
        return self._restore(
            chain.samples(generator, n, lambda k: torch.empty(k, 1, device=self._device), self.module_.energy)
        )

    def _fresh_chain(self, factor: int) -> Chain[OnManifold]:
        """Return the chain without a memory: from fresh codes, the latent chain ``factor`` times as long."""
        start = on_manifold(self.module_, self.settings_, without_data(self.module_, self.settings_))
        start.steps *= factor
        return visible_chain(self.module_, self.settings_, start)

    def training_remarks(self) -> list[tuple[str, str]]:
        """Say where synthetic outliers are hardly told, or the chains' samples are more normal than the data."""
        advice = "Make pretraining_steps and steps larger, or choose another network or detector."
        found = []
        if self.spec_.kind == "image":
            told = untold(self.training_summary(), self.rows_["stopping"])
            # Chains that start elsewhere do not reach what lies off the data.
            found.append((told, advice if self.settings_["negatives"] == "omi" else f"Use negatives='omi'. {advice}"))
        # Chains that begin at data only go down from there; those on tables sample far below the model's temperature,
        # and those that stood still say nothing of holes.
        if self.settings_["negatives"] != "cd" and (self.spec_.kind == "image" or self.settings_["adjusted"]):
            found.append((holes(self.history_) if accepted(self.history_) else None, advice))
        return [(told, advice) for told, advice in found if told is not None]

    def _warn_about_training(self, normal: Tensor) -> None:
        """Say so where adjusted chains stood still or others left."""
        if not self.settings_["adjusted"]:
            warn_of_bounds(self.history_, self.settings_, normal)
            return
        rows, generator = filled(normal[:128].to(self._device)), self._generator(0)
        if self.settings_["negatives"].startswith("pcd"):  # chains that began at noise go on
            rows = noise_within(self.settings_["bounds"])(generator, rows)
        start = FromData() if self.settings_["negatives"] != "omi" else self._fresh_chain(1).start
        chain = visible_chain(self.module_, self.settings_, start)
        warn_of_acceptance(self.history_, lambda: accepted_half(chain, generator, rows, self.module_.energy))
