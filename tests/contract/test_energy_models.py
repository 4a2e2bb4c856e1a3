"""What NAE and IGEBM do beyond the contract: watched training, densities, samples, resume with their memory."""

from __future__ import annotations

import math
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import made
from torch import nn

from offmanifold import load
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors import IGEBM, NAE, OutlierDetector, contrastive
from offmanifold.detectors.chains import Chain
from offmanifold.detectors.contrastive import LOST, WATCHED_ROWS, contrastive_phase, dequantised, watching
from offmanifold.detectors.nae import TEMPERATURE_RATE
from offmanifold.detectors.presets import PRESETS
from offmanifold.networks import choose
from offmanifold.networks.network import initialise
from offmanifold.training.checkpoints import Checkpointer
from offmanifold.training.loop import Batches, TrainingDiverged
from offmanifold.training.phases import Optimizer, ParameterGroup, Phase, Unfit

CASES = [
    (NAE, {"negatives": "omi"}),
    (NAE, {"negatives": "cd"}),
    (NAE, {"negatives": "pcd"}),
    (NAE, {"negatives": "pcd-restart"}),
    (NAE, {"updates_per_chain": 3, "noise": 0.2, "latent_penalty": 0.1}),
    (NAE, {"replay_size": 0}),
    (NAE, {"adjusted": True, "temperature": "learned"}),
    (NAE, {"latent": "sphere", "distance": "l1", "latent_chain": (0, 0.1, 0.1)}),
    (IGEBM, {"negatives": "cd"}),
    (IGEBM, {"negatives": "pcd"}),
]


