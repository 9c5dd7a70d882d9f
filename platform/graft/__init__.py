"""graft composes and adapts pre-trained models, and tells with honest numbers which way is best.

Names resolve on first use: `import graft` loads neither torch, transformers nor ray.
"""

import importlib
from typing import Any

_NAMES = {
    "Experiment": "graft.spec:Experiment",
    "load": "graft.runs:load",
    "models": "graft.models:",
    "TartClassifier": "graft.estimators:TartClassifier",
    "CalmForCausalLM": "graft.models.calm:CalmForCausalLM",
    "GraftError": "graft.errors:GraftError",
}

__all__ = [*_NAMES]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
