"""The bytes of images and sounds as numbers.

Shapes: H rows, W columns, T samples.
"""

import io
import math
import wave

import numpy as np
from numpy.typing import NDArray

from graft.errors import DataError

MOST_PIXELS = 64_000_000
"""Of one image: more is an attack or a mistake."""
MOST_SECONDS = 3600.0
"""Of one sound."""


def image(data: bytes) -> NDArray[np.uint8]:
    """Grey [H, W] or colour [H, W, 3].

    Args:
        data: of a PNG, JPEG or another format that Pillow reads; or the bare bytes of a square grey image, row by row.

    Raises:
        DataError: it is neither.
    """
    from PIL import Image, UnidentifiedImageError

    side = math.isqrt(len(data))
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise DataError(f"an image has {opened.width} x {opened.height} pixels; give at most {MOST_PIXELS:,}")
            return np.asarray(opened if opened.mode == "L" else opened.convert("RGB"), np.uint8)
    except UnidentifiedImageError:
        if side and side * side == len(data):
            return np.frombuffer(data, np.uint8).reshape(side, side)
        raise DataError(
            f"an image of {len(data)} bytes begins with {data[:8]!r}: no format that Pillow reads, and no bare square "
            "of bytes; save it as PNG"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"an image is damaged: {error}; save it again, or leave it out") from error


def sound(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples [T] between -1 and 1, channels averaged, and how many make a second.

    Args:
        data: of a WAV file; of other formats where soundfile is installed.

    Raises:
        DataError: it cannot be read, or is too long.
    """
    try:
        with wave.open(io.BytesIO(data)) as opened:
            rate, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            raw = opened.readframes(opened.getnframes())
        samples = _samples(raw, width).reshape(-1, channels).mean(axis=1)
    except (wave.Error, EOFError):
        samples, rate = _with_soundfile(data)
    if not len(samples) or len(samples) > MOST_SECONDS * rate:
        raise DataError(
            f"a sound lasts {len(samples) / rate:.1f} seconds; give more than 0 and at most {MOST_SECONDS:.0f}"
        )
    return samples.astype(np.float32), rate


def _samples(raw: bytes, width: int) -> NDArray[np.float64]:
    """Numbers of 8 (unsigned), 16, 24 or 32 bits, between -1 and 1."""
    if width == 1:
        return np.frombuffer(raw, np.uint8).astype(np.float64) / 128 - 1
    if width == 3:
        bytes_N3 = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_N3), 4), np.uint8)
        wide[:, 1:] = bytes_N3
        return wide.view("<i4")[:, 0].astype(np.float64) / 2**31
    return np.frombuffer(raw, {2: "<i2", 4: "<i4"}[width]).astype(np.float64) / 2 ** (8 * width - 1)


def _with_soundfile(data: bytes) -> tuple[NDArray[np.float64], int]:
    try:
        import soundfile  # type: ignore[import-not-found]
    except ImportError:
        raise DataError(
            f"a sound begins with {data[:8]!r}, which is no WAV of whole numbers; convert it, or pip install soundfile"
        ) from None
    try:
        samples, rate = soundfile.read(io.BytesIO(data), always_2d=True)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"a sound cannot be read: {error}; convert it to WAV") from error
    return samples.mean(axis=1), int(rate)


def resampled(samples_T: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """The same sound at another number of samples per second."""
    from scipy.signal import resample_poly

    if rate == wanted:
        return samples_T
    common = math.gcd(rate, wanted)
    found: NDArray[np.float32] = resample_poly(samples_T, wanted // common, rate // common).astype(np.float32)
    return found
