"""The density that a semi-supervised model learned, by quadrature."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from offmanifold.data.worlds import WORLDS
from offmanifold.detectors.semi_supervised import SemiSupervisedVAE
from offmanifold.probability.grids import log_integral, midpoints
from offmanifold.studies.semi_toys import as_world, from_truth, log_prob, settings_of


@pytest.fixture(scope="module", params=["discrete-semi-circle", "continuous-semi-circle"])
def learned(request: pytest.FixtureRequest) -> tuple[str, SemiSupervisedVAE]:
    world = WORLDS[request.param]
    drawn = world.sample(400, np.random.default_rng(0))
    settings = settings_of("VAE", 5, 20) | {"latent_dim": 1, "gamma": world.noise_variance, "scale": None}
    detector = from_truth(SemiSupervisedVAE(**settings, random_state=0), world, 600)
    return request.param, detector.fit(drawn.x, drawn.y)


def test_it_integrates_to_one(learned: tuple[str, SemiSupervisedVAE]) -> None:
    name, detector = learned
    grid, area = midpoints(((-2.0, 2.0), (-2.0, 2.0)), 40)
    assert log_integral(log_prob(detector, WORLDS[name], grid), area) == pytest.approx(0, abs=1e-3)
    assert log_integral(as_world(detector, WORLDS[name]).log_prob(grid, 1.0), area) == pytest.approx(0, abs=1e-3)


def test_it_is_the_mean_over_draws(learned: tuple[str, SemiSupervisedVAE]) -> None:
    """Importance weights bound it from below, and closely where they are many and drawn from the priors.

    A trained q(z | x) of one mode misses what lies on the other curve.
    """
    name, detector = learned[0], copy.deepcopy(learned[1])
    with torch.no_grad():
        for weights in (*detector.module_.encoder.parameters(), *detector.module_.classifier.parameters()):
            weights.zero_()
    rows = WORLDS[name].sample(50, np.random.default_rng(1)).x
    exact = log_prob(detector, WORLDS[name], rows)
    estimate = detector.log_likelihood(rows, samples=20_000, random_state=0)
    np.testing.assert_allclose(estimate.mean(), exact.mean(), atol=0.05)


def test_training_begins_at_the_truth(learned: tuple[str, SemiSupervisedVAE]) -> None:
    name, detector = learned
    world = WORLDS[name]
    assert list(detector.training_summary()) == ["decoder", "inference", "semi-supervised-vae"]
    z = np.linspace(-1.5, 1.5, 31)
    for y in (0.0, 1.0):
        wanted = world.decode(z, y)
        told = (y - detector.labels_.mean) / detector.labels_.scale
        error = np.abs(as_world(detector, world).decode(z, told) - wanted).mean()
        assert error < 0.25 * np.abs(wanted - wanted.mean(0)).mean()
