"""The bytes of images and sounds as numbers.

Shapes: H rows, W columns, T samples.
"""

import io
import math
import wave
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.errors import DataError

MOST_PIXELS = 64_000_000
"""Of one image: more is an attack or a mistake."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Others run programs, or are nothing that a data set holds."""
BARE_SIDES = (8, 16, 28, 32, 64)
"""Of images without a header; any other length is a damaged file."""
MOST_SECONDS = 3600.0
"""Of one sound."""
RATES = (1_000, 384_000)
"""Fewest and most samples per second."""
LONGEST_FILTER = 2_000
"""Where two rates have so little in common that a polyphase filter would be longer, the spectrum is cut instead."""


def image(data: bytes) -> NDArray[np.uint8]:
    """Grey [H, W] or colour [H, W, 3].

    Args:
        data: of a PNG, JPEG, WebP, BMP, GIF or TIFF file; or the bare bytes of a grey image of 8, 16, 28, 32 or 64 rows
            of as many pixels. What is transparent is white; 16 bits become 8.

    Raises:
        DataError: it is neither.
    """
    from PIL import Image, UnidentifiedImageError

    side = math.isqrt(len(data))
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise DataError(f"an image has {opened.width} x {opened.height} pixels; give at most {MOST_PIXELS:,}")
            return _eight_bits(opened)
    except UnidentifiedImageError:
        if side in BARE_SIDES and side * side == len(data):
            return np.frombuffer(data, np.uint8).reshape(side, side)
        raise DataError(
            f"an image of {len(data)} bytes begins with {data[:8]!r}: none of {', '.join(FORMATS)}, and no bare square "
            "of bytes; save it as PNG"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"an image says that it has far more pixels than {MOST_PIXELS:,}; leave it out") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"an image is damaged: {error}; save it again, or leave it out") from error


def _eight_bits(opened: Any) -> NDArray[np.uint8]:
    """Grey where it has no colour."""
    from PIL import Image

    if opened.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        return (np.asarray(opened, np.float64).clip(0, 65535) / 257).round().astype(np.uint8)
    grey = opened.mode in ("L", "LA", "1")
    if opened.mode in ("LA", "RGBA", "PA") or "transparency" in opened.info:
        opened = opened.convert("RGBA")
        opened = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened)
    return np.asarray(opened.convert("L" if grey else "RGB"), np.uint8)


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
            _check(opened.getnframes(), rate)
            raw = opened.readframes(opened.getnframes())
        if width > 4 or len(raw) % (width * channels):
            raise DataError(f"a sound of {len(data)} bytes is cut off, or no WAV; save it again, or leave it out")
        samples = _samples(raw, width).reshape(-1, channels).mean(axis=1)
    except (wave.Error, EOFError):
        samples, rate = _with_soundfile(data)
    _check(len(samples), rate)
    return samples.astype(np.float32), rate


def _check(samples: int, rate: int) -> None:
    """Raise where a sound is too long, too short, or of an impossible rate."""
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"a sound has {rate:,} samples per second; give {RATES[0]:,} to {RATES[1]:,}")
    if not 0 < samples <= MOST_SECONDS * rate:
        raise DataError(f"a sound lasts {samples / rate:.1f} seconds; give more than 0 and at most {MOST_SECONDS:.0f}")


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
        about = soundfile.info(io.BytesIO(data))
        _check(about.frames, about.samplerate)  # before it is unpacked
        samples, rate = soundfile.read(io.BytesIO(data), always_2d=True)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"a sound cannot be read: {error}; convert it to WAV") from error
    return samples.mean(axis=1), int(rate)


def resampled(samples_T: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """The same sound at another number of samples per second."""
    from scipy.signal import resample, resample_poly

    if rate == wanted:
        return samples_T
    common = math.gcd(rate, wanted)
    if max(rate, wanted) // common > LONGEST_FILTER:
        found: NDArray[np.float32] = resample(samples_T, max(1, round(len(samples_T) * wanted / rate)))
    else:
        found = resample_poly(samples_T, wanted // common, rate // common)
    return found.astype(np.float32)