@pytest.mark.parametrize(("cls", "own"), CASES)
def test_every_kind_of_chain_trains_and_says_how_it_went(cls: type[OutlierDetector], own: Any, plane: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The adjusted chains")
        detector = made(cls, **own).fit(plane[0])
    last = detector.history_[-1]
    assert {"drift", "noise", "acceptance", "energy_gap", "negatives_below_median", "weight_norm"} <= set(last)
    assert {f"auroc/{family}" for family in ("permuted", "exchanged", "jittered", "stretched")} <= set(last)
    assert all(np.isfinite(value) for value in last.values() if isinstance(value, float))
    assert last["drift"] > 0 and last["noise"] > 0
    remembers = own.get("negatives") != "cd" and own.get("replay_size") != 0
    assert ("replay_age" in last) == remembers
    if remembers:
        assert last["replay_age"] > 0
    # The weights kept are those with the highest AUROC against synthetic outliers.
    name = "normalisation" if cls is NAE else "contrast"
    records = [record for record in detector.history_ if record["phase"] == name]
    for record in records:
        families = [value for key, value in record.items() if key.startswith("auroc/")]
        assert record["validation"] == pytest.approx(1 - np.exp(np.mean(np.log(families))), abs=5.1e-4)
        assert record["validation"] == round(record["validation"], 3)
    # Of equals the later.
    best = min(reversed(records), key=lambda record: record["validation"])
    assert detector.training_summary()[name]["weights_kept_from_step"] == best["step"]


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_without_outliers_to_watch_the_last_weights_are_kept(cls: type[OutlierDetector], plane: Any) -> None:
    blind = made(cls, watch=()).fit(plane[0])
    assert not any(key.startswith("auroc/") for key in blind.history_[-1])
    summary = list(blind.training_summary().values())[-1]
    assert summary["weights_kept_from_step"] == summary["steps"] == 60
    assert summary["judged_at"] == blind.history_[-1]["held_out_energy"] > 0
    seeing = made(cls, watch=("permuted",)).fit(plane[0])
    assert {key for key in seeing.history_[-1] if key.startswith("auroc/")} == {"auroc/permuted"}
    assert made(cls, watch=iter(["permuted"]), steps=1).fit(plane[0]).settings_["watch"] == ["permuted"]


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_training_stops_where_most_of_its_steps_brought_nothing_better(
    cls: type[OutlierDetector], plane: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sweet spot at the third check of twenty: training ends with the eighteenth, and the model's file says so."""
    values = iter([0.7, 0.8, 0.9] + 17 * [0.6])
    monkeypatch.setattr(contrastive, "auroc", lambda normal, odd: SimpleNamespace(value=next(values)))
    detector = made(cls, watch=("permuted",), steps=60).fit(plane[0])
    *_, (phase, summary) = detector.training_summary().items()
    assert (summary["weights_kept_from_step"], summary["steps"]) == (3 * 3, 3 * 18)
    assert summary["stopped"] == "no better weights for 45 steps"
    detector.save(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").training_summary()[phase] == summary


@pytest.mark.parametrize(("cls", "own"), CASES[:7] + CASES[-1:])
def test_a_cut_run_resumes_bit_for_bit_with_its_replay(
    cls: type[OutlierDetector], own: Any, plane: Any, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The adjusted chains")
        straight = _left(made(cls, **own).fit(plane[0]))
        for cut in (65, 90) if cls is NAE else (5, 40):
            assert _left(_cut_and_resumed(lambda: made(cls, **own), plane[0], cut, tmp_path)) == straight, cut


def test_a_cut_run_on_images_resumes_bit_for_bit(digits: Any, tmp_path: Path) -> None:
    """Channels-last, SSIM, and what an image model remembers of its first energy."""
    own = {"network": "strided", "capacity": 1 / 16, "distance": "ssim", "pretraining_steps": 2, "steps": 4}
    straight = _left(made(NAE, **own).fit(digits[0][:100]))
    for cut in (1, 4):
        assert _left(_cut_and_resumed(lambda: made(NAE, **own), digits[0][:100], cut, tmp_path)) == straight, cut


def _cut_and_resumed(make: Any, rows: Any, cut: int, folder: Path) -> Any:
    """Fit, stop at that checkpoint, and go on from it with another detector."""
    path, saves, original = folder / f"{cut}.checkpoint", [], Checkpointer.save

    def save(self: Checkpointer, tensors: Any, state: Any) -> None:
        original(self, tensors, state)
        saves.append(1)
        if len(saves) == cut:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", save)
        with pytest.raises(KeyboardInterrupt):
            make().fit(rows, checkpoint=path, checkpoint_every=0)
    return make().fit(rows, checkpoint=path, resume=True)


def _left(detector: Any) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return every bit of the weights, and the history but for its seconds."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in detector.module_.state_dict().items()}
    return weights, [record | {"seconds": None} for record in detector.history_]


def test_a_phase_that_only_rolls_back_keeps_what_it_began_with(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chain, "negatives", lambda self, generator, rows, energy: (rows * torch.nan, {}))
    with pytest.warns(UserWarning, match="diverged in phase 'normalisation' and went on .*: step 1: chains ended at"):
        detector = made(NAE, steps=2).fit(plane[0])
    told = detector.training_summary()["normalisation"]
    assert (told["weights_kept_from_step"], told["judged_at"], told["rolled_back"]) == (0, None, 2)
    assert [problem.endswith("; back to step 0") for problem in told["problems"]] == [True, True]
    assert np.isfinite(detector.score_samples(plane[0])).all()


def test_a_replay_of_another_latent_size_is_refused(plane: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    made(NAE, latent_dim=2).fit(plane[0], checkpoint=path, checkpoint_every=0)
    with pytest.raises(ValueError, match="belongs to another run: latent_dim was 2 and is 3"):
        made(NAE, latent_dim=3).fit(plane[0], checkpoint=path, resume=True)


def test_the_density_integrates_to_one_in_the_users_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 2)) * [1.0, 50.0] + [0.0, 1000.0]
    detector = made(NAE, temperature=0.3).fit(rows)
    bounds = ((-4.0, 4.0), (800.0, 1200.0))
    axes = [np.linspace(low, high, 241) for low, high in bounds]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    with pytest.warns(
        UserWarning, match="and less as .* annealed: its density is not that of the data. NAE\\(preset='2d'\\)"
    ):
        density = np.exp(detector.log_prob(grid, bounds=bounds)).reshape(241, 241)
    assert np.trapezoid(np.trapezoid(density, axes[1]), axes[0]) == pytest.approx(1, abs=0.01)
    # log p differs from row to row as the score does, over T.
    scores = detector.score_samples(rows[:9])
    assert np.diff(detector.log_prob(rows[:9])) == pytest.approx(np.diff(scores) / 0.3)
    assert np.isfinite(detector.log_prob(rows)).all()
    # Outside of the bounds there is nothing.
    assert detector.log_prob([[0.0, 800.0], [0.0, 799.9], [4.1, 1000.0]], bounds=bounds)[1:].tolist() == [-np.inf] * 2
    detector.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.temperature_ == pytest.approx(0.3)
    np.testing.assert_array_equal(again.log_prob(rows[:9]), detector.log_prob(rows[:9]))
    np.testing.assert_array_equal(again.sample(5, random_state=0), detector.sample(5, random_state=0))
    with pytest.raises(ValueError, match="integrates over two columns of numbers; .* a table of 3 columns"):
        made(NAE).fit(rng.normal(size=(60, 3))).log_prob(rng.normal(size=(2, 3)))
    mixed = pl.DataFrame({"a": rng.normal(size=60), "b": list("xyz") * 20})
    with pytest.raises(ValueError, match="integrates over two columns of numbers"):
        made(NAE).fit(mixed).log_prob(mixed)
    with pytest.raises(ValueError, match="log_prob takes complete rows"):
        detector.log_prob([[0.0, np.nan]])
    for wrong in (((4, -4), (0, 1)), (-4, 4), ((0, 0), (0, 1)), ((None, 1), (0, 1)), ((-np.inf, 4), (0, 1))):
        with pytest.raises(ValueError, match=r"bounds must be \(\(low, high\), \(low, high\)\)"):
            detector.log_prob(rows[:2], bounds=wrong)
    for wide in ({"bounds": ((-1e5, 1e5), (-1e7, 1e7))}, {"points": 2}):
        with pytest.raises(
            ValueError, match=r"points is too coarse for these bounds: .* narrower bounds, or more points"
        ):
            detector.log_prob(rows[:2], **wide)
    switch = pl.DataFrame({"a": rng.normal(size=60), "b": [True, False] * 30})
    with pytest.raises(ValueError, match="integrates over two columns of numbers"):
        made(NAE).fit(switch).log_prob(switch)
    # Chains that sample the model's own temperature: nothing to warn of.
    own = made(NAE, visible_chain=(3, 0.005, 0.1), preset="2d", hidden=(16, 32)).fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.log_prob(rows[:2])


def test_chains_that_need_no_replay_need_no_room_in_it(plane: Any) -> None:
    for cls in (NAE, IGEBM):
        for size in (0, 500):
            made(cls, negatives="cd", batch_size=20_000, replay_size=size, steps=2).fit(plane[0])
        # Batches are no larger than the rows there are to learn from.
        made(cls, negatives="pcd", batch_size=20_000, replay_size=280, steps=2).fit(plane[0])
        with pytest.raises(ValueError, match="replay_size=279 does not hold .* at least 280, or batch_size smaller"):
            made(cls, negatives="pcd", batch_size=20_000, replay_size=279).fit(plane[0])


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_samples_are_rows_whatever_the_bounds(cls: type[OutlierDetector], digits: Any) -> None:
    detector = made(cls, bounds=(-1.0, 2.0), visible_chain=(3, 1e-3, 0.5)).fit(digits[0][:120])
    drawn = detector.sample(20, random_state=0)
    assert drawn.min() == 0 and drawn.max() == 1 and np.isfinite(detector.score_samples(drawn)).all()


def test_adjusted_chains_from_data_on_the_bounds_cannot_move(digits: Any) -> None:
    """The black of digits is at 0: one of a hundred coordinates that leaves is enough for a step to be refused."""
    own = {"adjusted": True, "negatives": "cd", "visible_chain": (3, 1e-6, 1.4e-3)}
    with pytest.raises(ValueError, match=r"3\d of a row's 64 values lie on the bounds.* bounds=\(-0.1, 1.1\)"):
        made(NAE, **own).fit(digits[0][:120])
    assert made(NAE, **own, bounds=(-0.1, 1.1)).fit(digits[0][:120]).history_[-1]["acceptance"] > 0.5


def test_fits_side_by_side_are_what_they_are_alone(plane: Any) -> None:
    """Chains hold the weights of their own network still, not those of others that train meanwhile."""

    def fitted(seed: int) -> Any:
        return made(IGEBM, random_state=seed, steps=15).fit(plane[0]).score_samples(plane[1][:20])

    alone = [fitted(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        beside = list(pool.map(fitted, range(3)))
    assert np.array_equal(alone, beside)


def test_advice_on_step_sizes_is_for_where_chains_begin(digits: Any) -> None:
    """Persistent chains begin at noise, where other steps are accepted than at digits, whose black is on the bounds."""
    own = {"adjusted": True, "negatives": "pcd-restart", "visible_chain": (5, 0.3, 0.7)}
    with pytest.warns(UserWarning, match=r"so they hardly moved. Try visible_chain=\(5, [\d.e-]+, [\d.e-]+\)"):
        made(NAE, **own).fit(digits[0][:120])


def test_the_density_of_bent_columns_integrates_to_one_in_the_users_units() -> None:
    """With scale="robust" exp(−E/T) is a density of other values than the user's: a slope lies between."""
    rows = np.exp(np.random.default_rng(0).normal(size=(600, 2)) * 1.5)
    detector = made(NAE, scale="robust", adjusted=True, temperature=0.3).fit(rows)
    assert all("quantiles" in column or "log" in column for column in detector._standardiser.describe().values())
    bounds = ((0.01, 150.0), (0.01, 150.0))
    # Evenly in log x, since the columns' tails are long: dx = x d(log x).
    axes = [np.linspace(np.log(low), np.log(high), 401) for low, high in bounds]
    logs = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_p = detector.log_prob(np.exp(logs), bounds=bounds) + logs.sum(1)
    density = np.exp(log_p).reshape(401, 401)
    assert np.trapezoid(np.trapezoid(density, axes[1]), axes[0]) == pytest.approx(1, abs=0.02)


def test_the_seconds_of_phases_add_up(plane: Any) -> None:
    began = time.monotonic()
    detector = made(NAE).fit(plane[0])
    assert len(detector.training_summary()) == 2
    assert 0 < detector.training_seconds <= detector.history_[-1]["seconds"] + 0.01
    assert detector.training_seconds < time.monotonic() - began


def test_negatives_are_judged_by_the_weights_that_are_judged() -> None:
    """What is recorded of held-out rows and of negatives is of one network, not of two states of it."""
    scale, samples = torch.nn.Parameter(torch.tensor(3.0)), torch.full((4, 2), 2.0)
    judge = watching(lambda rows: scale.detach() * rows.square().sum(1), (), lambda: samples, [scale])
    with torch.no_grad():
        scale.fill_(0.5)  # as when the running average takes the place of the weights
    _, record = judge(torch.ones(6, 2), torch.Generator().manual_seed(0))
    assert record["energy_gap"] == pytest.approx(0.5 * 8 - 0.5 * 2)


def test_averaged_weights_keep_their_spectral_norm(plane: Any) -> None:
    """The estimate of the norm goes with the weights: by another state's the layers would not have norm 1."""
    model = made(IGEBM, steps=100, average=0.9).fit(plane[0]).module_
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_energies_that_are_not_finite_are_no_good_sign(odd: float) -> None:
    """Of held-out rows: nothing is to be kept. Of made outliers: the model refuses them."""
    rows = torch.linspace(0.1, 0.9, 6 * 16).view(6, 1, 4, 4)
    ends = (lambda: rows, [nn.Parameter(torch.zeros(()))])
    judge = watching(lambda x: torch.full((len(x),), odd), ("noise",), *ends)
    assert math.isnan(judge(rows, torch.Generator().manual_seed(0))[0])
    judge = watching(lambda x: torch.where((x == 1 - rows).flatten(1).all(1), odd, 1.0), ("inverted",), *ends)
    judged, record = judge(rows, torch.Generator().manual_seed(0))
    assert record["auroc/inverted"] == 1 and judged == 0


def test_what_is_recorded_of_samples_and_weights() -> None:
    rows, samples = torch.tensor([[1.0], [2.0], [4.0], [9.0]]), torch.tensor([[0.5], [1.5], [2.5], [20.0]])
    judge = watching(lambda rows: rows[:, 0], (), lambda: samples, [nn.Parameter(torch.tensor([3.0, 4.0]))])
    _, record = judge(rows, torch.Generator().manual_seed(0))
    assert record["negatives_below_median"] == 0.5  # torch's median of four is the second
    assert record["weight_norm"] == 5.0


def test_rows_from_everywhere_are_watched() -> None:
    """Sorted rows, such as files class by class: the last class counts as much as the first."""
    rows = torch.arange(4 * WATCHED_ROWS).float()[:, None]
    weight = torch.nn.Parameter(torch.zeros(()))
    judge = watching(lambda rows: rows[:, 0], (), lambda: torch.zeros(4, 1), [weight])
    _, record = judge(rows, torch.Generator().manual_seed(0))
    assert record["held_out_energy"] == pytest.approx(float(rows.mean()), rel=1e-3)


def test_the_loss_of_normalisation_is_p3s() -> None:
    """Eq. 12 with its regularisers, and samples that carry no gradient: against a derivative by hand."""
    rows, samples = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]], requires_grad=True)
    weight, log_temperature = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.5).log())
    begin = SimpleNamespace(tensors={})
    phase = contrastive_phase(
        "normalisation",
        energy=lambda rows: weight * rows.square().sum(1),
        chain=SimpleNamespace(start=begin, negatives=lambda generator, rows, energy: (samples, {})),  # type: ignore[arg-type]
        groups=(ParameterGroup("energy", (weight,)),),
        optimizer=Optimizer(0.1),
        steps=1,
        batch_size=2,
        average=0.0,
        watch=(),
        negative_penalty=0.3,
        positive_penalty=0.2,
        weight_penalty=lambda: 5 * weight.square(),
        row_penalty=lambda rows: rows[:, 0],
        temperature=lambda: log_temperature.exp(),
    )
    (update,), generator = phase.updates, torch.Generator()
    assert update.prepare is not None
    update.prepare(rows, generator)
    values, metrics = update.loss(rows, generator)
    a, b = torch.tensor([5.0, 1.25]), torch.tensor([9.0, 2.0])  # squared lengths
    positive, negative = 0.7 * a, 0.7 * b
    expected = (positive - negative) / 0.5 + 0.3 * negative**2 + 0.2 * positive**2 + 5 * 0.7**2 + rows[:, 0]
    torch.testing.assert_close(values, expected)
    assert float(metrics["positive_energy"]) == pytest.approx(float(positive.mean()))
    assert float(metrics["negative_energy"]) == pytest.approx(float(negative.mean()))
    values.mean().backward()
    by_hand = ((a - b) / 0.5 + 0.6 * negative * b + 0.4 * positive * a).mean() + 10 * 0.7
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, by_hand)
    # d log p/d log T: data that have more energy than samples ask for a higher temperature.
    assert log_temperature.grad is not None
    torch.testing.assert_close(log_temperature.grad, -((positive - negative) / 0.5).mean())
    assert samples.grad is None


