"""Hyper-parameters that cannot be: named, with what came and what is expected, before any training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from offmanifold import AE, VAE
from offmanifold.detectors import OutlierDetector

TABLE = np.random.default_rng(0).normal(size=(50, 3))
IMAGES = np.random.default_rng(0).random((50, 8, 8))

COMMON = [
    ({"latent_dim": 0}, ValueError, "latent_dim must be an integer of at least 1 or 'auto'; got 0"),
    ({"latent_dim": 2.5}, TypeError, "latent_dim must be an integer of at least 1 or 'auto'; got 2.5"),
    ({"latent_dim": True}, TypeError, "latent_dim must be an integer"),
    ({"hidden": (8, -1)}, ValueError, r"hidden\[1\] must be an integer of at least 1; got -1"),
    ({"hidden": "wide"}, TypeError, "hidden must be a positive integer or a sequence of them; got 'wide'"),
    ({"network": "conv28"}, ValueError, "network='conv28' (takes images; the data are a table|is unknown)"),
    ({"network": "resmpl"}, ValueError, "network='resmpl' is unknown. Did you mean 'resmlp'"),
    ({"capacity": 0}, ValueError, "capacity must be a finite number, above 0( or 'auto')?; got 0"),
    ({"steps": 0}, ValueError, "steps must be"),
    ({"epochs": -1}, ValueError, "epochs must be"),
    ({"batch_size": 0}, ValueError, "batch_size must be"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate must be a finite number, above 0 or 'auto'; got 0.0"),
    ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a finite number"),
    ({"optimizer": "adm"}, ValueError, "optimizer='adm' is unknown. Did you mean 'adam'"),
    ({"schedule": "linear"}, ValueError, "schedule='linear' is unknown"),
    ({"weight_decay": -1}, ValueError, "weight_decay must be a finite number, at least 0"),
    ({"scale": "minmax"}, ValueError, "scale='minmax' is unknown"),
    ({"false_alarm_rate": 0}, ValueError, "false_alarm_rate must be a finite number, above 0, below 1; got 0"),
    ({"false_alarm_rate": "5%"}, TypeError, "false_alarm_rate must be .* got '5%'"),
    ({"calibration_fraction": 1}, ValueError, "calibration_fraction must be"),
    ({"learning_rate": 10**400}, ValueError, "learning_rate must be a finite number, above 0"),
    ({"learning_rate": True}, ValueError, "learning_rate must be a finite number, above 0.*; got True"),
    ({"device": "warp"}, ValueError, "device='warp' cannot be used here"),
    ({"device": 0}, TypeError, "device must be 'auto'"),
    ({"precision": "half"}, ValueError, "precision='half' is unknown"),
    ({"verbose": 3}, ValueError, "verbose must be True, False or 'auto'"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "error", "message"), COMMON)
def test_common_ones(
    detector_class: type[OutlierDetector], parameters: dict[str, Any], error: type[Exception], message: str
) -> None:
    if not parameters.keys() <= detector_class().get_params().keys():
        pytest.skip(f"{detector_class.__name__} has no {', '.join(parameters)}")
    with pytest.raises(error, match=message):
        detector_class(**({"verbose": False} | parameters)).fit(TABLE)


@pytest.mark.parametrize(
    ("detector", "X", "error", "message"),
    [
        (AE(distance="l2"), TABLE, ValueError, "distance='l2' is unknown"),
        (AE(distance="ssim"), TABLE, ValueError, "distance='ssim' compares images; the data are a table"),
        (AE(latent="circle"), TABLE, ValueError, "latent='circle' is unknown"),
        (AE(latent="sphere", latent_dim=1), TABLE, ValueError, "latent_dim=1 on the sphere leaves two points"),
        (AE(noise=-0.1), TABLE, ValueError, "noise must be a finite number, at least 0; got -0.1"),
        (AE(noise=(0.1, 0.2, 0.3)), TABLE, ValueError, r"noise must be a number, a range \(low, high\) or 'auto'"),
        (AE(noise=np.array([0.2, 0.1])), TABLE, ValueError, "noise must be a range .* with low ≤ high"),
        (AE(noise=(0.5, 0.1)), TABLE, ValueError, "noise must be a range .* with low ≤ high"),
        (AE(noise=(0.0, 0.1)), TABLE, ValueError, r"noise\[0\] must be .* above 0"),
        (AE(noise="some"), TABLE, ValueError, "noise must be a number, a range .* or 'auto'; got 'some'"),
        (AE(steps="many"), TABLE, ValueError, "steps must be an integer of at least 1 or 'auto'; got 'many'"),
        (AE(latent_dim=3.5), TABLE, ValueError, "latent_dim must be an integer of at least 1 or 'auto'; got 3.5"),
        (AE(schedule="auto"), TABLE, ValueError, "schedule='auto' is unknown"),
        (AE(error_penalty="abs"), TABLE, ValueError, "error_penalty='abs' is unknown"),
        (AE(latent_penalty="lgo"), TABLE, ValueError, "latent_penalty='lgo' is unknown. Did you mean 'log'"),
        (VAE(likelihood="poisson"), TABLE, ValueError, "likelihood='poisson' is unknown"),
        (VAE(likelihood="bernoulli"), TABLE, ValueError, r"needs values in \[0, 1\]; got .* set scale=None"),
        (VAE(gamma="learnt"), TABLE, ValueError, "gamma='learnt' is unknown. Did you mean 'learned'"),
        (VAE(gamma=0), TABLE, ValueError, "gamma must be a finite number, above 0; got 0"),
        (VAE(beta=-1), TABLE, ValueError, "beta must be a finite number, at least 0"),
        (VAE(score_by="elob"), TABLE, ValueError, "score_by='elob' is unknown. Did you mean 'elbo'"),
        (VAE(samples=0), TABLE, ValueError, "samples must be an integer of at least 1"),
        (VAE(network="conv64"), IMAGES, ValueError, "network='conv64' takes 64×64 images; got 8×8"),
    ],
)  # fmt: skip
def test_a_detectors_own(detector: OutlierDetector, X: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        detector.set_params(verbose=False).fit(X)


QUICK = {"steps": 20, "hidden": (16,), "verbose": False, "random_state": 0}


@pytest.mark.parametrize(
    "detector",
    [
        *(AE(distance=d) for d in ("squared", "l1")),
        AE(latent="sphere"),
        AE(noise=0.3),
        *(AE(error_penalty=g, latent_penalty=h, weight_decay=1e-3) for g, h in (("log", "log"), ("sqrt", "huber"))),
        *(VAE(gamma=g) for g in ("learned", "per-dimension", "closed-form", "continuation", 0.5)),
        *(VAE(score_by=s) for s in ("elbo", "reconstruction", "kl", "iwae")),
        VAE(likelihood="bernoulli", scale=None),
        VAE(beta=0.0),
        VAE(network="fcres2", hidden=(8, 16)),
        VAE(latent_dim=40),
    ],
    ids=str,
)
def test_every_choice_trains_and_scores(detector: OutlierDetector, tmp_path: Any) -> None:
    rows = 1 / (1 + np.exp(-TABLE))
    detector.set_params(**(QUICK | ({"hidden": (8, 16)} if detector.network == "fcres2" else {}))).fit(rows)
    scores = detector.score_samples(rows)
    assert np.isfinite(scores).all() and scores.std() > 0
    assert all(np.isfinite(record["loss"]) for record in detector.history_)
    detector.save(tmp_path / "m.safetensors")


def test_ssim_on_images() -> None:
    detector = AE(distance="ssim", **QUICK).fit(IMAGES)
    assert detector.score_unit == "1 − SSIM"
    scores = detector.score_samples(IMAGES)
    assert ((scores <= 0) & (scores >= -2)).all()
    detector.set_params(distance="l1")  # of a fit to come
    assert detector.score_unit == "1 − SSIM" and AE(distance="l1").score_unit == "mean absolute error"
    with pytest.raises(ValueError, match="score is in 1 − SSIM, not in nats"):
        detector.bits_per_dim(IMAGES)


def test_bits_per_dimension() -> None:
    detector = VAE(score_by="elbo", **QUICK).fit(IMAGES)
    bits = detector.bits_per_dim(IMAGES)
    np.testing.assert_allclose(bits, -detector.score_samples(IMAGES) / (64 * np.log(2)))
    np.testing.assert_allclose(detector.bits_per_dim(IMAGES, discrete_pixels=True), bits + 8)
    with pytest.raises(ValueError, match="discrete_pixels=True is for images"):
        VAE(**QUICK).fit(TABLE).bits_per_dim(TABLE, discrete_pixels=True)


def test_steps_come_from_epochs_where_given() -> None:
    for size in (10, 1000):
        detector = AE(**(QUICK | {"epochs": 3, "batch_size": size})).fit(TABLE)
        rows = detector.rows_["training"]
        assert detector.settings_["steps"] == -(-3 * rows // min(size, rows)), "a short last batch takes from the next"
        assert detector.history_[-1]["step"] == detector.settings_["steps"]


def test_gamma_is_reported() -> None:
    assert VAE(gamma=0.5, **QUICK).fit(TABLE).gamma_ == pytest.approx(0.5)
    assert VAE(gamma="per-dimension", **QUICK).fit(TABLE).gamma_.shape == (3,)
    assert VAE(likelihood="bernoulli", scale=None, **QUICK).fit(TABLE > 0).gamma_ is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_scores_at_once_are_those_of_each(precision: str) -> None:
    detector = VAE(precision=precision, **QUICK).fit(TABLE)
    together = detector.scores(TABLE)
    assert list(together) == ["elbo", "reconstruction", "kl", "iwae"]
    for name, scores in together.items():
        alone = VAE(score_by=name, precision=precision, **QUICK).fit(TABLE).score_samples(TABLE)
        np.testing.assert_allclose(scores, alone, rtol=1e-6)


def test_penalties_act() -> None:
    """A log penalty on the codes (P4 Eq. 7) makes them smaller than none does."""
    settings = QUICK | {"steps": 200, "noise": 0.0, "weight_decay": 0.01}
    sizes = [np.square(AE(latent_penalty=h, **settings).fit(TABLE).transform(TABLE)).mean() for h in (None, "identity")]
    assert sizes[1] < 0.5 * sizes[0]


def test_noise_is_drawn_for_each_row_from_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = np.random.default_rng(0).normal(size=(40, 400))
    detector = AE(noise=(0.1, 1.0), **QUICK).fit(wide)
    seen = []
    monkeypatch.setattr(detector.module_, "encode", lambda rows: seen.append(rows) or torch.zeros(len(rows), 300))
    (phase,) = detector._phases(detector.module_, detector.settings_)
    phase.updates[0].loss(torch.zeros(2000, 400), torch.Generator().manual_seed(0))
    levels = seen[0].std(1)
    # A level's estimate from 400 draws is off by 3.5 % or so; log-uniform has quartiles 10^(−3/4) and 10^(−1/4).
    assert 0.08 < levels.min() < 0.13 and 0.85 < levels.max() < 1.2
    assert levels.quantile(0.25).item() == pytest.approx(10**-0.75, rel=0.1)
    assert levels.quantile(0.75).item() == pytest.approx(10**-0.25, rel=0.1)
