"""Two real processors share the aggregation's pause after a 429, and the aggregation's rate."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.fleet import Fleet, History, Running, job_for, open_fleet, say
from servers.origin import Exchange, Origin
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = pytest.mark.slow

PAUSE_S, LIMIT, JOBS = 3, 4, 1000
RATE, STARTS = 20, 100
METERED_PER_S, METERED_BURST, METERED_JOBS = 6.0, 6.0, 20
"""What a site accepts in a second, and at once after an idle time."""
SLOW, AT_ONCE = "/slow/0.4/10", {"processor": {"concurrency": 7}}
"""One processor alone does not reach the rate, two do."""


async def post(fleet: Fleet, jobs: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
    answer = await fleet.client.post("/downloads", content=lines)
    return [json.loads(line)["id"] for line in answer.text.splitlines()]


async def first_event(processors: Iterable[Running], name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    async def wait(processor: Running, scope: trio.CancelScope) -> None:
        found.append(await processor.event(name))
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for processor in processors:
            nursery.start_soon(wait, processor, nursery.cancel_scope)
    return found[0]


async def test_a_429_pauses_its_aggregation_and_no_other(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    asked: dict[str, list[float]] = {"/busy": [], "/calm": []}
    noticed = trio.Event()

    async def answer(exchange: Exchange) -> None:
        times = asked[exchange.request.path]
        times.append(time.monotonic())
        if exchange.request.path == "/busy" and len(times) == 1:
            await exchange.respond(429, headers=[("Retry-After", str(PAUSE_S))])
            return
        # The downloads that are in flight then cannot be recalled; they end when the pause has begun.
        await noticed.wait()
        await exchange.respond(200, b"file")

    busy, calm = origin.on("/busy", answer), origin.on("/calm", answer)
    async with open_fleet(folder, server) as fleet:
        _, *processors, _ = await fleet.start_all("api", "processor", "processor", "notifier")
        await post(fleet, [job_for(busy, sink.url(), group="busy", limit=LIMIT)] * JOBS)
        throttled = (await first_event(processors, "job.throttled"))["job_id"]
        noticed.set()
        in_flight = len(asked["/busy"])
        assert in_flight <= LIMIT
        await sink.heard_of(*await post(fleet, [job_for(calm, sink.url(), group="calm")] * 5))
        job = await fleet.job(throttled)
        assert (job["state"], job["attempts"], job["response_code"]) == ("pending", 0, 429)
        shown = (await fleet.client.get("/aggregations/busy")).json()
        assert shown["cooling_until"] == shown["next_due_at"] is not None
        await origin.wait_until(lambda: len(asked["/busy"]) > in_flight, seconds=PAUSE_S + 15)
        paused_s = asked["/busy"][in_flight] - asked["/busy"][0]
        say(f"no request for {paused_s:.3f} s, besides {in_flight - 1} in flight; 5 of another meanwhile")
        assert paused_s >= PAUSE_S
        assert asked["/calm"][-1] < asked["/busy"][in_flight], "another aggregation does not wait"
        await fleet.stop_all()


async def test_a_site_that_meters_is_asked_more_slowly_after_the_cooldown(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    refused, accepted = list[float](), list[float]()
    tokens, filled = METERED_BURST, time.monotonic()

    async def answer(exchange: Exchange) -> None:
        nonlocal tokens, filled
        now = time.monotonic()
        tokens, filled = min(METERED_BURST, tokens + METERED_PER_S * (now - filled)), now
        (accepted if tokens >= 1 else refused).append(now)
        if tokens < 1:
            await exchange.respond(429, headers=[("Retry-After", "1")])
            return
        tokens -= 1
        await exchange.respond(200, b"file")

    url = origin.on("/metered", answer)
    async with open_fleet(folder, server) as fleet:
        await fleet.start_all("api", "processor", "processor", "notifier")
        ids = await post(fleet, [job_for(url, sink.url(), group="metered", limit=8)] * METERED_JOBS)
        await origin.wait_until(lambda: len(accepted) >= METERED_JOBS - 4, seconds=30)
        pace = (await fleet.client.get("/aggregations/metered")).json()["pace"]
        await sink.heard_of(*ids)
        say(f"{len(refused)} of {len(ids) + len(refused)} requests were refused; pace {pace}")
        cooldowns = 1 + sum(later - earlier > 0.5 for earlier, later in itertools.pairwise(refused))
        assert refused
        assert cooldowns <= 3, "half of the half of what it had is what the site allows, or less"
        assert 1 <= pace <= 1.2 * METERED_PER_S
        await fleet.stop_all()


async def test_two_processors_share_a_rate(server: Valkey, folder: Path, sink: Sink, origin: Origin) -> None:
    async with open_fleet(folder, server, AT_ONCE) as fleet:
        _, *processors, _ = await fleet.start_all("api", "processor", "processor", "notifier")
        job = job_for(origin.url(SLOW), sink.url(), limit=50, aggr_rate=RATE)
        ids = await post(fleet, [job] * STARTS)
        await sink.heard_of(*ids)
        with History(fleet, sink, url=server.url) as history:
            starts = sorted(int(history.record(job_id).download["started"]) for job_id in ids)
        spans = [(at - starts[0]) / 1000 for at in starts]
        assert all(count <= RATE * span for count, span in enumerate(spans)), "never ahead of it"
        # On a busy machine any start may be late, also the last one.
        best = max(count / span for count, span in enumerate(spans) if count >= STARTS / 2)
        say(f"{best:.2f} starts/s of {RATE}; by each: {[len(p.events('job.succeeded')) for p in processors]}")
        assert best >= 0.95 * RATE
        assert all(processor.events("job.succeeded") for processor in processors)
        await fleet.stop_all()
