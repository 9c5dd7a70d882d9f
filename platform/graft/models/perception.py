"""Frozen networks that see or hear: transformers' image models, and encoders of speech.

Shapes: B inputs, T positions, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from graft.errors import DataError, ModelError
from graft.models import folders, media
from graft.models.model import Kind, Model, refuse_what_is_for_text
from graft.models.sources import refuse_if_changed
from graft.spec import ModelSource

PREPROCESSOR = "preprocessor_config.json"
INPUTS_PER_BATCH = 16


class PerceptionModel(Model):
    """An encoder of images or sounds: the mean of its last states over all positions."""

    kind: Kind = "encoder"
    dtype = "torch.float32"

    def __init__(self, source: ModelSource, folder: Path, device: str, mark: str) -> None:
        """Take what is known without the weights.

        Raises:
            ModelError: transformers knows no such model, or the source asks for what is for texts.
        """
        super().__init__(source, mark)
        refuse_what_is_for_text(source)
        options = {"local_files_only": True, "trust_remote_code": source.trust_remote_code}
        try:
            self.config = transformers.AutoConfig.from_pretrained(folder, **options)
            hears = "feature_size" in folders.read_json(folder / PREPROCESSOR)
            kind = transformers.AutoFeatureExtractor if hears else transformers.AutoImageProcessor
            self.prepare = kind.from_pretrained(folder, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ModelError(
                f"{source.source}: transformers cannot load it: {' '.join(str(error).split())[:300]}"
            ) from error
        if hears and not getattr(self.prepare, "n_samples", None):
            raise ModelError(
                f"{source.source}: what it hears has no fixed length, so that a sound would depend on those read with "
                "it; give an encoder of Whisper's kind, or features:log-mel"
            )
        self.reads = ("audio",) if hears else ("image",)
        self.device, self.folder, self._options = torch.device(device), folder, options
        self.parameters = folders.parameters(folder)
        self._network: Any = None

    @property
    def network(self) -> Any:
        """The encoder, loaded by whoever needs it first.

        Raises:
            ModelError: the folder has changed, or weights are missing.
        """
        with self.lock, torch.inference_mode(False):
            if self._network is None:
                refuse_if_changed(self.source, self.folder, self.fingerprint)
                network, info = transformers.AutoModel.from_pretrained(
                    self.folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **self._options
                )
                if missing := sorted(
                    name for name in info["missing_keys"] if "pooler" not in name and "decoder" not in name
                ):
                    raise ModelError(f"{self.source.source}: {len(missing)} weights are missing ({missing[0]}, ...)")
                encoder: nn.Module = network.get_encoder() if network.config.is_encoder_decoder else network
                self._network = encoder.eval().requires_grad_(False).to(self.device)
            return self._network

    def embed(self, inputs: Sequence[Any], max_tokens: int | None = None) -> NDArray[np.float32]:
        """One vector per image or sound, float32 [N, D].

        Raises:
            DataError: one cannot be read, or lasts longer than the encoder hears.
        """
        found = []
        with self.lock, torch.inference_mode():
            for at in range(0, len(inputs), INPUTS_PER_BATCH):
                part = inputs[at : at + INPUTS_PER_BATCH]
                found.append(self._seen(part) if self.reads == ("image",) else self._heard(part))
                self.usage.add(0, len(part))
        return torch.cat(found).float().cpu().numpy()

    def _seen(self, part: Sequence[bytes]) -> Tensor:
        images = [np.stack([one] * 3, axis=-1) if one.ndim == 2 else one for one in map(media.image, part)]
        inputs = self.prepare(images=images, return_tensors="pt")["pixel_values"].to(self.device)
        return _mean(self.network(pixel_values=inputs).last_hidden_state)

    def _heard(self, part: Sequence[bytes]) -> Tensor:
        """The mean over the time that a sound lasts: encoders of speech read the silence after it too."""
        rate = int(self.prepare.sampling_rate)
        sounds = [media.resampled(*media.sound(data), rate) for data in part]
        most = int(self.prepare.n_samples)
        if (longest := max(map(len, sounds))) > most:
            raise DataError(
                f"a sound lasts {longest / rate:.1f} seconds; {self.source.source} hears {most / rate:.0f}: cut it"
            )
        ready = self.prepare(sounds, sampling_rate=rate, return_tensors="pt")
        (name,) = [name for name in ("input_features", "input_values") if name in ready]
        states = self.network(ready[name].to(self.device)).last_hidden_state
        kept = [max(1, round(states.shape[1] * len(one) / most)) for one in sounds]
        return torch.stack([state[:count].mean(dim=0) for state, count in zip(states, kept, strict=True)])


def _mean(states: Tensor) -> Tensor:
    """Of tokens [B, T, D], or of a picture's channels [B, D, H, W]."""
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


def perceives(folder: Path) -> bool:
    """Whether a folder holds an encoder of images or sounds: something prepares them; of texts at most Whisper's."""
    if not (folder / PREPROCESSOR).is_file():
        return False
    speaks = folders.read_json(folder / "config.json").get("model_type") == "whisper"
    return speaks or not (folder / "tokenizer.json").is_file()
