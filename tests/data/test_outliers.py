"""Synthetic outliers are what their names say."""

from __future__ import annotations

import pytest
import torch

from offmanifold.data import outliers


def test_every_family_is_what_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 1, 8, 8, generator=generator)
    made_of = {family: outliers.make(family, images, generator) for family in outliers.families("image")}
    assert all(odd.shape == images.shape and odd.min() >= 0 and odd.max() <= 1 for odd in made_of.values())
    assert made_of["constant"].flatten(1).std(1).max() == 0
    assert len(made_of["constant"][:, 0, 0, 0].unique()) == 20
    assert made_of["erased"][1, :, 4:].eq(0).all()
    for lower in made_of["mixed"][:, :, 4:]:
        assert any(torch.equal(lower, image[:, 4:]) for image in images)
    assert made_of["erased"][0, :, :4].eq(0).all() and torch.equal(made_of["erased"][1, :, :4], images[1, :, :4])
    assert torch.equal(made_of["mixed"][:, :, :4], images[:, :, :4])
    assert not any(torch.equal(odd, image) for odd, image in zip(made_of["mixed"], images, strict=True))
    for odd, image in zip(made_of["patches"], images, strict=True):
        assert torch.equal(odd.flatten().sort().values, image.flatten().sort().values)
    rows = torch.randn(500, 4, generator=generator)
    permuted = outliers.make("permuted", rows, generator)
    assert torch.equal(permuted.sort(0).values, rows.sort(0).values) and not torch.equal(permuted, rows)
    for family in ("exchanged", "replaced"):  # cells of their own column
        odd = outliers.make(family, rows, generator)
        assert all(torch.isin(odd[:, i], rows[:, i]).all() for i in range(4))
    exchanged = outliers.make("exchanged", rows, generator)
    assert 0.15 < (exchanged != rows).double().mean() < 0.25
    stretched = outliers.make("stretched", rows, generator)
    factor = (stretched - rows.mean(0)).norm(dim=1) / (rows - rows.mean(0)).norm(dim=1)
    assert factor.min() >= 1.5 and factor.max() <= 3.0
    with pytest.raises(ValueError, match="family='constant' is unknown"):
        outliers.make("constant", rows, generator)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_only_look_worse(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, channels, 12, 16, generator=generator)
    blurred, faded, warped = (outliers.make(name, images, generator) for name in ("blurred", "faded", "warped"))
    assert blurred.var() < 0.2 * images.var()
    flat = torch.full_like(images, 0.3)
    for name in ("blurred", "faded", "warped"):
        torch.testing.assert_close(outliers.make(name, flat, generator), flat)
    torch.testing.assert_close(faded.mean((1, 2, 3)), images.mean((1, 2, 3)))
    assert faded.var() == pytest.approx(0.16 * float(images.var()), rel=0.05)
    assert (warped - images).abs().mean() > 0.02 and 0 <= warped.min() <= warped.max() <= 1


def test_rows_of_a_table_that_do_not_belong() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 2, generator=generator) @ torch.randn(2, 5, generator=generator)
    rows = rows + 0.01 * torch.randn(400, 5, generator=generator)
    assert ((outliers.make("replaced", rows, generator) != rows).sum(1) <= 1).all()
    low, high = rows.min(0).values, rows.max(0).values
    scattered = outliers.make("scattered", rows, generator)
    assert (scattered >= low).all() and (scattered <= high).all()
    assert scattered.var(0) == pytest.approx(((high - low) ** 2 / 12).numpy(), rel=0.2)
    extreme = outliers.make("extreme", rows, generator)
    changed = extreme != rows
    assert (extreme == low)[changed].any() and (extreme == high)[changed].any()
    assert ((extreme == low) | (extreme == high))[changed].all() and 0.15 < changed.double().mean() < 0.25
    # All rows together, off the plane that they lie on.
    moves = outliers.make("displaced", rows, generator) - rows
    assert (moves - moves[0]).abs().max() < 1e-4
    plane = torch.linalg.svd((rows - rows.mean(0)), full_matrices=False)[2][:2]
    assert (plane @ moves[0]).norm() < 0.02 * moves[0].norm()
    assert moves[0].norm() == pytest.approx(2 * float((rows - rows.mean(0)).square().mean().sqrt()), rel=1e-3)
    directions = [outliers.make("displaced", rows, torch.Generator().manual_seed(i))[0] - rows[0] for i in range(20)]
    alike = torch.stack([direction @ directions[0] for direction in directions]) / directions[0].square().sum()
    assert 0 < (alike.abs() > 0.9).sum() < 20  # one of two
    rows[:, 2] = 1  # a column that does not vary leaves a direction without variance, which is none to move in
    moved = outliers.make("displaced", rows, generator)
    assert (moved[:, 2] - 1).abs().max() < 1e-4
    constant = torch.zeros(10, 3)
    assert torch.isfinite(outliers.make("displaced", constant, generator)).all()


def test_what_is_made_of_pixels_and_cells_to_the_number() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(9, 1, 8, 8, generator=generator)
    made = {family: outliers.make(family, images, generator) for family in ("inverted", "patches", "noise")}
    torch.testing.assert_close(made["inverted"], 1 - images)
    torch.testing.assert_close(made["patches"][:, :, :4, :4], images[:, :, :4, 4:])
    torch.testing.assert_close(made["patches"][:, :, 4:, 4:], images[:, :, :4, :4])
    assert 0.07 < made["noise"].var() < 0.1  # of a uniform law 1/12
    rows = torch.randn(4000, 3, generator=generator) * torch.tensor([1.0, 10.0, 0.1])
    moved = outliers.make("jittered", rows, generator) - rows
    torch.testing.assert_close(moved.std(0) / rows.std(0), torch.full((3,), 0.5), rtol=0.05, atol=0)
    changed = (outliers.make("replaced", rows, generator) != rows).double().mean(0)
    assert (changed - 1 / 3).abs().max() < 0.05
    assert not any(torch.equal(outliers._others(rows[:2], generator), rows[:2]) for _ in range(50))
