"""Denoisers against closed forms and loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf

from offmanifold import MultiscaleDenoiser, auroc, load, storage
from offmanifold.detectors.denoising import ImageModel, TableModel
from offmanifold.detectors.stored import StoredRows
from offmanifold.networks.denoiser import DenseDenoiser, UNetDenoiser

RNG = np.random.default_rng(0)


def stored_rows(rows: np.ndarray, levels: Sequence[float] = (0.1, 0.5, 2.0)) -> StoredRows:
    """Return stored rows in float64."""
    made = StoredRows(0, rows.shape[1], list(levels))
    made.store(torch.from_numpy(rows))
    return made


def model(rows: np.ndarray, levels: Sequence[float] = (0.1, 0.5, 2.0)) -> TableModel:
    """Return an untrained model in float64 that stores ``rows``."""
    denoiser = DenseDenoiser(rows.shape[1], (16, 16))
    return TableModel(denoiser, list(levels[1:]), stored_rows(rows, levels)).double().eval()


def test_a_network_that_gives_nothing_has_loss_one_and_is_best_for_unit_gaussians() -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser = DenseDenoiser(4, (8,))
    torch.nn.init.zeros_(denoiser.leave.weight)
    torch.nn.init.zeros_(denoiser.leave.bias)
    rows, noise = torch.randn(2, 50_000, 4, generator=generator)
    for level in (0.05, 0.7, 3.0):
        sigma = torch.full((50_000, 1), level)
        assert denoiser.loss(rows, noise, sigma).mean().item() == pytest.approx(1, abs=0.02)
        # E[x | y] = y/(1 + σ²): there is nothing left to learn.
        torch.testing.assert_close(denoiser(rows, sigma), rows / (1 + level**2))


def test_the_loss_is_the_denoising_error() -> None:
    denoiser = DenseDenoiser(3, (8,)).double()
    rows, noise = (torch.from_numpy(RNG.normal(size=(20, 3))) for _ in range(2))
    sigma = torch.from_numpy(RNG.uniform(0.05, 3, size=(20, 1)))
    error = (denoiser(rows + sigma * noise, sigma) - rows).square().mean(1)
    torch.testing.assert_close(denoiser.loss(rows, noise, sigma), error * ((1 + sigma**2) / sigma**2)[:, 0])


def test_learned_features_are_the_errors_of_the_denoiser() -> None:
    made = model(RNG.normal(size=(5, 3)))
    rows = torch.from_numpy(RNG.normal(size=(7, 3)))
    found = made.learned(rows)
    assert found.shape == (7, 2)
    for index, sigma in enumerate(made.levels.tolist()):
        level = torch.full((7, 1), sigma, dtype=torch.float64)
        residual = (rows - made.denoiser(rows, level)).square().mean(1) / sigma**2
        torch.testing.assert_close(found[:, index], residual)


def test_the_distance_from_stored_rows_is_the_loop_and_in_the_limit_the_nearest_neighbours() -> None:
    rng = np.random.default_rng(0)  # a row that lies upon a stored one has no limit to tell
    stored, rows = rng.normal(size=(40, 3)), rng.normal(size=(600, 3))
    levels = (1e-3, 0.5, 2.0, 1e3)
    found = stored_rows(stored, levels)(torch.from_numpy(rows)).numpy()
    for i in (0, 255, 256, 599):
        squares = ((rows[i] - stored) ** 2).sum(1)
        for index, sigma in enumerate(levels):
            energy = -2 * sigma**2 * (logsumexp(-squares / (2 * sigma**2)) - np.log(40)) / 3
            assert found[i, index] == pytest.approx(energy, rel=1e-6)
        assert found[i, 0] == pytest.approx(squares.min() / 3, rel=1e-4)
        assert found[i, 3] == pytest.approx(squares.mean() / 3, rel=1e-4)


def test_the_slope_of_that_distance_is_what_the_exact_denoiser_would_change() -> None:
    """Tweedie's formula: the mean of stored rows under the weights exp(−‖x − xᵢ‖²/2σ²) is x − σ² ∇E."""
    stored, sigma = RNG.normal(size=(40, 3)), 0.6
    row = torch.from_numpy(RNG.normal(size=(1, 3))).requires_grad_()
    (slope,) = torch.autograd.grad(stored_rows(stored, (sigma,))(row).sum(), row)
    weights = np.exp(-((row.detach().numpy() - stored) ** 2).sum(1) / (2 * sigma**2))
    denoised = weights @ stored / weights.sum()
    np.testing.assert_allclose(slope.numpy()[0], 2 * (row.detach().numpy()[0] - denoised) / 3, rtol=1e-9)


