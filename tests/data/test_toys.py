"""Toy worlds: densities that integrate to one, samples that follow them."""

from __future__ import annotations

import numpy as np
import pytest

from offmanifold.data.toys import EightGaussians, TwoBoxes


@pytest.mark.parametrize("world", [EightGaussians(), TwoBoxes()])
def test_density_and_samples_agree(world: EightGaussians | TwoBoxes) -> None:
    axis = -5 + 10 * (np.arange(500) + 0.5) / 500
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(world.log_prob(grid))
    assert density.sum() * 0.02**2 == pytest.approx(1, abs=1e-3)
    drawn = world.sample(40_000, np.random.default_rng(0))
    for moment in (lambda x: x[:, 0], lambda x: x[:, 0] ** 2, lambda x: (x[:, 0] * x[:, 1]) ** 2):
        exact = (density * moment(grid)).sum() * 0.02**2
        assert abs(moment(drawn).mean() - exact) < 4.5 * moment(drawn).std() / 200 + 2e-3


def test_eight_gaussians_are_those_of_the_paper() -> None:
    """0.125 I as covariance: the paper prints the standard deviation √2/4 in its place."""
    world = EightGaussians()
    assert {tuple(mean) for mean in world.means.round(6) + 0.0} == {
        (2.828427, 0), (0, 2.828427), (-2.828427, 0), (0, -2.828427), (2, 2), (-2, 2), (2, -2), (-2, -2),
    }  # fmt: skip
    near = world.sample(40_000, np.random.default_rng(1)) - [2.828427, 0]
    near = near[np.linalg.norm(near, axis=1) < 1.05]
    # A Gaussian cut off at 1.05, half way to the next one, has a smaller variance.
    t = 1.05**2 / (2 * 0.125)
    expected = 0.125 * (1 - t * np.exp(-t) / (1 - np.exp(-t)))
    assert near.var(0) == pytest.approx([expected, expected], rel=0.06)
