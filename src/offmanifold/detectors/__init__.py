"""The table of detectors: command line, storage, documentation and contract tests go by it."""

from offmanifold.detectors.ae import AE
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.igebm import IGEBM
from offmanifold.detectors.multiscale import MultiscaleDenoiser
from offmanifold.detectors.nae import NAE
from offmanifold.detectors.vae import VAE

DETECTORS: dict[str, type[OutlierDetector]] = {
    detector.key: detector for detector in (AE, VAE, MultiscaleDenoiser, NAE, IGEBM)
}

__all__ = ["AE", "DETECTORS", "IGEBM", "NAE", "VAE", "MultiscaleDenoiser", "OutlierDetector"]