def _begun(rows: torch.Tensor, energy: float, batch_size: int) -> Phase:
    """Return a phase that has seen ``rows``, by an energy that is the same for all."""
    level = nn.Parameter(torch.tensor(energy))
    phase = contrastive_phase(
        "normalisation",
        energy=lambda rows: level.expand(len(rows)),
        chain=SimpleNamespace(start=SimpleNamespace(tensors={}), negatives=lambda g, rows, energy: (rows, {})),  # type: ignore[arg-type]
        groups=(ParameterGroup("energy", (level,)),),
        optimizer=Optimizer(0.1),
        steps=1,
        batch_size=batch_size,
        average=0.0,
        watch=(),
        negative_penalty=0.0,
        of_the_mean=lambda rows: (rows - rows.mean(0)).square().mean(1),
    )
    (update,), generator = phase.updates, torch.Generator()
    assert update.prepare is not None
    update.prepare(rows, generator)
    update.loss(rows, generator)
    return phase


@pytest.mark.parametrize("n", [2, 3, 101])
def test_the_mean_of_a_few_rows_is_nearer_to_them_than_to_others(n: int) -> None:
    """n rows have a mean squared distance of (n − 1)/n σ² to their mean, others of (n + 1)/n σ²."""
    rows = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    variance = rows.var(0).mean()  # unbiased
    assert float(_begun(rows, 1.0, n).memory["apart"]) == pytest.approx(float(variance) * (n + 1) / n, rel=1e-5)


