"""A model behind an OpenAI-compatible server: text in, text out, and nothing else.

endpoint:https://host/v1#MODEL      POST /completions with the prompt as it is
variant: instruct                   POST /chat/completions with the prompt as the user's message
"""

import email.message
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from graft.errors import ModelError
from graft.models.model import Kind, Model, Sampling, Written
from graft.spec import ModelSource

TIMEOUT_SECONDS = 120.0
MAX_RESPONSE_BYTES = 8 << 20
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
THREADS = 8
STOPS_ON_THE_WIRE = 4
"""The API takes no more; the others are applied here."""

BUSY = (429, 500, 502, 503, 504)
"""Answers after which asking again may help."""


class Unanswered(ModelError):
    """The network or the server failed: nothing that the user wrote is wrong, and the same may work later."""

    exit_code = 1


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
    ) -> list[Written]:
        """Texts from the server, several requests at a time, in the order of the prompts."""
        seeds = sampling.seeds if sampling else [None] * len(prompts)
        drawn = {} if sampling is None else {"temperature": sampling.temperature}
        with ThreadPoolExecutor(THREADS) as pool:
            pending = [
                pool.submit(
                    self._ask, prompt, max_new_tokens, stop, {**drawn, **({} if seed is None else {"seed": seed})}
                )
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            try:
                return [future.result() for future in pending]
            except BaseException:
                # One failure, or Ctrl-C, ends them all: what waits is not asked.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, prompt: str, max_new_tokens: int, stop: Sequence[str], drawn: dict[str, Any]) -> Written:
        chat = self.source.variant == "instruct"
        question = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        body = {"model": self.model, "max_tokens": max_new_tokens, "temperature": 0, **drawn, **question}
        if stop:
            body["stop"] = list(stop[:STOPS_ON_THE_WIRE])
        place = f"{self.url}/{'chat/completions' if chat else 'completions'}"
        answer = _fetch(place, body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
            whole = choice.get("finish_reason") != "length"
            tokens = int((answer.get("usage") or {}).get("total_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ModelError(f"{place}: the answer holds no text ({json.dumps(answer)[:160]})") from error
        with self.lock:
            self.usage.add(tokens, 1)
        text = text or ""
        ends = [at for at in map(text.find, stop) if at >= 0]
        return Written(text[: min(ends, default=len(text))], whole or bool(ends))


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


def _fetch(url: str, body: dict[str, Any] | None = None) -> Any:
    """The JSON that a server answers; asks again a few times while it is busy.

    Raises:
        Unanswered: unreachable, failing, or busy for too long.
        ModelError: refused, too long, or not JSON.
    """
    for attempt in range(1, ATTEMPTS + 1):
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
        try:
            return _fetch_once(url, body)
        except urllib.error.HTTPError as error:
            with error:
                reason = f"HTTP {error.code} {_said(error)}"
            if error.code not in BUSY:
                kind = Unanswered if error.code >= 500 else ModelError
                raise kind(f"{url}: {reason}; {_cure(error.code)}") from error
            pause = _asked_pause(error.headers, pause)
        except (TimeoutError, ConnectionResetError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
        except OSError as error:
            raise Unanswered(
                f"{url}: cannot be reached ({error}); is the server running, is the address right?"
            ) from error
        if attempt < ATTEMPTS:
            time.sleep(pause)
    raise Unanswered(f"{url}: gave up after {ATTEMPTS} attempts ({reason}); try again when the server is less busy")


def _fetch_once(url: str, body: dict[str, Any] | None) -> Any:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
        content = response.read(MAX_RESPONSE_BYTES + 1)
    if len(content) > MAX_RESPONSE_BYTES:
        raise ModelError(f"{url}: the answer is longer than {MAX_RESPONSE_BYTES} bytes; ask for fewer tokens")
    try:
        return json.loads(content)
    except ValueError as error:
        raise ModelError(f"{url}: the answer is not JSON ({content[:80]!r}); is the address right (…/v1)?") from error


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


def _asked_pause(headers: email.message.Message, otherwise: float) -> float:
    """Seconds to wait as the server asks in Retry-After, within reason."""
    try:
        return min(max(float(headers.get("Retry-After", "")), 0.0), LONGEST_PAUSE_SECONDS)
    except ValueError:
        return otherwise
