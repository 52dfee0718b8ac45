"""Fault F18 for Kafka: brokers that are frozen, dead or restarted, unknown topics, messages too large."""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.fleet import ASIDE_MAX_S, ASIDE_S, Fleet, Running, Tables, job_for, merged, open_fleet, say
from servers.kafka import Tansu, create_topic, read_topic, wait_for_records
from servers.kafka_proxy import KafkaProxy, open_kafka_proxy
from servers.origin import Origin
from servers.ports import spare_port
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(120)]

KAFKA_TIMEOUT_S = 1.0


def tables(servers: str, **more: Any) -> Tables:
    return {
        "backends.kafka": {"bootstrap_servers": servers, "timeout": KAFKA_TIMEOUT_S, **more},
        "notifier": {"retry_schedule": [0.2, 0.3]},
    }


@asynccontextmanager
async def behind_proxy() -> AsyncIterator[tuple[KafkaProxy, Tansu]]:
    broker = Tansu()
    async with open_kafka_proxy(broker.port) as proxy:
        broker.advertised = proxy.port
        with broker:
            await create_topic(broker, "jobs", partitions=2)
            yield proxy, broker


def to_kafka(origin: Origin, topic: str = "jobs", **more: Any) -> dict[str, Any]:
    return job_for(origin.url("/bytes/10"), topic, group="kafka", limit=8, **more) | {
        "callback_type": "kafka"
    }


async def failed_callbacks(run: Running, fleet: Fleet, ids: list[str], *, seconds: float = 30.0) -> set[str]:
    """Wait until these callbacks have failed, and return the reasons that `GET /jobs/<id>` shows."""
    reasons = set()
    for job_id in ids:
        await run.event("callback.failed", job_id=job_id, seconds=seconds)
        job = await fleet.job(job_id)
        assert (job["state"], job["callback"]["state"]) == ("succeeded", "failed")
        reasons |= {entry["error"] for entry in job["callback"]["errors"]}
    return reasons