@pytest.mark.parametrize("batch_size", [2, 200])
def test_weights_are_lost_that_reconstruct_worse_than_a_mean_of_many_rows(batch_size: int) -> None:
    """Two black images of a small batch do not say how far images lie apart; of a large one held-out ones need not."""
    images = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))  # of variance 1/12
    for level, lost in ((0.05, False), (LOST / 12 * 0.9, False), (LOST / 12 * 1.1, True)):
        phase = _begun(torch.zeros(2, 6) if batch_size == 2 else images, 0.01, batch_size)
        assert phase.judge is not None
        with torch.no_grad():
            phase.updates[0].groups[0].parameters[0].fill_(level)
            with pytest.raises(Unfit, match="worse than by the training rows. mean") if lost else nullcontext():
                phase.judge(images[:100], torch.Generator())


def test_the_encoders_weights_alone_are_penalised(plane: Any) -> None:
    """Σ p², biases too, in both phases; the decoder's are free."""
    detector = made(NAE, encoder_penalty=0.25).fit(plane[0])
    model, rows = detector.module_.requires_grad_(True), torch.from_numpy(plane[0][:8]).float()
    settings = detector.settings_ | {"noise": [0.0, 0.0]}
    (pretraining,) = detector._phases(model, settings)[0].updates
    values, metrics = pretraining.loss(rows, torch.Generator())
    squares = sum(float(parameter.detach().square().sum()) for parameter in model.encoder.parameters())
    assert float(values.detach().mean() - metrics["reconstruction"]) == pytest.approx(0.25 * squares, rel=1e-4)
    (normalisation,) = detector._phases(model, settings | {"energy_penalty": 0.5})[1].updates
    difference, negative = _of_one_row(normalisation, rows[:1])
    assert difference == pytest.approx(0.25 * squares + 0.5 * negative**2, rel=1e-4)


