"""`downloader health` asks the API of a process, at the address from arguments or configuration."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import trustme

from downloader.cli import main


class Api(BaseHTTPRequestHandler):
    """Answers to `GET /health/live` as the service does, and 404 to everything else."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health/live" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class OnIpv6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextmanager
def serving(context: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> Iterator[int]:
    """The port of an API."""
    with (OnIpv6 if ":" in host else ThreadingHTTPServer)((host, 0), Api) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def service(*arguments: object) -> Iterator[list[str]]:
    """The command line that checks a process which has the arguments of a service, and does nothing."""
    command = [sys.executable, "-c", "input()", "/opt/bin/downloader", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield ["health", "--pid", str(process.pid)]
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("role", "host", "local"),
    [("run", "0.0.0.0", "127.0.0.1"), ("api", "127.0.0.1", "127.0.0.1"), ("api", "::", "::1")],
)
def test_flags_say_where_the_api_is(
    role: str, host: str, local: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(host=local) as port, service(role, "--host", host, "--port", port) as command:
        assert main(command) == 0
    assert capsys.readouterr() == ("", "")


def test_the_configuration_says_where_the_api_is_and_whether_it_has_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = trustme.CA().issue_cert("downloads.example.org")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    config = tmp_path / "config.toml"
    with serving(context) as port, service("api", "-c", config) as command:
        config.write_text(f'[api]\ncertfile = "{config}"\nkeyfile = "{config}"\n')
        monkeypatch.setenv("DOWNLOADER_API__PORT", str(port))
        assert main(command) == 0


def test_an_api_that_refuses_is_not_healthy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Api, "status", 503)
    with serving() as port, service("api", "--port", port) as command:
        assert main(command) == 1
    out, err = capsys.readouterr()
    assert (out, err.startswith("downloader: "), "503" in err) == ("", True, True), err


@pytest.mark.parametrize(
    "arguments", [["processor"], ["notifier", "-c", "/config.toml"], ["fetch", "http://x.test/"]]
)
def test_a_process_without_a_port_is_healthy_while_it_runs(arguments: list[str]) -> None:
    with service(*arguments) as command:
        assert main(command) == 0
    assert main(command) == 1
