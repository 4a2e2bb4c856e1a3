"""The table of detectors: command line, storage, documentation and contract tests go by it."""

from offmanifold.detectors.ae import AE
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.igebm import IGEBM
from offmanifold.detectors.multiscale import MultiscaleDenoiser
from offmanifold.detectors.nae import NAE
from offmanifold.detectors.negative_vae import NegativeVAE
from offmanifold.detectors.semi_supervised import SemiSupervisedVAE
from offmanifold.detectors.vae import VAE
from offmanifold.detectors.wae import WAE

DETECTORS: dict[str, type[OutlierDetector]] = {
    detector.key: detector
    for detector in (AE, VAE, MultiscaleDenoiser, NAE, IGEBM, WAE, NegativeVAE, SemiSupervisedVAE)
}

__all__ = [
    "AE",
    "DETECTORS",
    "IGEBM",
    "NAE",
    "VAE",
    "WAE",
    "MultiscaleDenoiser",
    "NegativeVAE",
    "OutlierDetector",
    "SemiSupervisedVAE",
]
