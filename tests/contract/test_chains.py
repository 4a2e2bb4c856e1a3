"""The chains of NAE and IGEBM: what they are made of, what they may not do, and what a user is told of them."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import made
from torch.utils._python_dispatch import TorchDispatchMode

import offmanifold
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors import IGEBM, NAE, VAE, NegativeVAE, OutlierDetector, SemiSupervisedVAE, presets
from offmanifold.detectors.chains import Chain, from_data_or_replay, settle_bounds, warn_of_bounds
from offmanifold.detectors.normalized_autoencoder import training_chain
from offmanifold.diagnosis.answers import answers
from offmanifold.sampling import langevin, metropolis
from offmanifold.sampling.chain import Kernel, Space, run
from offmanifold.sampling.starts import FromData, OnManifold, Persistent

# Of a network for images that trains in a moment.
SMALL: dict[str, Any] = {"network": "strided", "capacity": 1 / 16, "pretraining_steps": 2}


def chain_of(detector: Any) -> Any:
    """Return a chain as training had it."""
    shape, settings = detector._network_spec.shape, detector.settings_
    if isinstance(detector, NAE):
        return training_chain(detector.module_, settings, shape)
    return detector._chain(detector.module_, settings, from_data_or_replay(settings, shape, torch.device("cpu")))


class _NothingReadBack(TorchDispatchMode):
    """Refuses what would wait for a device: numbers read back, and results whose size depends on values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("cls", "own"),
    [
        (NAE, {}),
        (NAE, {"negatives": "pcd-restart"}),
        (NAE, {"adjusted": True, "temperature": "learned"}),
        (IGEBM, {"negatives": "pcd-restart"}),
    ],
)
def test_nothing_in_a_chain_waits_for_the_device(cls: type[OutlierDetector], own: Any, plane: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The adjusted chains")
        detector = made(cls, **own).fit(plane[0])
    chain, rows, generator = chain_of(detector), torch.zeros(8, 5), torch.Generator().manual_seed(0)
    with _NothingReadBack():
        for _ in range(2):  # from an empty buffer, and from one that holds something
            ends, _ = chain.negatives(generator, rows, detector.module_.energy)
    assert ends.shape == rows.shape
    with pytest.raises(AssertionError), _NothingReadBack():  # which a look at a number is
        float(ends.sum())


def test_the_chains_are_those_of_the_settings(plane: Any) -> None:
    """Every setting arrives where it acts."""
    own = {"latent_chain": (3, 0.2, 0.04), "visible_chain": (7, 0.3, 0.06), "bounds": (-9.0, 8.0), "temperature": 0.4}
    detector = made(NAE, **own, restart=0.25, replay_size=300, latent_dim=2, latent="sphere").fit(plane[0])
    chain = chain_of(detector)
    assert (chain.steps, chain.step) == (7, langevin.step)
    kernel = chain.kernel
    assert (kernel.step_size, kernel.noise, kernel.clip, kernel.anneal) == (0.3, 0.06, None, True)
    assert kernel.space == Space(-9.0, 8.0)
    start = chain.start
    assert isinstance(start, OnManifold) and start.replay is not None
    assert (start.steps, start.restart, start.replay.capacity) == (3, 0.25, 300)
    latent = start.kernel
    assert (latent.step_size, latent.noise, latent.clip, latent.anneal) == (0.2, 0.04, None, False)
    assert latent.space == Space(sphere=True)
    for both in (kernel, latent):
        assert float(both.current_temperature) == pytest.approx(0.4)
    for negatives, restart in (("pcd", 0.0), ("pcd-restart", 0.25)):
        for cls in (NAE, IGEBM):
            begun = chain_of(made(cls, negatives=negatives, restart=0.25).fit(plane[0])).start
            assert isinstance(begun, Persistent) and begun.restart == restart
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The adjusted chains")
        adjusted = chain_of(made(NAE, adjusted=True, bounds=(-9.0, 8.0)).fit(plane[0]))
    assert adjusted.step == metropolis.step and not adjusted.kernel.anneal
    assert adjusted.kernel.space == Space(-9.0, 8.0, "reject")


@pytest.mark.parametrize("negatives", ["pcd", "pcd-restart"])
def test_replay_remembers_where_chains_ended(negatives: str, plane: Any) -> None:
    detector = made(NAE, negatives=negatives).fit(plane[0])
    chain, generator = chain_of(detector), torch.Generator().manual_seed(0)
    ends, _ = chain.negatives(generator, torch.zeros(8, 5), detector.module_.energy)
    assert torch.equal(chain.start.replay.tensors["positions"][:8], ends)
    begun, _ = chain.start.begin(generator, torch.zeros(8, 5))
    assert torch.equal(begun, ends) is (negatives == "pcd")


def test_images_have_clipped_gradients_and_annealed_noise(digits: Any) -> None:
    kernel = chain_of(made(NAE).fit(digits[0][:100])).kernel
    assert (kernel.clip, kernel.anneal, kernel.space) == (0.01 * 784 / 64, True, Space(0.0, 1.0))
    for shape, clip in (((1, 28, 28), 0.01), ((3, 32, 32), 0.01), ((1, 56, 56), 0.0025)):
        assert presets.resolve("auto", InputSpec("image", shape, "chw"))["clip"] == clip


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_chains_of_samples_are_eight_times_as_long(
    cls: type[OutlierDetector], plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NAE's on z, as in P3, appendix D.3, and IGEBM's on x."""
    own = {"latent_chain": (3, 0.1, 0.1)} if cls is NAE else {}
    detector, taken, step = made(cls, **own, visible_chain=(2, 0.1, 0.1)).fit(plane[0]), [], langevin.step
    monkeypatch.setattr(langevin, "step", lambda *args: taken.append(args[1].position.shape[1]) or step(*args))
    detector.sample(4, random_state=0)
    on_z = detector.settings_.get("latent_dim")
    assert taken == ([on_z] * 24 + [5] * 2 if cls is NAE else [5] * 16)


@pytest.mark.filterwarnings("ignore:The adjusted chains", "ignore:.* of the model's samples have a lower energy")
def test_in_two_dimensions_latent_chains_start_at_codes_of_data(plane: Any) -> None:
    own = {"preset": "2d", "latent_chain": (0, 0.1, 0.1), "replay_size": 0, "network": "mlp"}
    detector = made(NAE, **own).fit(plane[0][:, :2])
    model, generator = detector.module_, torch.Generator().manual_seed(0)
    rows = torch.randn(8, 2, generator=generator)
    begun, _ = chain_of(detector).start.begin(generator, rows)
    torch.testing.assert_close(begun, model.decode(model.encode(rows)))
    assert len(model.codes) == min(256, detector.rows_["training"])
    # Samples begin at codes of training rows that are part of the model.
    starts = detector.sample(40, visible_steps=0, random_state=0)
    kept = detector._restore(model.decode(model.codes))
    assert np.abs(starts[:, None] - kept).max(2).min(1).max() < 1e-6
    assert len(np.unique(starts, axis=0)) > 20
    assert detector.stored_rows == len(detector.calibration_rows_) + len(model.codes)
    assert made(NAE, **own, store_rows=False).fit(plane[0][:, :2]).module_.codes is None  # they are rows, nearly
    for other in (own | {"preset": "auto"}, own | {"latent": "sphere"}):
        from_prior = made(NAE, **other).fit(plane[0][:, :2])
        assert from_prior.module_.codes is None
        begun, _ = chain_of(from_prior).start.begin(torch.Generator().manual_seed(1), rows)
        elsewhere, _ = chain_of(from_prior).start.begin(torch.Generator().manual_seed(1), torch.zeros(8, 2))
        assert torch.equal(begun, elsewhere)  # whatever the rows are


@pytest.mark.filterwarnings("ignore:The adjusted chains", "ignore:.* of the model's samples have a lower energy")
@pytest.mark.parametrize(
    ("own", "share"),
    [({}, 0.5), ({"preset": "auto"}, 0.05), ({"negatives": "pcd-restart"}, 0.05), ({"restart": 0.2}, 0.2)],
)
def test_more_chains_restart_where_that_is_at_data(own: Any, share: float, plane: Any) -> None:
    detector = made(NAE, **({"preset": "2d", "network": "mlp"} | own)).fit(plane[0][:, :2])
    assert (detector.module_.codes is None) == ("preset" in own)  # samples start there, whatever training does
    assert detector.settings_["restart"] == chain_of(detector).start.restart == share


def test_the_benchmarks_plain_chain_is_ours() -> None:
    """The published order of operations and ours end at the same image, to rounding: what is compared is the same."""
    path = Path(__file__).parents[2] / "benchmarks" / "chains.py"
    spec = importlib.util.spec_from_file_location("benchmarks_chains", path)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    _, settings, model = benchmark.build(torch.device("cpu"), 0.1)
    _, _, plain = benchmark.build(torch.device("cpu"), 0.1)
    benchmark.in_default_arrangement(plain)
    rows = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    chain = training_chain(model, settings, (1, 28, 28))
    state, _ = langevin_chain(chain.kernel, rows, model.energy, 6)
    torch.manual_seed(0)
    theirs = benchmark.plain_chain(plain.energy, rows.clone(), 6, 10.0, 0.05, anneal=True, clip=0.01, sphere=False)
    torch.testing.assert_close(state.position, theirs, atol=1e-5, rtol=0)
    codes = torch.nn.functional.normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(2)), dim=1)
    state, _ = langevin_chain(chain.start.kernel, codes, lambda z: model.energy(model.decode(z)), 6)
    torch.manual_seed(0)
    theirs = benchmark.plain_chain(
        lambda z: plain.energy(plain.decode(z)), codes.clone(), 6, 0.2, 0.05, anneal=False, clip=None, sphere=True
    )
    torch.testing.assert_close(state.position, theirs, atol=1e-5, rtol=0)


def langevin_chain(kernel: Any, start: torch.Tensor, energy: Any, steps: int) -> Any:
    return run(langevin.step, torch.Generator().manual_seed(0), start, energy, kernel, steps)


@pytest.mark.parametrize(("kept_from", "warned"), [(1, True), (2, False)])
def test_holes_are_those_of_the_weights_that_are_kept(
    kept_from: int, warned: bool, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose samples are all more normal than its data has not been normalised."""
    checks = iter((1, 2))

    def watching(*args: Any) -> Any:
        def judge(held_out: Any, generator: Any) -> tuple[float, dict[str, float]]:
            check = next(checks)
            return float(check != kept_from), {"negatives_below_median": 1.0 if check == 1 else 0.4}

        return judge

    monkeypatch.setattr("offmanifold.detectors.contrastive.watching", watching)
    told = "100% of the model's samples have a lower energy than half of the held-out rows"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector = made(NAE, steps=2, **SMALL).fit(digits[0][:60])
    assert any(told in str(warning.message) for warning in caught) is warned
    # Whoever asks the model later is told so, too.
    assert (told in answers(detector).get("training", "")) is warned
    finding = offmanifold.diagnose(detector, digits[0][60:120], checks=["training"])["training"]
    assert (finding.verdict == "warn" and told in finding.told) is warned
    assert all("Make pretraining_steps and steps larger" in str(w.message) for w in caught if told in str(w.message))


def test_chains_that_begin_at_data_say_nothing_of_holes(
    plane: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = lambda *args: lambda held_out, generator: (0.0, {"negatives_below_median": 1.0})  # noqa: E731
    monkeypatch.setattr("offmanifold.detectors.contrastive.watching", below)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(NAE, steps=2, negatives="cd", **SMALL).fit(digits[0][:60])
        made(NAE, steps=2).fit(plane[0])  # annealed chains on tables end at the bottom, wherever that is
        assert not caught
        made(NAE, steps=2, **SMALL).fit(digits[0][:60])
        assert len(caught) == 1  # of the same share, where chains begin on the manifold


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_chains_that_are_thrown_out_of_pixels_are_noticed(cls: type[OutlierDetector], digits: Any) -> None:
    """Digits are half black by themselves: more than half of the other pixels must be on a bound."""
    with pytest.warns(UserWarning, match="of the values that the chains ended at are on the bounds: .* visible_chain"):
        made(cls, visible_chain=(3, 1e6, 0.5)).fit(digits[0][:150])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*on the bounds")
        made(cls).fit(digits[0][:150])
        made(cls).fit((digits[0][:150] > 0.5).astype(float))  # all of their values are bounds


def test_the_energy_stays_the_same_while_a_chain_runs(plane: Any) -> None:
    """Spectral norms improve their estimate at every call in training, which would move it from step to step."""
    model = made(IGEBM).fit(plane[0]).module_.train().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randn(4, 5, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():  # as after an update: the estimates lag behind
            parameter.add_(torch.randn(parameter.shape, generator=generator)).grad = None
    met: list[torch.Tensor] = []

    def energy(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            met.append(model.energy(fixed))
        return model.energy(rows)

    Chain(FromData(), langevin.step, Kernel(0.1, 0.01), 5, model).negatives(generator, fixed, energy)
    assert len(met) == 5 and model.training and all(part.training for part in model.modules())
    assert all(torch.equal(values, met[0]) for values in met[1:])
    later = model.energy(fixed)
    assert not torch.equal(later, model.energy(fixed))  # outside of chains it does move
    assert all(parameter.grad is None for parameter in model.parameters())
    later.sum().backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_a_score_costs_one_pass(plane: Any) -> None:
    detector, passes = made(NAE).fit(plane[0]), []
    for network in (detector.module_.encoder, detector.module_.decoder):
        network.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    detector.score_samples(plane[0][:50])
    assert len(passes) == 2  # one of the encoder, one of the decoder


def test_the_chains_of_samples_can_be_left_out(digits: Any) -> None:
    images = made(NAE).fit(digits[0][:150])
    prior, start, sample = (
        images.sample(8, latent_steps=z, visible_steps=x, random_state=0) for z, x in ((0, 0), (5, 0), (5, 3))
    )
    again = images.sample(8, latent_steps=0, visible_steps=0, random_state=0)
    np.testing.assert_array_equal(prior, again)
    # What comes from the decoder alone is on its manifold; a start is a code that was moved on it.
    energies = [-images.score_samples(rows).mean() for rows in (prior, start)]
    assert energies[1] < energies[0]
    assert not np.array_equal(start, sample)
    with pytest.raises(ValueError, match="latent_steps must be"):
        images.sample(8, latent_steps=-1)


@pytest.mark.parametrize("cls", [NAE, IGEBM, VAE, NegativeVAE, SemiSupervisedVAE])
def test_samples_come_in_the_users_layout_and_bounds(cls: type[OutlierDetector], digits: Any) -> None:
    images = made(cls).fit(digits[0][:150])
    drawn = images.sample(300, random_state=0)
    assert drawn.shape == (300, 8, 8)
    assert drawn.min() >= 0 and drawn.max() <= 1 and np.isfinite(images.score_samples(drawn)).all()
    assert len(np.unique(drawn.round(6), axis=0)) == 300
    np.testing.assert_array_equal(drawn[:3], images.sample(300, random_state=0)[:3])
    rows = np.random.default_rng(0).normal(size=(200, 3)) * 10 + 500
    table = made(cls).fit(rows)
    assert np.abs(table.sample(50, random_state=1).mean(0) - 500).max() < 30


def test_a_row_is_outside_of_bounds_where_a_cell_of_it_is() -> None:
    rows = torch.zeros(10, 3)
    for outside, refused in ((5, False), (6, True)):
        rows[:outside, 1] = 2.0
        with pytest.raises(ValueError, match=r"leave 60% of the training rows outside") if refused else nullcontext():
            settle_bounds(rows, {"bounds": (-1.0, 1.0)})


def test_samples_on_the_bounds_are_told_of_where_data_are_not_there() -> None:
    rows = torch.full((10, 8), 0.5)
    rows[:, :6] = 0.0  # as black pixels are
    settings = {"bounds": (0.0, 1.0), "visible_chain": (3, 2.0, 0.1)}
    for share, told in ((0.87, False), (0.88, True)):  # of the quarter that is not black more than half
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_bounds([{"at_bounds": share}], settings, rows)
        assert [str(one.message)[:4] for one in caught] == (["88% "] if told else [])


def test_adjusted_chains_that_do_not_move_are_named() -> None:
    rows = np.random.default_rng(0).normal(size=(200, 3))
    with pytest.warns(UserWarning, match=r"accepted 0\.0% of their moves") as caught:
        made(NAE, adjusted=True, visible_chain=(3, 5000.0, 100.0)).fit(rows)
    said = re.search(r"visible_chain=(\(3, [^)]*\))", str(caught[0].message))
    assert said is not None
    advised = ast.literal_eval(said.group(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        followed = made(NAE, adjusted=True, visible_chain=advised).fit(rows)
    assert 0.2 < followed.history_[-1]["acceptance"] < 0.9


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_chains_that_leave_the_data_are_noticed(cls: type[OutlierDetector], plane: Any) -> None:
    with pytest.warns(
        UserWarning, match="100% of the values that the chains ended at are on the bounds: .* 1e\\+06, sm"
    ):
        made(cls, visible_chain=(3, 1e6, 0.05)).fit(plane[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(cls).fit(plane[0])
