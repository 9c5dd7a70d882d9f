"""Texts for many who ask at once, told token by token: which way of writing a model needs.

causal, with a cache of keys and values that may be cut and joined     Continuous: join and leave between tokens
any other model in this process                                       Together: batch by batch
a model elsewhere                                                     Remote: whole texts, several at a time
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, cast

from graft.errors import GraftError, ModelError
from graft.models.asked import Asked, Emit, Finish, More, Piece, Token, Writer
from graft.models.model import Model, Sampling, Written

if TYPE_CHECKING:
    from graft.models.endpoint import Endpoint
    from graft.models.language import CausalModel
    from graft.models.local import LocalModel

__all__ = ["Asked", "Emit", "Finish", "More", "Piece", "Remote", "Token", "Writer", "check", "writer_for"]

PAUSE_SECONDS = 0.05
"""How long those who join may wait while a server elsewhere is answering the others."""
REQUESTS_PER_PLACE = 4
"""At a server elsewhere that does not answer: a request goes on for minutes after whoever asked has gone."""


def check(model: Model, asked: Asked) -> None:
    """Refuse what cannot be written, before it meets others; leaves the prompt's tokens in `asked.ids`.

    Raises:
        ModelError: the prompt leaves no room in the context, a setting is out of its range, or this model cannot do
            what is asked for.
    """
    if asked.max_new_tokens < 1:
        raise ModelError(f"max_new_tokens: got {asked.max_new_tokens}; give at least 1")
    if asked.temperature < 0 or not 0 < asked.top_p <= 1:
        raise ModelError(
            f"temperature, top_p: got {asked.temperature} and {asked.top_p}; give at least 0, and above 0 to at most 1"
        )
    if not model.remote:
        (asked.ids,) = model.rows_to_write([asked.prompt], asked.max_new_tokens)
        return
    if asked.logprobs is not None:
        raise ModelError(f"logprobs: {model.source.source} is elsewhere and gives no probabilities; leave it out")
    if asked.temperature > 0 and asked.top_p < 1:
        raise ModelError(f"top_p: {model.source.source} is elsewhere and is not told of it; leave it out")


def writer_for(model: Model, max_sequences: int) -> Writer:
    """Who writes with this model.

    Args:
        model: one that writes text; the weights of a causal one are loaded.
        max_sequences: texts that are written at once.

    Raises:
        ModelError: this kind of model writes no text.
    """
    from graft.models.continuous import Continuous
    from graft.models.together import Together

    if model.remote:
        return Remote(cast("Endpoint", model), max_sequences)
    if model.kind not in ("causal", "seq2seq"):
        model.rows_to_write([], 1)  # says what it cannot, and the cure
    if model.kind == "causal" and cast("CausalModel", model).shares_prefixes:
        return Continuous(cast("CausalModel", model), max_sequences)
    return Together(cast("LocalModel", model), max_sequences)


class Remote:
    """Asks a model elsewhere for whole texts; one piece each, whose tokens are not known.

    Args:
        model: an endpoint's handle.
        max_sequences: requests at a time. Those of texts that are gone are not counted, up to REQUESTS_PER_PLACE
            times as many.
    """

    def __init__(self, model: "Endpoint", max_sequences: int) -> None:
        self.model, self.max_sequences = model, max_sequences

    def write(self, first: Sequence[Asked], more: More, emit: Emit) -> None:
        """As `Writer.write`; what the server refuses is told to who asked for it alone."""
        pending: dict[Future[Written], tuple[Asked, threading.Event]] = {}
        waiting = deque(first)
        with ThreadPoolExecutor(REQUESTS_PER_PLACE * self.max_sequences) as pool:
            while True:
                room = self.max_sequences
                for future, (asked, ended) in pending.items():
                    if asked.gone:
                        future.cancel()
                        ended.set()
                    else:
                        room -= 1
                waiting.extend(more(room - len(waiting)) if room > len(waiting) else ())
                while waiting and room > 0:
                    asked, ended = waiting.popleft(), threading.Event()
                    if not asked.gone:
                        pending[pool.submit(self._ask, asked, ended)] = asked, ended
                        room -= 1
                if not pending:
                    return
                done, _ = wait(pending, PAUSE_SECONDS, FIRST_COMPLETED)
                for future in done:
                    _tell(future, pending.pop(future)[0], emit)

    def _ask(self, asked: Asked, ended: threading.Event) -> Written:
        sampling = Sampling(asked.temperature, [asked.seed]) if asked.temperature > 0 else None
        (written,) = self.model.write([asked.prompt], asked.max_new_tokens, asked.stop, sampling, ended)
        return written


def _tell(future: "Future[Written]", asked: Asked, emit: Emit) -> None:
    if asked.gone:
        return
    try:
        written = future.result()
    except GraftError as error:
        emit(asked, error)
        return
    emit(asked, Piece(written.text, 0, finish="stop" if written.whole else "length"))
