"""What normalisation is for: the middle between clusters, which a plain autoencoder reconstructs."""

from __future__ import annotations

import numpy as np

from offmanifold import AE, NAE, auroc
from offmanifold.data.toys import TwoBoxes


def test_the_gap_between_two_clusters_is_off_the_manifold() -> None:
    """P3, Fig. 11, with as many latents as columns: nothing but normalisation keeps the identity away."""
    world, rng = TwoBoxes(), np.random.default_rng(0)
    train, normal = world.sample(2000, rng), world.sample(500, rng)
    between = np.column_stack([rng.uniform(-1.5, 1.5, 500), rng.uniform(-0.5, 0.5, 500)])
    shared = {"latent_dim": 2, "network": "mlp", "hidden": (64, 64), "random_state": 0, "verbose": False}
    plain = AE(noise=0.0, **shared).fit(train)
    normalised = NAE(noise=0.0, steps=100, visible_chain=(20, 0.05, 0.1), **shared).fit(train)
    found = auroc(normalised.score_samples(normal), normalised.score_samples(between))
    assert found.value > 0.99
    assert found.low > auroc(plain.score_samples(normal), plain.score_samples(between)).high
