"""The one training loop: every detector's phases run here."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offmanifold.training.checkpoints import Checkpointer, deferred_interrupt
from offmanifold.training.phases import Metrics, Phase, Unfit, Update
from offmanifold.training.precision import computing_in
from offmanifold.training.progress import Progress

History = list[dict[str, Any]]

VALIDATION_BATCH = 512
VALIDATION_SEED = 20_201_106
# A loss that climbs this many times its first size above its best will not come back.
EXPLOSION = 1e4


class TrainingDiverged(RuntimeError):
    """The loss became non-finite or exploded, or the weights are unfit for what they are trained for.

    Attributes
    ----------
    phase : str
    step : int
        Where it was noticed.
    last_good_step : int
        The check whose weights the module that was trained has again.
    history : list of dict
        The records until then, those of going back included.
    """

    def __init__(
        self, phase: str, step: int, last_good_step: int, history: Sequence[dict[str, Any]], what: str, remedy: str
    ) -> None:
        self.phase, self.step, self.last_good_step, self.history = phase, step, last_good_step, list(history)
        went_back = sum("rolled_back_to" in record and record["phase"] == phase for record in history)
        after = f", having gone back {went_back} time{'s' if went_back > 1 else ''}" if went_back else ""
        super().__init__(f"Training diverged in phase {phase!r} at step {step}{after}: {what}. {remedy}")
        self._told = (what, remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to make it anew: a process that trains for another hands it over."""
        return type(self), (self.phase, self.step, self.last_good_step, self.history, *self._told)


class Batches:
    """Endless batches: pass after pass over the rows, each in a new random order."""

    def __init__(self, rows: Tensor, batch_size: int, generator: torch.Generator) -> None:
        self.rows, self.generator = rows, generator
        self.size = min(batch_size, len(rows))
        # Drawn on the CPU, the same order on every device; kept where the rows are, so that no step waits for a copy.
        self.order = torch.empty(0, dtype=torch.int64, device=rows.device)
        self.cursor = 0

    def next(self) -> Tensor:
        """Return the next ``(size, *shape)``."""
        index = self.order[self.cursor : self.cursor + self.size]
        self.cursor += self.size
        if len(index) < self.size:
            self.order = torch.randperm(len(self.rows), generator=self.generator).to(self.rows.device)
            self.cursor = self.size - len(index)
            index = torch.cat([index, self.order[: self.cursor]])
        return self.rows[index]


@dataclasses.dataclass
class _State:
    """Where a phase stands, apart from weights and generators."""

    phase: int = 0
    step: int = 0
    best: float = math.inf
    best_step: int = 0
    stale_since: int = 0
    stopped: bool = False
    first_loss: float | None = None
    lowest_loss: float = math.inf
    rate_scale: float = 1.0
    rollbacks: int = 0
    elapsed: float = 0.0
    history: History = dataclasses.field(default_factory=list)


