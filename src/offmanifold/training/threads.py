"""The processor's cores: a share for each of several fits, and the user's setting restored."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

SMALL_STEP = 30_000_000


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(jobs: int) -> int:
    """Return how many threads each of ``jobs`` processes side by side should use."""
    return max(1, cores() // max(1, jobs))


def worth_having(multiplications: int) -> int | None:
    """Return the limit of threads for steps of so many multiplications: 1 for small ones, else None.

    Threads bring nothing to small steps (measured: 13 million multiplications a step took as long on two
    cores as on one), and cost dearly where another process wants the cores too.
    """
    return 1 if multiplications < SMALL_STEP else None


@contextlib.contextmanager
def limited_to(threads: int | None) -> Iterator[None]:
    """Use at most ``threads`` threads within the block (None: leave the setting alone)."""
    if threads is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
