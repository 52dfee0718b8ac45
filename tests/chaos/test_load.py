"""What the load notes: how long a request counts at the origin, and when its pauses may have ended."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from chaos import load as load_module
from chaos.history import History, ended_by_late_resume
from chaos.load import PAUSED, Load
from chaos.reading import read_load
from servers.fault_proxy import open_fault_proxy
from servers.fleet import open_fleet
from servers.fleet_fixtures import folder, server
from servers.origin import Exchange, Origin, Request
from servers.sink import Sink
from servers.valkey import Valkey

__all__ = ["folder", "server"]


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


async def test_a_resume_that_an_api_carries_out_late_may_have_ended_the_next_pause(
    folder: Path, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "_REQUEST_S", 1.0)
    monkeypatch.setattr(load_module, "_PAUSE_S", (0.1, 0.2))
    async with (
        open_fault_proxy(server.socket) as link,
        open_fleet(folder, server) as fleet,
        trio.open_nursery() as nursery,
    ):
        tables = {"redis": {"url": link.url, "timeout": 15.0}}
        late, other = await fleet.start("api", tables=tables), await fleet.start("api")
        port, port_of_other = [(await one.event("api.listening"))["port"] for one in (late, other)]
        asked_in: list[int] = []

        def apis() -> list[int]:
            """Called before each request: has the first resume answered after the second pause."""
            pauses = len(load.closed)
            is_first_resume = pauses == 1 and 1 not in asked_in
            asked_in.append(pauses)
            if is_first_resume:
                link.hold_reply_with = b"cooling"
            elif pauses == 2:
                link.let_go.set()
            return [port if is_first_resume or pauses == 0 else port_of_other]

        load = Load(Origin(port=1, scheme="http"), Sink(), random.Random(1), apis, {PAUSED: 1})
        nursery.start_soon(load._pause, fleet.client)
        await late.event("audit", changes={"paused": False})
        nursery.cancel_scope.cancel()
    history = History()
    read_load(history, load, fleet)
    assert [ended_by_late_resume(history, pause) for pause in history.closed[:2]] == [False, True]
    assert all(one.sent_s < one.logged_s for one in history.resumes)


async def test_what_was_paused_late_is_resumed_while_jobs_may_wait(folder: Path, server: Valkey) -> None:
    path = f"/aggregations/{PAUSED}"
    async with open_fleet(folder, server) as fleet, trio.open_nursery() as nursery:
        api = await fleet.start("api")
        port = (await api.event("api.listening"))["port"]
        load = Load(
            Origin(port=1, scheme="http"),
            Sink(),
            random.Random(1),
            lambda: [port],
            {PAUSED: 1},
            stopping=True,
        )
        nursery.start_soon(load._pause, fleet.client)
        await fleet.client.patch(path, json={"paused": True})
        await api.event("audit", changes={"paused": False})
        load._submitted = True
        load._waiting[PAUSED].add("waiting")
        await fleet.client.patch(path, json={"paused": True})
        await api.event("audit", changes={"paused": False}, count=2)
        load._told.add("waiting")
    history = History()
    read_load(history, load, fleet)
    assert history.resumes == []  # none ended a pause of the load itself
