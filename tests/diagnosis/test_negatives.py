"""Negatives: what is refused, what is warned of, what helps, and the rating before training."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import made
from typer.testing import CliRunner

from offmanifold import VAE, MultiscaleDenoiser, NegativeVAE, SemiSupervisedVAE, TrainingDiverged, auroc, load
from offmanifold.cli.main import app
from offmanifold.detectors.labels import kind_of, missing, read
from offmanifold.diagnosis.capacity import suggest_capacity
from offmanifold.diagnosis.negatives import rate_negatives
from offmanifold.training import loop
from offmanifold.training.phases import Optimizer, ParameterGroup, Phase, Unfit, Update

QUICK: dict[str, Any] = {"steps": 150, "random_state": 0, "verbose": False}


@pytest.fixture(scope="module")
def sevens(digits: Any) -> dict[str, np.ndarray]:
    """Round digits to learn, and others."""
    images, labels = digits
    normal = images[np.isin(labels, (0, 6))]
    return {"normal": normal[:250], "held_out": normal[250:], "ones": images[labels == 1], "fours": images[labels == 4]}


@pytest.fixture(scope="module")
def plain(sevens: dict[str, np.ndarray]) -> VAE:
    return VAE(**QUICK).fit(sevens["normal"])


def test_a_hundred_images_of_what_is_not_normal_are_one_argument(plain: VAE, sevens: dict[str, np.ndarray]) -> None:
    told = NegativeVAE(**QUICK, latent_dim=5).fit(sevens["normal"], negatives=sevens["ones"][:100])
    assert told._negatives is None, "the user's negatives are no part of a model"
    assert told.settings_["negatives"] == {"given": 1.0}
    before, after = (
        auroc(detector.score_samples(sevens["held_out"]), detector.score_samples(sevens["ones"][100:])).value
        for detector in (VAE(**QUICK, latent_dim=5).fit(sevens["normal"]), told)
    )
    assert after > 0.95 and after >= before - 0.01
    # Negatives are far from the prior of normal rows, and known to be.
    kl = told.scores(sevens["ones"][100:])["kl"].mean(), told.scores(sevens["held_out"])["kl"].mean()
    assert kl[0] < kl[1] - 10


@pytest.mark.parametrize("negative_loss", ["prior", "eubo"])
@pytest.mark.parametrize("source", ["adversarial", "hard", "noise", {"random": 1.0, "hard": 0.5}])
def test_every_source_and_loss_trains(source: Any, negative_loss: str, sevens: dict[str, np.ndarray]) -> None:
    detector = NegativeVAE(negatives=source, negative_loss=negative_loss, steps=5, verbose=False, random_state=0)
    detector.fit(sevens["normal"][:80])
    assert np.isfinite(detector.score_samples(sevens["held_out"])).all()
    names = source if isinstance(source, dict) else [source]
    assert all(f"negative_kl/{name}" in detector.history_[-1] for name in names)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"negatives": "adversarial"}, ("rmsprop", "constant", 5e-4)),
        ({"negatives": {"noise": 1.0, "adversarial": 0.5}, "learning_rate": 1e-4}, ("rmsprop", "constant", 1e-4)),
        ({"negatives": "adversarial", "optimizer": "adam"}, ("adam", "one-cycle", 2e-3)),
        ({"negatives": "noise"}, ("adamw", "one-cycle", 2e-3)),
    ],
)
def test_adversaries_are_chased_without_momentum(
    own: dict[str, Any], expected: tuple[str, str, float], sevens: dict[str, np.ndarray]
) -> None:
    detector = NegativeVAE(steps=1, verbose=False, random_state=0, **own).fit(sevens["normal"][:80])
    assert tuple(detector.settings_[name] for name in ("optimizer", "schedule", "learning_rate")) == expected


@pytest.mark.parametrize(("source", "average"), [("adversarial", True), ("noise", False)])
def test_a_game_has_no_best_weights(
    source: str, average: bool, sevens: dict[str, np.ndarray], plane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept of adversarial training on images is the end's running average, else what suits held-out rows best."""
    phases: list[Phase] = []

    def seen(model: torch.nn.Module, own: list[Phase], *given: Any, **settings: Any) -> Any:
        phases.extend(own)
        return loop.train(model, own, *given, **settings)

    monkeypatch.setattr("offmanifold.detectors.base.train", seen)
    detector = NegativeVAE(negatives=source, steps=40, verbose=False, random_state=0).fit(sevens["normal"][:80])
    assert [(phase.keep, phase.average > 0) for phase in phases] == [("last" if average else "best", average)]
    assert not average or detector.training_summary()["negative-vae"]["weights_kept_from_step"] == 40
    NegativeVAE(negatives=source, steps=5, verbose=False, random_state=0).fit(plane[0])
    assert (phases[-1].keep, phases[-1].average) == ("best", 0.0)


