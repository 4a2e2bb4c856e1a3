"""The variational autoencoder that is told what not to model (P1)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec, evenly
from offmanifold.detectors import negatives as sources
from offmanifold.detectors.chains import chain_settings
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.variational import VariationalDetector, gamma_metric, generative_groups
from offmanifold.detectors.variational_autoencoder import VariationalAutoencoder
from offmanifold.probability import bounds
from offmanifold.probability.divergences import kl_between_normals, kl_to_standard_normal
from offmanifold.probability.likelihoods import Mixed
from offmanifold.training.phases import Judge, Metrics, Phase, Unfit, Update
from offmanifold.training.progress import Verbosity

LOSSES = ("prior", "eubo")
# Sources that the model makes, and that change with it.
MOVING = ("adversarial", "hard")
# Training that is best so early has kept nothing of what it learned about its own samples.
EARLY = 1 / 3
# Rows that the judge looks at, of each kind.
JUDGED = 512
# Samples that vary by less than the first share of what the data vary by, having varied by the second, are all alike;
# an error above the second share of the data's variance, having been below the first, reconstructs nothing.
ALIKE = (0.02, 0.25)
LOST = (0.75, 1.0)
# On tables what a model makes lies among the data, and is pulled less far than what a user knows to be abnormal.
TABLE_SHIFT, TABLE_SHIFT_GIVEN = 2.0, 8.0
# Encoder and decoder chase each other: momentum and a falling rate leave the model behind its own samples, and the
# weights that happen to suit normal rows best are no better than others: kept is the end's average (docs/defaults.md).
CHASING = {"optimizer": "rmsprop", "schedule": "constant", "learning_rate": 5e-4}
AVERAGE = 0.997


@final
class NegativeVAE(VariationalDetector):
    """Variational autoencoder with negative sampling: rows that are unlikely, or like the negatives, do not belong.

    Beside the ELBO of normal rows, training pushes negatives off: the encoder sends them to a prior of their own,
    N(s, I) (P1 §III-A), or their likelihood is lowered by an upper bound (§III-B). Encoder and decoder take turns. Kept
    are the weights that suit held-out normal rows best; of adversarial training on images, which never settles, a
    running average of the last ones.

    Parameters
    ----------
    negatives : {"auto", "given", "adversarial", "hard", "noise", "random"} or mapping of these to weights
        Where negatives come from: ``fit(X, negatives=rows)``; the model's own samples, with the decoder trained
        against the encoder and spectral normalisation in the encoder's convolutions (P1 §III-D); short chains that
        search for rows which the model takes for normal; normal rows with Gaussian noise of 0.25; uniform cells.
        Random rows and noise are too easily told apart to help (P1 Table III). "auto": "given" where ``fit`` is given
        some, else "adversarial".
    negative_loss : {"prior", "eubo"}
        What is lowered for negatives: KL(q(z | x̄) ‖ N(s, I)), or the evidence upper bound, down to one bit per
        dimension below the normal rows' ELBO.
    shift : float or "auto"
        s, in every latent. "auto": 25 for colour images, 8 for grey ones (P1 §IV-A); for tables 8 where negatives are
        given, else 2 (docs/defaults.md).
    upper_samples : int
        Draws of z for the upper bound.
    chain : (int, float, float) or "auto"
        Steps, step size and noise of the chains for "hard". "auto": (10, 10, 0.005) for images, (10, 0.05, 0.05) for
        tables.
    latent_dim : int or "auto"
        "auto": three quarters of a table's columns; 10 for grey images, 100 for colour (P1).
    likelihood : {"gaussian", "unit-gaussian", "bernoulli"}
        "unit-gaussian" is what P1 calls Gaussian: γ = 1.
    gamma, score_by, samples
        As for :class:`VAE`.
    network : str
        As for :class:`AE`, but "auto" is "mlp" for tables. P1's own, "p1-grey" and "p1-colour", are for images of 28
        and 32 pixels, and take several times as long a step.
    steps
        As for :class:`VAE`.
    optimizer : {"auto", "adam", "adamw", "rmsprop"}
    schedule : {"auto", "constant", "one-cycle", "cosine"}
    learning_rate : float or "auto"
        "auto" of all three: RMSProp at a constant rate of 0.0005 for images where negatives are adversarial (P1 §IV-A
        has 0.0001 for a hundred times as many steps), else as for :class:`VAE`.
    hidden, capacity, epochs, batch_size, weight_decay
        As for :class:`AE`.
    scale, false_alarm_rate, calibration_fraction, store_rows, device, precision, random_state, verbose
        As for :class:`AE`.

    Attributes
    ----------
    gamma_ : ndarray or None
        As for :class:`VAE`.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import NegativeVAE
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(500, 3))
    >>> odd = rng.normal(size=(50, 1)) * [[1.0, -2.0, 1.0]]
    >>> detector = NegativeVAE(random_state=0, verbose=False).fit(X, negatives=odd)
    >>> detector.predict([[1.0, 2.0, -1.0], [1.0, -2.0, 1.0]]).tolist()
    [1, -1]
    """

    key = "negative-vae"
    gaps = "scored"

    def __init__(
        self,
        *,
        negatives: str | Mapping[str, float] = "auto",
        negative_loss: str = "prior",
        shift: float | str = "auto",
        upper_samples: int = 8,
        chain: Sequence[float] | str = "auto",
        latent_dim: int | str = "auto",
        likelihood: str = "gaussian",
        gamma: str | float = "auto",
        score_by: str = "elbo",
        samples: int = 8,
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 1.0,
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float | str = "auto",
        optimizer: str = "auto",
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
        self.negatives = negatives
        self.negative_loss = negative_loss
        self.shift = shift
        self.upper_samples = upper_samples
        self.chain = chain
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.gamma = gamma
        self.score_by = score_by
        self.samples = samples

    def _settings(self, spec: InputSpec) -> Settings:
        table = spec.kind == "table"
        colour = not table and spec.shape[0] > 1
        chain: Any = self.chain
        if isinstance(chain, str):
            parameters.choice("chain", chain, ("auto",))
            chain = (10, 0.05, 0.05) if table else (10, 10.0, 0.005)
        if isinstance(self.shift, str):
            parameters.choice("shift", self.shift, ("auto",))
            shift = None if table else 25.0 if colour else 8.0
        else:
            shift = parameters.real("shift", self.shift, above=0)
        by_rows = isinstance(self.negatives, str) and self.negatives == "auto"
        return {
            "optimizer": "adamw" if self.optimizer == "auto" else self.optimizer,
            "schedule": "one-cycle" if self.schedule == "auto" else self.schedule,
            **self._variational_settings(spec, image_latents=100 if colour else 10),
            "negatives": "auto" if by_rows else sources.weights_of("negatives", self.negatives),
            "negative_loss": parameters.choice("negative_loss", self.negative_loss, LOSSES),
            "shift": shift,
            "upper_samples": parameters.integer("upper_samples", self.upper_samples),
            "chain": chain_settings("chain", chain, fewest=0),
            **self._network_settings(spec, for_tables="mlp", table_steps=500, table_rate=5e-3),
        }

    def _take_labels(self, y: Any, training: npt.NDArray[np.intp], rows: int, settings: Settings) -> None:
        """Look at nothing, but say so of rows given in the place of negatives."""
        shape = np.asarray(y, dtype=object).shape
        if len(shape) > 1 and shape[1] > 1:
            raise TypeError("y is not looked at. Rows that are not normal go to fit(X, negatives=rows).")

    def _take_negatives(self, negatives: Any, rows: Tensor, others: Sequence[Tensor]) -> None:
        settings = self.settings_
        if settings["negatives"] == "auto":
            settings["negatives"] = {"adversarial" if negatives is None else "given": 1.0}
        if settings["shift"] is None:
            settings["shift"] = TABLE_SHIFT if negatives is None else TABLE_SHIFT_GIVEN
        if self._chases(settings) and self.optimizer == "auto":
            settings |= {name: value for name, value in CHASING.items() if getattr(self, name) == "auto"}
        wanted = "given" in settings["negatives"]
        if wanted != (negatives is not None):
            raise ValueError(
                "negatives='given' takes rows of what is not normal: fit(X, negatives=rows)."
                if wanted
                else f"fit was given negatives, but negatives={self.negatives!r} does not use them. Use 'auto', or "
                "weights such as {'given': 1, 'hard': 1}."
            )
        self._negatives = None
        if negatives is not None:
            found = sources.rows_given(negatives, self.spec_)
            told = self._prepare(sources.named("negatives", lambda: found.take(slice(None))))
            self._negatives = self._learnable(told, "negatives", instead="")
            shared = sources.overlap(self._negatives, (rows, *others))
            if shared:
                warnings.warn(
                    f"{shared:,} of {len(self._negatives):,} negatives are rows of X as well: the model is told both "
                    "that they belong and that they do not. Remove them from one or the other.",
                    UserWarning,
                    stacklevel=3,
                )
        low, high = (0.0, 1.0) if self.spec_.kind == "image" else (float(rows.min()), float(rows.max()))
        settings["negative_bounds"] = [low, max(high, low + 1e-3)]

    def _chases(self, settings: Settings) -> bool:
        return "adversarial" in settings["negatives"] and self.spec_.kind == "image"

    def _build(self, spec: InputSpec, settings: Settings) -> VariationalAutoencoder:
        model = super()._build(spec, settings)
        if "adversarial" in settings["negatives"]:
            for layer in model.encoder.modules():
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)
        return model

    def _sources(self, model: VariationalAutoencoder, settings: Settings) -> dict[str, sources.Source]:
        """Return what draws each kind of negatives, given ones for training only."""
        low, high = settings["negative_bounds"]
        steps, step_size, noise = settings["chain"]
        drawn: dict[str, sources.Source] = {
            "adversarial": sources.generated(model, settings["latent_dim"]),
            "hard": sources.hard(model, settings["latent_dim"], (steps, step_size, noise), (low, high)),
            "noise": sources.noisy(self.spec_.kind == "image"),
            "random": sources.uniform((low, high)),
        }
        if self._negatives is not None:
            drawn["given"] = sources.given(self._negatives.to(self._device))
        return {name: drawn[name] for name in settings["negatives"]}

    def _phases(self, model: VariationalAutoencoder, settings: Settings) -> list[Phase]:
        latent_dim, dimensions = settings["latent_dim"], self._network_spec.dimensions
        weights, shift = settings["negatives"], settings["shift"]
        draw = self._sources(model, settings)
        upper = settings["negative_loss"] == "eubo"

        def noise(rows: Tensor, generator: torch.Generator, samples: int = 1) -> Tensor:
            return rows.new_empty(samples, len(rows), latent_dim).normal_(generator=generator)

        def bound(rows: Tensor, generator: torch.Generator, *, learning: bool) -> tuple[Tensor, Metrics]:
            drawn = model.draws(rows, noise(rows, generator), learning=learning)
            metrics: Metrics = {"log_likelihood": drawn.log_likelihoods.detach().mean(), "kl": drawn.kl.detach().mean()}
            metrics |= gamma_metric(model.likelihood)
            return bounds.elbo(drawn.log_likelihoods, drawn.kl), metrics

        def lowered(negatives: Tensor, elbo: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            """Return what is lowered for negatives, and their KL to the prior of normal rows."""
            if not upper:
                mean, log_std = model.posterior(negatives)
                place = torch.full_like(mean, shift)
                away = kl_between_normals(mean, log_std, place, torch.zeros_like(mean)).sum(1)
                return away, kl_to_standard_normal(mean, log_std).sum(1).detach()
            drawn = model.draws(negatives, noise(negatives, generator, settings["upper_samples"]), learning=False)
            enough = elbo.detach().mean() - dimensions * math.log(2)
            return bounds.eubo(drawn.log_weights).clamp(min=enough), drawn.kl.detach()

        def for_encoder(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            elbo, metrics = bound(rows, generator, learning=False)
            total = -elbo
            for name, weight in weights.items():
                loss, kl = lowered(draw[name](rows, generator).detach(), elbo, generator)
                total = total + weight * loss
                metrics[f"negative_kl/{name}"] = kl.mean()
            return total / dimensions, metrics

        def for_decoder(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            elbo, _ = bound(rows, generator, learning=True)
            total = -elbo
            for name, weight in weights.items():
                negatives = draw[name](rows, generator) if upper or name == "adversarial" else rows
                if upper:
                    total = total + weight * lowered(negatives.detach(), elbo, generator)[0]
                if name == "adversarial":  # the samples are to pass for data: P1's L_adv, of which θ is the argument
                    total = total + weight * kl_to_standard_normal(*model.posterior(negatives)).sum(1)
            return total / dimensions, {}

        encoder, *others = generative_groups(model.encoder, model.decoder, model.likelihood)
        optimizer = self._optimizer(settings)
        updates = (Update((encoder,), for_encoder, optimizer), Update(tuple(others), for_decoder, optimizer))
        memory = {name: torch.zeros(()) for name in ("spread", "error")}
        return [
            Phase(
                "negative-vae",
                updates,
                settings["steps"],
                settings["batch_size"],
                judge=self._judge(model, settings, memory),
                keep="last" if self._chases(settings) else "best",
                average=AVERAGE if self._chases(settings) else 0.0,
                memory=memory,
                rollbacks=3,
            )
        ]

    def _warn_about_training(self, normal: Tensor) -> None:
        """Say so where what was kept had hardly met the model's own samples yet."""
        super()._warn_about_training(normal)
        (phase,) = self.training_summary().values()
        moving = [name for name in MOVING if name in self.settings_["negatives"]]
        if moving and phase["weights_kept_from_step"] < EARLY * phase["steps"]:
            warnings.warn(
                f"The weights kept are of step {phase['weights_kept_from_step']} of {phase['steps']}: after it the "
                f"likelihood of held-out rows only fell, so that little was learned of {' and '.join(moving)} "
                f"negatives. A smaller weight (negatives={{{moving[0]!r}: 0.1}}) or a smaller shift leave both room.",
                UserWarning,
                stacklevel=3,
            )

    def _judge(self, model: VariationalAutoencoder, settings: Settings, memory: dict[str, Tensor]) -> Judge:
        """Return the judge: held-out rows' ELBO per dimension; weights whose samples or errors collapse are unfit.

        What has worked once is kept in ``memory``.
        """
        own = sources.generated(model, settings["latent_dim"])
        # Errors are those of numbers, and so are the variances that they are compared with.
        numbers = model.likelihood.numeric if isinstance(model.likelihood, Mixed) else slice(None)
        worked = dict.fromkeys(("spread", "error"), False)

        def judge(held_out: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
            rows = held_out[torch.from_numpy(evenly(len(held_out), JUDGED)).to(held_out.device)]
            energies = [model.energies(part) for part in torch.split(rows, 128)]
            loss = sum(float((part["reconstruction"] + part["kl"]).double().sum()) for part in energies)
            varies = rows.var(0, correction=0)
            spread = float(own(rows, generator).var(0, correction=0).mean()) / max(float(varies.mean()), 1e-12)
            errors = [model.expected_errors(part) for part in torch.split(rows, 128)]
            error = float(torch.cat(errors).mean()) / max(float(varies[numbers].mean()), 1e-12)
            if "adversarial" in settings["negatives"]:
                # What a checkpoint brought back counts too; rolling back forgets it there, but not here.
                for name in worked:
                    worked[name] |= bool(memory[name])
                if worked["spread"] and spread < ALIKE[0]:
                    raise Unfit("adversarial training collapsed: the model's samples are all alike")
                if worked["error"] and error > LOST[1]:
                    raise Unfit("adversarial training collapsed: nothing is reconstructed")
                worked["spread"] |= spread > ALIKE[1]
                worked["error"] |= error < LOST[0]
                for name, tensor in memory.items():
                    tensor.fill_(worked[name])
            record = {"sample_spread": spread, "relative_error": error}  # a table without numbers has no error
            return loss / rows.numel(), {name: value for name, value in record.items() if math.isfinite(value)}

        return judge
