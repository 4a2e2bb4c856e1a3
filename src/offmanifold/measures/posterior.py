"""How far an encoder's posteriors are from those of a decoder (P2, Theorem 1): by quadrature, and by sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold import parameters
from offmanifold.measures.estimates import Estimate, mean_of
from offmanifold.probability.grids import log_mixture, path_nodes

Array = npt.NDArray[np.float64]
# Of the search for the best Gaussian: the factor between deviations that are tried, by how many nats a candidate may be
# behind and be refined all the same, and how often one is moved.
STEP, NEAR, MOST_MOVES = 1.2, 0.1, 100
# So many times as many points on a path that reaches farther than the prior, at most.
MOST_FINER = 64
# Candidates have means up to here.
FARTHEST = 6.0


def posterior_mismatch(
    mean: npt.ArrayLike,
    std: npt.ArrayLike,
    x: npt.ArrayLike,
    decode: Callable[[Array], npt.ArrayLike],
    noise_variance: npt.ArrayLike,
    *,
    nodes: int = 1025,
) -> Array:
    """KL(q(z | x) ‖ p(z | x)) of each row for one latent with the prior N(0, 1), by quadrature (P2 Eq. 2, Theorem 1).

    The ELBO falls short of log p(x) by this; its mean over p(x) is the posterior matching objective.

    Parameters
    ----------
    mean, std : (n,) or (n, 1)
        q(z | x) = N(mean, std²).
    x : (n, d)
    decode : callable
        z (m, 1) → E[x | z] (m, d), in float64: the true decoder or a learned one.
    noise_variance : float or (d,)
        x | z ~ N(decode(z), noise_variance · I).
    nodes : int
        Even nodes over ± 8 std of the expectation under q. log p(x) has its own: see
        :func:`~offmanifold.probability.grids.path_nodes`.

    Returns
    -------
    (n,)
        Nats; not below 0 but by the quadrature's error.

    Raises
    ------
    ValueError
        Where shapes do not agree, or a deviation or a variance is not positive.
    """
    rows, decoded, variances = _checked(x, decode, noise_variance)
    means, deviations = _column("mean", mean, len(rows)), _column("std", std, len(rows))
    if not (deviations > 0).all():
        raise ValueError(f"std must be positive everywhere; got {deviations.min():g}.")
    parameters.integer("nodes", nodes, minimum=3)
    # As far as the prior reaches, and every q, and the path as finely as for the prior alone.
    reach = max(8.0, float((np.abs(means) + 8 * deviations).max()))
    finer = min(math.ceil(reach / 8), MOST_FINER)
    z, log_weights = path_nodes(decoded, variances, reach=reach, resolution=2**14 * finer)
    log_p = log_mixture(rows, decoded(z[:, None]), log_weights, variances)
    log_det = np.log(2 * np.pi * np.broadcast_to(variances, rows.shape[1:])).sum()
    log_likelihood = -0.5 * (expected_squares(means, deviations, rows, decoded, variances, nodes) + log_det)
    mismatch: Array = log_p - (log_likelihood - _kl_to_prior(means, deviations))
    return mismatch


def best_gaussian(
    x: npt.ArrayLike, decode: Callable[[Array], npt.ArrayLike], noise_variance: npt.ArrayLike
) -> tuple[Array, Array]:
    """Return the Gaussian q(z) with the best ELBO for each row, for one latent with the prior N(0, 1): by search.

    Its :func:`posterior_mismatch` is what the Gaussian family costs; what an encoder's is above that is the encoder's.
    Candidates lie along the decoder's path, closer where it is steep, with every deviation from the narrowest that its
    slope can ask for; all that come near the best are refined until the mean is known to a thousandth of q's deviation.

    Parameters
    ----------
    x : (n, d)
    decode : callable
        z (m, 1) → E[x | z] (m, d), in float64.
    noise_variance : float or (d,)
        x | z ~ N(decode(z), noise_variance · I).

    Returns
    -------
    mean, std : (n,) each

    Raises
    ------
    ValueError
        Where shapes do not agree, a variance is not positive, or a row's best Gaussian lies too far out to be found.
    """
    rows, decoded, variances = _checked(x, decode, noise_variance)
    scaled = rows / np.sqrt(variances)

    def moments(mean: Array, std: Array) -> tuple[Array, Array]:
        """E_q of decode(z) in units of the noise, and what of −2 · ELBO does not depend on the row."""
        t, weights = _gaussian_nodes(129)
        outputs = decoded((mean[:, None] + std[:, None] * t).reshape(-1, 1)) / np.sqrt(variances)
        outputs = outputs.reshape(len(mean), len(t), -1)
        squares = (outputs**2).sum(2) @ weights
        return weights @ outputs, squares + 2 * _kl_to_prior(mean, std)

    path, _ = path_nodes(decoded, variances, order=8)
    steps = np.sqrt((np.diff(decoded(path[:, None]) / np.sqrt(variances), axis=0) ** 2).sum(1)) / np.diff(path)
    # As many in z alone: in flat places the path's own are far apart.
    means = np.union1d(path[np.abs(path) < FARTHEST], np.linspace(-FARTHEST, FARTHEST, 961))
    narrowest = 0.5 / np.sqrt(1 + steps.max() ** 2)
    ladder = np.geomspace(narrowest, 2.0, 1 + math.ceil(math.log(2.0 / narrowest, STEP)))
    best, places = np.empty((len(ladder), len(rows))), np.empty((len(ladder), len(rows)), dtype=np.intp)
    for at, width in enumerate(ladder):
        expected, rest = moments(means, np.full(len(means), width))
        for start in range(0, len(rows), 256):
            part = slice(start, start + 256)
            losses = rest - 2 * scaled[part] @ expected.T
            places[at, part] = losses.argmin(1)
            best[at, part] = losses.min(1)
    # Candidates lie so far apart that one which is a little behind may be nearer to the better Gaussian.
    widths, owners = np.nonzero(best <= best.min(0) + 2 * NEAR)
    mean, std = means[places[widths, owners]], ladder[widths]
    least, moving = np.empty(len(mean)), np.zeros(len(mean), dtype=bool)
    around = np.array([(0, 0), *((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)])
    for start in range(0, len(mean), 1024):
        part = slice(start, start + 1024)
        own, reach = np.repeat(scaled[owners[part]], len(around), 0), np.full(len(owners[part]), STEP - 1)
        for _ in range(MOST_MOVES):
            near_mean = (mean[part, None] + (std[part] * reach)[:, None] * around[:, 0]).reshape(-1)
            near_std = (std[part, None] * (1 + reach[:, None]) ** around[:, 1]).reshape(-1)
            expected, rest = moments(near_mean, near_std)
            losses = (rest - 2 * (own * expected).sum(1)).reshape(-1, len(around))
            chosen = losses.argmin(1)
            taken = np.arange(len(losses)) * len(around) + chosen
            least[part], mean[part], std[part] = losses.min(1), near_mean[taken], near_std[taken]
            reach[chosen == 0] /= 2  # where no neighbour is better
            if reach.max() < 1e-3:
                break
        moving[part] = reach >= 1e-3
    order = np.lexsort((least, owners))
    first = order[np.searchsorted(owners[order], np.arange(len(rows)))]
    lost = moving[first] & (np.abs(mean[first]) > FARTHEST)
    if lost.any():
        raise ValueError(
            f"The best Gaussian of row {int(lost.argmax())} lies far beyond |z| = {FARTHEST:g}, where none is looked "
            "for: the prior N(0, 1) has no such latents."
        )
    return mean[first], std[first]


def posterior_gap(
    detector: Any,
    X: Any,
    *,
    samples: int = 200,
    most_rows: int = 200,
    random_state: int | np.random.RandomState | None = 0,
) -> Estimate:
    """KL(q(z | x) ‖ p(z | x)) of a fitted detector, averaged over rows, in nats, with its interval.

    What the encoder costs: the ELBO falls short of the likelihood by it, and a large one draws the decoder away from
    what the data ask for (P2, Theorem 1). ``VAE(bound="iwae")`` and ``lagging`` are against it.

    Parameters
    ----------
    detector : fitted VAE
    X : array-like or frame
        Rows, best ones that it was not trained on.
    samples : int
        Draws of z a row. The estimate is a lower bound in expectation, and rises towards the KL with them.
    most_rows : int
        Evenly spread rows that are looked at.
    random_state : int, RandomState or None

    Returns
    -------
    Estimate

    See Also
    --------
    posterior_mismatch : by quadrature, for one latent.
    """
    if not hasattr(detector, "posterior_gaps"):
        raise TypeError(
            f"{type(detector).__name__} has no posterior q(z | x), so there is no gap between bound and likelihood. "
            "Use a VAE."
        )
    return mean_of(detector.posterior_gaps(X, samples=samples, most_rows=most_rows, random_state=random_state))


def _checked(
    x: npt.ArrayLike, decode: Callable[[Array], npt.ArrayLike], noise_variance: npt.ArrayLike
) -> tuple[Array, Callable[[Array], Array], Array]:
    """Return rows and variances as arrays, and a decoder that says what it was given where it returns nonsense."""
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"x must be of shape (n, d); got {rows.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError("x holds NaN or infinity; leave such rows out.")
    variances = np.asarray(noise_variance, dtype=np.float64)
    if variances.shape not in ((), rows.shape[1:]):
        raise ValueError(
            f"noise_variance must be one number or of shape {rows.shape[1:]}, one for each column; "
            f"got {variances.shape}."
        )
    if not (variances > 0).all():
        raise ValueError(f"noise_variance must be positive everywhere; got {variances.min():g}.")

    def decoded(z: Array) -> Array:
        found = np.asarray(decode(z), dtype=np.float64)
        if found.shape != (len(z), rows.shape[1]):
            raise ValueError(
                f"decode must return ({len(z)}, {rows.shape[1]}) from z of shape {z.shape}; got {found.shape}."
            )
        if not np.isfinite(found).all():
            raise ValueError(
                "decode must return finite numbers for z between −8 and 8 and where q lies; got NaN or infinity."
            )
        return found

    return rows, decoded, variances


def _gaussian_nodes(nodes: int) -> tuple[Array, Array]:
    """Even nodes over ± 8 deviations, and weights of an expectation under N(0, 1): on these exact to rounding."""
    t = np.linspace(-8, 8, nodes)
    weights = np.exp(-0.5 * t**2)
    return t, weights / weights.sum()


def _kl_to_prior(means: Array, deviations: Array) -> Array:
    kl: Array = 0.5 * (deviations**2 + means**2 - 1) - np.log(deviations)
    return kl


def expected_squares(
    means: Array, deviations: Array, rows: Array, decoded: Callable[[Array], Array], variances: Array, nodes: int = 1025
) -> Array:
    """Return E_q Σ (x − decode(z))²/variance: ``(n,)``. Nodes go with q, which may be narrower than any shared grid."""
    t, weights = _gaussian_nodes(nodes)
    found = np.empty(len(rows))
    size = max(1, 2**17 // nodes)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        z = means[part, None] + deviations[part, None] * t
        outputs = decoded(z.reshape(-1, 1)).reshape(*z.shape, -1)
        found[part] = ((rows[part, None] - outputs) ** 2 / variances).sum(2) @ weights
    return found


def _column(name: str, values: npt.ArrayLike, n: int) -> Array:
    column = np.asarray(values, dtype=np.float64)
    if column.shape not in ((n,), (n, 1)):
        raise ValueError(f"{name} must be of shape ({n},) or ({n}, 1), one for each row of x; got {column.shape}.")
    return column.reshape(n)
