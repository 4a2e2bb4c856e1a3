"""Learn what normal data look like; tell what does not belong, at a false-alarm rate that holds.

PyTorch is imported when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offmanifold.calibration import false_discoveries
    from offmanifold.detectors import (
        AE,
        DETECTORS,
        IGEBM,
        NAE,
        VAE,
        WAE,
        MultiscaleDenoiser,
        NegativeVAE,
        OutlierDetector,
        SemiSupervisedVAE,
    )
    from offmanifold.diagnosis import Diagnosis, diagnose
    from offmanifold.diagnosis.capacity import suggest_capacity
    from offmanifold.measures import aupr, auroc, detection_report, fpr_at_tpr
    from offmanifold.storage import load, save
    from offmanifold.training.loop import TrainingDiverged

__version__ = "0.1.0"

_HOMES = {
    "AE": "offmanifold.detectors",
    "DETECTORS": "offmanifold.detectors",
    "Diagnosis": "offmanifold.diagnosis",
    "IGEBM": "offmanifold.detectors",
    "MultiscaleDenoiser": "offmanifold.detectors",
    "NAE": "offmanifold.detectors",
    "NegativeVAE": "offmanifold.detectors",
    "OutlierDetector": "offmanifold.detectors",
    "SemiSupervisedVAE": "offmanifold.detectors",
    "TrainingDiverged": "offmanifold.training.loop",
    "VAE": "offmanifold.detectors",
    "WAE": "offmanifold.detectors",
    "aupr": "offmanifold.measures",
    "auroc": "offmanifold.measures",
    "detection_report": "offmanifold.measures",
    "diagnose": "offmanifold.diagnosis",
    "false_discoveries": "offmanifold.calibration",
    "fpr_at_tpr": "offmanifold.measures",
    "load": "offmanifold.storage",
    "save": "offmanifold.storage",
    "suggest_capacity": "offmanifold.diagnosis.capacity",
}

__all__ = [  # noqa: RUF022 - detectors first
    "AE",
    "VAE",
    "MultiscaleDenoiser",
    "NAE",
    "IGEBM",
    "WAE",
    "NegativeVAE",
    "SemiSupervisedVAE",
    "DETECTORS",
    "OutlierDetector",
    "TrainingDiverged",
    "load",
    "save",
    "auroc",
    "aupr",
    "fpr_at_tpr",
    "detection_report",
    "false_discoveries",
    "suggest_capacity",
    "diagnose",
    "Diagnosis",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'offmanifold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
