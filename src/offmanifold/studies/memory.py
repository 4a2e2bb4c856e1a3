"""How much memory a piece of work takes."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import NamedTuple


class Resident(NamedTuple):
    """Resident memory of this process in MiB: now, and at most since it was last reset."""

    now: float
    most: float


def resident() -> Resident | None:
    """Return what Linux counts; None elsewhere."""
    try:
        with open("/proc/self/status") as file:
            found = {name: value for name, _, value in (line.partition(":") for line in file)}
        return Resident(*(int(found[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))
    except (OSError, KeyError):
        return None


@contextlib.contextmanager
def peak_memory(found: dict[str, float]) -> Iterator[None]:
    """Write to ``found["mib"]`` how far resident memory rose within the block; nothing where that cannot be told.

    What the allocator keeps of earlier work is given back first, so that it does not hide what this one takes.
    """
    before = None
    if resident() is not None:
        with contextlib.suppress(AttributeError, OSError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # not always allowed
            file.write("5")
            file.flush()
            before = resident()
    yield
    after = resident()
    if before is not None and after is not None:
        found["mib"] = round(max(0.0, after.most - before.now), 1)
