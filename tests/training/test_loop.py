"""The one loop: resume, divergence, early stopping, several updates, precision, threads."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from torch import Tensor, nn

from offmanifold.detectors import AE, NAE, VAE, OutlierDetector
from offmanifold.networks import choose
from offmanifold.training import loop
from offmanifold.training.checkpoints import Checkpointer, deferred_interrupt, fingerprint
from offmanifold.training.loop import VALIDATION_BATCH, VALIDATION_SEED, Batches, TrainingDiverged, train
from offmanifold.training.phases import Optimizer, ParameterGroup, Phase, Unfit, Update
from offmanifold.training.precision import choose_device, choose_dtype, computing_in
from offmanifold.training.progress import Progress
from offmanifold.training.threads import cores, limited_to, share

SETTINGS = {"hidden": (3, 4), "rate": 1.0}
ROWS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def linear(seed: int = 0) -> nn.Linear:
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return layer


def phase_of(
    model: nn.Module,
    *,
    name: str = "first",
    steps: int = 20,
    optimizer: Optimizer | None = None,
    **options: Any,
) -> Phase:
    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.empty_like(rows).normal_(generator=generator)
        return (model(rows + 0.1 * noise) - rows).square().mean(1), {}

    update = Update((ParameterGroup.of("all", model),), loss, optimizer or Optimizer(0.05, "adam", "one-cycle"))
    return Phase(name, (update,), steps, 16, **options)


def remembering(phase: Phase) -> Phase:
    """Let the loss depend on the batch before, kept in the phase's memory."""
    (update,) = phase.updates
    earlier = torch.zeros(16, 3)

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        values, metrics = update.loss(rows, generator)
        if len(rows) == 16:
            values = values * (1 + 0.1 * earlier.mean())
            earlier.copy_(rows)
        return values, metrics

    def judge(rows: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
        return float(update.loss(rows, generator)[0].mean()), {}

    return dataclasses.replace(
        phase, updates=(dataclasses.replace(update, loss=loss),), judge=judge, memory={"earlier": earlier}
    )


def test_batches_pass_over_every_row_before_any_comes_twice() -> None:
    batches = Batches(torch.arange(10.0)[:, None], 4, torch.Generator().manual_seed(0))
    seen = torch.cat([batches.next() for _ in range(5)]).flatten()
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert len(Batches(torch.zeros(3, 1), 128, torch.Generator()).next()) == 3


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_a_run_cut_anywhere_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Two phases, cut after every number of steps; weights and history must not show it.

    The second averages its weights and remembers rows in a tensor of its own.
    """

    def phases(model: nn.Module) -> list[Phase]:
        optimizer = Optimizer(0.05, name, "one-cycle", weight_decay=0.01)
        return [
            phase_of(model, steps=7, optimizer=optimizer, checks=3),
            remembering(phase_of(model, name="second", steps=6, optimizer=optimizer, average=0.8)),
        ]

    whole = linear()
    history = train(whole, phases(whole), ROWS[:30], ROWS[30:], seed=5)
    for cut in range(1, 13):
        path = tmp_path / f"{cut}.checkpoint"
        model = linear()

        class Cutter(Checkpointer):
            left = cut

            def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
                super().save(tensors, state)
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(
                model, phases(model), ROWS[:30], ROWS[30:], seed=5, checkpointer=Cutter(path, SETTINGS, "x", 5, every=0)
            )
        resumed = linear(seed=99)  # whatever it starts from is overwritten
        checkpointer = Checkpointer(path, SETTINGS, "x", 5)
        again = train(resumed, phases(resumed), ROWS[:30], ROWS[30:], seed=5, checkpointer=checkpointer, resume=True)
        for parameter, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(parameter, expected), f"cut after {cut}"
        strip = [{k: v for k, v in record.items() if k != "seconds"} for record in again]
        assert strip == [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.checkpoint"
    model = linear()
    train(
        model,
        [phase_of(model)],
        ROWS[:30],
        ROWS[30:],
        seed=5,
        checkpointer=Checkpointer(path, SETTINGS, "x", 5, every=0),
    )
    many = {str(i): i for i in range(7)}
    for content, settings, data, message in (
        (path.read_bytes(), SETTINGS, "y", "another run: the rows to learn from are not the same"),
        (path.read_bytes(), SETTINGS | {"rate": 2.0}, "x", r"another run: rate was 1.0 and is 2.0\. Resume"),
        (path.read_bytes(), {"hidden": (3, 4)}, "y", "rate was 1.0 and is None; the rows to learn from are not"),
        (path.read_bytes(), SETTINGS | many, "x", "4 was None and is 4; 2 more settings differ"),
        (path.read_bytes()[:100], SETTINGS, "x", "not a whole offmanifold checkpoint"),
        (b"hello", SETTINGS, "x", "not a whole offmanifold checkpoint"),
        (path.read_bytes()[:-8] + b"damaged!", SETTINGS, "x", "is damaged: it does not match its digest. Delete it"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Checkpointer(path, settings, data, 5).load()


@pytest.mark.parametrize("how", ["nan", "explosion"])
def test_divergence_stops_with_phase_step_and_the_last_good_weights(how: str) -> None:
    model = linear()
    calls = 0

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += model.training
        factor = 1.0 if calls <= 10 else (math.nan if how == "nan" else 1e9)
        return (model(rows) - rows).square().mean(1) * factor, {}

    phase = dataclasses.replace(
        phase_of(model, steps=40, checks=40),
        updates=(Update((ParameterGroup.of("all", model),), loss, Optimizer(1e-3)),),
    )
    phase = dataclasses.replace(phase, remedy="Try another data set.")
    with pytest.raises(TrainingDiverged, match="phase 'first' at step 11: .* Try another data set.$") as caught:
        train(model, [phase], ROWS[:30], ROWS[30:], seed=0)
    assert (caught.value.phase, caught.value.step, caught.value.last_good_step) == ("first", 11, 10)
    again = pickle.loads(pickle.dumps(caught.value))  # as from another process
    assert str(again) == str(caught.value) and again.history == caught.value.history != []
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_weight_decay_is_for_weights(name: str) -> None:
    """A logarithm that gets no gradient stays where it is, whatever pulls at the weights."""
    weight, logarithm = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = (
        ParameterGroup("weights", (weight,)), ParameterGroup("gamma", (logarithm,), 100.0, decays=False)
    )  # fmt: skip
    optimizer = Optimizer(1e-2, name, weight_decay=0.5).build(groups)
    for _ in range(10):
        for parameter in (weight, logarithm):
            parameter.grad = torch.zeros(1)
        optimizer.step()
    assert float(logarithm) == 1 and float(weight) < 0.99


def test_averaged_weights_are_what_is_judged_and_kept() -> None:
    model = linear()
    trail: list[Tensor] = []
    judged: list[Tensor] = []
    phase = phase_of(model, steps=30, checks=30, average=0.9)
    (update,) = phase.updates

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        trail.append(model.weight.detach().clone())
        return update.loss(rows, generator)

    def judge(rows: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
        judged.append(model.weight.detach().clone())
        return -float(len(judged)), {}  # ever better: the last are kept

    phase = dataclasses.replace(phase, updates=(dataclasses.replace(update, loss=loss),), judge=judge)
    train(model, [phase], ROWS[:30], ROWS[30:], seed=0)
    average = trail[0].clone()
    for step, weight in enumerate(trail[1:], start=1):
        factor = min(0.9, (1 + step) / (10 + step))
        average = factor * average + (1 - factor) * weight
        torch.testing.assert_close(judged[step - 1], average)
    assert torch.equal(model.weight, judged[-1])
    assert not torch.equal(judged[-1], trail[-1])


def test_a_diverging_run_goes_back_and_on_at_half_the_rate() -> None:
    model = linear()
    calls = 0
    memory, found = torch.zeros(1), []

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += model.training
        if model.training:
            found.append(float(memory))
            memory.fill_(1.0)
        return (model(rows) - rows).square().mean(1) * (math.nan if calls in (13, 24) else 1.0), {}

    phase = dataclasses.replace(
        phase_of(model, steps=40, checks=40, rollbacks=2, average=0.5, memory={"ring": memory}),
        updates=(Update((ParameterGroup.of("all", model),), loss, Optimizer(1e-2)),),
    )
    history = train(model, [phase], ROWS[:30], ROWS[30:], seed=0)
    rolled = [record for record in history if "rolled_back_to" in record]
    assert [(record["step"], record["rolled_back_to"]) for record in rolled] == [(13, 12), (24, 23)]
    assert [step for step, held in enumerate(found) if held == 0] == [0, 13, 24], "what led there is forgotten"
    assert "nan" in rolled[0]["problem"]
    assert [record.get("stopped") for record in history] == [None] * len(history)
    rates = {record["step"]: record["learning_rate"] for record in history if "learning_rate" in record}
    assert (rates[12], rates[14], rates[25]) == (1e-2, 5e-3, 2.5e-3)
    assert history[-1]["loss"] < history[0]["loss"]
    assert torch.isfinite(model.weight).all()
    calls = 12
    with pytest.raises(TrainingDiverged, match="at step 1"):
        train(model, [dataclasses.replace(phase, rollbacks=0)], ROWS[:30], ROWS[30:], seed=0)


def test_the_best_held_out_weights_are_kept_and_patience_ends_the_phase() -> None:
    model = linear()
    # On its way to the identity the weight passes a circle, which is what the judge wants.
    phase = phase_of(model, steps=400, optimizer=Optimizer(0.05), patience=3, checks=400)

    def judge(rows: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
        assert not model.training and not torch.is_grad_enabled()
        value = float((model.weight - torch.eye(3)).square().sum())
        return abs(value - 4.0), {"distance": value}

    history = train(model, [dataclasses.replace(phase, judge=judge)], ROWS[:30], ROWS[30:], seed=0)
    assert all(record["validation"] == abs(record["distance"] - 4.0) for record in history)
    best = min(record["validation"] for record in history)
    assert abs((model.weight - torch.eye(3)).square().sum().item() - 4.0) == pytest.approx(best, rel=1e-5)
    assert history[-1]["step"] < 400
    assert [record.get("stopped") for record in history[-2:]] == [None, "no better weights for 3 steps"]
    assert all(record["validation"] > best for record in history[-3:])


def test_patience_is_counted_anew_where_a_run_went_back() -> None:
    """The fifth check after the best finds the weights unfit: that is no reason to stop."""
    judgements = iter([1.0, 2.0, 2.0, 2.0, 2.0, None, *[2.0] * 20])

    def judge(rows: Tensor, generator: torch.Generator) -> tuple[float, dict[str, float]]:
        value = next(judgements)
        if value is None:
            raise Unfit("lost")
        return value, {}

    phase = phase_of(linear(), steps=80, checks=20, judge=judge, patience=20, rollbacks=1)
    history = train(linear(), [phase], ROWS[:30], ROWS[30:], seed=0)
    assert history[5]["rolled_back_to"] == 4
    assert history[-1]["step"] == 24 + 20
    assert [record["step"] for record in history if "stopped" in record] == [44]


def test_of_equally_judged_weights_the_later_are_kept_and_do_not_try_patience() -> None:
    model = linear()
    phase = phase_of(model, steps=40, checks=40, judge=lambda rows, generator: (0.0, {}))
    history = train(model, [phase], ROWS[:30], ROWS[30:], seed=0)
    assert all(record["kept"] for record in history)
    assert history[-1]["step"] == 40
    patient = train(linear(), [dataclasses.replace(phase, patience=3)], ROWS[:30], ROWS[30:], seed=0)
    assert patient[-1]["step"] == 40
    assert not any("stopped" in record for record in patient)


def test_an_update_moves_its_own_parameters_and_may_repeat() -> None:
    model = nn.Sequential(linear(0), linear(1))
    counts = {"encoder": 0, "decoder": 0}

    def loss_of(name: str) -> Any:
        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            counts[name] += model.training
            return (model(rows) - rows).square().mean(1), {}

        return loss

    encoder = Update(
        (ParameterGroup.of("encoder", model[0]),),
        loss_of("encoder"),
        Optimizer(0.01),
        repeats=100,
        repeat_until=lambda losses: len(losses) == 3,
    )
    before = [parameter.detach().clone() for parameter in model[1].parameters()]
    history = train(model, [Phase("lagging", (encoder,), 5, 16)], ROWS[:30], ROWS[30:], seed=0)
    assert counts["encoder"] == 15
    assert all(torch.equal(a, b) for a, b in zip(before, model[1].parameters(), strict=True))
    decoder = Update((ParameterGroup.of("decoder", model[1]),), loss_of("decoder"), Optimizer(0.01))
    history = train(model, [Phase("alternating", (encoder, decoder), 5, 16)], ROWS[:30], ROWS[30:], seed=0)
    assert counts["decoder"] == 5
    assert {"gradient_norm/encoder", "gradient_norm/decoder", "loss", "validation"} <= set(history[-1])
    prepared: list[float] = []

    def prepare(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        prepared.append(float(rows.sum()))
        return {"first": rows.sum()}

    thrice = Update(decoder.groups, decoder.loss, Optimizer(0.01), prepare=prepare, repeats=3)
    history = train(model, [Phase("repeated", (thrice,), 4, 16)], ROWS[:30], ROWS[30:], seed=0)
    assert counts["decoder"] == 5 + 12 and len(prepared) == 4
    assert history[-1]["first"] == pytest.approx(prepared[-1]) and "repeats" not in history[-1]


def test_learning_rates_follow_the_schedule_and_the_groups_scale() -> None:
    cycle = Optimizer(1.0, schedule="one-cycle")
    rates = [cycle.rate(step, 100) for step in range(101)]
    assert rates[30] == max(rates) == 1.0
    assert rates[0] == 0.04 and rates[100] == pytest.approx(0, abs=1e-12)
    assert Optimizer(1.0, schedule="cosine").rate(50, 100) == pytest.approx(0.5)
    history = train(linear(), [phase_of(linear(), steps=10, checks=10)], ROWS[:30], ROWS[30:], seed=0)
    told = Optimizer(0.05, "adam", "one-cycle")
    assert [record["learning_rate"] for record in history] == [told.rate(step, 10) for step in range(10)]
    slow, fast = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    groups = ParameterGroup("slow", (slow,)), ParameterGroup("fast", (fast,), rate_scale=10.0)
    model = nn.ParameterList([slow, fast])
    update = Update(groups, lambda rows, generator: ((slow + fast).expand(len(rows)), {}), Optimizer(0.01))
    train(model, [Phase("once", (update,), 1, 16)], ROWS[:30], ROWS[30:], seed=0)
    # Adam's first step is as long as its rate.
    assert slow.item() == pytest.approx(-0.01, rel=1e-4) and fast.item() == pytest.approx(-0.1, rel=1e-4)
    detector = VAE(gamma="learned", **QUICK).fit(ROWS.numpy())
    gammas = [record["gamma"] for record in detector.history_]
    assert gammas[0] != gammas[-1]


def test_ctrl_c_saves_first(tmp_path: Path, plane: Any) -> None:
    path = tmp_path / "run.checkpoint"
    detector = AE(**(QUICK | {"steps": 500}))

    fired = []
    original = AE._phases

    def phases(self: AE, model: Any, settings: Any) -> list[Phase]:
        (phase,) = original(self, model, settings)
        inner = phase.updates[0].loss

        def loss(rows: Tensor, generator: torch.Generator) -> Any:
            fired.append(1)
            if len(fired) == 100:
                signal.raise_signal(signal.SIGINT)
            return inner(rows, generator)

        return [dataclasses.replace(phase, updates=(dataclasses.replace(phase.updates[0], loss=loss),))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AE, "_phases", phases)
        with pytest.raises(KeyboardInterrupt):
            detector.fit(plane[0], checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert path.exists()
    resumed = AE(**(QUICK | {"steps": 500})).fit(plane[0], checkpoint=path, resume=True)
    straight = AE(**(QUICK | {"steps": 500})).fit(plane[0])
    np.testing.assert_array_equal(resumed.score_samples(plane[1]), straight.score_samples(plane[1]))


@pytest.mark.parametrize("where", ["Progress.finish", "AE._finish"])
def test_ctrl_c_after_the_last_step_loses_nothing(where: str, tmp_path: Path, plane: Any) -> None:
    path = tmp_path / "run.checkpoint"

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*({"Progress": Progress, "AE": AE}[where.split(".")[0]], where.split(".")[1]), interrupted)
        with pytest.raises(KeyboardInterrupt):
            AE(**QUICK).fit(plane[0], checkpoint=path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Batches, "next", None)  # no step is taken again
        resumed = AE(**QUICK).fit(plane[0], checkpoint=path, resume=True)
    straight = AE(**QUICK).fit(plane[0])
    np.testing.assert_array_equal(resumed.score_samples(plane[1]), straight.score_samples(plane[1]))


def test_a_checkpoint_that_cannot_be_written_is_found_out_at_once(tmp_path: Path, plane: Any) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "run")
    (tmp_path / ".run.checkpoint.abc.part").write_bytes(b"of a killed run")
    (tmp_path / ".run.checkpoint2.abc.part").write_bytes(b"another's")
    for checkpoint, told in (
        (tmp_path, "it is a folder"),
        (tmp_path / "gone", "the folder .*nowhere does not exist"),
        (5, "checkpoint must be a path; got 5"),
    ):
        with pytest.raises(ValueError, match=told):
            AE(**QUICK).fit(plane[0], checkpoint=checkpoint, resume=True)  # type: ignore[arg-type]
    AE(**QUICK).fit(plane[0], checkpoint=tmp_path / "run.checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.checkpoint2.abc.part", "gone", "run.checkpoint"]


def test_what_is_lost_does_not_replace_a_checkpoint(tmp_path: Path) -> None:
    path, model = tmp_path / "run.checkpoint", nn.Linear(1, 1)
    phase = phase_with_losses(model, [1.0, math.nan, 1.0], [0.0] * 3)
    with pytest.raises(TrainingDiverged):
        train(
            model, [dataclasses.replace(phase, checks=1)], torch.ones(8, 1), torch.ones(8, 1), seed=0,
            checkpointer=Checkpointer(path, SETTINGS, "x", 5, every=0),
        )  # fmt: skip
    assert Checkpointer(path, SETTINGS, "x", 5).load()[1]["step"] == 1


def test_checkpoints_are_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    checkpointer = Checkpointer(tmp_path / "run.checkpoint", SETTINGS, "x", 5, _last=0.0)
    saved = []
    for _ in range(95):
        clock[0] += 1
        if checkpointer.due:
            checkpointer.save({}, {})
            saved.append(clock[0])
    assert saved == [30, 60, 90]


def test_a_resumed_runs_clock_goes_on(tmp_path: Path) -> None:
    model = linear()
    checkpointer = Checkpointer(tmp_path / "run.checkpoint", SETTINGS, "x", 5)
    train(model, [phase_of(model, steps=2)], ROWS[:30], ROWS[30:], seed=5, checkpointer=checkpointer)
    tensors, state = checkpointer.load()
    state |= {"elapsed": 1000.0, "step": 1}
    checkpointer.save(tensors, state)
    history = train(
        model, [phase_of(model, steps=2)], ROWS[:30], ROWS[30:], seed=5, checkpointer=checkpointer, resume=True
    )
    assert history[-1]["seconds"] >= 1000


def test_ctrl_c_elsewhere_is_left_as_it_was() -> None:
    def remembered() -> bool:
        with deferred_interrupt(True):
            return signal.getsignal(signal.SIGINT) is not before

    before = signal.getsignal(signal.SIGINT)
    assert remembered()
    with ThreadPoolExecutor(1) as pool:  # signals reach the main thread alone, which alone may say what they do
        assert not pool.submit(remembered).result()
    with deferred_interrupt(True) as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):  # a second one interrupts at once
            signal.raise_signal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
        with deferred_interrupt(True):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_data_of_another_shape_have_another_fingerprint() -> None:
    assert fingerprint(ROWS) == fingerprint(ROWS.clone()) != fingerprint(ROWS.view(60, 2))


def test_resuming_without_a_seed_keeps_the_runs_own(tmp_path: Path, plane: Any) -> None:
    path = tmp_path / "run.checkpoint"
    settings = QUICK | {"random_state": None}
    first = AE(**settings).fit(plane[0], checkpoint=path, checkpoint_every=0)
    second = AE(**settings).fit(plane[0], checkpoint=path, resume=True)
    np.testing.assert_array_equal(first.score_samples(plane[1]), second.score_samples(plane[1]))
    with pytest.raises(ValueError, match="another run: random_state was None and is 5"):
        AE(**settings | {"random_state": 5}).fit(plane[0], checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="run: the rows to learn from are not the same"):
        AE(**settings).fit(plane[0] ** 3, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"run: rows kept for calibration was \d+ and is \d+; the rows to learn from"):
        AE(**settings | {"calibration_fraction": 0.4}).fit(plane[0], checkpoint=path, resume=True)


@pytest.mark.parametrize("network", choose.NETWORKS)
def test_bfloat16_is_close_to_float32_inside_every_network(network: str) -> None:
    size = {"conv32": 32, "conv32big": 32, "p1-colour": 32, "conv64": 64}.get(network, 28)
    shape = (3, size, size) if size != 28 else (1, size, size)
    encoder, decoder = choose.build(network, shape, into_latent=8, latent_dim=8, hidden=(16, 16), capacity=1 / 16)
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    model = nn.ModuleList([encoder, decoder]).eval()
    exact = decoder(encoder(x))
    assert exact.shape == x.shape and exact.dtype == torch.float32
    with computing_in(torch.bfloat16, model):
        rough = decoder(encoder(x))
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.05 * exact.norm()
    torch.testing.assert_close(decoder(encoder(x)), exact, rtol=0, atol=0)  # the setting was put back


def test_precision_is_chosen_by_network_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, conv = (
        nn.ModuleList(choose.build(name, (1, 28, 28), into_latent=2, latent_dim=2, hidden=(4,)))
        for name in ("mlp", "strided")
    )
    cpu = torch.device("cpu")

    def on(vendor: str, flags: str) -> torch.dtype:
        processor = {"vendor_id": vendor, "flags": flags}
        monkeypatch.setattr("offmanifold.training.precision._processor", lambda: processor)
        return choose_dtype("auto", conv, cpu)

    assert on("GenuineIntel", "sse2 avx512_bf16 amx_bf16") == torch.bfloat16
    assert choose_dtype("auto", dense, cpu) == torch.float32
    assert choose_dtype("float32", conv, cpu) == torch.float32
    assert on("GenuineIntel", "sse2 avx512_bf16") == torch.float32
    assert on("AuthenticAMD", "sse2 avx512_bf16") == torch.bfloat16
    assert on("AuthenticAMD", "sse2 avx512f") == torch.float32
    assert choose_dtype("bfloat16", dense, cpu) == torch.bfloat16
    monkeypatch.setattr("offmanifold.training.precision._processor", dict)  # no Linux
    assert choose_dtype("auto", conv, cpu) == torch.float32
    with pytest.raises(ValueError, match="device='meta' cannot be used here: nothing is computed"):
        choose_device("meta")
    with pytest.raises(ValueError, match="device='warp' cannot be used here"):
        choose_device("warp")


def test_threads_are_shared_out_and_restored() -> None:
    before = torch.get_num_threads()
    with limited_to(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert share(1) == cores()
    assert share(10**6) == 1


@pytest.mark.parametrize("detector_class", [AE, VAE])
def test_a_convolutional_detector_trains_in_either_precision(detector_class: type[OutlierDetector]) -> None:
    images = np.random.default_rng(0).random((60, 20, 18)).astype(np.float32)
    for precision in ("float32", "bfloat16"):
        detector = detector_class(capacity=1 / 16, steps=5, precision=precision, verbose=False, random_state=0)
        scores = detector.fit(images).score_samples(images)
        assert detector.settings_["network"] == "strided"
        assert np.isfinite(scores).all()


def test_metrics_that_are_functions_are_called_at_checks_alone() -> None:
    model, calls = linear(), []

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Any]:
        values = (rows - model(rows)).square().mean(1)
        return values, {"cheap": values.detach().mean(), "dear": lambda: calls.append(1) or values.detach().max()}

    update = Update((ParameterGroup.of("weight", model),), loss, Optimizer(0.01))
    history = train(model, [Phase("p", (update,), 40, 10, checks=4)], ROWS[:30], ROWS[30:], seed=0)
    assert len(calls) == len(history) == 4
    assert all(record["dear"] > record["cheap"] for record in history)


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("offmanifold.training.progress.LINES_EVERY", 0.0)
    for verbose, shown in ((True, True), ("auto", False), (False, False)):
        AE(steps=3, hidden=(4,), random_state=0, verbose=verbose).fit(np.random.default_rng(0).normal(size=(60, 2)))
        told = capsys.readouterr().err
        assert ("autoencoder: step 3 of 3, " in told and "held-out" in told) == shown == bool(told)
    rows = np.random.default_rng(0).normal(size=(60, 2))
    NAE(steps=2, pretraining_steps=0, hidden=(4,), random_state=0, verbose=True).fit(rows)
    told = capsys.readouterr().err
    assert "normalisation: step 2 of 2, " in told and "judged 0." in told  # by an AUROC, not by a loss


def test_lines_are_of_the_phase_they_name_and_tell_of_its_end(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("offmanifold.training.progress.LINES_EVERY", 0.0)
    model = linear()
    first = phase_of(model, steps=2, checks=2)
    judgements = iter([1.0, 2.0, 2.0])
    second = phase_of(model, steps=8, checks=4, patience=4, judge=lambda rows, generator: (next(judgements), {}))
    phases = [dataclasses.replace(first, name="first"), dataclasses.replace(second, name="second")]
    train(model, phases, ROWS[:30], ROWS[30:], seed=0, progress=Progress(verbose=True))
    told = capsys.readouterr().err.splitlines()
    assert "held-out" in told[1] and told[2].startswith("second: step 1 of 8, ") and told[2].endswith("steps/s")
    assert "judged 1" in told[3]
    assert told[-1] == "second: stopped at step 6, no better weights for 4 steps"


def test_held_out_rows_are_judged_by_their_mean_under_the_same_noise() -> None:
    model, rows = nn.Linear(2, 2), torch.randn(700, 2, generator=torch.Generator().manual_seed(0))

    def loss(part: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.empty_like(part).normal_(generator=generator)
        return (model(part + noise) - part).square().mean(1), {}

    update = Update((ParameterGroup.of("all", model),), loss, Optimizer(1e-12))
    history = train(model, [Phase("p", (update,), 4, 16, checks=4)], rows, rows, seed=0)
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    with torch.no_grad():
        expected = torch.cat([loss(part, generator)[0] for part in rows.split(VALIDATION_BATCH)]).mean().item()
    assert [record["validation"] for record in history] == pytest.approx([expected] * 4, rel=1e-5)


def phase_with_losses(model: nn.Module, losses: list[float], judged: list[float], **own: Any) -> Phase:
    """Return three steps with these losses and judgements."""
    each, judgement = iter(losses), iter(judged)

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return model(rows).square().flatten() * 0 + next(each), {}

    update = Update((ParameterGroup.of("all", model),), loss, Optimizer(0.1))
    return Phase("p", (update,), 3, 4, checks=3, judge=lambda rows, generator: (next(judgement), {}), **own)


def test_the_last_weights_are_kept_whatever_the_judge_says() -> None:
    model = nn.Linear(1, 1)
    phase = phase_with_losses(model, [1.0] * 3, [0.0, 1.0, 2.0], keep="last")
    assert all(record["kept"] for record in train(model, [phase], torch.ones(8, 1), torch.ones(8, 1), seed=0))


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_judgement_that_is_no_number_ends_training(keep: str) -> None:
    model = nn.Linear(1, 1)
    phase = phase_with_losses(model, [1.0] * 3, [1.0, math.nan, 1.0], keep=keep)
    with pytest.raises(TrainingDiverged, match="at step 2: the loss of the held-out rows is nan"):
        train(model, [phase], torch.ones(8, 1), torch.ones(8, 1), seed=0)


def test_after_going_back_a_loss_is_compared_with_those_since() -> None:
    """The first loss, 1, and the lowest, −10⁶, are of what was left behind: from there 10⁵ would be an explosion."""
    model = nn.Linear(1, 1)
    phase = phase_with_losses(model, [1.0, -1e6, math.nan, 1e5], [0.0] * 4, rollbacks=1)
    phase, rows = dataclasses.replace(phase, steps=4, checks=4), torch.ones(8, 1)
    assert [record.get("loss") for record in train(model, [phase], rows, rows, seed=0)] == [1.0, -1e6, None, 1e5]


def test_patience_that_ends_with_the_phase_has_not_ended_it() -> None:
    model = nn.Linear(1, 1)
    phase, rows = phase_with_losses(model, [1.0] * 3, [0.0, 1.0, 1.0], patience=2), torch.ones(8, 1)
    assert not any("stopped" in record for record in train(model, [phase], rows, rows, seed=0))


def test_a_loss_explodes_by_what_it_rose_from_its_lowest() -> None:
    """From −10⁶ by 2 · 10⁴, which is 10⁴ times 1 plus the first loss."""
    for last, diverges in ((-1e6 + 1.9e4, False), (-1e6 + 2.1e4, True)):
        model = nn.Linear(1, 1)
        phase, rows = phase_with_losses(model, [1.0, -1e6, last], [0.0] * 3), torch.ones(8, 1)
        with pytest.raises(TrainingDiverged, match="the loss rose from -1e") if diverges else contextlib.nullcontext():
            train(model, [phase], rows, rows, seed=0)
