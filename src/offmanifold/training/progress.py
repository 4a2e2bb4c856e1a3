"""A progress bar on a terminal; elsewhere silence, or a line from time to time."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Literal

from offmanifold.training.phases import Phase

Verbosity = bool | Literal["auto"]
# Seconds between two lines where there is no terminal.
LINES_EVERY = 30.0


class Progress:
    """Show phase, loss, rate and time left.

    Parameters
    ----------
    verbose : bool or "auto"
        "auto" shows a bar where standard error is a terminal, and nothing elsewhere; True a line every half a minute
        there.
    """

    def __init__(self, verbose: Verbosity = "auto") -> None:
        self._bar: Any = None
        self._task: Any = None
        self._shown = 0.0
        self.terminal = sys.stderr.isatty()
        self.enabled = self.terminal if verbose == "auto" else bool(verbose)

    def __enter__(self) -> Progress:
        self._shown = time.monotonic()
        if self.enabled and self.terminal:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(compact=True),
                console=Console(stderr=True),
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, phase: Phase, step: int) -> None:
        """Begin a phase at ``step``."""
        self._phase = phase
        self._began = (time.monotonic(), step)
        if self._bar is not None:
            self._task = self._bar.add_task(phase.name, total=phase.steps, completed=step, rate="", state="")

    def advance(self, step: int, record: dict[str, Any] | None) -> None:
        """Move the bar; ``record`` is the latest entry of the history."""
        now = time.monotonic()
        if not self.enabled or now - self._shown < (0.1 if self.terminal else LINES_EVERY):
            return
        self._shown = now
        began, first = self._began
        rate = f"{(step - first) / max(now - began, 1e-9):.3g} steps/s"
        state = ""
        if record is not None and record["phase"] == self._phase.name:
            state = self._told(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, rate=rate, state=state)
        else:
            told = ", ".join(filter(None, (f"{self._phase.name}: step {step:,} of {self._phase.steps:,}", rate, state)))
            print(told, file=sys.stderr, flush=True)

    def _told(self, record: dict[str, Any]) -> str:
        if "rolled_back_to" in record:
            return f"rolled back to step {record['rolled_back_to']}"
        judgement = "judged" if self._phase.judge is not None else "held-out"
        return f"loss {record['loss']:.4g}, {judgement} {record['validation']:.4g}"

    def finish(self, step: int, record: dict[str, Any]) -> None:
        """End the phase, which may have stopped early; ``record`` is its last."""
        stopped = record.get("stopped")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, total=step, state=stopped or "done")
        elif self.enabled and stopped:
            print(f"{self._phase.name}: stopped at step {step:,}, {stopped}", file=sys.stderr, flush=True)