def test_what_cannot_be_negatives(sevens: dict[str, np.ndarray], plane: Any) -> None:
    normal = sevens["normal"]
    with pytest.raises(ValueError, match=r"negatives: .*trained on grey images of 8×8 pixels; got a table"):
        NegativeVAE(**QUICK).fit(normal, negatives=plane[0])
    with pytest.raises(ValueError, match=r"negatives='given' takes rows .*fit\(X, negatives=rows\)"):
        NegativeVAE(**QUICK, negatives="given").fit(normal)
    with pytest.raises(ValueError, match="negatives='noise' does not use them"):
        NegativeVAE(**QUICK, negatives="noise").fit(normal, negatives=normal)
    with pytest.raises(ValueError, match=r"a source is set by NegativeVAE\(negatives='hard'\)"):
        NegativeVAE(**QUICK).fit(normal, negatives="hard")
    with pytest.raises(ValueError, match=r"negatives\['hard'\] must be a finite number, above 0; got -1"):
        NegativeVAE(**QUICK, negatives={"hard": -1}).fit(normal)
    with pytest.raises(ValueError, match="negatives='hrad' is unknown. Did you mean 'hard'"):
        NegativeVAE(**QUICK, negatives="hrad").fit(normal)
    with pytest.raises(ValueError, match="upper_samples must be an integer of at least 1; got -2"):
        NegativeVAE(**QUICK, upper_samples=-2).fit(normal)
    with pytest.raises(TypeError, match="VAE learns from normal rows alone.*Use NegativeVAE"):
        VAE(**QUICK).fit(normal, negatives=normal)
    detector = NegativeVAE(steps=2, verbose=False, random_state=0, calibration_fraction=0.1)
    calibrating, _, learning = detector.split(len(normal))
    own = np.concatenate([normal[calibrating[:8]], normal[learning[:12]], sevens["ones"][:20]])
    with pytest.warns(UserWarning, match="20 of 40 negatives are rows of X as well"):
        detector.fit(normal, negatives=own)
    rows = plane[0]
    for wrong, complaint in (
        (np.nan, "every one of the negatives a cell is missing. Fill them."),
        (np.inf, "infinity"),
    ):
        odd = rows[:5].copy()
        odd[:, 1] = wrong
        with pytest.raises(ValueError, match=complaint):
            NegativeVAE(steps=2, verbose=False).fit(rows, negatives=odd)


def test_rows_in_the_place_of_a_source_or_of_labels(plane: Any) -> None:
    for odd in (plane[1], plane[1].tolist()):
        with pytest.raises(ValueError, match=r"got (ndarray|list)\. Rows that are not normal go to fit\(X, negatives="):
            made(NegativeVAE, negatives=odd).fit(plane[0])
    with pytest.raises(TypeError, match=r"y is not looked at\. Rows that are not normal go to fit\(X, negatives=rows"):
        made(NegativeVAE).fit(plane[0], plane[1])


