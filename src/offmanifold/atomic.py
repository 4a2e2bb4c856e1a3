"""Files that are either whole or as they were: written aside, flushed, renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a fresh file beside ``path`` to write to; rename it over ``path`` when the block succeeds.

    Whatever goes wrong (a full disk, an exception, a kill), ``path`` stays as it was. What replaces a file has that
    file's permissions. A link stays one: what it leads to is replaced.

    Raises
    ------
    OSError
        ``path`` is no ordinary file, such as a device.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no ordinary file: it cannot be replaced.")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(_mode(path))
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def clear(path: str | os.PathLike[str]) -> None:
    """Remove what writers of ``path`` that were killed have left beside it; none may be at work."""
    path = Path(os.path.realpath(path))
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        part.unlink(missing_ok=True)


def _mode(path: Path) -> int:
    """Return a file's permissions; those that an ordinary new file would have, where there is none."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write ``content`` to ``path`` whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as part:
        part.write_bytes(data)
