"""Reasoning modules: small networks behind any frozen encoder, trained on synthetic tasks alone."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graft.errors import DataError, ModelError
from graft.models.folders import read_json
from graft.models.model import Kind, Model
from graft.models.sources import refuse_if_changed
from graft.seeds import generator
from graft.spec import ModelSource

SUFFIX = "-head"
"""Ends the `model_type` of their configurations."""


def holds_head(folder: Path) -> bool:
    """Whether a model's folder holds a reasoning module."""
    settings = read_json(folder / "config.json")
    return isinstance(settings, dict) and str(settings.get("model_type")).endswith(SUFFIX)


class HeadModel(Model):
    """The handle of a reasoning module: it reads vectors, on the CPU."""

    kind: Kind = "head"
    device = "cpu"
    dtype = "torch.float64"

    def __init__(self, source: ModelSource, mark: str, folder: Path) -> None:
        """Take what is known without the weights.

        Args:
            source: where it came from.
            mark: its fingerprint.
            folder: its folder, checked.
        """
        super().__init__(source, mark)
        self.folder = folder
        self._network: Any = None

    @property
    def components(self) -> int:
        """Principal components that it reads."""
        settings = read_json(self.folder / "config.json")
        return int(settings.get("components") or settings.get("dimensions") or 0)

    @property
    def network(self) -> Any:
        """The network, loaded by whoever needs it first.

        Raises:
            ModelError: the folder has changed, or its weights are no such head's.
        """
        with self.lock:
            if self._network is None:
                refuse_if_changed(self.source, self.folder, self.fingerprint)
                # In double precision an answer does not depend on what is asked beside it.
                self._network = _read(self.folder).double()
                self.parameters = sum(weight.numel() for weight in self._network.parameters())
            return self._network


def _read(folder: Path) -> Any:
    from graft.models.heads.hybrid import HybridHead
    from graft.models.heads.tart import TartHead

    settings = dict(read_json(folder / "config.json"))
    name = str(settings.pop("model_type", ""))
    kinds: dict[str, Any] = {f"{kind.kind}{SUFFIX}": kind for kind in (TartHead, HybridHead)}
    if name not in kinds:
        raise ModelError(f"{folder}: model_type {name!r} is no reasoning module that this graft knows")
    try:
        return kinds[name].read(folder, settings)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: its weights do not fit its config.json: {reason}; train it again") from error


def open_head(name: str) -> HeadModel:
    """The handle of a head.

    Args:
        name: of a head that comes with graft or was trained under this name, or its folder.

    Raises:
        ModelError: there is none.
    """
    from graft import models

    known = "/" in name or name.startswith(("recipe:", ".")) or Path(name).is_dir()
    source = name if known else f"recipe:{name}"
    head = models.load(ModelSource(source=source), "cpu")
    if not isinstance(head, HeadModel):
        raise ModelError(f"head: {name} is a {head.kind} model, no reasoning module; give hybrid, tart or a folder")
    return head


def deviations(x_kD: NDArray[Any]) -> NDArray[np.float64]:
    """What divides columns that are in units of their own, [D]; 1 where a column is constant.

    Raises:
        DataError: numbers are so large that they have no deviation.
    """
    x_kD = np.asarray(x_kD, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        spread = x_kD.std(axis=0)
    if not np.isfinite(spread).all():
        raise DataError(f"column {int(np.argmin(np.isfinite(spread)))} holds numbers too large to be told apart")
    # Of equal numbers the deviation may be a rounding error, which would blow up whatever differs from them.
    constant = (x_kD == x_kD[:1]).all(axis=0)
    return np.where(constant, 1.0, spread)


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """The order in which a head reads labelled rows: given ones are often sorted by label, which `tart` never saw."""
    return generator(seed, "order of labelled rows").permutation(count)
