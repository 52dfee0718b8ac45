"""Certificates for TLS servers on loopback, good and bad."""

from __future__ import annotations

import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import trustme


@cache
def authority() -> trustme.CA:
    """The only authority that the tested client trusts."""
    return trustme.CA()


def write_authority(folder: Path) -> str:
    """The authority's certificate as a PEM file, for `ca_file`."""
    path = folder / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


def server_context(*names: str, ca: trustme.CA | None = None, expired: bool = False) -> ssl.SSLContext:
    """A server's context with a certificate for these names (default 127.0.0.1 and localhost)."""
    until = datetime.now(UTC) + timedelta(days=-1 if expired else 1)
    issued = (ca or authority()).issue_cert(
        *(names or ("127.0.0.1", "localhost")), not_before=until - timedelta(days=10), not_after=until
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    return context


@contextmanager
def old_tls_server() -> Iterator[str]:
    """A server that speaks nothing newer than TLS 1.1; yields the URL.

    Blocking, in a thread, since Trio's TLS stream keeps OpenSSL's alert to itself when a handshake fails.
    """

    def shake_hands() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()

    context = _old_context()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=shake_hands)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


def _old_context() -> ssl.SSLContext:
    context = server_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # deprecated is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context
