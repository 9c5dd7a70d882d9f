"""The node in which a teacher writes down its reasoning: frozen, so that each rationale is written once.

text ─► explain ─► rationale
"""

import dataclasses

import numpy as np
import pyarrow as pa

from graft.methods.answering import Answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain(Answer):
    """A rationale for each row, greedy, blind to its target."""

    @property
    def storable(self) -> bool:  # type: ignore[override]
        """What a server says may change behind the same address; weights in this process do not."""
        return not self.model.remote

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The text, and how much of the input it has not seen."""
        return ("rationale", "rationale_tokens_cut")

    def run(self, rows: pa.Table) -> pa.Table:
        """Texts, up to a blank line where the model is no chat."""
        prompts = self._prompts(self._template(), rows)
        texts = self.model.generate(prompts, self.max_new_tokens, stop=() if self._chats else ("\n\n",))
        cut = pa.array(self._tokens_cut(rows))
        return pa.table({"rationale": pa.array([text.strip() for text in texts]), "rationale_tokens_cut": cut})

    def _excess(self, template: object, prompts: object) -> np.ndarray:
        """Tokens by which each prompt with its rationale is too long."""
        return np.asarray(self.model.excess(prompts, max_new_tokens=self.max_new_tokens))