def test_distances_are_the_same_far_from_zero() -> None:
    """In float32, of columns that were not standardised."""
    stored, rows = RNG.normal(size=(40, 4)), RNG.normal(size=(20, 4))
    near = stored_rows(stored)(torch.from_numpy(rows))
    far = stored_rows((stored + 3000).astype(np.float32))(torch.from_numpy((rows + 3000).astype(np.float32)))
    torch.testing.assert_close(far.double(), near, rtol=0.01, atol=1e-3)


def test_missing_cells_take_no_part_in_distances() -> None:
    stored, rows, levels = RNG.normal(size=(40, 4)), RNG.normal(size=(3, 4)), (0.1, 0.5, 2.0)
    rows[:, 1] = rows[2, 0] = np.nan
    squares = 4 * np.nanmean((stored[None] - rows[:, None]) ** 2, 2)
    found = stored_rows(stored, levels)(torch.from_numpy(rows))
    for index, sigma in enumerate(levels):
        energy = -2 * sigma**2 * (logsumexp(-squares / (2 * sigma**2), axis=1) - np.log(40)) / 4
        np.testing.assert_allclose(found[:, index], energy, rtol=1e-9)


def test_a_trained_denoiser_is_the_posterior_mean_of_a_gaussian() -> None:
    """Of N(0, Λ): E[x | y] = Λ (Λ + σ²)⁻¹ y."""
    deviations = np.array([1.6, 0.4, 0.15])
    rows = RNG.normal(size=(6000, 3)) * deviations
    detector = MultiscaleDenoiser(scale=None, hidden=(64, 64), steps=3000, random_state=0, verbose=False).fit(rows)
    new = RNG.normal(size=(500, 3)) * deviations
    for sigma in (0.2, 0.5, 1.5):
        expected = new * deviations**2 / (deviations**2 + sigma**2)
        error = ((detector.reconstruct(new, sigma=sigma) - expected) ** 2).mean() / (expected**2).mean()
        assert error < 0.03, sigma


def test_evidence_terms_and_score_fit_together(plane: Any, tmp_path: Path) -> None:
    normal, odd = plane
    detector = MultiscaleDenoiser(hidden=(32,), steps=200, random_state=0, verbose=False).fit(normal[:300])
    evidence = detector.evidence(odd)
    assert evidence.shape == (len(odd), 6)
    sides = np.stack([np.exp(part).mean(1) for part in np.split(evidence, [3], 1)], 1)
    combined = np.log(sides.mean(1))
    np.testing.assert_allclose(detector.score_samples(odd), -combined, rtol=1e-5)
    terms = detector.score_terms(odd)
    share = sides[:, 0] / sides.sum(1)
    np.testing.assert_allclose(terms["learned"], -combined * share, rtol=1e-4, atol=1e-6)
    assert list(terms) == ["learned", "stored"]
    # Normal rows that took no part stand where the held-out rows stood; 30 of those place a median to ±.25.
    assert np.abs(np.median(detector.evidence(normal[300:]), 0)).max() < 0.8
    kept = detector.rows_["training"] + detector.rows_["stopping"]  # none that the decision is calibrated with
    assert detector.stored_rows == kept + detector.rows_["calibration"]
    detector.save(tmp_path / "with.safetensors")
    assert len(storage.read(tmp_path / "with.safetensors")[1]["module/stored.rows"]) == kept


