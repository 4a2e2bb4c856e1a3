"""What a latent space is used for: information in each latent, and how codes fit their prior (P0 §4.2, P4 §4)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from offmanifold import parameters
from offmanifold.measures.estimates import Estimate, mean_of
from offmanifold.measures.fitting import optimal_gamma, reconstruction_error
from offmanifold.measures.information import kraskov_with_each
from offmanifold.measures.posterior import posterior_gap
from offmanifold.probability.divergences import kl_to_standard_normal, mmd
from offmanifold.probability.latents import prior_sample

Array = npt.NDArray[np.float64]
# A latent that says less than this about a row is not used (nats).
ACTIVE = 0.01
# Rows that MMD, of two samples and their halves, takes.
FEWEST = 4


class HasCodes(Protocol):
    """A fitted detector with an encoder."""

    @property
    def latent_prior(self) -> str | None:
        """What codes are meant to follow: "euclidean" for N(0, I), "sphere" for uniform, None for nothing."""

    def transform(self, X: Any) -> Array:
        """Return codes ``(n, k)``."""


def _require_codes(detector: Any) -> None:
    if not hasattr(detector, "latent_prior"):
        raise TypeError(f"{type(detector).__name__} has no latent codes to measure. Use a detector with an encoder.")


def _posterior(detector: Any, X: Any) -> tuple[Array, Array]:
    _require_codes(detector)
    if not hasattr(detector, "posterior"):
        raise TypeError(
            f"{type(detector).__name__} has no posterior q(z | x): its codes are functions of the row, so there is no "
            "KL to measure. Use a VAE, or aggregate_mmd and transform."
        )
    mean, std = detector.posterior(X)
    return mean, std


def averaged_kl(mean: Array, std: Array) -> Array:
    """KL(N(mean, std²) ‖ N(0, 1)) of each latent averaged over rows: ``(n, k)`` each → ``(k,)`` nats."""
    kl: Array = kl_to_standard_normal(torch.from_numpy(mean), torch.from_numpy(np.log(std))).mean(0).numpy()
    return kl


def latent_kl(detector: Any, X: Any) -> Array:
    """KL(q(z_k | x) ‖ p(z_k)) of each latent, averaged over rows, largest first: ``(k,)`` nats (P0 Fig. 4).

    It bounds the information that a latent carries about a row from above: see :func:`latent_information`.

    Parameters
    ----------
    detector : fitted VAE
    X : array-like
        Rows, best ones that it was not trained on.
    """
    return np.sort(averaged_kl(*_posterior(detector, X)))[::-1]


def active_latents(detector: Any, X: Any, threshold: float = ACTIVE) -> npt.NDArray[np.int64]:
    """Return the latents whose averaged KL is above ``threshold`` nats, the largest first; the others are pruned."""
    parameters.real("threshold", threshold, minimum=0)
    kl = averaged_kl(*_posterior(detector, X))
    order = np.argsort(-kl, kind="stable")
    return order[kl[order] > threshold]


@dataclasses.dataclass(frozen=True)
class LatentInformation:
    """What each latent tells about a row, in nats; all ``(k,)``, the largest ``kl`` first.

    KL averaged over rows = I(x; z_k) + KL(aggregated posterior ‖ prior).

    Attributes
    ----------
    latent : int
        Which one.
    kl : float
        Averaged KL to the prior, in closed form.
    low, high : float
        Bounds of I(x; z_k) in expectation: against the mixture of all rows' posteriors (never above log n), and
        against that of the others (van den Oord et al., 2018; Poole et al., 2019).
    kraskov : float
        A second opinion: :func:`~offmanifold.measures.information.kraskov` between x, as the network sees it, and a
        draw of z_k.
    """

    latent: npt.NDArray[np.int64]
    kl: Array
    low: Array
    high: Array
    kraskov: Array

    @property
    def aggregate_kl(self) -> tuple[Array, Array]:
        """Bounds of KL(aggregated posterior ‖ prior) of each latent, in expectation."""
        return self.kl - self.high, self.kl - self.low


def latent_information(
    detector: Any,
    X: Any,
    *,
    most_rows: int = 2000,
    k: int = 3,
    random_state: int | np.random.RandomState | None = 0,
) -> LatentInformation:
    """Split each latent's averaged KL into information about the row and misfit to the prior (P0 Fig. 4).

    Parameters
    ----------
    detector : fitted VAE
    X : array-like
    most_rows : int
        A random choice of so many rows; time grows with their square.
    k : int
        Neighbours of Kraskov's estimator.
    random_state : int, RandomState or None
    """
    parameters.integer("most_rows", most_rows, minimum=parameters.integer("k", k) + 1)
    random = parameters.random_state(random_state)
    mean, std = _posterior(detector, X)
    if len(mean) <= k:
        raise ValueError(f"latent_information needs more than k = {k} rows; got {len(mean)}.")
    chosen = random.permutation(len(mean))[:most_rows]
    mean, std, rows = mean[chosen], std[chosen], np.nan_to_num(detector.prepared(X)[chosen])
    kl = averaged_kl(mean, std)
    order = np.argsort(-kl, kind="stable")
    noise = random.standard_normal(mean.shape)
    tensors = [torch.from_numpy(values) for values in (mean, std, noise)]
    bounds = np.array([_information(*(values[:, j] for values in tensors)) for j in order])
    second = kraskov_with_each(rows, (mean + std * noise)[:, order], k=k)
    return LatentInformation(order, kl[order], bounds[:, 0], bounds[:, 1], second)


def _information(mean: torch.Tensor, std: torch.Tensor, noise: torch.Tensor) -> tuple[float, float]:
    """Return lower and upper bound of I(x; z) for one latent: z = mean + std · noise, all ``(n,)``."""
    n = len(mean)
    z = mean + std * noise
    # log q(z_i | x_j) up to the constant that cancels, (n, n).
    log_q = -0.5 * ((z[:, None] - mean) / std).square() - std.log()
    own = log_q.diagonal().clone()
    low = (own - log_q.logsumexp(1)).mean() + math.log(n)
    log_q.fill_diagonal_(-math.inf)
    high = (own - log_q.logsumexp(1)).mean() + math.log(n - 1)
    return float(low), float(high)


def aggregate_mmd(
    detector: HasCodes,
    X: Any,
    *,
    kernel: str = "inverse-multiquadric",
    block: int = 250,
    most_rows: int = 5000,
    random_state: int | np.random.RandomState | None = 0,
) -> Estimate:
    """Squared MMD between the aggregated posterior (codes of all rows) and the prior, with its interval (P4 Fig. 4a).

    Parameters
    ----------
    detector : fitted detector with a prior on its codes
        A VAE's codes are drawn from q(z | x); others' are functions of the row.
    X : array-like
    kernel : {"inverse-multiquadric", "gaussian"}
        With the bandwidth √E‖z − z′‖² of the prior, so that models with equally many latents compare.
    block : int
        The unbiased estimate is made on blocks of so many rows; their mean has Student's interval.
    most_rows : int
    random_state : int, RandomState or None
    """
    _require_codes(detector)
    prior = detector.latent_prior
    if prior is None:
        raise ValueError(
            f"The codes of this {type(detector).__name__} have no prior to compare with. Use latent='sphere', or a VAE."
        )
    parameters.integer("block", block, minimum=2)
    parameters.integer("most_rows", most_rows, minimum=FEWEST)
    random = parameters.random_state(random_state)
    if hasattr(detector, "posterior"):
        mean, std = _posterior(detector, X)
        codes = mean + std * random.standard_normal(mean.shape)
    else:
        codes = np.asarray(detector.transform(X))  # whatever set_output says
    codes = codes[random.permutation(len(codes))[:most_rows]]
    size = min(block, len(codes) // 2)
    if size < FEWEST // 2:
        raise ValueError(f"aggregate_mmd needs at least {FEWEST} rows; got {len(codes)}.")
    generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
    bandwidth = (2.0 * (codes.shape[1] if prior == "euclidean" else 1.0)) ** 0.5
    values = []
    for start in range(0, len(codes) - size + 1, size):
        part = torch.from_numpy(codes[start : start + size])
        drawn = prior_sample(size, codes.shape[1], prior, generator, torch.device("cpu")).double()
        values.append(float(mmd(part, drawn, kernel=kernel, bandwidth=bandwidth)))
    return mean_of(values)


def latent_report(
    detector: Any, X: Any, *, most_rows: int = 2000, random_state: int | np.random.RandomState | None = 0
) -> dict[str, Any]:
    """Measure on rows what a fitted detector's kind has: errors, γ, the codes' fit to their prior, latents.

    Parameters
    ----------
    detector : fitted detector
    X : array-like or frame
        Rows, best ones that it was not trained on.
    most_rows : int
        For the latents' information, whose time grows with the square.
    random_state : int, RandomState or None

    Returns
    -------
    dict, JSON-able
        ``reconstruction_error``, ``aggregate_mmd``, ``optimal_gamma``, ``posterior_gap`` (each with ``value``, ``low``,
        ``high``) and ``latents`` (lists of :class:`LatentInformation`'s fields and the number ``active``), as far as
        they apply.
    """
    if not hasattr(detector, "_fitted_rows"):
        raise TypeError(f"latent_report looks at offmanifold's detectors; got {type(detector).__name__}.")
    rows = len(detector._fitted_rows(X))
    if rows < FEWEST:
        raise ValueError(f"X has {rows} rows; to measure a model on takes at least {FEWEST}.")
    report: dict[str, Any] = {}
    if hasattr(detector, "reconstruction_errors"):
        report["reconstruction_error"] = reconstruction_error(detector, X).to_json()
    if getattr(detector, "latent_prior", None) is not None:
        report["aggregate_mmd"] = aggregate_mmd(detector, X, random_state=random_state).to_json()
    if getattr(detector, "gamma_", None) is not None:
        report["optimal_gamma"] = optimal_gamma(detector, X).to_json()
    if hasattr(detector, "posterior"):
        report["posterior_gap"] = posterior_gap(detector, X, random_state=random_state).to_json()
        found = latent_information(detector, X, most_rows=most_rows, random_state=random_state)
        report["latents"] = {name: values.tolist() for name, values in dataclasses.asdict(found).items()}
        report["latents"]["active"] = int((found.kl > ACTIVE).sum())
    return report
