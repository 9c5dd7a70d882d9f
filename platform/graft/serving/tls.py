"""The certificate that a server shows: looked at before anything is started."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from graft.errors import SpecError

log = logging.getLogger(__name__)

ROUNDS = 10
"""More than a handshake needs."""


@dataclass(frozen=True)
class Certificate:
    """Files in PEM, by absolute paths: another process reads them."""

    file: Path
    """The certificate, and after it those between it and its authority's."""
    key: Path


def read_certificate(file: Path | None, key: Path | None) -> Certificate | None:
    """The certificate of `--tls-cert` and `--tls-key`; None where both are left out.

    One that clients will refuse, because it has expired for example, is warned of: they may have been told not to.

    Raises:
        SpecError: only one is given, a file cannot be read, or they do not belong together.
    """
    if file is None and key is None:
        return None
    if file is None or key is None:
        raise SpecError("--tls-cert and --tls-key belong together: give both, or neither for plain HTTP")
    for option, path in (("--tls-cert", file), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise SpecError(f"{option} {path}: {error.strerror}; give a file in PEM") from error
    server = _load(file, key)
    if found := _verify(server, file):
        log.warning("--tls-cert %s: %s; clients will refuse it", file, found)
    return Certificate(file.absolute(), key.absolute())


def _load(file: Path, key: Path) -> ssl.SSLContext:
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True
        return ""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(file, key, password)
    except ssl.SSLError as error:
        if asked:
            raise SpecError(
                f"--tls-key {key}: is encrypted, and there is nobody to ask for the password; give it decrypted, "
                "readable for you alone: openssl pkey -in ENCRYPTED -out KEY"
            ) from error
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SpecError(f"--tls-key {key}: is not the key of the certificate in {file}") from error
        raise SpecError(
            f"--tls-cert {file} --tls-key {key}: cannot be used ({error.reason or error}); give a certificate and its "
            "key, both in PEM"
        ) from error
    return context


def _verify(server: ssl.SSLContext, file: Path) -> str:
    """Shake hands with ourselves, trusting this certificate alone; gives what a client would find wrong with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(file)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [context.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for turn in range(ROUNDS):
        try:
            ends[turn % 2].do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


def unverified() -> ssl.SSLContext:
    """For asking one's own server whether it is up: what name is in its certificate does not matter."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
