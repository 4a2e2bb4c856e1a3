"""Pictures: opened without starting anything, upright as viewers show them, grey or in colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# What Pillow calls them. It tells a file by its content, and starts other programs for some kinds.
FORMATS = ("PNG", "JPEG")


class opened:
    """Open a picture; a damaged one is a ``ValueError`` that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Image.Image:
        try:
            self._image: Image.Image = Image.open(self.path, formats=FORMATS)
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.path} is damaged or not a picture: {error}") from error
        if self._image.mode in ("I", "F", "I;16", "I;16B"):
            raise ValueError(f"{self.path} has more than 8 bits a channel: convert it to 8 bits first.")
        return self._image

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._image.close()
        if isinstance(error, OSError | SyntaxError | EOFError):
            raise ValueError(f"{self.path} is damaged or not a picture: {error}") from error


def pixels(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    """Return a picture's pixels: ``(H, W)`` for ``mode`` "L", ``(H, W, 3)`` for "RGB"."""
    with opened(path) as image:
        # What lies below transparent pixels is whatever a program left there, often black.
        if image.has_transparency_data and not _is_opaque(image):
            raise ValueError(
                f"{path} is transparent in part, and what it looks like depends on its background. Draw it on one "
                "first (with Pillow: Image.alpha_composite)."
            )
        image.info.pop("transparency", None)  # of none of its pixels; Pillow would warn of it
        upright = ImageOps.exif_transpose(image) if _turned(image) != 1 else image
        return np.asarray(upright.convert(mode), dtype=np.uint8)


def size(image: Image.Image) -> tuple[int, int]:
    """Return its width and height as viewers show it."""
    width, height = image.size
    return (height, width) if _turned(image) > 4 else (width, height)


def is_grey(image: Image.Image) -> bool:
    """Say whether a picture is grey, by what stands before its pixels."""
    if image.mode == "P" and image.palette is not None:
        entries = np.frombuffer(image.palette.getdata()[1], np.uint8)
        red, green, blue = entries[: len(entries) // 3 * 3].reshape(-1, 3).T
        return bool((red == green).all() and (green == blue).all())
    return image.mode in ("1", "L", "LA")


def _is_opaque(image: Image.Image) -> bool:
    return bool((np.asarray(image.convert("RGBA").getchannel("A")) == 255).all())


def _turned(image: Image.Image) -> int:
    """Return a picture's orientation (EXIF), 1 as it is stored; of a PNG only where it stands before the pixels."""
    told = image.format == "JPEG" or "exif" in image.info
    return int(image.getexif().get(ExifTags.Base.Orientation, 1)) if told else 1
