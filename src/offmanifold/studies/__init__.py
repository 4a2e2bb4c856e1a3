"""The table of studies: one file a table or figure of a paper."""

from offmanifold.studies.core import Study
from offmanifold.studies.density_2d import STUDY as DENSITY_2D
from offmanifold.studies.fashion_vs_mnist import STUDY as FASHION_VS_MNIST
from offmanifold.studies.mnist_holdout import STUDY as MNIST_HOLDOUT
from offmanifold.studies.mnist_ood import STUDY as MNIST_OOD

STUDIES: dict[str, Study] = {study.name: study for study in (FASHION_VS_MNIST, DENSITY_2D, MNIST_HOLDOUT, MNIST_OOD)}

__all__ = ["STUDIES", "Study"]
