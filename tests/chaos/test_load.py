"""The origin of the load counts a request only until the processor may send the next one."""

from __future__ import annotations

import random

import trio

from chaos.load import Load
from servers.origin import Exchange, Origin, Request
from servers.sink import Sink


class Recorded(Exchange):
    """An exchange that notes, for each piece that is sent, whether the request counts then."""

    def __init__(self, path: str, load: Load, stream: trio.SocketStream) -> None:
        super().__init__(Request("GET", path, {}, b"", 1), stream, stream)
        self.load = load
        self.sent: list[tuple[bytes, bool]] = []

    def buffer(self, size: int) -> None:
        pass

    async def end(self, then: str) -> None:
        pass

    async def send(self, data: bytes) -> None:
        self.sent.append((data, self in self.load.slots.now["g1"]))


async def test_a_request_stops_counting_before_the_processor_can_act_on_the_response(
    autojump_clock: object,
) -> None:
    origin = Origin(port=1, scheme="http")
    load = Load(origin, Sink(), random.Random(1), list, {"g1": 1})
    statuses = set()
    here, there = trio.socket.socketpair()
    stream = trio.SocketStream(here)
    for number in range(40):
        path, _ = load._offer("g1", number)
        exchange = Recorded(path, load, stream)
        await origin.routes[path](exchange)
        whole = b"".join(data for data, _ in exchange.sent)
        while_counted = b"".join(data for data, counts in exchange.sent if counts)
        is_file = whole.startswith(b"HTTP/1.1 200 ")
        assert while_counted == (whole[:-1] if is_file else b"")
        statuses.add(whole[9:12])
    await stream.aclose()
    there.close()
    assert statuses >= {b"200", b"302", b"404", b"500"}