@pytest.mark.row("F18")
async def test_f18_a_frozen_broker_delays_nobody_else(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    with Tansu() as broker:
        # The timeout is longer than the time by which the other callbacks may be late.
        twice = merged(tables(broker.servers, timeout=6), {"notifier": {"retry_schedule": [0.2]}})
        async with open_fleet(folder, server, twice) as fleet:
            run = await fleet.start("run")
            first = await fleet.post(**to_kafka(origin))
            await run.event("callback.delivered", job_id=first)
            before = await fleet.callback_delays(origin, sink, 15, group="http")
            broker.freeze()
            ids = await fleet.post_all([to_kafka(origin) for _ in range(2)])
            after = await fleet.callback_delays(origin, sink, 15, group="http")
            say(f"median {statistics.median(before):.3f} s, then {statistics.median(after):.3f} s")
            assert statistics.median(after) < statistics.median(before) + ASIDE_S
            assert max(after) < max(before) + ASIDE_MAX_S
            # The callbacks fail after two attempts each, one at a time, because the destination fails.
            reasons = await failed_callbacks(run, fleet, ids, seconds=60)
            say(f"reasons: {reasons}")
            assert reasons
            silent = ("did not answer in time", "no answer in time", "no delivery report within 6 s")
            given_up = "no connection to the topic's broker"
            assert all(reason.endswith((*silent, given_up)) for reason in reasons), reasons

            broker.thaw()
            for job_id in ids:
                assert (await fleet.client.post(f"/retry/{job_id}")).status_code == 201
            for job_id in ids:
                await run.event("callback.delivered", job_id=job_id)
            keys = {record.key.decode() for record in await read_topic(broker.servers, "jobs")}
            assert keys >= {first, *ids}
            await run.stop()


@pytest.mark.row("F18")
async def test_f18_a_stop_while_the_broker_is_frozen(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    with Tansu() as broker:
        # The timeout is longer than the grace period, so that the stop must cancel deliveries.
        async with open_fleet(folder, server, tables(broker.servers, timeout=60)) as fleet:
            run = await fleet.start("run")
            first = await fleet.post(**to_kafka(origin))
            await run.event("callback.delivered", job_id=first)
            broker.freeze()
            ids = await fleet.post_all([to_kafka(origin) for _ in range(4)])
            for job_id in ids:
                await run.event("job.succeeded", job_id=job_id)
            seconds = await run.stop()
            say(f"stopped after {seconds:.2f} s")
            assert {job_id for job_id in ids if run.events("callback.released", job_id=job_id)} == set(ids)

            # They were handed back without a counted attempt, and the next instance delivers them.
            broker.thaw()
            again = await fleet.start("run")
            for job_id in ids:
                await again.event("callback.delivered", job_id=job_id)
            await again.stop()


@pytest.mark.row("F18")
async def test_f18_a_dead_broker_keeps_nothing_from_starting(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    broker = Tansu()
    async with open_fleet(folder, server, tables(broker.servers)) as fleet:
        run = await fleet.start("run")
        job_id = await fleet.post(**to_kafka(origin))
        await fleet.callback_delays(origin, sink, 3, group="http")
        reasons = await failed_callbacks(run, fleet, [job_id])
        assert reasons == {f"not connected to Kafka: {broker.servers}: Connection refused"}
        with broker:
            await create_topic(broker, "jobs", partitions=2)
            with trio.fail_after(20):
                while not run.events("callback.delivered", job_id=job_id):
                    answer = await fleet.client.post(f"/retry/{job_id}")
                    assert answer.status_code in (201, 409)
                    await trio.sleep(0.1)  # the producer connects again after a pause
            [record] = await wait_for_records(broker.servers, "jobs", 1)
            assert record.key.decode() == job_id
        # The broker is down again, and the stop does not wait for it.
        await run.stop()


@pytest.mark.row("F18")
async def test_f18_a_restarted_broker_costs_no_callback(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with (
        behind_proxy() as (proxy, broker),
        open_fleet(folder, server, tables(proxy.servers, timeout=20)) as fleet,
    ):
        run = await fleet.start("run")
        first = await fleet.post(**to_kafka(origin))
        await run.event("callback.delivered", job_id=first)
        broker.kill()
        ids = await fleet.post_all([to_kafka(origin) for _ in range(20)])
        for job_id in ids:
            await run.event("job.succeeded", job_id=job_id)
        # tansu acknowledges messages to unknown topics, so make the topic before it can be reached again.
        proxy.target = spare_port()
        broker.start()
        await create_topic(broker, "jobs", partitions=2)
        proxy.target = broker.port
        for job_id in ids:
            await run.event("callback.delivered", job_id=job_id)
        records = await wait_for_records(broker.servers, "jobs", len(ids))
        assert {record.key.decode() for record in records} == set(ids)
        assert run.events("callback.failed") == []
        await run.stop()


@pytest.mark.row("F18")
async def test_f18_unknown_topics_and_large_messages_say_so(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with behind_proxy() as (proxy, _):
        proxy.no_new_topics = True
        proxy.largest = 20_000
        async with open_fleet(folder, server, tables(proxy.servers, max_request_size=40_000)) as fleet:
            run = await fleet.start("run")
            unknown = await fleet.post(**to_kafka(origin, "nowhere"))
            large = await fleet.post(**to_kafka(origin, extra="x" * 30_000))
            larger = await fleet.post(**to_kafka(origin, extra="x" * 50_000))
            fine = await fleet.post(**to_kafka(origin))
            assert await failed_callbacks(run, fleet, [unknown]) == {"nowhere: there is no such topic"}
            assert await failed_callbacks(run, fleet, [large]) == {
                "jobs: the topic does not take callbacks of this size"
            }
            [reason] = await failed_callbacks(run, fleet, [larger])
            assert reason.endswith("too many for max_request_size")
            await run.event("callback.delivered", job_id=fine)
            attempts = {
                job_id: (await fleet.job(job_id))["callback"]["attempts"]
                for job_id in (unknown, large, larger)
            }
            assert attempts == {unknown: 3, large: 1, larger: 1}
            await run.stop()
