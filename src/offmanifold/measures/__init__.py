"""Measures of detection, each with an interval."""

from offmanifold.measures.detection import Estimate, aupr, auroc, detection_report, fpr_at_tpr

__all__ = ["Estimate", "aupr", "auroc", "detection_report", "fpr_at_tpr"]
