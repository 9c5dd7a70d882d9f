"""A model behind an OpenAI-compatible server: text in, text out, and nothing else.

endpoint:https://host/v1#MODEL      POST /completions with the prompt as it is
variant: instruct                   POST /chat/completions with the prompt as the user's message
"""

import contextlib
import http.client
import json
import logging
import os
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import IO, Any

from graft.errors import ModelError
from graft.models.model import Kind, Model, Sampling, Written
from graft.spec import ModelSource

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 120.0
MAX_RESPONSE_BYTES = 8 << 20
ATTEMPTS = 10
"""Their pauses add up to two minutes: longer than the minute that limits of requests are counted in."""
FEW_ATTEMPTS = 3
"""Where nobody answers at all: a server may be starting, but more likely the address is wrong."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_ASKED_SECONDS = 120.0
"""Most that a server's Retry-After is heeded."""
THREADS = 8
STOPS_ON_THE_WIRE = 4
"""The API takes no more; the others are applied here."""

BUSY = (408, 409, 425, 429, 500, 502, 503, 504, *range(520, 525), 529)
"""Answers after which asking again may help."""
ABSENT = (socket.gaierror, ConnectionRefusedError, ssl.SSLCertVerificationError)
"""Failures to connect that seldom pass: no such host, nobody listens, not who it says it is."""
ABOUT_THE_PROMPT = (400, 413, 422)
"""Refusals that a prompt may have caused."""


class Unanswered(ModelError):
    """The network or the server failed: nothing that the user wrote is wrong, and the same may work later."""

    exit_code = 1


