"""May a fitted model be trusted, what does it say about itself, and how large should one be?"""

from offmanifold.diagnosis.doctor import diagnose
from offmanifold.diagnosis.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