def test_igebm_penalises_both_energies(plane: Any) -> None:
    detector = made(IGEBM, energy_penalty=0.5).fit(plane[0])
    model, row = detector.module_.requires_grad_(True), torch.from_numpy(plane[0][:1]).float()
    (update,) = detector._phases(model, detector.settings_)[0].updates
    difference, negative = _of_one_row(update, row)
    positive = float(model.energy(row))
    assert difference == pytest.approx(0.5 * (negative**2 + positive**2), abs=1e-5)


def _of_one_row(update: Any, row: torch.Tensor) -> tuple[float, float]:
    """Return what a loss adds to the difference of the energies, at T = 1, and the sample's energy."""
    generator = torch.Generator().manual_seed(0)
    update.prepare(row, generator)
    values, metrics = update.loss(row, generator)
    difference = values.detach().mean() - (metrics["positive_energy"] - metrics["negative_energy"])
    return float(difference), float(metrics["negative_energy"])


def test_a_learned_temperature_moves_at_its_own_rate(plane: Any) -> None:
    """Adam's first step is as long as its rate, whatever the gradient."""
    own = {"steps": 1, "updates_per_chain": 1, "average": 0.0, "schedule": "constant", "watch": None}
    detector = made(NAE, temperature="learned", learning_rate=1e-5, **own).fit(plane[0])
    assert abs(math.log(detector.temperature_ / 0.5)) == pytest.approx(TEMPERATURE_RATE, rel=1e-3)


def test_the_papers_presets_are_its_table_11() -> None:
    # λ_z, σ_z, τ_z, λ_x, σ_x, τ_x, annealing, clipping, Metropolis
    table = {
        "2d": (0.005, 0.1, 10, 0.005, 0.1, 30, False, None, True),
        "mnist": (0.2, 0.05, 10, 10.0, 0.05, 50, True, 0.01, False),
        "cifar10": (1.0, 0.02, 20, 10.0, 0.02, 40, True, 0.01, False),
        "celeba": (1.0, 0.02, 20, 10.0, 0.02, 40, True, 0.01, False),
    }
    for name, (step_z, noise_z, steps_z, step_x, noise_x, steps_x, *rest) in table.items():
        preset = PRESETS[name]
        assert preset["latent_chain"] == (steps_z, step_z, noise_z), name
        assert preset["visible_chain"] == (steps_x, step_x, noise_x), name
        assert [preset["anneal"], preset["clip"], preset["adjusted"]] == rest, name
        assert preset["latent"] == ("euclidean" if name == "2d" else "sphere"), name
        assert preset["temperature"] == ("learned" if name == "2d" else 1.0), name
    # Appendix D.3: steps and rates of the two phases, the encoder's penalty; batches of 128.
    schedule = {
        "2d": (0, 2000, 0.0),
        "mnist": (100 * 391, 50 * 391, 1e-4),
        "cifar10": (120 * 352, 10 * 352, 1e-4),
        "celeba": (120 * 352, 10 * 352, 0.0),
    }
    for name, (first, second, penalty) in schedule.items():
        preset = PRESETS[name]
        assert (preset["pretraining_steps"], preset["steps"], preset["encoder_penalty"]) == (first, second, penalty)
        assert (preset["pretraining_rate"], preset["rate"], preset["schedule"]) == (1e-4, 1e-5, "constant"), name
        assert (preset["updates_per_chain"], preset["average"], preset["capacity"]) == (1, 0.0, 1.0), name


@pytest.mark.parametrize(
    ("preset", "shape", "network", "steps"),
    [
        ("auto", (1, 28, 28), "conv28", 240),
        ("auto", (1, 32, 32), "strided", 240),  # P3's Conv32 learns too slowly for the steps of this preset
        ("auto", (3, 32, 32), "strided", 480),
        ("auto", (3, 8, 8), "mlp", 480),
        ("cifar10", (3, 32, 32), "conv32", 3520),
        ("celeba", (3, 64, 64), "conv64", 3520),
        ("mnist", (1, 30, 30), "strided", 19_550),
    ],
)
def test_images_have_a_network_and_steps_by_their_form(
    preset: str, shape: tuple[int, ...], network: str, steps: int
) -> None:
    settings = NAE(preset=preset)._settings(InputSpec("image", shape, "chw"))
    assert (settings["network"], settings["default_steps"]) == (network, steps)


def test_images_in_colour_have_codes_chains_and_a_watch_of_their_own() -> None:
    """P3's for CIFAR-10, with λ by dimension; and what autoencoders of photographs find most normal is watched."""
    grey, colour = (NAE()._settings(InputSpec("image", (channels, 16, 16), "chw")) for channels in (1, 3))
    assert (grey["latent_dim"], colour["latent_dim"]) == (32, 64)
    assert (grey["latent_chain"], colour["latent_chain"]) == ([10, 0.2, 0.05], [10, 1.0, 0.02])
    assert colour["visible_chain"] == [15, pytest.approx(10 * 16**2 / 32**2), 0.02]
    for cls in (NAE, IGEBM):
        watch = [cls()._settings(InputSpec("image", (channels, 16, 16), "chw"))["watch"] for channels in (1, 3)]
        assert watch[1] == [*watch[0], "blurred", "faded"]


