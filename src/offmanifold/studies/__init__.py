"""The table of studies: one file a table or figure of a paper."""

from offmanifold.studies.core import Study
from offmanifold.studies.fashion_vs_mnist import STUDY as FASHION_VS_MNIST

STUDIES: dict[str, Study] = {study.name: study for study in (FASHION_VS_MNIST,)}

__all__ = ["STUDIES", "Study"]
