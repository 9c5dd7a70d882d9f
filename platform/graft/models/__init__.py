"""Frozen pre-trained models: found, loaded once per process, and read as embeddings, probabilities and text.

`load` gives a handle; `locate` and `fingerprint` say where a model is and what it computes, without torch.
"""

import os
import threading
from collections import deque
from pathlib import Path
from weakref import WeakValueDictionary

from graft.errors import ModelError
from graft.models.features import Features, is_feature
from graft.models.model import Kind, Model, Usage
from graft.models.sources import absolute, fingerprint, is_endpoint, locate
from graft.spec import ModelSource

__all__ = ["Kind", "Model", "Usage", "absolute", "fingerprint", "load", "locate", "reopen"]

_live: WeakValueDictionary[tuple[str, ...], Model] = WeakValueDictionary()
_recent: deque[Model] = deque(maxlen=4)
"""Kept although nobody holds them: the next trial of a sweep most likely wants the same models."""
_lock = threading.Lock()


def load(source: str | ModelSource, device: str = "auto") -> Model:
    """A handle to a frozen model; everyone in this process who asks for the same model shares one.

    Args:
        source: where it is and how it is to be read; a plain string is `ModelSource.source`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: it cannot be found, is damaged, or cannot be used as asked.
    """
    source = ModelSource(source=source) if isinstance(source, str) else source
    with _lock:
        place, here = _place(source, device)
        mark = fingerprint(source)
        settings = source.model_copy(update={"source": ""}).model_dump_json()
        # The fingerprint is in the key because a folder's weights may change while the process lives.
        key = (str(place), settings, here, mark)
        model = _live.get(key)
        if model is None:
            model = _live[key] = _open(source, place, here, mark)
        if model in _recent:
            _recent.remove(model)
        _recent.append(model)
        return model


def reopen(source: ModelSource, device: str, mark: str) -> Model:
    """The handle that another process has sent here.

    Args:
        source: its source; a local folder by its absolute path.
        device: `cpu`, `cuda`, or anything for an endpoint.
        mark: its fingerprint there.

    Raises:
        ModelError: as `load`, or the model here is another one.
    """
    model = load(source, device)
    if model.fingerprint != mark:
        raise ModelError(
            f"{source.source}: the model on {os.uname().nodename} is another one than where the work was asked for "
            f"(fingerprint {model.fingerprint}, there {mark}); give all nodes the same files"
        )
    return model


def _place(source: ModelSource, device: str) -> tuple[Path | None, str]:
    """The folder and the device; an endpoint has neither, and neither have features without weights."""
    if is_endpoint(source) or is_feature(source):
        return None, source.source
    folder = locate(source)
    from graft.models.loading import resolve_device

    return folder, resolve_device(device)


def _open(source: ModelSource, folder: Path | None, device: str, mark: str) -> Model:
    if is_feature(source):
        return Features(source, mark)
    if folder is None:
        from graft.models.endpoint import Endpoint

        return Endpoint(source, mark)
    from graft.models.heads import HeadModel, holds_head

    if holds_head(folder):
        return HeadModel(source, mark, folder)
    from graft.models.perception import PerceptionModel, perceives

    if perceives(folder):
        return PerceptionModel(source, folder, device, mark)
    from graft.models.loading import open_folder

    return open_folder(source, folder, device, mark)