def train(
    model: nn.Module,
    phases: Sequence[Phase],
    rows: Tensor,
    held_out: Tensor,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    checkpointer: Checkpointer | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> History:
    """Run the phases; leave in ``model`` the weights that were best on ``held_out``.

    Parameters
    ----------
    model : Module
        On the device where it is to be trained.
    phases : sequence of Phase
    rows, held_out : (n, *shape) and (m, *shape)
        On the same device. Held-out rows choose weights and end phases; they are never trained on.
    seed : int
        Of the batches' order and of the noise. The same seed gives the same weights.
    dtype : torch.dtype
        Arithmetic inside the networks.
    checkpointer : Checkpointer, optional
    resume : bool
        Go on from the checkpoint: with as many threads, bit for bit as if the run had never stopped.
    progress : Progress, optional

    Returns
    -------
    list of dict
        One record a check: phase, step, loss, validation and whether its weights were kept, learning rate, metrics,
        gradient norms by group, and why the phase stopped, where it did before its last step.

    Raises
    ------
    TrainingDiverged
        The loss is not finite, or explodes.
    KeyboardInterrupt
        After a checkpoint has been written, if there is a checkpointer; but not of a step whose loss is not finite.
    """
    return _Run(model, phases, rows, held_out, seed, dtype, checkpointer, progress).run(resume)


class _Run:
    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        rows: Tensor,
        held_out: Tensor,
        seed: int,
        dtype: torch.dtype,
        checkpointer: Checkpointer | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.phases, self.rows, self.held_out = model, phases, rows, held_out
        self.dtype, self.checkpointer = dtype, checkpointer
        self.progress = progress or Progress(verbose=False)
        self.order_generator = torch.Generator().manual_seed(seed)
        self.noise_generator = torch.Generator(rows.device).manual_seed(seed + 1)
        self.state = _State()
        self._begin_phase()

    def _begin_phase(self) -> None:
        """Set up what belongs to the current phase; a resumed run overwrites it."""
        phase = self.phases[self.state.phase]
        self.batches = Batches(self.rows, phase.batch_size, self.order_generator)
        self.optimizers = [update.optimizer.build(update.groups) for update in phase.updates]
        self.best_weights = self._weights()
        self.average = self._weights() if phase.average else {}
        # Looked up once: walking through the modules at every step takes a tenth of a small network's time.
        self._parameters = dict(self.model.named_parameters())
        self._buffers = [name for name, _ in self.model.named_buffers() if name in self.average]
        self._total: Tensor | None = None  # sum of the losses since the last check
        self._counted = 0

    @property
    def _memory(self) -> Mapping[str, Tensor]:
        return self.phases[self.state.phase].memory

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _follow(self, factor: float) -> None:
        """Move the average towards the weights. Factor (1 + t)/(10 + t) at first: the phase's start is forgotten."""
        factor = min(factor, (1 + self.state.step) / (10 + self.state.step))
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter.detach(), 1 - factor)
        for name in self._buffers:  # such as spectral norm's vectors: unit vectors have no mean
            self.average[name].copy_(self.model.get_buffer(name))

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights into the model within the block, if there are any."""
        raw = self._weights() if self.average else {}
        if raw:
            self.model.load_state_dict(self.average)
        try:
            yield
        finally:
            if raw:
                self.model.load_state_dict(raw)

    def run(self, resume: bool) -> History:
        if resume and self.checkpointer is not None:
            self._restore(self.checkpointer)
        began = time.monotonic() - self.state.elapsed
        self.model.train()
        with (
            deferred_interrupt(self.checkpointer is not None) as interruption,
            computing_in(self.dtype, self.model),
            self.progress,
        ):
            while self.state.phase < len(self.phases):
                phase = self.phases[self.state.phase]
                self.progress.start(phase, self.state.step)
                while self.state.step < phase.steps and not self.state.stopped:
                    loss, metrics = self._step(phase)
                    self.state.elapsed = time.monotonic() - began
                    if self.state.step % phase.check_every == 0 or self.state.step == phase.steps:
                        self._check(phase, metrics)
                    self.progress.advance(self.state.step, self.state.history[-1] if self.state.history else None)
                    # What comes after training may be interrupted, too.
                    over = phase is self.phases[-1] and (self.state.step == phase.steps or self.state.stopped)
                    if self.checkpointer is not None and (interruption.requested or self.checkpointer.due or over):
                        # What is already lost is not worth keeping: the checkpoint on disk stays the good one.
                        if bool(torch.isfinite(loss)):
                            self._save(self.checkpointer)
                        if interruption.requested:
                            raise KeyboardInterrupt
                self.progress.finish(self.state.step, self.state.history[-1])
                self.model.load_state_dict(self.best_weights)
                self.state = _State(phase=self.state.phase + 1, elapsed=self.state.elapsed, history=self.state.history)
                if self.state.phase < len(self.phases):
                    self._begin_phase()
            if interruption.requested:
                raise KeyboardInterrupt
        self.model.eval()
        return self.state.history

    def _step(self, phase: Phase) -> tuple[Tensor, Metrics]:
        """Run every update on one batch, or as many as it repeats; return the first one's loss and all metrics."""
        batch = self.batches.next()
        first_loss: Tensor | None = None
        all_metrics: Metrics = {}
        for update, optimizer in zip(phase.updates, self.optimizers, strict=True):
            for group, settings in zip(update.groups, optimizer.param_groups, strict=True):
                rate = update.optimizer.rate(self.state.step, phase.steps)
                settings["lr"] = rate * group.rate_scale * self.state.rate_scale
            if update.prepare is not None:
                all_metrics |= update.prepare(batch, self.noise_generator)
            losses: list[float] = []
            for repetition in range(update.repeats):
                if repetition:
                    batch = self.batches.next()
                loss, metrics = self._apply(update, optimizer, batch)
                if update.repeat_until is not None:
                    losses.append(loss.item())
                    if update.repeat_until(losses):
                        break
            if losses:
                metrics["repeats"] = torch.tensor(float(len(losses)))
            first_loss = loss if first_loss is None else first_loss
            all_metrics |= metrics
        assert first_loss is not None
        self._total = first_loss if self._total is None else self._total + first_loss
        self._counted += 1
        self.state.step += 1
        if phase.average:
            self._follow(phase.average)
        return first_loss, all_metrics

    def _apply(self, update: Update, optimizer: torch.optim.Optimizer, batch: Tensor) -> tuple[Tensor, Metrics]:
        values, metrics = update.loss(batch, self.noise_generator)
        loss = values.mean()
        parameters = [parameter for group in update.groups for parameter in group.parameters]
        # Gradients for these parameters alone: whatever else the loss reaches stays untouched.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        return loss.detach(), metrics

    def _check(self, phase: Phase, metrics: Metrics) -> None:
        """Record, compare with the best, and roll back or stop a run that has diverged."""
        state = self.state
        assert self._total is not None
        loss = (self._total / self._counted).item()
        self._total, self._counted = None, 0
        record: dict[str, Any] = {"phase": phase.name, "step": state.step, "seconds": round(state.elapsed, 3)}
        with self._averaged():
            validation, judged, unfit = self._judge(phase)
            problem = unfit or self._problem(loss, validation)
            kept = not problem and (phase.keep == "last" or validation <= state.best)
            if kept:
                state.best, state.best_step, state.stale_since = validation, state.step, state.step
                self.best_weights = self._weights()
        if problem:
            self._recover(phase, problem, record)
            return
        if state.first_loss is None:
            state.first_loss = loss
        state.lowest_loss = min(state.lowest_loss, loss)
        record |= {
            "loss": loss,
            "validation": validation,
            "kept": kept,
            "learning_rate": phase.updates[0].optimizer.rate(state.step - 1, phase.steps) * state.rate_scale,
            **{name: float(value() if callable(value) else value) for name, value in metrics.items()},
            **judged,
        }
        for update in phase.updates:
            for group in update.groups:
                gradients = [p.grad for p in group.parameters if p.grad is not None]
                if gradients:
                    norm = torch.nn.utils.get_total_norm(gradients)
                    record[f"gradient_norm/{group.name}"] = norm.item()
        stale = state.step - state.stale_since
        if stale >= phase.patience and state.step < phase.steps:
            state.stopped = True
            record["stopped"] = f"no better weights for {stale} steps"
        state.history.append(record)

    def _recover(self, phase: Phase, problem: str, record: dict[str, Any]) -> None:
        """Go back to the best weights at half the rate; raise when that has been done often enough."""
        state = self.state
        self.model.load_state_dict(self.best_weights)
        if state.rollbacks == phase.rollbacks:
            self.model.eval()
            raise TrainingDiverged(
                phase.name, state.step, state.best_step, [*state.history, record | {"problem": problem}], problem,
                phase.remedy,
            )  # fmt: skip
        state.rollbacks += 1
        state.rate_scale /= 2
        state.stale_since = state.step
        state.first_loss, state.lowest_loss = None, math.inf
        self.optimizers = [update.optimizer.build(update.groups) for update in phase.updates]
        for name, tensor in self.average.items():
            tensor.copy_(self.best_weights[name])
        for tensor in self._memory.values():
            tensor.zero_()  # it may hold what led here
        state.history.append(record | {"rolled_back_to": state.best_step, "problem": problem})

    def _problem(self, loss: float, validation: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(validation):
            return f"the loss of the held-out rows is {validation}"
        first = self.state.first_loss
        if first is not None and loss - self.state.lowest_loss > EXPLOSION * (1 + abs(first)):
            return f"the loss rose from {self.state.lowest_loss:.3g} to {loss:.3g}"
        return None

    @torch.no_grad()
    def _judge(self, phase: Phase) -> tuple[float, dict[str, float], str | None]:
        """Return what decides about the weights, what else the phase's judge records, and why they are unfit."""
        generator = torch.Generator(self.held_out.device).manual_seed(VALIDATION_SEED)
        self.model.eval()
        try:
            if phase.judge is not None:
                return *phase.judge(self.held_out, generator), None
            loss = phase.updates[0].loss
            batches = torch.split(self.held_out, VALIDATION_BATCH)
            total = sum(float(loss(part, generator)[0].double().sum()) for part in batches)
            return total / len(self.held_out), {}, None
        except Unfit as error:
            return math.inf, {}, str(error)
        finally:
            self.model.train()

    def _save(self, checkpointer: Checkpointer) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best_weights.items()}
        tensors |= {f"average/{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"memory/{name}": tensor for name, tensor in self._memory.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, parameter in enumerate(_parameters(optimizer)):
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer/{i}/{j}/{key}"] = value
        tensors["batches/order"] = self.batches.order
        tensors["generators/order"] = self.order_generator.get_state()
        tensors["generators/noise"] = self.noise_generator.get_state()
        if self._total is not None:
            tensors["running/total"] = self._total
        state = dataclasses.asdict(self.state) | {"cursor": self.batches.cursor, "counted": self._counted}
        checkpointer.save(tensors, state)

    def _restore(self, checkpointer: Checkpointer) -> None:
        tensors, values = checkpointer.load()
        cursor, counted = values.pop("cursor"), values.pop("counted")
        self.state = _State(**values)
        self.model.load_state_dict(_under(tensors, "model/"))
        self._begin_phase()
        for kind, own in (("best", self.best_weights), ("average", self.average), ("memory", self._memory)):
            saved = _under(tensors, f"{kind}/")
            for name, tensor in own.items():
                tensor.copy_(saved[name])
        for i, optimizer in enumerate(self.optimizers):
            for j, parameter in enumerate(_parameters(optimizer)):
                moments = _under(tensors, f"optimizer/{i}/{j}/")
                if moments:
                    optimizer.state[parameter] = {
                        # Fused kernels keep their step count on the device, the others on the CPU.
                        key: torch.empty_like(parameter).copy_(value)
                        if key != "step"
                        else value.to(parameter.device if optimizer.defaults.get("fused") else "cpu")
                        for key, value in moments.items()
                    }
        self.batches.order, self.batches.cursor = tensors["batches/order"].to(self.rows.device), cursor
        self.order_generator.set_state(tensors["generators/order"])
        self.noise_generator.set_state(tensors["generators/noise"])
        self._counted = counted
        if counted:
            self._total = tensors["running/total"].to(self.rows.device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
