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

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from offmanifold import atomic, parameters

FORMAT = "offmanifold-checkpoint-3"
MOST_NAMED = 5


@dataclasses.dataclass
class Checkpointer:
    """Where, how often and for what a run is saved.

    Attributes
    ----------
    path : Path
    settings : dict
    data : str
        A digest of the data: a run is only continued with the same data and settings.
    seed : int
        What the run's generators started from.
    random_state : int, optional
        The parameter that it was drawn by. None goes on with any.
    every : float
        Seconds between two checkpoints; 0 saves after every step.
    """

    path: Path
    settings: dict[str, Any]
    data: str
    seed: int
    every: float = 30.0
    random_state: int | None = None
    _last: float = dataclasses.field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        atomic.clear(self.path)

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self.every

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint; the earlier one is replaced only by a whole one."""
        header = {"format": FORMAT, **self._origin, "state": state}
        header |= {"seed": self.seed, "random_state": self.random_state}
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header["digest"] = fingerprint(*(contiguous[name] for name in sorted(contiguous)))
        text = json.dumps(header)
        atomic.write(self.path, safetensors.torch.save(contiguous, {"offmanifold": text}))
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the checkpoint back; raise ``ValueError`` that says what differs where it belongs to another run."""
        header = _header(self.path)
        before, now = header["settings"], self._origin["settings"]
        names = sorted(name for name in before | now if before.get(name) != now.get(name))
        differences = [f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names[:MOST_NAMED]]
        if self.random_state not in (None, header["random_state"]):
            differences.append(f"random_state was {header['random_state']!r} and is {self.random_state!r}")
        if len(names) > MOST_NAMED:
            differences.append(f"{len(names) - MOST_NAMED} more settings differ")
        if header["data"] != self.data:
            differences.append("the rows to learn from are not the same")
        if differences:
            raise ValueError(
                f"{self.path} belongs to another run: {'; '.join(differences)}. Resume with what it began with, or "
                "delete it to start anew."
            )
        tensors = safetensors.torch.load(self.path.read_bytes())
        if fingerprint(*(tensors[name] for name in sorted(tensors))) != header["digest"]:
            raise ValueError(f"{self.path} is damaged: it does not match its digest. Delete it to start anew.")
        return tensors, header["state"]

    @property
    def _origin(self) -> dict[str, Any]:
        """What a run must have in common with the one it continues, as JSON gives it back."""
        settings: dict[str, Any] = json.loads(json.dumps(self.settings, default=str))
        return {"settings": settings, "data": self.data}


def writable(checkpoint: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint that is yet to be written or is there; raise ``ValueError`` where none can be."""
    if not isinstance(checkpoint, str | os.PathLike):
        raise parameters.InvalidParameter(f"checkpoint must be a path; got {checkpoint!r}.")
    path, there = Path(checkpoint), Path(os.path.realpath(checkpoint))
    if not there.parent.is_dir():
        raise ValueError(f"checkpoint={str(path)!r} cannot be written: the folder {there.parent} does not exist.")
    if there.exists() and not there.is_file():
        raise ValueError(f"checkpoint={str(path)!r} cannot be written: it is a folder, or no ordinary file.")
    return path


def saved_seed(path: str | os.PathLike[str]) -> tuple[int, int | None]:
    """Return the seed of the run that ``path`` holds, and the ``random_state`` that it was drawn by, if any."""
    header = _header(Path(path))
    return int(header["seed"]), header["random_state"]


def _header(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says of its run, and none of its tensors."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["offmanifold"])
        if header["format"] != FORMAT:
            raise ValueError(f"{path} is of format {header['format']!r}, not {FORMAT!r}.")
        return {key: header[key] for key in ("settings", "data", "seed", "random_state", "state", "digest")}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole offmanifold checkpoint ({error}). Delete it to start anew.") from error


def fingerprint(*tensors: Tensor) -> str:
    """Return a digest of data."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
