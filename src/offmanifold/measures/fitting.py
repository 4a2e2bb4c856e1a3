"""How well a model fits: reconstruction, the decoder's variance, and whether it learned the training rows by heart."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from offmanifold.measures.estimates import Estimate, difference_of_means, mean_of

Array = npt.NDArray[np.float64]


class Reconstructs(Protocol):
    """A fitted detector with a decoder."""

    def reconstruction_errors(self, X: Any) -> Array:
        """Return mean squared errors ``(n,)``."""


def reconstruction_error(detector: Reconstructs, X: Any) -> Estimate:
    """Mean squared error a dimension, over rows, in what the network sees (pixels in [0, 1], standardised columns)."""
    if not hasattr(detector, "reconstruction_errors"):
        raise TypeError(f"{type(detector).__name__} reconstructs nothing: it has no decoder.")
    return mean_of(detector.reconstruction_errors(X))


def optimal_gamma(detector: Any, X: Any) -> Estimate:
    """Closed-form optimum of the decoder's variance given the networks: E_q ‖x − μ(z)‖²/d over rows (P4 Eq. 6).

    A learned γ that is far from it has not been trained for long enough. The interval is over rows; the draws that
    stand for E_q are the same for all of them, and their error is not in it.
    """
    if getattr(detector, "gamma_", None) is None:
        instead = "; use reconstruction_error" if hasattr(detector, "reconstruction_errors") else ""
        raise TypeError(f"{type(detector).__name__} has no decoder variance{instead}.")
    return mean_of(detector.expected_errors(X))


def generalisation_gap(detector: Any, training: Any, held_out: Any) -> Estimate:
    """Mean score of training rows minus that of held-out normal rows, in the score's unit.

    Where the score is a log-likelihood this is the gap of the negative log-likelihoods, the papers' sign of excess
    capacity: an interval above 0 says that the model knows its training rows better than others of their kind
    (P0 §3.2). No outliers are needed.
    """
    return difference_of_means(detector.score_samples(training), detector.score_samples(held_out))
