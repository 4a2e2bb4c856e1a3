"""Linear Gaussian models of any number of latents, where likelihoods, posteriors and bounds have closed forms."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearGaussian:
    """x = A z + ε with z ~ N(0, I), ε ~ N(0, σ² I): probabilistic PCA, and P2's entangled latents (appendix F).

    Attributes
    ----------
    decoder : (d, k)
        A.
    noise_variance : float
        σ².
    """

    decoder: Array
    noise_variance: float

    @functools.cached_property
    def covariance(self) -> Array:
        """Of x: A Aᵀ + σ² I ``(d, d)``."""
        found: Array = self.decoder @ self.decoder.T + self.noise_variance * np.eye(len(self.decoder))
        return found

    @functools.cached_property
    def precision(self) -> Array:
        """Of p(z | x), whatever x: I + Aᵀ A / σ² ``(k, k)``."""
        found: Array = np.eye(self.decoder.shape[1]) + self.decoder.T @ self.decoder / self.noise_variance
        return found

    @functools.cached_property
    def encoder(self) -> Array:
        """The matrix ``(k, d)`` that gives E[z | x], the mean of the best q as well."""
        return np.asarray(np.linalg.solve(self.precision, self.decoder.T) / self.noise_variance, dtype=np.float64)

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """Draw rows ``(n, d)``."""
        d, k = self.decoder.shape
        noise = math.sqrt(self.noise_variance) * rng.standard_normal((n, d))
        return rng.standard_normal((n, k)) @ self.decoder.T + noise

    @property
    def entropy(self) -> float:
        """−E log p(x) in nats."""
        return 0.5 * float(np.linalg.slogdet(2 * math.pi * math.e * self.covariance)[1])

    def divergence(self, other: LinearGaussian) -> float:
        """KL(p ‖ other's p) of the rows, in nats."""
        ratio = np.linalg.solve(other.covariance, self.covariance)
        return 0.5 * float(np.trace(ratio) - len(ratio) - np.linalg.slogdet(ratio)[1])

    @property
    def mean_field_gap(self) -> float:
        """log p(x) − ELBO in nats for the best q with independent latents: the same for every row.

        That q has p(z | x)'s mean and the variances 1/P_ii of its precision P: ½ (Σ log P_ii − log det P), which is 0
        for a diagonal P alone.
        """
        return 0.5 * float(np.log(np.diag(self.precision)).sum() - np.linalg.slogdet(self.precision)[1])

    def importance_gap(self, std: Array, noise: Array) -> float:
        """log p(x) − the importance-weighted bound in nats, for q = N(E[z | x], std²): the same for every row.

        Parameters
        ----------
        std : (k,)
        noise : (samples, n, k)
            Standard normal; the bound of ``samples`` weights is averaged over n draws.
        """
        apart = std * noise
        log_weights = 0.5 * (np.linalg.slogdet(self.precision)[1] + (noise**2).sum(-1)) + np.log(std).sum()
        log_weights -= 0.5 * np.einsum("snk,kl,snl->sn", apart, self.precision, apart, optimize=True)
        return math.log(len(noise)) - float(logsumexp(log_weights, axis=0).mean())

    def rotated(self, rotation: npt.ArrayLike) -> LinearGaussian:
        """Return the model of A R: for an orthogonal R ``(k, k)`` the same rows from other latents."""
        return dataclasses.replace(self, decoder=self.decoder @ np.asarray(rotation, dtype=np.float64))

    def aligned(self) -> LinearGaussian:
        """Return the rotation whose latents are independent given x: A V for A = U Σ Vᵀ.

        P2's R with its Λ = Σ² + σ² I; any other Λ changes p(x).
        """
        return self.rotated(np.linalg.eigh(self.decoder.T @ self.decoder)[1][:, ::-1])
