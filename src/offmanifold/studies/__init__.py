"""The table of studies: one file a table or figure of a paper."""

from offmanifold.studies.bimodal import STUDY as BIMODAL
from offmanifold.studies.capacity import STUDY as CAPACITY
from offmanifold.studies.cifar_ood import STUDY as CIFAR_OOD
from offmanifold.studies.composition import STUDY as COMPOSITION
from offmanifold.studies.core import Study
from offmanifold.studies.density_2d import STUDY as DENSITY_2D
from offmanifold.studies.disentanglement import STUDY as DISENTANGLEMENT
from offmanifold.studies.doctor_zoo import STUDY as DOCTOR
from offmanifold.studies.explanations import STUDY as EXPLANATIONS
from offmanifold.studies.fashion_vs_mnist import STUDY as FASHION_VS_MNIST
from offmanifold.studies.latent_count import STUDY as LATENT_COUNT
from offmanifold.studies.latent_dim import STUDY as LATENT_DIM
from offmanifold.studies.latent_size import STUDY as LATENT_SIZE
from offmanifold.studies.learned_gamma import STUDY as LEARNED_GAMMA
from offmanifold.studies.mnist_holdout import STUDY as MNIST_HOLDOUT
from offmanifold.studies.mnist_ood import STUDY as MNIST_OOD
from offmanifold.studies.negatives_colour import STUDY as NEGATIVES_COLOUR
from offmanifold.studies.negatives_grey import STUDY as NEGATIVES_GREY
from offmanifold.studies.negatives_sources import STUDY as NEGATIVES_SOURCES
from offmanifold.studies.noise_variance import STUDY as NOISE_VARIANCE
from offmanifold.studies.penalties import STUDY as PENALTIES
from offmanifold.studies.pixel_explanations import STUDY as PIXEL_EXPLANATIONS
from offmanifold.studies.pretraining import STUDY as PRETRAINING
from offmanifold.studies.projection_defence import STUDY as PROJECTION_DEFENCE
from offmanifold.studies.pruning import STUDY as PRUNING
from offmanifold.studies.sampler_settings import STUDY as SAMPLER_SETTINGS
from offmanifold.studies.samples import STUDY as SAMPLES
from offmanifold.studies.score_choice import STUDY as SCORE_CHOICE
from offmanifold.studies.semi_real import STUDY as SEMI_REAL
from offmanifold.studies.semi_toys import STUDY as SEMI_TOYS
from offmanifold.studies.smoothing import STUDY as SMOOTHING
from offmanifold.studies.tables import STUDY as TABLES
from offmanifold.studies.unsupervised_toys import STUDY as UNSUPERVISED_TOYS

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        FASHION_VS_MNIST,
        MNIST_HOLDOUT,
        MNIST_OOD,
        CIFAR_OOD,
        PRETRAINING,
        SAMPLER_SETTINGS,
        LATENT_DIM,
        DENSITY_2D,
        BIMODAL,
        COMPOSITION,
        SAMPLES,
        LATENT_SIZE,
        CAPACITY,
        PRUNING,
        LEARNED_GAMMA,
        SCORE_CHOICE,
        SMOOTHING,
        PENALTIES,
        NEGATIVES_GREY,
        NEGATIVES_COLOUR,
        NEGATIVES_SOURCES,
        UNSUPERVISED_TOYS,
        NOISE_VARIANCE,
        LATENT_COUNT,
        PROJECTION_DEFENCE,
        DISENTANGLEMENT,
        SEMI_TOYS,
        SEMI_REAL,
        DOCTOR,
        EXPLANATIONS,
        PIXEL_EXPLANATIONS,
        TABLES,
    )
}

__all__ = ["STUDIES", "Study"]
