"""The attack against linear classifiers, whose worst case is a closed form, and projections against theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from offmanifold.data.worlds import WORLDS, embedded
from offmanifold.measures import pgd
from offmanifold.measures.robustness import NORMS, margin
from offmanifold.networks.stacked import StackedMLP
from offmanifold.studies import toy_vaes

G = torch.Generator
WEIGHTS = torch.tensor([0.5, -2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
ROWS = torch.randn(40, 5, dtype=torch.float64, generator=G().manual_seed(0))
CLASSES = (ROWS @ WEIGHTS > 0).long()
SIGNS = 1.0 - 2.0 * CLASSES[:, None]  # away from the row's own class


def linear(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.zeros(len(x), dtype=x.dtype), x @ WEIGHTS], 1)


def curved(x: torch.Tensor) -> torch.Tensor:
    network = StackedMLP((5, 16, 16, 3), [G().manual_seed(1)], torch.float64)
    logits: torch.Tensor = 20 * network(x[None])[0]
    return logits


def test_the_margin_is_that_of_the_best_wrong_class() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [-2.0, 3.0]


@pytest.mark.parametrize("steps", [1, 20])
def test_a_linear_classifiers_worst_row_within_the_l2_ball(steps: int) -> None:
    found = pgd(linear, ROWS, CLASSES, radius=0.7, steps=steps)
    torch.testing.assert_close(found, ROWS + 0.7 * SIGNS * WEIGHTS / WEIGHTS.norm())


def test_the_balls_other_side_can_be_reached() -> None:
    """A step is 2.5 radii over their number: from the near side of a ridge to the far one takes most of a diameter."""
    visited: list[torch.Tensor] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        visited.append(x.detach())
        return linear(x)

    pgd(watched, ROWS, CLASSES, radius=1.0, steps=10)
    torch.testing.assert_close((visited[1] - visited[0]).norm(dim=1), torch.full((len(ROWS),), 0.25, dtype=ROWS.dtype))


def test_a_linear_classifiers_worst_row_within_the_linf_ball() -> None:
    found = pgd(linear, ROWS, CLASSES, radius=0.2, norm="linf")
    torch.testing.assert_close(found, ROWS + 0.2 * SIGNS * WEIGHTS.sign())
    # It costs |w|₁ · radius where the l2 ball's costs |w|₂ · radius.
    cost = margin(linear(found), CLASSES) - margin(linear(ROWS), CLASSES)
    torch.testing.assert_close(cost, (0.2 * WEIGHTS.abs().sum()).expand(len(ROWS)))


def test_a_linear_projection_is_attacked_along_its_own_directions() -> None:
    basis = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64, generator=G().manual_seed(2)))[0]
    onto = basis @ basis.T
    inside = onto @ WEIGHTS

    def gained(moved: torch.Tensor) -> torch.Tensor:
        return margin(linear(moved @ onto), CLASSES) - margin(linear(ROWS @ onto), CLASSES)

    through = pgd(lambda x: linear(x @ onto), ROWS, CLASSES, radius=0.7)
    torch.testing.assert_close(gained(through), (0.7 * inside.norm()).expand(len(ROWS)))
    blind = pgd(linear, ROWS, CLASSES, radius=0.7)  # most of its way leads off the plane
    torch.testing.assert_close(gained(blind), (0.7 * inside.norm() ** 2 / WEIGHTS.norm()).expand(len(ROWS)))


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_stays_in_its_ball_and_makes_nothing_better(norm: str) -> None:
    y = torch.arange(len(ROWS)) % 3
    found = pgd(curved, ROWS, y, radius=0.3, norm=norm, steps=30)  # type: ignore[arg-type]
    away = torch.linalg.vector_norm(found - ROWS, 2 if norm == "l2" else torch.inf, dim=1)
    assert away.max() <= 0.3 * (1 + 1e-12)
    before, after = margin(curved(ROWS), y), margin(curved(found), y)
    assert (after > before).all()
    torch.testing.assert_close(pgd(curved, ROWS, y, radius=0.0, norm=norm), ROWS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radius": -1.0}, "radius must be .* at least 0; got -1"),
        ({"norm": "l1"}, "norm='l1' is unknown"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"step_size": 0.0}, "step_size must be .* above 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pgd(linear, ROWS, CLASSES, **({"radius": 1.0} | arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (ROWS.numpy(), CLASSES, "x must be a tensor of floats"), (ROWS[0], CLASSES, "x must be"),
        (ROWS, CLASSES.float(), "y must be a tensor of classes"), (ROWS, CLASSES[1:], "y must be"),
    ],
)  # fmt: skip
def test_what_no_attack_can_begin_from(x: Any, y: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        pgd(linear, x, y, radius=1.0)


def test_the_nearest_point_of_a_circle_is_in_the_rows_direction() -> None:
    world = WORLDS["circle"]
    rows = np.random.default_rng(0).normal(size=(200, 2))
    points, z = world.nearest(rows)
    np.testing.assert_allclose(points, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-7)
    np.testing.assert_array_equal(points, world.decode(z))


@pytest.mark.parametrize("name", ["figure-8", "clusters", "discrete-semi-circle"])
def test_no_point_of_the_curve_is_nearer(name: str) -> None:
    world, rng = WORLDS[name], np.random.default_rng(1)
    y = None if world.label is None else 1.0
    rows = rng.normal(size=(20, 2))
    points, _ = world.nearest(rows, y)
    distance = np.linalg.norm(rows - points, axis=1)
    path = world.decode(np.linspace(-8, 8, 200_001), y)
    for row, own in zip(rows, distance, strict=True):
        start = np.linspace(-8, 8, 200_001)[np.linalg.norm(path - row, axis=1).argmin()]
        best = minimize_scalar(
            lambda z, row=row: np.linalg.norm(row - world.decode(np.array([z]), y)),
            bounds=(start - 1e-3, start + 1e-3),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert own == pytest.approx(best.fun, abs=1e-7)


def test_an_embedding_by_orthonormal_rows_keeps_the_nearest_point() -> None:
    world, rng = WORLDS["figure-8"], np.random.default_rng(2)
    matrix = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    rows = rng.normal(size=(30, 2))
    off = rng.normal(size=(30, 6)) @ (np.eye(6) - matrix.T @ matrix)
    np.testing.assert_allclose(
        embedded(world, matrix).nearest(rows @ matrix + off)[0], world.nearest(rows)[0] @ matrix, atol=1e-6
    )


def test_a_stacks_projection_decodes_the_posteriors_mean() -> None:
    model = toy_vaes.StackedVAE(5, 2, (0, 1, 2), 0.1, dtype=torch.float64)
    rows = ROWS.clone().requires_grad_()
    found = toy_vaes.projected(model, 1, rows)
    expected = toy_vaes.decode(model, 1, toy_vaes.posterior(model, 1, ROWS.numpy())[0])
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), rows)
    assert (gradient != 0).all()