def test_of_rows_far_off_the_farthest_is_the_worst(plane: Any) -> None:
    detector = MultiscaleDenoiser(steps=50, hidden=(32,), random_state=0, verbose=False).fit(plane[0])
    far = np.zeros((5, 5))
    far[:, 1] = 10.0 ** np.arange(1, 6)
    evidence = detector.evidence(far)
    assert (evidence[1:] > 20).any(1).all() and np.isfinite(evidence).all()
    assert (np.diff(detector.score_samples(far)) < 0).all()


def test_rows_can_be_left_out_of_the_file(plane: Any, tmp_path: Path) -> None:
    normal, odd = plane
    settings = {"hidden": (32,), "steps": 400, "random_state": 0, "verbose": False}
    detector = MultiscaleDenoiser(store_rows=False, **settings).fit(normal[:300])
    detector.save(tmp_path / "without.safetensors")
    tensors = storage.read(tmp_path / "without.safetensors")[1]
    assert tensors["module/stored.rows"].shape == (0, 5)
    assert "calibration/rows" not in tensors
    again = load(tmp_path / "without.safetensors")
    np.testing.assert_array_equal(again.score_samples(odd), detector.score_samples(odd))
    assert list(again.score_terms(odd)) == ["learned"]
    assert auroc(again.score_samples(normal[300:]), again.score_samples(odd)).value > 0.95
    few = MultiscaleDenoiser(most_rows=50, **settings).fit(normal)
    assert few.settings_["stored"] == 50
    # Fewer than ten would say how far they lie from each other, and drown what was learned.
    assert MultiscaleDenoiser(most_rows=9, **{**settings, "steps": 2}).fit(normal).settings_["stored"] == 0


def test_noise_levels_reach_down_to_the_distance_between_neighbours() -> None:
    settings = {"hidden": (8,), "steps": 1, "verbose": False}
    sparse = MultiscaleDenoiser(**settings).fit(RNG.normal(size=(200, 20))).settings_
    dense = MultiscaleDenoiser(**settings).fit(RNG.normal(size=(20_000, 2))).settings_
    kinds = ("levels", "stored_levels")
    assert [sparse[kind][0] for kind in kinds] == pytest.approx([0.05, 0.2])
    assert 0.01 <= dense["levels"][0] == dense["stored_levels"][0] < 0.02
    assert all([settled[kind][-1] for kind in kinds] == pytest.approx([1.1, 1.5]) for settled in (sparse, dense))


def test_what_it_cannot_take_is_said(plane: Any) -> None:
    with pytest.raises(ValueError, match="network='mlp' is unknown. Did you mean 'resmlp'"):
        MultiscaleDenoiser(network="mlp").fit(plane[0])
    with pytest.raises(ValueError, match="network='unet' takes images; the data are a table. Use 'resmlp'"):
        MultiscaleDenoiser(network="unet").fit(plane[0])
    with pytest.raises(ValueError, match="hidden must be of one width"):
        MultiscaleDenoiser(hidden=(8, 16)).fit(plane[0])
    with pytest.raises(ValueError, match="most_rows must be"):
        MultiscaleDenoiser(most_rows=0).fit(plane[0])


def test_stored_rows_are_left_out_of_their_own_neighbours() -> None:
    stored = RNG.normal(size=(30, 3))
    places = torch.tensor([0, 7, 29])
    found = stored_rows(stored).from_others(places)
    for row, place in zip(found, places.tolist(), strict=True):
        others = stored_rows(np.delete(stored, place, 0))(torch.from_numpy(stored[place : place + 1]))[0]
        torch.testing.assert_close(row, others)


