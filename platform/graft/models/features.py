"""Features that nobody trained: what an image or a sound is, as a vector. The baseline of every encoder of them.

features:pixels    28 x 28 grey levels, or as many of each colour
features:log-mel   energy in 40 bands of pitch, in 8 parts of the sound's length
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.errors import DataError, ModelError, suggest
from graft.hashing import digest
from graft.models import media
from graft.models.model import Kind, Model, refuse_what_is_for_text
from graft.spec import ModelSource

PREFIX = "features:"
VERSION = 1
"""Raised when a feature changes its numbers."""
SIDE = 28
BANDS, PARTS = 40, 8
FRAME_SECONDS, HOP_SECONDS = 0.025, 0.010
HERTZ = (20.0, 4000.0)
"""Lowest and highest pitch; lower where a sound has fewer samples."""


def pixels(data: bytes) -> NDArray[np.float32]:
    """Brightness between 0 and 1, [SIDE * SIDE] or [SIDE * SIDE * 3]; other sizes are resized."""
    from PIL import Image

    found = media.image(data)
    if found.shape[:2] != (SIDE, SIDE):
        found = np.asarray(Image.fromarray(found).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.uint8)
    return np.float32(1 / 255) * found.reshape(-1).astype(np.float32)


def log_mel(data: bytes) -> NDArray[np.float32]:
    """Natural logarithm of the mean energy per band and part of the sound, [BANDS * PARTS]."""
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    samples, rate = media.sound(data)
    frame, hop = round(FRAME_SECONDS * rate), round(HOP_SECONDS * rate)
    length = 1 << (frame - 1).bit_length()
    filters = mel_filter_bank(1 + length // 2, BANDS, HERTZ[0], min(HERTZ[1], rate / 2), rate, norm="slaney")
    samples = np.pad(samples, (0, max(0, frame + PARTS * hop - len(samples))))
    energy = spectrogram(
        samples, window_function(frame, "hann"), frame, hop, fft_length=length, power=2.0, mel_filters=filters
    )
    parts = [part.mean(axis=1) for part in np.array_split(energy, PARTS, axis=1)]
    return np.log(np.maximum(np.stack(parts), 1e-10)).reshape(-1).astype(np.float32)


FEATURES: dict[str, tuple[str, Callable[[bytes], NDArray[np.float32]]]] = {
    "pixels": ("image", pixels),
    "log-mel": ("audio", log_mel),
}
"""What they read, and how they become a vector."""


def is_feature(source: ModelSource) -> bool:
    """Whether it has no weights."""
    return source.source.startswith(PREFIX)


def name_of(source: ModelSource) -> str:
    """Of the features.

    Raises:
        ModelError: there are none of this name.
    """
    name = source.source.removeprefix(PREFIX)
    if name not in FEATURES:
        raise ModelError(f"{source.source}: no such features; {suggest(name, FEATURES)}")
    return name


def fingerprint(source: ModelSource) -> str:
    """What they compute."""
    return digest("features", name_of(source), VERSION)


class Features(Model):
    """The handle of features without weights."""

    kind: Kind = "encoder"
    device = "cpu"
    dtype = "float32"
    network: Any = None

    def __init__(self, source: ModelSource, mark: str) -> None:
        """Take the name of the features.

        Raises:
            ModelError: the source asks for what is for texts.
        """
        super().__init__(source, mark)
        refuse_what_is_for_text(source)
        kind, self._vector = FEATURES[name_of(source)]
        self.reads = (kind,)

    def embed(self, inputs: Sequence[Any], max_tokens: int | None = None) -> NDArray[np.float32]:
        """One vector per image or sound, float32 [N, D].

        Raises:
            DataError: one cannot be read, or they differ in what they are.
        """
        vectors = [self._vector(data) for data in inputs]
        if len(widths := {len(vector) for vector in vectors}) > 1:
            raise DataError(
                f"{self.source.source}: grey images beside colour ones; convert them to one kind ({widths})"
            )
        return np.stack(vectors)
