"""CPU of a GET of 10 KiB on a new HTTPS connection: our transport beside OpenSSL and the kernel alone.

`python -m bench.tls_cost [REQUESTS]`; rounds alternate, and the least of each counts. An origin is started.
The floor is a blocking socket with `ssl.MemoryBIO`, without Trio, checks of the address or HTTP. All resume
sessions. With a file for `OPENSSL_CONF` the groups of the key exchange can be compared.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
import trustme

from bench.processes import helper
from downloader.net import EgressPolicy, Route, Transport, Url, open_transport, tls_context

ROUNDS = 5
_READ_BYTES = 64 * 1024
_REQUEST = b"GET /file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

Get = Callable[[], Awaitable[object]]


class _Bare:
    """GETs, each on a connection of its own that resumes the session of the one before."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._session: ssl.SSLSession | None = None

    async def get(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as sock:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = self._context.wrap_bio(
                incoming, outgoing, server_hostname="127.0.0.1", session=self._session
            )

            def step(call: Callable[[], bytes | None]) -> bytes | None:
                while True:
                    try:
                        return call()
                    except ssl.SSLWantReadError:
                        sock.sendall(outgoing.read())
                        incoming.write(sock.recv(_READ_BYTES))

            step(tls.do_handshake)
            tls.write(_REQUEST)
            sock.sendall(outgoing.read())
            left_bytes = 10 * 1024  # of the content; the head comes on top
            while left_bytes > 0 and (data := step(partial(tls.read, _READ_BYTES))):
                left_bytes -= len(data)
            self._session = tls.session


async def _ours(transport: Transport, url: str) -> None:
    route = Route(url=Url.parse(url), keep=1, expect=lambda _what, _seconds: None)
    response = await transport.send("GET", route, [])
    while await response.body.read() is not None:
        pass


async def _us_per_get(get: Get, count: int) -> float:
    await get()
    used = time.process_time()
    for _ in range(count):
        await get()
    return (time.process_time() - used) / count * 1e6


async def _run(kept_port: int, new_port: int, ca_file: str, count: int) -> None:
    policy = EgressPolicy.parse(["127.0.0.1"], setting="egress.downloads")
    context = tls_context(ca_file)
    async with open_transport(policy, tls=context) as transport:
        ways: dict[str, Get] = {
            "our transport, kept connection": partial(
                _ours, transport, f"https://127.0.0.1:{kept_port}/file"
            ),
            "our transport, new connection": partial(_ours, transport, f"https://127.0.0.1:{new_port}/file"),
            "bare, new connection": _Bare(new_port, context).get,
        }
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, get in ways.items():
                least[name] = min(least[name], await _us_per_get(get, count))
    for name, cost in least.items():
        print(f"{cost:7.0f} us  {name}")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        certificate, ca_file = str(folder / "certificate.pem"), str(folder / "ca.pem")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(ca_file)
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
        kept = stack.enter_context(helper("origin", 10240, certificate))
        new = stack.enter_context(helper("origin", 10240, certificate, "close"))
        trio.run(_run, int(kept.first), int(new.first), ca_file, count)


if __name__ == "__main__":
    main()
