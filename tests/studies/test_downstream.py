"""What the studies of P2's downstream tasks compare, on cases whose answer is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from offmanifold.data.worlds import WORLDS
from offmanifold.studies import latent_count, projection_defence, toy_vaes


def record(latents: int, seed: int, choosing: float, **metrics: float) -> dict[str, Any]:
    job = {"world": "figure-8-5d", "method": "VAE", "latents": latents, "seed": seed}
    return {"job": job, "metrics": {"choosing": choosing} | metrics}


def test_the_number_of_latents_is_chosen_by_other_rows_than_it_is_measured_on() -> None:
    records = [
        record(1, 0, choosing=-0.1, loss=-0.3, rate=2.0),
        record(2, 0, choosing=-0.2, loss=-0.1, rate=2.5),
        record(3, 0, choosing=-0.15, loss=-0.4, rate=3.0),
        record(1, 1, choosing=-0.1, loss=0.0, rate=2.0),  # the other numbers' results are still to come
    ]
    (choice,) = latent_count.choices(records)
    assert choice.chosen == 2
    assert choice.difference("loss") == pytest.approx(0.2)
    assert choice.difference("rate") == pytest.approx(0.5)


def test_origins_are_those_of_the_test_rows() -> None:
    sizes = (30, 20, 10)
    quiet = dataclasses.replace(WORLDS["figure-8-5d"], noise_variance=1e-24)
    _, _, test = toy_vaes.data(quiet, 3, sizes)
    np.testing.assert_allclose(quiet.decode(toy_vaes.origins(quiet, 3, sizes)), test, atol=1e-10)


def test_classes_are_the_lobes_and_the_latents_sign() -> None:
    z = np.random.default_rng(0).normal(size=500)
    np.testing.assert_array_equal(projection_defence.classes(projection_defence.WORLD.decode(z)), z > 0)


def test_the_classifier_learns_what_a_plane_separates() -> None:
    rows = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    rows = rows[rows[:, 1].abs() > 0.5]
    labels = (rows[:, 1] > 0).long().numpy()
    logits = projection_defence.classifier(rows, labels, steps=300, seed=0)
    assert (logits(rows).argmax(1).numpy() == labels).all()


def test_every_defence_keeps_the_shape_and_the_nearest_point_lies_on_the_curve() -> None:
    world = projection_defence.WORLD
    rows = torch.from_numpy(world.sample(20, np.random.default_rng(0)).x).float()
    for job in projection_defence.jobs("smoke", 0):
        project = projection_defence.projection(job)
        kind = projection_defence.DEFENCES[job["defence"]].method
        if project is None:
            assert kind == "none"
            continue
        found = project(rows)
        assert found.shape == rows.shape and found.dtype == rows.dtype, job["defence"]
        if kind == "truth":
            np.testing.assert_allclose(found.numpy(), world.nearest(found.numpy())[0], atol=1e-6)
        if kind == "PCA":
            torch.testing.assert_close(project(found), found)
