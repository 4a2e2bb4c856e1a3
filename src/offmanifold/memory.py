"""How much memory the machine has."""

from __future__ import annotations

import math
import os


def installed() -> float:
    """Return the bytes of memory that the machine has in all; infinity where that cannot be found out."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return math.inf
