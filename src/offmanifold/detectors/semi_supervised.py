"""The semi-supervised variational autoencoder M2, as P2 writes it (Eqs. 3, 4 and 28–32)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, InputSpec
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.labels import Labels, kind_of, missing, read
from offmanifold.detectors.m2 import SemiSupervisedAutoencoder
from offmanifold.detectors.scorer import joined
from offmanifold.detectors.training_bounds import MOST_REPEATS, bound_settings, settled
from offmanifold.detectors.variational import VariationalDetector, gamma_metric, generative_groups
from offmanifold.networks import choose
from offmanifold.networks.network import Network
from offmanifold.probability import bounds
from offmanifold.probability.divergences import kl_to_standard_normal
from offmanifold.probability.latents import prior_sample
from offmanifold.training.phases import Metrics, Phase, Update
from offmanifold.training.precision import ordinary
from offmanifold.training.progress import Verbosity

KINDS = ("auto", "discrete", "continuous")
# Classes where no row has a label: a mixture of two, which mean nothing.
UNLABELLED_CLASSES = 2
# Width of what q(z | x, y) sees of x beside y.
FEATURES = 64


@final
class SemiSupervisedVAE(VariationalDetector):
    """Variational autoencoder with labels, of which most may be missing (Kingma et al., 2014, M2; P2 §1).

    ``fit(X, y)`` takes normal rows with a label each, −1, NaN or None where it is missing: their class, or a number.
    What a row is like beside its label goes into z. Rows that are unlikely, whatever their label, do not belong. Where
    every row has a label, the bound of rows without one is added for all: q(z | x), by which rows are scored, is in no
    other.

    Parameters
    ----------
    labels : {"auto", "discrete", "continuous"}
        "auto": numbers that are not whole are continuous.
    latent_dim, likelihood, gamma, score_by, samples
        As for :class:`VAE`. Scores sum over classes exactly.
    bound, training_samples, lagging
        As for :class:`VAE`: both of P2's bounds, for labelled and unlabelled rows alike. Classes are drawn by the
        Gumbel-softmax at temperature 2.2.
    labelled_weight : float
        γ of P2 Eq. 4: weight of a labelled row's bound.
    classifier_weight : float
        α of P2 Eq. 4: weight of log q(y | x) of the labelled rows.
    network, hidden, capacity, steps, epochs, batch_size, learning_rate, optimizer, schedule, weight_decay
        As for :class:`VAE`.
    scale, false_alarm_rate, calibration_fraction, store_rows, device, precision, random_state, verbose
        As for :class:`AE`.

    Attributes
    ----------
    labels_ : Labels
        Classes in order, or the mean and scale of continuous labels.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import SemiSupervisedVAE
    >>> rng = np.random.default_rng(0)
    >>> kind = rng.integers(2, size=500)
    >>> X = np.where(kind, 3.0, -3.0)[:, None] + rng.normal(size=(500, 1)) * [[1.0, -1.0]]
    >>> X += 0.1 * rng.normal(size=(500, 2))
    >>> y = np.where(rng.uniform(size=500) < 0.2, kind, -1)
    >>> detector = SemiSupervisedVAE(random_state=0, verbose=False).fit(X, y)
    >>> detector.predict_proba([[3.0, 3.0], [-3.0, -3.0]]).argmax(1).tolist()
    [1, 0]
    """

    key = "semi-supervised-vae"
    gaps = "scored"

    def __init__(
        self,
        *,
        labels: str = "auto",
        latent_dim: int | str = "auto",
        likelihood: str = "gaussian",
        gamma: str | float = "auto",
        bound: str = "elbo",
        training_samples: int | str = "auto",
        lagging: Sequence[float] | None = None,
        labelled_weight: float = 1.0,
        classifier_weight: float = 1.0,
        score_by: str = "elbo",
        samples: int = 8,
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 1.0,
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float | str = "auto",
        optimizer: str = "adamw",
        schedule: str = "one-cycle",
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
        self.labels = labels
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.gamma = gamma
        self.bound = bound
        self.training_samples = training_samples
        self.lagging = lagging
        self.labelled_weight = labelled_weight
        self.classifier_weight = classifier_weight
        self.score_by = score_by
        self.samples = samples

    @property
    def labels_(self) -> Labels:
        """What labels are."""
        check_is_fitted(self, "module_")
        return Labels.from_json(self.settings_["labels"])

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The classes, in the order of :meth:`predict_proba`'s columns."""
        return np.array(self.labels_.classes)

    def _settings(self, spec: InputSpec) -> Settings:
        parameters.choice("labels", self.labels, KINDS)
        return {
            **self._variational_settings(spec),
            **bound_settings(self.bound, self.training_samples, self.lagging),
            "labelled_weight": parameters.real("labelled_weight", self.labelled_weight, minimum=0),
            "classifier_weight": parameters.real("classifier_weight", self.classifier_weight, minimum=0),
            **self._network_settings(spec, for_tables="mlp", table_steps=500, table_rate=5e-3),
        }

    def _take_labels(self, y: Any, training: npt.NDArray[np.intp], rows: int, settings: Settings) -> Tensor:
        values = np.full(rows, -1) if y is None else read(y)
        if values.shape != (rows,):
            raise ValueError(f"y must hold one label for each of the {rows} rows; got shape {values.shape}.")
        if self.labels == "continuous" and values.dtype.kind == "O" and not missing(values).all():
            raise ValueError(f"labels='continuous' takes numbers; y holds {values[~missing(values)][0]!r}.")
        self._labels_given = not bool(missing(values).all())
        if not self._labels_given:
            warnings.warn(
                "y holds no label: the model is a mixture of two classes that mean nothing. Give some labels, or use "
                "VAE.",
                UserWarning,
                stacklevel=3,
            )
            found = Labels("discrete", (0, 1), (1 / UNLABELLED_CLASSES,) * UNLABELLED_CLASSES)
        else:
            found = Labels.learn(values, kind_of(values) if self.labels == "auto" else self.labels, training)
            if found.kind == "discrete" and len(found.classes) == 1:
                warnings.warn(
                    f"Every label is {found.classes[0]!r}: there is nothing to tell classes apart by. Use VAE.",
                    UserWarning,
                    stacklevel=3,
                )
        settings["labels"] = found.to_json()
        return found.encode(values)

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        flat, told, known = self._split(rows)
        super()._settle(flat, settings)
        labels = Labels.from_json(settings["labels"])
        # What was learned of labels is of all rows to learn from; those with gaps may have been left out since.
        unlearned = (
            [repr(value) for value, count in zip(labels.classes, told[known].sum(0).tolist(), strict=True) if not count]
            if labels.kind == "discrete"
            else [] if bool(known.any()) else ["any"]
        )  # fmt: skip
        if unlearned and self._labels_given:
            warnings.warn(
                f"No row to learn from has a label of {', '.join(unlearned)}: those that have fell to stopping or "
                "calibration, or have gaps, and what the model says of such labels means nothing. Give more labels.",
                UserWarning,
                stacklevel=3,
            )
        settings["all_labelled"] = bool(known.all())

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows, labels and whether they are known, of what training sees."""
        width = Labels.from_json(self.settings_["labels"]).width
        flat, told, known = rows[:, : -width - 1], rows[:, -width - 1 : -1], rows[:, -1] > 0
        return flat.reshape(len(rows), *self._network_spec.shape), told, known

    def _build(self, spec: InputSpec, settings: Settings) -> SemiSupervisedAutoencoder:
        labels, latent_dim = Labels.from_json(settings["labels"]), settings["latent_dim"]

        def networks(into: int, out_of: int) -> tuple[Network, Network]:
            return choose.build(
                settings["network"],
                spec.shape,
                into_latent=into,
                latent_dim=out_of,
                hidden=settings["hidden"],
                capacity=settings["capacity"],
            )

        encoder, decoder = networks(2 * latent_dim, latent_dim + labels.width)
        wide = max(FEATURES, 2 * latent_dim)
        head = nn.Sequential(
            nn.SiLU(), nn.Linear(wide + labels.width, wide), nn.SiLU(), nn.Linear(wide, 2 * latent_dim)
        )
        return SemiSupervisedAutoencoder(
            encoder,
            decoder,
            self._likelihood(spec, settings),
            latent_dim,
            settings["samples"],
            classifier=networks(labels.parameters, 1)[0],
            features=networks(wide, 1)[0],
            labelled_head=head,
            labels=labels,
        )

    def _phases(self, model: SemiSupervisedAutoencoder, settings: Settings) -> list[Phase]:
        samples, latent_dim = settings["training_samples"], settings["latent_dim"]
        iwae = settings["bound"] == "iwae"

        def codes_of(mean: Tensor, log_std: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            noise = mean.new_empty(samples, len(mean), latent_dim).normal_(generator=generator)
            return mean + log_std.exp() * noise, noise

        def unlabelled(rows: Tensor, generator: torch.Generator, learning: float) -> Tensor:
            """U(x): Eq. 30 or 32, as a lower bound."""
            mean, log_std = model.posterior(rows)
            codes, noise = codes_of(mean, log_std, generator)
            posterior = model.label_posterior(rows)
            told, ratio = posterior.relaxed(samples, generator)
            log_likelihoods = model.likelihoods(rows, codes, told, learning=learning)
            if iwae:
                return bounds.iwae(bounds.gaussian_log_weights(log_likelihoods + ratio, codes, noise, log_std))
            return bounds.elbo(log_likelihoods, kl_to_standard_normal(mean, log_std).sum(1) + posterior.kl)

        def labelled(rows: Tensor, told: Tensor, generator: torch.Generator, learning: float) -> tuple[Tensor, Tensor]:
            """L(x, y), Eq. 29 or 31 as a lower bound, and log q(y | x)."""
            mean, log_std = model.labelled_posterior(rows, told)
            codes, noise = codes_of(mean, log_std, generator)
            posterior = model.label_posterior(rows)
            log_likelihoods = model.likelihoods(rows, codes, told.expand(samples, -1, -1), learning=learning)
            prior = posterior.prior_log_prob(told)
            if iwae:
                bound = bounds.iwae(bounds.gaussian_log_weights(log_likelihoods, codes, noise, log_std))
            else:
                bound = bounds.elbo(log_likelihoods, kl_to_standard_normal(mean, log_std).sum(1))
            return bound + prior, posterior.log_prob(told)

        def loss(packed: Tensor, generator: torch.Generator, *, learning: bool = True) -> tuple[Tensor, Metrics]:
            rows, told, known = self._split(packed)
            each = learning / len(rows)  # rows with and without labels are parts of one step
            total = rows.new_zeros(len(rows))
            metrics: Metrics = {}
            # q(z | x), by which rows are scored, is trained by U(x) alone: where all have labels they have that, too.
            for_all = settings["all_labelled"]
            each = each / 2 if for_all else each
            here = (known if for_all else ~known).nonzero().flatten()
            if len(here):
                bound = unlabelled(rows[here], generator, each * len(here))
                total = total.index_put((here,), -bound)
                metrics["unlabelled_bound"] = bound.detach().mean()
            here = known.nonzero().flatten()
            if len(here):
                bound, log_q = labelled(rows[here], told[here], generator, each * len(here))
                value = settings["labelled_weight"] * bound + settings["classifier_weight"] * log_q
                total = total.index_put((here,), -value, accumulate=True)
                metrics |= {"labelled_bound": bound.detach().mean(), "label_log_prob": log_q.detach().mean()}
            return total / self._network_spec.dimensions, metrics | gamma_metric(model.likelihood)

        inference = nn.ModuleList([model.encoder, model.classifier, model.features, model.labelled_head])
        groups = tuple(generative_groups(inference, model.decoder, model.likelihood))
        optimizer = self._optimizer(settings)
        updates = [Update(groups, loss, optimizer)]
        if settings["lagging"] is not None:
            threshold, repeats = settings["lagging"]
            enough = settled(threshold, repeats, self._network_spec.dimensions)
            alone = functools.partial(loss, learning=False)
            updates.insert(0, Update((groups[0],), alone, optimizer, repeats=MOST_REPEATS, repeat_until=enough))
        return [Phase("semi-supervised-vae", tuple(updates), settings["steps"], settings["batch_size"])]

    def fit_predict(self, X: Any, y: Any = None, **options: Any) -> npt.NDArray[np.int64]:
        """Fit to rows and labels, and say which of these rows do not belong: −1, others 1."""
        return self.fit(X, y, **options).predict(X)

    def predict_proba(self, X: Any) -> Float64Array:
        """Return q(y | x) of each class: ``(n, classes)``, in the order of ``classes_``; missing cells as completed.

        Raises
        ------
        ValueError
            For continuous labels: see :meth:`predict_label`.
        """
        rows = self._fitted_rows(X)
        if self.labels_.kind == "continuous":
            raise ValueError("The labels are numbers, which have no probability; predict_label(X) gives their mean.")

        def probabilities(model: SemiSupervisedAutoencoder, part: Tensor) -> Tensor:
            return model.label_posterior(model.completed(part)).log_q.double().exp()

        return joined(self._through(probabilities, rows))

    def predict_label(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest class of each row, or the mean of q(y | x) of continuous labels: ``(n,)``."""
        if self.labels_.kind == "discrete":
            return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

        def mean(model: SemiSupervisedAutoencoder, part: Tensor) -> Tensor:
            return model.label_posterior(model.completed(part)).mean

        means = joined(self._through(mean, self._fitted_rows(X)))
        return means[:, 0] * self.labels_.scale + self.labels_.mean

    @ordinary()
    def sample(self, n: int, *, y: Any = None, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw ``n`` rows, with label ``y`` (one, or one for each) or with labels from p(y); units and layout of X.

        Pixels go from 0 to 1; what a Gaussian's noise takes beyond is cut off.
        """
        parameters.integer("n", n)
        generator = self._generator(random_state)
        codes = prior_sample(n, self.settings_["latent_dim"], "euclidean", generator, self._device)
        told = self._drawn_labels(codes, generator) if y is None else self.labels_.one(y, n).to(self._device)
        model: SemiSupervisedAutoencoder = self.module_
        with torch.no_grad():
            return self._restore(model.likelihood.sample(model.decode(codes, told), generator))

    def _drawn_labels(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a label from p(y) for each code ``(n, width)``."""
        labels, n = self.labels_, len(codes)
        if labels.kind == "continuous":
            return codes.new_empty(n, 1).normal_(generator=generator)
        weights = codes.new_tensor(labels.frequencies)
        drawn = torch.multinomial(weights, n, replacement=True, generator=generator)
        return torch.eye(labels.width, device=codes.device)[drawn]

    def _decoded(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        model: SemiSupervisedAutoencoder = self.module_
        return model.likelihood.mean(model.decode(codes, self._drawn_labels(codes, generator)))

    def counterfactual(self, X: Any, y: Any) -> Any:
        """Return each row as it would be with label ``y``: E[x | z, y] at the mean of q(z | x).

        In the units and layout of ``X``.
        """
        rows = self._fitted_rows(X)
        told = self.labels_.one(y, len(rows)).to(self._device)
        parts, start = [], 0

        def changed(model: SemiSupervisedAutoencoder, part: Tensor) -> Tensor:
            wanted = told[start : start + len(part)]
            wanted = torch.cat([wanted, wanted[-1:].expand(len(part) - len(wanted), -1)])
            return model.likelihood.mean(model.decode(model.encode(model.completed(part)), wanted))

        for part in self._through(changed, rows):
            parts.append(part.cpu())
            start += len(part)
        return self._restore(torch.cat(parts), rows.as_came)
