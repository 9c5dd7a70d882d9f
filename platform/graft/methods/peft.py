"""Parameter-efficient tuning: any adapter of the PEFT library, in a frozen language model.

    text ─► tuned(frozen weights + adapter) ─► prediction, scores

`adapter` holds PEFT's own field names (`peft_type: LORA, r: 8, ...`), and a run's `graph/` its own files, so that
`PeftModel.from_pretrained` reads them. The seed is set before the adapter is built: it decides its initialisation.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from graft.methods.tuning import Tuning


class Peft(Tuning):
    """An adapter of the PEFT library, tuned."""

    name: Literal["peft"] = "peft"
    adapter: dict[str, Any] = Field(default_factory=lambda: {"peft_type": "LORA"})
    """PEFT's configuration by its own field names: `peft_type`, and what that type takes."""

    @field_validator("adapter")
    @classmethod
    def _a_type(cls, adapter: dict[str, Any]) -> dict[str, Any]:
        if "peft_type" not in adapter:
            raise ValueError("give peft_type (LORA, IA3, PREFIX_TUNING, ...) and that type's own fields")
        return adapter

    def trained(self) -> dict[str, Any]:
        """The adapter."""
        return self.adapter