def test_an_image_is_told_by_how_unlike_others_its_errors_are() -> None:
    """By both sides of the learned denoiser's errors, and by its distance from stored images."""
    denoiser = UNetDenoiser((1, 8, 9), 0.3)
    torch.manual_seed(0)
    none = StoredRows(0, 72, [0.3, 3.0])
    made = ImageModel(denoiser, [0.1, 1.0], none, 0.5, 0.2).double().requires_grad_(False)
    images = torch.from_numpy(RNG.uniform(size=(400, 1, 8, 9)))
    flat = (images.flatten(1) - 0.5) / 0.2
    for index, sigma in enumerate((0.1, 1.0)):
        level = torch.full((400, 1), sigma, dtype=torch.float64)
        errors = [(flat - denoiser(flat + sigma * noise, level)).square().mean(1) for noise in made.noise]
        torch.testing.assert_close(made.errors(flat)[:, index], torch.stack(errors).mean(0).log())
    made.standardise(images)
    made.double()
    features = made.errors(flat).numpy()
    covariance = LedoitWolf().fit(features).covariance_ + 1e-6 * np.eye(2)
    apart = features - features.mean(0)
    squares = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart) / 2
    np.testing.assert_allclose(made.learned(flat)[:, 0].numpy(), squares, rtol=1e-3, atol=1e-6)
    # Of one feature alone the energy is its evidence: spreads of its logarithm above the median.
    energies = made.energies(images)
    assert list(energies) == ["learned"]
    low, middle, high = np.quantile(np.log(squares), [0.1, 0.5, 0.9])
    expected = ((np.log(squares) - middle) / ((high - low) / 2.56 + 1e-3)).clip(-20, 20)
    np.testing.assert_allclose(energies["learned"].numpy(), expected, rtol=1e-2, atol=2e-3)


def test_both_sides_count_the_same_whatever_their_features() -> None:
    images = torch.from_numpy(RNG.uniform(size=(60, 1, 8, 8)))
    torch.manual_seed(0)
    stored = StoredRows(40, 64, [0.3, 1.0, 3.0])
    made = ImageModel(UNetDenoiser((1, 8, 8), 0.3), [0.1, 1.0], stored, 0.5, 0.3)
    made = made.double().requires_grad_(False)
    made.store(images[:40])
    made.standardise(images[40:])
    made.double()
    evidence, energies = made.evidence(images).numpy(), made.energies(images)
    assert evidence.shape == (60, 4)
    sides = np.stack([np.exp(evidence[:, 0]), np.exp(evidence[:, 1:]).mean(1)])
    np.testing.assert_allclose(sum(energies.values()).numpy(), np.log(sides.mean(0)))
    np.testing.assert_allclose(energies["stored"].numpy(), np.log(sides.mean(0)) * sides[1] / sides.sum(0), atol=1e-12)


def test_an_image_can_be_too_smooth_and_too_rough() -> None:
    waves = np.sin(np.arange(16) * 0.8)
    phases = RNG.normal(size=(400, 2))
    images = 0.5 + 0.2 * np.cos(phases[:, :1, None] + np.arange(16)[None, :, None]) * waves[None, None]
    images = (images + 0.2 * np.sin(phases[:, 1:, None] * np.arange(16)[None, None, :] / 4)).clip(0, 1)
    settings = {"capacity": 0.3, "steps": 150, "batch_size": 64, "random_state": 0, "verbose": False}
    detector = MultiscaleDenoiser(**settings).fit(images[:300])
    assert (detector.settings_["network"], detector.settings_["hidden"]) == ("unet", [])
    normal = detector.score_samples(images[300:])
    for odd in (np.full((50, 16, 16), 0.5), RNG.uniform(size=(50, 16, 16))):
        assert auroc(normal, detector.score_samples(odd)).value > 0.95
    assert list(detector.score_terms(images[:5])) == ["learned", "stored"]
    assert detector.evidence(images[:5]).shape == (5, 4)
    assert detector.reconstruct(images[:2], sigma=0.2).shape == (2, 16, 16)
    learned_from = detector.rows_["training"] + detector.rows_["stopping"]
    assert detector.settings_["stored"] == learned_from
    few = MultiscaleDenoiser(**settings | {"steps": 3, "most_rows": 10}).fit(images[:100])
    assert few.settings_["stored"] == 10
    apart = MultiscaleDenoiser(**settings | {"steps": 3, "store_rows": False}).fit(images[:100])
    assert list(apart.score_terms(images[:5])) == ["learned"]
    alike = MultiscaleDenoiser(**settings | {"steps": 3}).fit(np.repeat(images[:1], 12, 0))
    assert np.isfinite(alike.score_samples(images[:3])).all()