def test_a_run_is_not_continued_in_other_arithmetic(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What "auto" comes to is the machine's: a checkpoint may have come from another."""
    images, path = digits[0][:100], tmp_path / "run.checkpoint"
    own = {"network": "strided", "capacity": 1 / 16, "pretraining_steps": 2, "steps": 2}
    monkeypatch.setattr("offmanifold.training.precision.gains_from_bfloat16", lambda device: True)
    made(NAE, **own).fit(images, checkpoint=path, checkpoint_every=0)
    monkeypatch.setattr("offmanifold.training.precision.gains_from_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="another run: precision was 'bfloat16' and is 'float32'"):
        made(NAE, **own).fit(images, checkpoint=path, resume=True)
    # The same by another name is the same.
    made(NAE, **own, precision="bfloat16").fit(images, checkpoint=path, resume=True)


def test_an_image_model_that_reconstructs_nothing_is_unfit(digits: Any) -> None:
    """Its energies stay in [0, 1], so that no loss explodes."""
    images = digits[0][:200].astype(np.float32)
    settings = {"pretraining_steps": 200, "steps": 20, "verbose": False, "random_state": 0}
    with pytest.raises(TrainingDiverged, match="reconstructed worse than by the training rows. mean"):
        NAE(**settings, learning_rate=10.0).fit(images)
    found = NAE(**settings, learning_rate=1e-4).fit(images)
    assert found.training_summary()["normalisation"]["rolled_back"] == 0
    alike = np.full((100, 8, 8), 0.5, dtype=np.float32) + 0.01 * np.eye(8, dtype=np.float32)
    NAE(**settings).fit(alike)


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_outliers_that_are_hardly_told_are_named(
    cls: type[OutlierDetector], digits: Any, plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.61, 0.59] * 50)
    monkeypatch.setattr(contrastive, "auroc", lambda normal, odd: SimpleNamespace(value=next(values)))
    own = {"network": "strided", "capacity": 1 / 16, "steps": 2, "watch": ("constant", "erased")}
    with pytest.warns(
        UserWarning, match=r"\(AUROC: erased 0\.59\), and may miss others like them\. Make .*steps larger"
    ):
        made(cls, **own).fit(digits[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(cls, watch=("permuted", "exchanged"), steps=2).fit(plane[0])  # columns may be independent
        made(cls, **own).fit(digits[0][:200])  # too few to say
    assert not any("hardly tells" in str(warning.message) for warning in caught)


def test_who_begins_chains_at_data_is_told_to_begin_them_elsewhere(digits: Any) -> None:
    own = {"network": "strided", "capacity": 1 / 16, "steps": 2, "pretraining_steps": 2}
    with pytest.warns(UserWarning, match="hardly tells .* Use negatives='omi'"):
        made(NAE, negatives="cd", **own).fit(digits[0])


def test_a_handful_of_images_is_enough(digits: Any) -> None:
    """One of them is held out: its distance from the mean of the held-out ones, 0, is no limit."""
    settings = {"network": "mlp", "pretraining_steps": 500, "pretraining_rate": 3e-3, "steps": 6, "learning_rate": 1e-5}
    detector = made(NAE, **settings).fit(digits[0][:12])
    assert not any("problem" in record for record in detector.history_)
    assert detector.history_[-1]["held_out_energy"] > 0.01


def test_outliers_that_are_the_rows_themselves_are_not_judged_by() -> None:
    weight = torch.nn.Parameter(torch.zeros(()))
    judge = watching(lambda rows: rows.flatten(1).sum(1), ("erased", "inverted"), lambda: torch.zeros(4, 1), [weight])
    judged, record = judge(torch.zeros(8, 1, 4, 4), torch.Generator().manual_seed(0))
    assert judged == 0 and record["auroc/inverted"] == 1
    assert "auroc/erased" not in record


def test_where_no_family_changes_the_rows_the_last_weights_are_kept() -> None:
    """As of a single held-out row of a table: its energy alone would prefer the weights before normalisation."""
    detector = made(NAE, steps=40).fit(np.random.default_rng(0).normal(size=(14, 4)))
    assert not any("auroc/" in name for record in detector.history_ for name in record)
    assert detector.training_summary()["normalisation"]["weights_kept_from_step"] == 40


def test_a_family_that_is_called_normal_counts_for_more_than_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rows = torch.nn.Parameter(torch.zeros(())), torch.rand(8, 1, 4, 4)
    judge = watching(lambda rows: rows.flatten(1).sum(1), ("erased", "mixed"), lambda: torch.zeros(4, 1), [weight])
    judged = []
    for values in ((1.0, 0.1), (0.6, 0.4), (0.6, 0.0), (0.5, 0.0)):
        found = iter(values)
        monkeypatch.setattr(contrastive, "auroc", lambda normal, odd, found=found: SimpleNamespace(value=next(found)))
        judged.append(judge(rows, torch.Generator())[0])
    assert judged[1] < judged[0] < judged[2] < judged[3] < 1


def test_colour_presets_learn_dequantised_pixels(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.arange(256.0)
    spread = 256 * dequantised((levels / 255).expand(500, -1), torch.Generator().manual_seed(0)) - levels
    assert -1e-4 < float(spread.min()) < 0.01 and 0.99 < float(spread.max()) < 1 + 1e-4
    for preset, noisy in (("mnist", False), ("cifar10", True), ("celeba", True), ("auto", False)):
        detector = made(NAE, preset=preset, capacity=0.05, pretraining_steps=1, steps=1).fit(digits[0][:60])
        rows = torch.from_numpy(digits[0][:16, None]).float()
        for phase in detector._phases(detector.module_.requires_grad_(), detector.settings_):
            update = phase.updates[0]
            if update.prepare is not None:
                begun: list[torch.Tensor] = []
                with monkeypatch.context() as patch:
                    patch.setattr(Chain, "negatives", lambda _, g, x, energy, begun=begun: (begun.append(x) or x, {}))
                    update.prepare(rows, torch.Generator().manual_seed(0))
                assert torch.equal(begun[0], rows) is not noisy, preset
            first, second = (update.loss(rows, torch.Generator().manual_seed(seed))[1] for seed in (0, 1))
            name = "reconstruction" if phase.name == "autoencoder" else "positive_energy"
            assert bool(first[name] == second[name]) is not noisy, preset


def test_chains_that_overflow_are_named(plane: Any) -> None:
    """Half the learning rate does not help them, and the message does not leave it at that."""
    detector = made(NAE).set_params(latent="euclidean", latent_chain=(5, 1e30, 0.1), steps=20)
    match = "having gone back 3 times: chains ended at .* not finite: their .* smaller steps of the chains"
    with pytest.raises(TrainingDiverged, match=match) as caught:
        detector.fit(plane[0])
    told = [record for record in caught.value.history if record["phase"] == "normalisation"]
    assert ["rolled_back_to" in record for record in told] == [True, True, True, False]
    assert all("chains ended at" in record["problem"] for record in told)
    with pytest.raises(TrainingDiverged, match=r"phase 'autoencoder'.* Try a smaller pretraining_rate"):
        made(NAE, pretraining_rate=1e8).fit(plane[0])


@pytest.mark.parametrize(
    ("cls", "own", "message"),
    [
        (NAE, {"temperature": 0.0}, "temperature must be .* 1e-30, at most 1e.30 or 'learned' or 'auto'; got 0"),
        (NAE, {"latent": "sphere", "latent_dim": 1}, "latent_dim=1 on the sphere leaves two points"),
        (NAE, {"visible_chain": (0, 0.1, 0.1)}, r"visible_chain\[0\] must be an integer of at least 1; got 0"),
        (NAE, {"latent_chain": (3, 0.0, 0.1)}, r"latent_chain\[1\] must be .* above 0"),
        (NAE, {"watch": ("permuted", "blotched")}, "watch='blotched' is unknown"),
        (NAE, {"watch": "permutde"}, "watch='permutde' is unknown. Did you mean 'permuted'"),
        (NAE, {"watch": 3}, "watch must be 'auto', names of families, or None; got 3"),
        (NAE, {"bounds": 3}, "bounds must be .* or 'auto'; got 3"),
        (NAE, {"adjusted": True, "visible_chain": (3, 0.1, 0.0)}, r"visible_chain\[2\], the noise, must be above 0"),
        (NAE, {"bounds": (1.0, -1.0)}, "bounds must be .* with low < high"),
        (
            NAE,
            {"bounds": (10.0, 11.0)},
            r"bounds=\(10.0, 11.0\) leave 100% of the training rows outside.* values go from -",
        ),
        (IGEBM, {"bounds": (10.0, 11.0)}, r"bounds=\(10.0, 11.0\) leave 100% of the training rows outside"),
        (
            NAE,
            {"preset": "mnist"},
            "preset='mnist' is for images; the data are, as the network sees them, a table of 3 columns",
        ),
        (
            NAE,
            {"preset": "2d"},
            "preset='2d' is for tables of two columns of numbers; the data are, .*, a table of 3 columns",
        ),
        (NAE, {"latent": "sphere", "latent_penalty": 0.1}, "latent_penalty=0.1 has nothing to act on"),
        (NAE, {"updates_per_chain": 0}, "updates_per_chain must be an integer of at least 1 or 'auto'; got 0"),
        (NAE, {"temperature": "learnt"}, "temperature must be .* or 'learned' or 'auto'; got 'learnt'"),
        (NAE, {"temperature": 1e39}, "temperature must be .* at least 1e-30, at most 1e.30"),
        (NAE, {"watch": "inverted"}, "watch='inverted' is for images; the data are tables. For these: permuted, "),
        (NAE, {"watch": ["permuted", "auto"]}, "watch='auto' is unknown"),
        (NAE, {"watch": iter(["permutde"])}, "watch='permutde' is unknown"),
        (NAE, {"replay_size": 10**15}, r"1,000,000,000,000,000 positions takes .* Make replay_size smaller"),
        (NAE, {"watch": [["permuted"]]}, r"watch must be one of 'permuted', .*; got \['permuted'\]"),
        (NAE, {"bounds": iter((1, 0))}, r"bounds must be .* with low < high; got \(1, 0\)"),
        (NAE, {"capacity": "wide"}, "capacity must be a finite number, above 0 or 'auto'; got 'wide'"),
        (NAE, {"noise": (0.3, 0.1)}, "noise must be a range .* with low ≤ high"),
        (NAE, {"preset": "mnits"}, "preset='mnits' is unknown. Did you mean 'mnist'"),
        (NAE, {"negatives": "cdd"}, "negatives='cdd' is unknown"),
        (NAE, {"restart": 1.5}, "restart must be .* at most 1"),
        (NAE, {"average": 1.0}, "average must be .* below 1"),
        (NAE, {"distance": "ssim"}, "distance='ssim' compares images"),
        (NAE, {"replay_size": 10}, "replay_size=10 does not hold .* at least 17, or batch_size smaller"),
        (NAE, {"negatives": "pcd", "replay_size": 0}, "negatives='pcd' goes on from .* replay_size=0"),
        (IGEBM, {"replay_size": 10}, "replay_size=10 does not hold"),
        (IGEBM, {"negatives": "omi"}, "negatives='omi' is unknown"),
        (IGEBM, {"replay_size": 0}, "replay_size must be an integer of at least 1"),
        (IGEBM, {"energy_penalty": -1.0}, "energy_penalty must be .* at least 0"),
    ],
)
def test_bad_settings_name_themselves(cls: type[OutlierDetector], own: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(cls, **own).fit(np.random.default_rng(0).normal(size=(40, 3)))


def test_the_unit_of_no_distance_is_asked_for() -> None:
    with pytest.raises(ValueError, match="distance='foo' is unknown"):
        _ = NAE(distance="foo").score_unit


def test_a_chain_must_be_a_triple() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    for value in ("short", (1, 2.0), 3):
        with pytest.raises(ValueError, match=r"visible_chain must be \(steps, step size, noise\), such as"):
            made(NAE, visible_chain=value).fit(rows)
    made(NAE, visible_chain=np.array([3, 0.1, 0.1]), steps=1).fit(rows)


def test_pixels_have_bounds_of_their_own(digits: Any) -> None:
    with pytest.raises(ValueError, match=r"pixels go from 0 to 1; got \(0, 255\)"):
        made(NAE, bounds=(0, 255)).fit(digits[0][:60])


def test_samples_serve_several_updates(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, sizes = [], []
    negatives = Chain.negatives

    def counted(self: Any, generator: Any, rows: Any, energy: Any) -> Any:
        draws.append(len(rows))
        return negatives(self, generator, rows, energy)

    def sized(self: Any) -> Any:
        sizes.append(self.size)
        return following(self)

    following = Batches.next
    monkeypatch.setattr(Chain, "negatives", counted)
    monkeypatch.setattr(Batches, "next", sized)
    once = made(NAE, steps=10, pretraining_steps=0, updates_per_chain=1).fit(plane[0])
    assert (len(draws), len(sizes)) == (10, 10)
    draws.clear(), sizes.clear()
    thrice = made(NAE, steps=10, pretraining_steps=0, updates_per_chain=3).fit(plane[0])
    assert (len(draws), len(sizes)) == (10, 30)
    assert thrice.history_[-1]["step"] == once.history_[-1]["step"] == 10
    # An epoch is a pass over the rows, however many updates a step makes: 280 rows are 2.2 batches, four times that 9.
    assert made(NAE, epochs=4, updates_per_chain=3).fit(plane[0]).settings_["steps"] == 3
    assert made(NAE, epochs=4, updates_per_chain=1).fit(plane[0]).settings_["steps"] == 9


SHAPES: dict[str, tuple[int, ...]] = {
    "conv28": (1, 28, 28), "conv32": (3, 32, 32), "conv32big": (3, 32, 32), "conv64": (3, 64, 64),
    "p1-grey": (1, 28, 28), "p1-colour": (3, 32, 32), "strided": (1, 28, 28),
    "resmlp": (7,), "mlp": (7,), "fcres2": (2,),
}  # fmt: skip


@pytest.mark.parametrize("name", choose.NETWORKS)
def test_an_energy_is_alive_and_only_its_last_layer_free(name: str) -> None:
    """Conv32 ends in a ReLU: with one channel there a third of all starts gave every image the same energy."""
    detector, shape = IGEBM(network=name), SHAPES[name]
    spec = InputSpec("table", shape, "columns") if len(shape) == 1 else InputSpec("image", shape, "chw")
    model = detector._build(spec, {"network": name, "hidden": (16, 16), "capacity": detector.capacity})
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    free = [layer for layer in layers if not nn.utils.parametrize.is_parametrized(layer)]
    assert free == layers[-1:] and len(free[0].weight) == 1
    rows = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0))
    for seed in range(12):
        initialise(model, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            energies = model.eval().energy(rows)
        assert energies.shape == (8,) and len(energies.unique()) == 8
        assert energies.std() < 1  # spectral norms are estimated already: without that it is 10³ to 10²²


def test_a_model_that_tells_nothing_apart_says_so(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IGEBM, "_energy_terms", lambda self, model, rows: {"energy": 0 * model.energy(rows)})
    with pytest.warns(UserWarning, match="calibration rows have the same score, though they differ"):
        made(IGEBM).fit(plane[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*have the same score")
        made(IGEBM).fit(np.ones((200, 3)))


def test_a_latent_penalty_keeps_codes_near_the_prior(plane: Any) -> None:
    def size(penalty: float) -> float:
        return float(np.square(made(NAE, latent_penalty=penalty, watch=None).fit(plane[0]).transform(plane[0])).mean())

    assert size(1.0) < 0.3 * size(0.0)


def test_noise_is_undone_through_normalisation(plane: Any) -> None:
    """Of noisy rows less is left by a detector that learned with noise, though normalisation helps, too."""
    rows, rng = plane[0], np.random.default_rng(1)
    noisy = rows + rng.normal(size=rows.shape) * rows.std(0)

    def left(noise: float) -> float:
        detector = made(NAE, noise=noise, latent_dim=5, pretraining_steps=400).fit(rows)
        return float(np.square(detector.reconstruct(noisy) - rows).mean() / np.square(noisy - rows).mean())

    assert left(1.0) < 0.8 * left(0.0)


def test_adjusted_chains_sample_the_temperature_that_they_are_given(plane: Any) -> None:
    rows = plane[0][:, :2]
    detector = made(NAE, adjusted=True, temperature=0.2).fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(detector.log_prob(rows[:5])).all()
