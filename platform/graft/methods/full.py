"""Full tuning: every weight of a language model learns the task.

    text ─► tuned(all weights) ─► prediction, scores

The strongest and dearest way to adapt a model: as many numbers are trained, kept and checkpointed as the model has.
"""

from typing import Any, Literal

from graft.methods.tuning import Tuning


class Full(Tuning):
    """All weights of a language model, tuned."""

    name: Literal["full"] = "full"

    def trained(self) -> dict[str, Any]:
        """Everything."""
        return {"full": True}