def test_a_unet_takes_images_of_any_size_and_is_told_the_noise() -> None:
    for shape in ((1, 8, 8), (3, 13, 10)):
        denoiser = UNetDenoiser(shape, 0.3)
        rows = torch.randn(2, math.prod(shape))
        found = [denoiser(rows, torch.full((2, 1), sigma)) for sigma in (0.1, 1.0)]
        assert found[0].shape == rows.shape and not torch.equal(*found)


def test_missing_cells_take_no_part_in_learned_features() -> None:
    rng = np.random.default_rng(0)
    levels = [0.1, 0.5, 2.0]
    stored = StoredRows(0, 3, levels)
    stored.store(torch.from_numpy(rng.normal(size=(5, 3))))
    model = TableModel(DenseDenoiser(3, (16, 16)), levels, stored).double().eval().requires_grad_(False)
    rows = torch.from_numpy(rng.normal(size=(7, 3)))
    rows[:4, 1] = torch.nan
    whole, found = model.completed(rows), model.learned(rows)
    for i, sigma in enumerate(model.levels.tolist()):
        noisy = torch.full((7, 1), sigma, dtype=torch.float64)
        squares = (whole - model.denoiser(whole, noisy)).square() / sigma**2
        torch.testing.assert_close(found[:4, i], squares[:4, [0, 2]].mean(1))
        torch.testing.assert_close(found[4:, i], squares[4:].mean(1))
    evidence = model.evidence(rows)  # the smallest level is smaller than what completion errs by
    assert (evidence[:4, 0] == -20).all() and (evidence[4:, 0] > -20).all() and (evidence[:, 1:] > -20).all()


def test_rows_that_hold_nothing_say_nothing_of_features() -> None:
    rng, levels = np.random.default_rng(0), [0.1, 0.5, 2.0]
    rows, spreads = torch.from_numpy(rng.normal(size=(30, 3))), []
    for held_out in (rows, torch.cat([rows, torch.full((20, 3), torch.nan, dtype=torch.float64)])):
        torch.manual_seed(0)
        model = TableModel(DenseDenoiser(3, (16, 16)), levels, StoredRows(0, 3, levels)).double().requires_grad_(False)
        model.standardise(held_out)
        spreads.append(model.spread)
    torch.testing.assert_close(*spreads)


def test_the_smallest_levels_are_half_the_distance_between_neighbours() -> None:
    rng, own = np.random.default_rng(0), {"hidden": (8,), "steps": 1, "verbose": False, "random_state": 0}
    grid = rng.permutation(0.06 * np.arange(300.0))[:, None]
    detector = MultiscaleDenoiser(scale=None, **own).fit(grid)
    apart = np.sort(grid[detector.split(300)[2], 0])
    nearest = np.median(np.minimum(np.diff(apart, prepend=-9), np.diff(apart, append=99)))
    for name in ("levels", "stored_levels"):
        assert detector.settings_[name][0] == pytest.approx(nearest / 2, abs=1e-3)
    one = 0.5 + 0.02 * rng.normal(size=(20, 9, 9))
    images = np.concatenate([one, *(one + 0.001 * rng.normal(size=one.shape) for _ in range(2))])
    settings = MultiscaleDenoiser(**own | {"capacity": 0.3, "hidden": "auto"}).fit(images).settings_
    assert settings["stored_levels"][0] == pytest.approx(0.001 / 0.02 / 2, rel=0.1)


def test_noise_in_training_is_log_uniform(plane: Any) -> None:
    detector = MultiscaleDenoiser(hidden=(8,), steps=1, verbose=False, random_state=0).fit(plane[0])
    drawn: list[torch.Tensor] = []
    detector.module_.denoiser.loss = lambda rows, noise, sigma: drawn.append(sigma) or sigma[:, 0]
    rows = torch.zeros(20_000, 5)
    detector._phases(detector.module_, detector.settings_)[0].updates[0].loss(rows, torch.Generator().manual_seed(0))
    low, high = math.log(detector.settings_["levels"][0]), math.log(3.0)
    logs = drawn[0].log()
    assert float(logs.mean()) == pytest.approx((low + high) / 2, abs=0.05)
    assert float(logs.min()) == pytest.approx(low, abs=0.01) and float(logs.max()) == pytest.approx(high, abs=0.01)
