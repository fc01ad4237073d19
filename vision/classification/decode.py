"""From an image file's bytes to pixels, by stated conversions; what cannot be decoded is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...core.errors import DataError

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
# Pillow can open more; some of those start other programs (EPS), none is needed.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 80_000_000


def decode(file: Path | IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to 8 bits, grey or RGB.

    EXIF orientation is applied. Palettes become RGB; transparency lies on white; CMYK, YCbCr, Lab and HSV become RGB;
    16-bit grey keeps its high byte; of an animation the first frame is taken.

    Args:
        file: A path, or an open file.
        name: What messages call it.
        max_pixels: Most pixels; a larger image is refused before its pixels are decoded.

    Returns:
        An image of mode ``L`` or ``RGB``.

    Raises:
        DataError: The file is empty, truncated, no image of a known format, too large, or of a mode without a
            conversion.
    """
    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width} x {height} pixels", max_pixels)
            image.load()
            return _to_8_bits(ImageOps.exif_transpose(image), name)
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {_found(file)}, expected {_ADVICE}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: cannot be decoded ({error or type(error).__name__}), expected {_ADVICE}") from error


_ADVICE = (
    f"a whole image ({', '.join(_FORMATS)}); remove or replace it, or pass --data.on_bad_sample skip to leave out and "
    "count such files"
)


def _found(file: Path | IO[bytes]) -> str:
    """Say what a file that is no image is."""
    if isinstance(file, Path):
        size = file.stat().st_size
        head = file.open("rb").read(12) if size else b""
    else:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(12)
    return f"found {size} bytes that start with {head!r}" if size else "the file is empty (0 bytes)"


def _too_large(name: str, found: str, most: int) -> DataError:
    return DataError(
        f"{name}: refused, found {found}, expected at most {most} pixels; make it smaller, raise --data.max_pixels if "
        "you trust it (Pillow itself refuses above 178,956,970), or pass --data.on_bad_sample skip"
    )


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode == "1":
        return image.convert("L")
    if mode.startswith("I"):
        return _from_16_bits(image, name)
    if image.has_transparency_data:
        grey = mode in ("LA", "La", "L")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("L" if grey else "RGB")
    if mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return image.convert("RGB")
    raise DataError(
        f"{name}: found pixels of mode {mode}, expected 8 or 16 bits per channel; convert the image, or pass "
        "--data.on_bad_sample skip"
    )


def _from_16_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(
            f"{name}: found values from {values.min()} to {values.max()}, expected 16 bits (0 to 65535); convert the "
            "image, or pass --data.on_bad_sample skip"
        )
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