class _Passing(Exception):
    """A failure that may pass when the same is asked again."""

    def __init__(self, reason: str, cure: str, attempts: int = ATTEMPTS, asked_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.cure, self.attempts, self.asked_seconds = cure, attempts, asked_seconds


class Endpoint(Model):
    """A handle to a model that lives elsewhere."""

    kind: Kind = "endpoint"
    remote = True

    def __init__(self, source: ModelSource, mark: str) -> None:
        """Resolve the address; the network is asked only where the source names no model.

        Raises:
            ModelError: the address is not usable, or names no model and the server does not serve exactly one.
        """
        super().__init__(source, mark)
        self.url, self.model = address(source.source)

    def write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
        ended: threading.Event | None = None,
    ) -> list[Written]:
        """Texts from the server, several requests at a time, in the order of the prompts.

        Once `ended` is set, in another thread, nothing is asked again, and what has no answer yet is an error.
        """
        seeds = sampling.seeds if sampling else [None] * len(prompts)
        drawn = {} if sampling is None else {"temperature": sampling.temperature}
        ended = ended or threading.Event()
        with ThreadPoolExecutor(THREADS) as pool:
            pending = [
                pool.submit(
                    self._ask,
                    prompt,
                    max_new_tokens,
                    stop,
                    {**drawn, **({} if seed is None else {"seed": seed})},
                    ended,
                )
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                done, _ = wait(pending, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in pending]
            except BaseException:
                # One failure, or Ctrl-C, ends them all: what waits is not asked, nor asked again.
                ended.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(
        self, prompt: str, max_new_tokens: int, stop: Sequence[str], drawn: dict[str, Any], ended: threading.Event
    ) -> Written:
        chat = self.source.variant == "instruct"
        question = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {"model": self.model, "max_tokens": max_new_tokens, "temperature": 0, **drawn, **question}
        if stop:
            body["stop"] = list(stop[:STOPS_ON_THE_WIRE])
        place = f"{self.url}/{'chat/completions' if chat else 'completions'}"
        answer = _fetch(place, body, ended)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
            why = choice.get("finish_reason")
            tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise _no_text(place, answer) from error
        if why == "content_filter":
            raise ModelError(
                f"{place}: the server's filter withheld the answer to {_shown(prompt)}; leave that row out, or ask "
                "another server"
            )
        # An empty answer is one only where the server says that it ended there.
        if not isinstance(text, str) or (not text and why not in ("stop", "length")):
            raise _no_text(place, answer)
        with self.lock:
            self.usage.add(tokens, 1)
        ends = [at for at in map(text.find, stop) if at >= 0]
        return Written(text[: min(ends, default=len(text))], why != "length" or bool(ends))


def _no_text(place: str, answer: Any) -> ModelError:
    return ModelError(
        f"{place}: the answer holds no text ({json.dumps(answer)[:160]}); where a model thinks before it answers, give "
        "it more tokens or have the server switch that off"
    )


def address(source: str) -> tuple[str, str]:
    """The base URL and the model's name of `endpoint:URL#MODEL`; without a name, the sole model that is served.

    Raises:
        ModelError: no http(s) URL, or no name and not exactly one model.
    """
    url, _, model = source.removeprefix("endpoint:").partition("#")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ModelError(f"{source}: not an address; write endpoint:https://HOST/v1#MODEL")
    url = url.rstrip("/")
    return url, model or _sole_model(url)


def _sole_model(url: str) -> str:
    answer = _fetch(f"{url}/models")
    try:
        names = [str(entry["id"]) for entry in answer["data"]]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{url}/models: not a list of models; write endpoint:{url}#MODEL") from error
    if len(names) != 1:
        raise ModelError(f"{url} serves {len(names)} models ({', '.join(names[:8])}); write endpoint:{url}#MODEL")
    return names[0]


def _fetch(url: str, body: dict[str, Any] | None = None, ended: threading.Event | None = None) -> Any:
    """The JSON that a server answers; asks again while that may help.

    Args:
        url: the place.
        body: what to POST; None GETs.
        ended: once set, nothing is asked again.

    Raises:
        Unanswered: unreachable, failing, or busy for too long.
        ModelError: refused, too long, or not JSON.
    """
    ended = ended or threading.Event()
    attempt = 1
    while True:
        try:
            return _fetch_once(url, body)
        except _Passing as failure:
            seconds = pause_seconds(attempt, failure.asked_seconds)
            if attempt >= failure.attempts or ended.wait(seconds):
                raise Unanswered(f"{url}: gave up after {attempt} attempts ({failure}); {failure.cure}") from failure
            log.warning("%s: %s; asking again after %.1f s", url, failure, seconds)
        attempt += 1


def pause_seconds(attempt: int, asked_seconds: float = 0.0) -> float:
    """How long to wait after this attempt (from 1): longer each time, and no shorter than the server asks for."""
    own = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
    return min(max(own, asked_seconds), LONGEST_ASKED_SECONDS)


def _fetch_once(url: str, body: dict[str, Any] | None) -> Any:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
            content = response.read(MAX_RESPONSE_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(url, body, error) from error
    except (OSError, http.client.HTTPException) as error:
        # urllib hides what fails before the answer begins in an URLError.
        raise _unreached(url, error.reason if isinstance(error, urllib.error.URLError) else error) from error
    if len(content) > MAX_RESPONSE_BYTES:
        raise ModelError(f"{url}: the answer is longer than {MAX_RESPONSE_BYTES} bytes; ask for fewer tokens")
    try:
        return json.loads(content)
    except ValueError as error:
        raise ModelError(f"{url}: the answer is not JSON ({content[:80]!r}); is the address right (…/v1)?") from error


def _refused(url: str, body: dict[str, Any] | None, error: urllib.error.HTTPError) -> Exception:
    reason = f"HTTP {error.code} {_said(error)}"
    if error.code in BUSY:
        cure = "try again when the server is less busy"
        return _Passing(reason, cure, asked_seconds=_asked_seconds(error.headers.get("Retry-After")))
    cure = _cure(error.code)
    if body and error.code in ABOUT_THE_PROMPT:
        cure += f"; it was {_shown(body['prompt'] if 'prompt' in body else body['messages'][-1]['content'])}"
    return (Unanswered if error.code >= 500 else ModelError)(f"{url}: {reason}; {cure}")


def _unreached(url: str, cause: BaseException | str) -> Exception:
    if isinstance(cause, str | http.client.InvalidURL):
        return ModelError(f"{url}: cannot be asked ({cause}); is the address right?")
    cure = "is the server running, is the address right?"
    if isinstance(cause, ABSENT):
        return _Passing(f"cannot be reached: {cause}", cure, FEW_ATTEMPTS)
    return _Passing(f"{type(cause).__name__}: {cause}", cure)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own words, shortened."""
    text = ""
    with contextlib.suppress(OSError, http.client.HTTPException):
        text = error.read(2000).decode("utf-8", "replace")
    try:
        text = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        text = text or error.reason
    return " ".join(str(text).split())[:200]


def _cure(code: int) -> str:
    if code in (401, 403):
        return "set OPENAI_API_KEY to a key that this server accepts"
    if code == 404:
        return "check the address and the model's name (endpoint:URL#MODEL)"
    if code >= 500:
        return "see the server's log"
    return "redirects are not followed: give the final address" if 300 <= code < 400 else "the request was refused"


def _asked_seconds(retry_after: str | None) -> float:
    """What a server asks for in Retry-After; 0 where that is not a number of seconds."""
    try:
        return float(retry_after or 0)
    except ValueError:
        return 0.0


def _shown(prompt: str) -> str:
    """A prompt's beginning and end, by which it can be found: those with the same demonstrations begin alike."""
    text = prompt if len(prompt) <= 80 else f"{prompt[:40]}…{prompt[-40:]}"
    return f"the prompt {text!r} ({len(prompt)} characters)"
