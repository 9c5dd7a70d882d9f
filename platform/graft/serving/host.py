"""`graft serve`: check, deploy, wait, announce, and leave nothing behind."""

import ipaddress
import json
import logging
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft import runs
from graft.cluster import Cluster, check_shared, connect, connecting
from graft.errors import SpecError
from graft.results.files import read_table
from graft.serving.deployment import deployed, prepare_environment, watch
from graft.serving.gate import Limits
from graft.serving.keys import Key, Keys, hash_key, new_key, read_keys
from graft.serving.layout import Layout, ServedRun, lay_out
from graft.serving.tls import Certificate, read_certificate
from graft.specfile import override
from graft.storage import local_root

log = logging.getLogger(__name__)

SAMPLE_CHARACTERS = 80
"""Of a text in the line that shows how to ask."""


@dataclass(frozen=True)
class Server:
    """A server that answers: what its user needs to know."""

    url: str
    layout: Layout
    cluster: Cluster
    key: str | None
    """The key made for this session; None where the user has a file of keys."""
    tls: Certificate | None = None
    """What it shows; None for plain HTTP."""

    def lines(self) -> list[str]:
        """For the terminal: where it is, what it serves, and a command that asks it something."""
        # 127.0.0.1 of a cluster that was joined may be another machine's.
        where = "" if self.cluster.local else f" on the head node of {self.cluster.address}"
        lines = [f"serving    {self.url}{where}"]
        lines += [f"model      {run.run_id}" for run in self.layout.runs]
        lines += [f"dashboard  {self.cluster.dashboard}"] if self.cluster.dashboard else []
        lines += [f"key        {self.key} (for this session)"] if self.key else []
        return [*lines, f"try        {self.sample()}"]

    def sample(self) -> str:
        """A curl command: it asks for the label of a row that the run was tested with."""
        key = f"Authorization: Bearer {self.key or '$KEY'}"
        run = next((run for run in self.layout.runs if run.classifies), None)
        # Double quotes, so that the shell puts the user's own key in.
        trust = f" --cacert {shlex.quote(str(self.tls.file))}" if self.tls else ""
        words = f'curl -s{trust} {self.url}/v1/{"classify" if run else "models"} -H "{key}"'
        if run is None:
            return words
        body = json.dumps({"model": run.run_id, "input": [_sample_row(run)]}, ensure_ascii=False)
        return f'{words} -H "Content-Type: application/json" -d {shlex.quote(body)}'


def serve(
    names: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_keys: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    storage: str = ".",
    address: str | None = None,
    limits: Limits | None = None,
    announce: Callable[[Server], None],
    note: Callable[[str], None] = lambda text: None,
) -> bool:
    """Serve finished runs until Ctrl-C or SIGTERM; gives False where that came before they were served.

    Args:
        names: run_ids or run folders, and `serve.key=value` words: what their models are given.
        host: address to listen on.
        port: port to listen on.
        api_keys: file of key hashes; None makes one key for this session.
        tls_cert: certificate to show, in PEM; None for plain HTTP. On a cluster, where its head node reads it.
        tls_key: its key, in PEM and not encrypted.
        storage: folder or URI with `runs/`.
        address: of the Ray cluster to join; None starts one on this machine.
        limits: of the HTTP interface; None for the defaults.
        announce: is told once everything answers.
        note: is told what takes its time until then.

    Raises:
        SpecError, DataError, ModelError: a run, a model, the key file, the certificate or the port is not usable; Ray
            was not started.
        ClusterError: Ray cannot be started or joined.
        ServeError: a model died while loading, or Serve cannot start.
    """
    with _until_stopped() as stop:
        key = new_key() if api_keys is None else None
        keys = read_keys(api_keys) if api_keys is not None else Keys((Key("session", hash_key(key or "")),))
        tls = read_certificate(tls_cert, tls_key)
        _check_port(host, port)
        _warn_of_clear_text(host, tls)
        layout = lay_out([runs.open_run(name, storage) for name in names if "=" not in name], _changes(names))
        if stop.is_set():
            return False
        note(connecting(address))
        prepare_environment()
        with connect(address, "graft-serve") as cluster:
            _listen(stop)  # Ray has put its own handlers in place of these
            for root in {local_root(run.place.files) for run in layout.runs} - {None}:
                check_shared(cluster, str(root))
            note(f"loading models: {', '.join(layout.deployments)}")
            with deployed(layout, keys, limits or Limits(), cluster, host, port, stop, tls) as ready:
                if ready:
                    announce(Server(_url(host, port, tls), layout, cluster, key, tls))
                    watch(stop)
                return ready


def _changes(words: Sequence[str]) -> dict[str, Any]:
    """What the `serve.key=value` words among these say.

    Raises:
        SpecError: one is of another section, or no run is named beside them.
    """
    if all("=" in word for word in words):
        raise SpecError("RUN is missing: name a run to serve beside these words; graft ls lists them")
    words = [word for word in words if "=" in word]
    for word in words:
        if not word.startswith("serve."):
            raise SpecError(f"{word!r}: a run is done; give serve.key=value, for example serve.replicas=2")
    return dict(override({"serve": {}}, words)["serve"])


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; nothing is interrupted halfway."""
    stop = threading.Event()
    before = _listen(stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(stop: threading.Event) -> dict[int, Any]:
    return {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}


def _check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on, before anything is started.

    Raises:
        SpecError: it is in use, not allowed, or the host is not an address of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # A connection that was just closed does not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except (OSError, OverflowError) as error:
        raise SpecError(
            f"--host {host} --port {port}: cannot listen here: {error}; give another with --port"
        ) from error


def _warn_of_clear_text(host: str, tls: Certificate | None) -> None:
    places = {place[0] for *_, place in socket.getaddrinfo(host, None)}
    if tls is None and not all(ipaddress.ip_address(str(place).partition("%")[0]).is_loopback for place in places):
        log.warning(
            "--host %s: others can reach this, and keys and texts travel in the clear; give --tls-cert and --tls-key, "
            "or put a server in front that speaks TLS",
            host,
        )


def _url(host: str, port: int, tls: Certificate | None) -> str:
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _sample_row(run: ServedRun) -> Any:
    """The first test row, with long texts cut."""
    table = read_table(run.place.files, f"{run.place.folder}/predictions.parquet").select(list(run.inputs))
    row = {
        name: value[:SAMPLE_CHARACTERS] if isinstance(value, str) else value
        for name, value in table.slice(0, 1).to_pylist()[0].items()
    }
    return row if len(row) > 1 else next(iter(row.values()))
