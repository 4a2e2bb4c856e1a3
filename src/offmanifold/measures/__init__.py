"""Measures of detection, of the latent space and of the fit, each with an interval where it is an estimate."""

from offmanifold.measures.detection import aupr, auroc, auroc_difference, detection_report, fpr_at_tpr
from offmanifold.measures.estimates import Estimate
from offmanifold.measures.fitting import generalisation_gap, optimal_gamma, reconstruction_error
from offmanifold.measures.information import kraskov
from offmanifold.measures.latents import (
    LatentInformation,
    active_latents,
    aggregate_mmd,
    latent_information,
    latent_kl,
    latent_report,
)
from offmanifold.measures.posterior import best_gaussian, posterior_gap, posterior_mismatch
from offmanifold.measures.robustness import pgd
from offmanifold.measures.two_sample import TwoSample, smooth_knn_test

__all__ = [
    "Estimate",
    "LatentInformation",
    "TwoSample",
    "active_latents",
    "aggregate_mmd",
    "aupr",
    "auroc",
    "auroc_difference",
    "best_gaussian",
    "detection_report",
    "fpr_at_tpr",
    "generalisation_gap",
    "kraskov",
    "latent_information",
    "latent_kl",
    "latent_report",
    "optimal_gamma",
    "pgd",
    "posterior_gap",
    "posterior_mismatch",
    "reconstruction_error",
    "smooth_knn_test",
]