def test_a_path_serves_as_well(sevens: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", sevens["ones"])
    settings = {"steps": 5, "verbose": False, "random_state": 0}
    from_file = NegativeVAE(**settings).fit(sevens["normal"], negatives=tmp_path / "odd.npy")
    from_array = NegativeVAE(**settings).fit(sevens["normal"], negatives=sevens["ones"])
    np.testing.assert_array_equal(
        from_file.score_samples(sevens["held_out"]), from_array.score_samples(sevens["held_out"])
    )


def test_a_collapse_is_named_and_rolled_back() -> None:
    model = torch.nn.Linear(1, 1)
    checks = iter([False, False, True, False, True, True])

    def loss(rows: torch.Tensor, generator: torch.Generator) -> Any:
        return model(rows).square().flatten(), {}

    def judge(rows: torch.Tensor, generator: torch.Generator) -> Any:
        if next(checks):
            raise Unfit("the samples are all alike")
        return float(model.weight.detach().abs()), {}

    update = Update((ParameterGroup.of("all", model),), loss, Optimizer(0.01))
    phase = Phase("adversarial", (update,), 60, 4, judge=judge, checks=6, rollbacks=2)
    rows = torch.ones(8, 1)
    with pytest.raises(TrainingDiverged, match="the samples are all alike"):
        loop.train(model, [phase], rows, rows, seed=0)


def test_the_judge_knows_a_collapse(sevens: dict[str, np.ndarray]) -> None:
    """Samples that are all alike, after having been different: in the same run, and in one that was resumed."""
    detector = NegativeVAE(negatives="adversarial", steps=200, verbose=False, random_state=0, latent_dim=4)
    detector.fit(sevens["normal"])
    model, settings = detector.module_, detector.settings_
    rows = torch.from_numpy(sevens["held_out"][:, None].astype(np.float32))

    def judged(phase: Phase) -> dict[str, float]:
        with torch.no_grad():
            found: dict[str, float] = phase.judge(rows, torch.Generator().manual_seed(0))[1]
        return found

    (phase,), (resumed,), (new,) = (detector._phases(model, settings) for _ in range(3))
    assert judged(phase)["sample_spread"] > 0.25
    for name, tensor in resumed.memory.items():
        tensor.copy_(phase.memory[name])  # as a checkpoint brings it back
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    assert judged(new)["sample_spread"] < 0.02
    for name in ("spread", "error"):
        phase.memory[name].zero_()  # as rolling back does
    for one in (phase, resumed):
        with pytest.raises(Unfit, match="the model's samples are all alike"):
            judged(one)


def test_a_table_without_numbers_has_no_error_to_record() -> None:
    rng = np.random.default_rng(0)
    words = pl.DataFrame({name: rng.choice(list("abc"), 100) for name in "xy"})
    detector = NegativeVAE(negatives="adversarial", steps=4, verbose=False, random_state=0).fit(words)
    assert "sample_spread" in detector.history_[-1] and "relative_error" not in detector.history_[-1]


def test_what_was_hardly_met_is_told(sevens: dict[str, np.ndarray]) -> None:
    detector = NegativeVAE(negatives="hard", steps=90, random_state=0, verbose=False, likelihood="bernoulli")
    with pytest.warns(UserWarning, match=r"kept are of step \d+ of 90: .* little was learned of hard negatives"):
        detector.fit(sevens["normal"])


def test_headroom_is_what_the_model_does_not_know_yet(plain: VAE, sevens: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    sets = {
        "same": sevens["normal"][:100],
        "noise": rng.uniform(size=(100, 8, 8)),
        "ones": sevens["ones"],
    }
    told: list[str] = []
    found = {one.name: one for one in rate_negatives(plain, sevens["held_out"], sets, report=told.append)}
    assert len(told) == 3
    assert found["noise"].known > 0.95 and abs(found["noise"].headroom) < 0.05
    assert abs(found["same"].separable - 0.5) < 0.25 and found["same"].distance < 1.3
    assert found["ones"].separable > 0.9
    for one in found.values():
        assert one.headroom == pytest.approx(one.separable - one.known)
    assert json.dumps([one.to_json() for one in found.values()])
    with pytest.raises(ValueError, match=r"candidates\['flat'\]: .*8×8"):
        rate_negatives(plain, sevens["held_out"], {"flat": np.zeros((9, 4))})
    with pytest.raises(ValueError, match="X_normal has 5 rows"):
        rate_negatives(plain, sevens["held_out"][:5], sets)
    with pytest.raises(ValueError, match="candidates is empty"):
        rate_negatives(plain, sevens["held_out"], {})


def test_any_detector_and_rows_with_gaps_can_be_rated(sevens: dict[str, np.ndarray], plane: Any) -> None:
    """A denoiser has no encoder of its own, and candidates may miss cells."""
    images = MultiscaleDenoiser(steps=2, verbose=False, random_state=0).fit(sevens["normal"][:80])
    assert rate_negatives(images, sevens["held_out"], {"ones": sevens["ones"]})[0].separable > 0.9
    normal, odd = plane
    table = MultiscaleDenoiser(steps=2, hidden=(16,), verbose=False, random_state=0).fit(normal[:200])
    gappy = np.where(np.random.default_rng(0).random(odd.shape) < 0.2, np.nan, odd)
    assert np.isfinite(rate_negatives(table, normal[200:], {"gappy": gappy})[0].headroom)


def test_on_the_command_line(sevens: dict[str, np.ndarray], tmp_path: Path) -> None:
    for name in ("normal", "held_out", "ones"):
        np.save(tmp_path / f"{name}.npy", sevens[name])
    model, normal, odd = (str(tmp_path / name) for name in ("m.safetensors", "normal.npy", "ones.npy"))
    run = CliRunner().invoke
    done = run(app, ["fit", normal, "--negatives", odd, "--out", model, "--set", "steps=5", "-q"])
    assert done.exit_code == 0, done.output
    done = run(app, ["negatives", model, odd, "--normal", str(tmp_path / "held_out.npy"), "--json"])
    assert done.exit_code == 0, done.output
    (rated,) = json.loads(done.stdout)
    assert rated["name"] == "ones.npy" and 0 <= rated["separable"] <= 1
    done = run(app, ["negatives", model, odd, "--normal", str(tmp_path / "held_out.npy")])
    assert "headroom" in done.stdout and "ones.npy" in done.stdout
    # Candidates of one name in two folders, and arrays that are called otherwise.
    (tmp_path / "other").mkdir()
    np.save(tmp_path / "other" / "ones.npy", sevens["fours"])
    np.savez(tmp_path / "all.npz", train=sevens["normal"], held_out=sevens["held_out"])
    np.savez(tmp_path / "odd.npz", ones=sevens["ones"], fours=sevens["fours"])
    where = str(tmp_path / "all.npz")
    asked = ["negatives", model, odd, str(tmp_path / "other" / "ones.npy"), "--normal", where, "--array", "held_out"]
    done = run(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    assert {one["name"] for one in json.loads(done.stdout)} == {odd, str(tmp_path / "other" / "ones.npy")}
    fit = ["fit", where, "--array", "train", "--out", model, "--overwrite", "--set", "steps=5", "-q", "--negatives"]
    assert run(app, [*fit, odd]).exit_code == 0
    assert run(app, [*fit, str(tmp_path / "odd.npz")]).exit_code != 0
    assert run(app, [*fit, str(tmp_path / "odd.npz"), "--negatives-array", "fours"]).exit_code == 0


def test_tables_on_the_command_line(plane: Any, tmp_path: Path) -> None:
    rows = plane[0]
    frame = pl.DataFrame(rows, schema=list("abcde")).with_columns(id=pl.int_range(pl.len()))
    frame.write_csv(tmp_path / "normal.csv")
    frame.drop("id").with_columns(a=-pl.col("a")).head(60).write_csv(tmp_path / "odd.csv")
    run = CliRunner().invoke
    model, normal, odd = (str(tmp_path / name) for name in ("m.safetensors", "normal.csv", "odd.csv"))
    common = ["fit", normal, "--out", model, "--overwrite", "--drop", "id", "--set", "steps=5"]
    done = run(app, [*common, "-q", "--negatives", odd])
    assert done.exit_code == 0, done.output
    (tmp_path / "odd.csv").write_text((tmp_path / "odd.csv").read_text().replace("-0.", "?0.", 1))
    done = run(app, [*common, "-q", "--negatives", odd])
    assert "in column 'c', which holds numbers. Mend the cells" in str(done.exception)
    labelled = frame.with_columns(
        kind=pl.when(pl.col("id") < 100).then(pl.lit("x")).when(pl.col("id") < 200).then(pl.lit("y"))
    )
    labelled.write_csv(tmp_path / "normal.csv")
    done = run(app, [*common, "--labels", "kind"])
    assert done.exit_code == 0, done.output
    assert "with semi-supervised-vae" in done.stdout and "--drop" not in done.stdout
    # What was left out is known to the model.
    done = run(app, ["score", model, normal, "--json", "--out", str(tmp_path / "scores.csv")])
    assert done.exit_code == 0 and json.loads(done.stdout)["rows"] == frame.height, done.output
    detector = load(tmp_path / "m.safetensors")
    assert isinstance(detector, SemiSupervisedVAE) and detector.classes_.tolist() == ["x", "y"]
    done = run(app, [*common, "--labels", "kind", "--detector", "vae"])
    assert "vae does not learn from labels; semi-supervised-vae does" in str(done.exception)
    done = run(app, [*common, "--labels", "kind", "--capacity", "auto"])
    assert "--capacity auto does not look at labels" in str(done.exception)


def test_a_size_is_chosen_with_the_negatives(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, seen = plane[0], []
    fit = NegativeVAE.fit

    def watched(self: NegativeVAE, X: Any, y: Any = None, **options: Any) -> NegativeVAE:
        found = fit(self, X, y, **options)
        seen.append(self.settings_["negatives"])
        return found

    monkeypatch.setattr(NegativeVAE, "fit", watched)
    detector = NegativeVAE(steps=5, verbose=False, random_state=0)
    suggest_capacity(detector, rows, negatives=-rows[:30], latent_dims=[1, 2], widths=[1.0])
    assert seen and all(sources == {"given": 1.0} for sources in seen)


def test_labels_that_say_little_or_nothing(plane: Any) -> None:
    rows = plane[0]
    settings = {"steps": 3, "verbose": False, "random_state": 0}
    with pytest.warns(UserWarning, match="y holds no label"):
        SemiSupervisedVAE(**settings).fit(rows)
    with pytest.warns(UserWarning, match="Every label is 3"):
        SemiSupervisedVAE(**settings).fit(rows, np.full(len(rows), 3))
    with pytest.raises(ValueError, match=r"y must hold one label for each of the 400 rows; got shape \(3,\)"):
        SemiSupervisedVAE(**settings).fit(rows, [1, 2, 3])
    words = np.where(np.arange(len(rows)) % 2, "odd", "even").astype(object)
    words[50:] = None
    detector = SemiSupervisedVAE(**settings).fit(rows, words)
    assert detector.classes_.tolist() == ["even", "odd"]
    assert set(detector.predict_label(rows[:20])) <= {"even", "odd"}
    np.testing.assert_allclose(detector.predict_proba(rows).sum(1), 1, atol=1e-6)
    assert detector.sample(4, y="odd", random_state=0).shape == (4, 5)
    assert detector.counterfactual(rows[:3], "even").shape == (3, 5)
    for ask in (lambda: detector.sample(2, y="neither"), lambda: detector.counterfactual(rows[:3], "neither")):
        with pytest.raises(ValueError, match="y='neither': training saw no such label. It saw 'even', 'odd'"):
            ask()
    numbers = np.where(np.arange(len(rows)) < 100, rows[:, 0] / 3, np.nan)
    continuous = SemiSupervisedVAE(**settings).fit(rows, numbers)
    assert continuous.labels_.kind == "continuous"
    with pytest.raises(ValueError, match="no probability; predict_label"):
        continuous.predict_proba(rows)
    assert continuous.counterfactual(rows[:3], 0.5).shape == (3, 5)
    # −1 is a value as any other where a label is asked for, and none is missing.
    below, above = (continuous.counterfactual(rows[:3], y) for y in (-1.0, -1.0001))
    np.testing.assert_allclose(below, above, atol=0.01)
    for wrong, complaint in (
        ([0, 1, 0], r"one for each of 10 rows; got shape \(3,\)"),
        ("a", "must be a finite number"),
    ):
        with pytest.raises(ValueError, match=complaint):
            continuous.sample(10, y=wrong)


NOTHING = float("nan")


@pytest.mark.parametrize(
    ("y", "expected", "kind"),
    [
        (["a", "b", NOTHING], ["a", "b", None], "discrete"),
        (["a", "b", -1], ["a", "b", None], "discrete"),
        (np.array(["a", "b", NOTHING]), ["a", "b", None], "discrete"),
        (pl.Series(["a", "b", None]), ["a", "b", None], "discrete"),
        (pd.Series(["a", "b", pd.NA], dtype="string"), ["a", "b", None], "discrete"),
        ([0.53, 1.2, None], [0.53, 1.2, NOTHING], "continuous"),
        ([1, 2, None], [1, 2, -1], "discrete"),
        ([True, None, np.False_], [1, -1, 0], "discrete"),
        (np.array([0.5, -1.0, 2.5]), [0.5, -1.0, 2.5], "continuous"),
    ],
)
def test_labels_as_people_have_them(y: Any, expected: list[Any], kind: str) -> None:
    found = read(y)
    np.testing.assert_array_equal(found, np.array(expected, dtype=found.dtype))
    assert missing(found).sum() == 1 and kind_of(found) == kind


@pytest.mark.parametrize(
    ("y", "complaint"),
    [
        (["a", 1, None], "both text and numbers, such as 'a' and 1"),
        ([datetime.date(2020, 1, 1)], "text, numbers or booleans; got datetime.date"),
        (np.array(["2020"], dtype="datetime64[ns]"), r"got datetime64\[ns\]"),
        ([0.5, np.inf], "infinite"),
    ],
)
def test_what_cannot_be_labels(y: Any, complaint: str, plane: Any) -> None:
    with pytest.raises(ValueError, match=complaint):
        read(y)
    if complaint == "infinite":
        with pytest.raises(ValueError, match="takes numbers; y holds 'a'"):
            SemiSupervisedVAE(labels="continuous", verbose=False).fit(plane[0], ["a"] * len(plane[0]))


def test_a_fit_that_fails_early_keeps_no_negatives(plane: Any) -> None:
    detector = NegativeVAE(hidden=(10**6, 10**6), verbose=False)
    with pytest.raises(ValueError, match="A network of"):
        detector.fit(plane[0], negatives=plane[1])
    assert detector._negatives is None
