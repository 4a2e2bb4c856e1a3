"""Checkpoints: all that a run needs to go on as if it had never stopped. Safetensors, no pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from offmanifold import atomic

FORMAT = "offmanifold-checkpoint-1"


@dataclasses.dataclass
class Checkpointer:
    """Where, how often and for what a run is saved.

    Attributes
    ----------
    path : Path
    fingerprint : str
        Digest of data and settings: a run is only continued with the same ones.
    seed : int
        What the run's generators started from.
    every : float
        Seconds between two checkpoints; 0 saves after every step.
    """

    path: Path
    fingerprint: str
    seed: int
    every: float = 30.0
    _last: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self.every

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint; the earlier one is replaced only by a whole one."""
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "seed": self.seed, "state": state}
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(header)
        atomic.write(self.path, safetensors.torch.save(contiguous, {"offmanifold": text}))
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the checkpoint back; raise ``ValueError`` where it belongs to another run."""
        header, tensors = _read(self.path)
        if header["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{self.path} belongs to a run with other data or settings. "
                "Resume with the very same ones, or delete it to start anew."
            )
        return tensors, header["state"]


def saved_seed(path: str | os.PathLike[str]) -> int:
    """Return the seed of the run that ``path`` holds."""
    return int(_read(Path(path))[0]["seed"])


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["offmanifold"])
        if header["format"] != FORMAT:
            raise ValueError(f"{path} is of format {header['format']!r}, not {FORMAT!r}.")
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole offmanifold checkpoint ({error}).") from error
    return header, tensors


def fingerprint(settings: dict[str, Any], *tensors: Tensor) -> str:
    """Return a digest of settings and data."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


class Interruption:
    """Whether Ctrl-C was pressed within the block of :func:`deferred_interrupt`."""

    requested = False


@contextlib.contextmanager
def deferred_interrupt(active: bool) -> Iterator[Interruption]:
    """Hold back Ctrl-C until the step is done; a second one interrupts at once."""
    interruption = Interruption()
    before = signal.getsignal(signal.SIGINT)
    # Signals reach the main thread alone; a process told to ignore them (nohup, a job in the background) goes on to.
    if not active or threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield interruption
        return

    def remember(number: int, frame: Any) -> None:
        interruption.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
