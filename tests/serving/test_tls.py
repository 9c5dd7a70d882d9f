"""`--tls-cert` and `--tls-key`: what is refused before anything starts, and a real server that speaks TLS only."""

import datetime
import ipaddress
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from graft import runs
from graft.errors import SpecError
from graft.serving.host import _warn_of_clear_text
from graft.serving.tls import Certificate, read_certificate

PEM = serialization.Encoding.PEM


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Makes a certificate for 127.0.0.1 that signs itself, and its key."""

    def made(name: str = "server", days: int = 1, password: bytes | None = None) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "graft")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        files = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(PEM))
        files[1].write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked))
        return files

    return made


def test_a_good_pair_is_taken_without_a_word(
    make: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = make()
    monkeypatch.chdir(file.parent)
    assert read_certificate(Path(file.name), Path(key.name)) == Certificate(file, key)
    assert caplog.text == ""
    assert read_certificate(None, None) is None


def test_half_a_pair_and_files_that_do_not_fit_are_refused(make: Callable[..., tuple[Path, Path]]) -> None:
    file, key = make()
    other, other_key = make("other")
    empty = file.with_name("empty")
    empty.touch()
    for given, expected in {
        (file, None): "belong together",
        (None, key): "belong together",
        (file.with_name("nowhere"), key): "--tls-cert .*nowhere: No such file",
        (file, file.with_name("nowhere")): "--tls-key .*nowhere: No such file",
        (file, file.parent): "--tls-key .*directory",
        (file, other_key): "is not the key of the certificate",
        (other, key): "is not the key of the certificate",
        (empty, key): "cannot be used",
        (key, file): "cannot be used",
    }.items():
        with pytest.raises(SpecError, match=expected) as caught:
            read_certificate(*given)
        assert "\n" not in str(caught.value)


def test_an_encrypted_key_is_refused_with_the_cure(make: Callable[..., tuple[Path, Path]]) -> None:
    for password in (b"secret", b"1"):
        with pytest.raises(SpecError, match=r"is encrypted.*openssl pkey"):
            read_certificate(*make(password=password))


def test_a_certificate_out_of_its_time_is_warned_of(
    make: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    assert read_certificate(*make(days=-1)) is not None
    assert "has expired; clients will refuse it" in caplog.text


@pytest.mark.parametrize(
    ("host", "tls", "warned"),
    [
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("::1", False, False),
        ("0.0.0.0", False, True),
        ("::", False, True),
        ("192.0.2.7", False, True),
        ("0.0.0.0", True, False),
    ],
)
def test_keys_in_the_clear_are_warned_of(host: str, tls: bool, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_clear_text(host, Certificate(Path("a"), Path("b")) if tls else None)
    assert ("in the clear" in caplog.text) is warned


@pytest.mark.slow
def test_a_server_speaks_tls_and_nothing_else(
    storage: Path, run_ids: dict[str, str], make: Callable[..., tuple[Path, Path]]
) -> None:
    file, key = make()
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    served = [run_ids[name] for name in ("vectors", "lora", "other")]
    words = ["serve", *served, "serve.max_runs=1", "--port", str(port), "--tls-cert", str(file), "--tls-key", str(key)]
    popen = subprocess.Popen(
        [sys.executable, "-m", "graft.cli", *words],
        cwd=storage,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert popen.stdout is not None
        printed = [popen.stdout.readline()]
        while printed[-1] and not printed[-1].startswith("try "):
            printed.append(popen.stdout.readline())
        assert printed[0] == f"serving    https://127.0.0.1:{port}\n"
        command = printed[-1].removeprefix("try").strip()
        check_answers(f"127.0.0.1:{port}", file, command)
        check_log(popen.pid)
        check_adapters(f"127.0.0.1:{port}", file, command, popen.pid, storage, served[1:])
    finally:
        popen.send_signal(signal.SIGINT)
        out, err = popen.communicate(timeout=180)
    assert (popen.returncode, out) == (0, ""), err
    assert "/nowhere" not in err


def check_answers(place: str, file: Path, command: str) -> None:
    assert f"--cacert {file} https://{place}" in command
    asked = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
    assert '"label"' in asked.stdout
    (key,) = (word.rpartition(" ")[2] for word in shlex.split(command) if word.startswith("Authorization"))
    with httpx.Client(verify=ssl.create_default_context(cafile=str(file)), timeout=60) as client:
        for given in ("mine-1", "not fit", None):
            headers = {"Authorization": f"Bearer {key}", **({"X-Request-Id": given} if given else {})}
            for path in ("/v1/models", "/nowhere"):
                answer = client.get(f"https://{place}{path}", headers=headers)
                assert answer.status_code == (200 if path == "/v1/models" else 404)
                (found,) = answer.headers.get_list("x-request-id")
                assert (found == given) is (given == "mine-1")
                assert " " not in found
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://{place}/healthz")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://{place}/healthz")


def check_adapters(place: str, file: Path, command: str, pid: int, storage: Path, served: list[str]) -> None:
    """Two adapters over one base of which a replica may keep one: each is loaded again when it is asked for again."""
    (key,) = (word.rpartition(" ")[2] for word in shlex.split(command) if word.startswith("Authorization"))
    speakers = {run_id: runs.load(run_id, storage).nodes[-1].speaker for run_id in served}  # type: ignore[attr-defined]
    expected = {run_id: speaker.generate(["The cat"], 8)[0] for run_id, speaker in speakers.items()}
    with httpx.Client(verify=ssl.create_default_context(cafile=str(file)), timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        for run_id in [*served, *served]:
            body = {"model": run_id, "prompt": "The cat", "max_tokens": 8}
            answer = client.post(f"https://{place}/v1/completions", json=body).json()
            assert answer["choices"][0]["text"] == expected[run_id]
    lines = logged(pid, "replica_graft_*")
    for run_id in served:
        assert sum(f"loaded {run_id}" in line for line in lines) >= 2


def check_log(pid: int) -> None:
    """One line for every request, with its id, in a file of Ray's session."""
    lines = logged(pid, "replica_graft_http_*")
    (found,) = (line for line in lines if "session: GET /nowhere: 404 in" in line and "request mine-1" in line)
    assert found.endswith("request mine-1")


def logged(pid: int, files: str) -> list[str]:
    """Lines of these files of Ray's session."""
    (session,) = {
        Path(word.partition("=")[2]).parents[1]
        for child in psutil.Process(pid).children(recursive=True)
        for word in child.cmdline()
        if word.startswith("--raylet_socket_name=")
    }
    return [line for path in session.rglob(files) for line in path.read_text().splitlines()]
