"""The `kafka` notifier at brokers that are away, frozen, restarted, deaf, or no brokers at all."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing

from downloader.errors import PluginError
from downloader.notify import Checkable, Delivered, Notifier, Result, RetryLater
from downloader_plugins.kafka import open_kafka
from servers.kafka import Tansu, create_topic, read_topic
from servers.kafka_notifier import eventually_delivered, payload, proxied
from servers.kafka_proxy import METADATA, NOT_LEADER, PRODUCE, KafkaProxy, open_kafka_proxy
from servers.loopback import Handler, serving, silence
from servers.plugins import opened_notifier
from servers.ports import spare_port

pytestmark = pytest.mark.slow

BRIEF = {"timeout": 1.0}
AT_ONCE_S = 10.0
"""For what waits for no broker, on a busy machine: one that is waited for takes longer, or for ever."""


@asynccontextmanager
async def opened(section: dict[str, Any]) -> AsyncIterator[Notifier]:
    """A notifier that has to open and close at once, and to leave nothing behind."""
    began = time.monotonic()
    manager = opened_notifier(open_kafka, {**BRIEF, **section})
    notifier = await manager.__aenter__()
    assert time.monotonic() - began < AT_ONCE_S
    try:
        yield notifier
    finally:
        began = time.monotonic()
        await manager.__aexit__(None, None, None)
        assert time.monotonic() - began < AT_ONCE_S
        gc.collect()  # what was forgotten warns now, and warnings are errors


async def answer_within(seconds: float, notifier: Notifier) -> Result:
    with trio.fail_after(seconds):
        return await notifier.deliver("jobs", payload())


async def test_a_dead_broker_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    broker = Tansu()
    async with opened({"bootstrap_servers": broker.servers}) as notifier:
        for _ in range(3):
            result = await answer_within(AT_ONCE_S, notifier)
            assert result == RetryLater(f"not connected to Kafka: {broker.servers}: Connection refused")
        with broker:
            await eventually_delivered(notifier)
    # Told once, not for each attempt.
    # The last one may be that the broker has ended.
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING][:2] == [
        f"not connected to Kafka: {broker.servers}: Connection refused",
        "connected to Kafka again",
    ]


async def test_a_frozen_broker_at_the_start() -> None:
    with Tansu() as broker:
        broker.freeze()
        async with opened({"bootstrap_servers": broker.servers}) as notifier:
            assert isinstance(await answer_within(AT_ONCE_S, notifier), RetryLater)
            assert isinstance(await answer_within(AT_ONCE_S, notifier), RetryLater)
            broker.thaw()
            await eventually_delivered(notifier)
            broker.freeze()
        broker.thaw()


async def test_one_dead_broker_of_several_at_the_start() -> None:
    with Tansu() as broker:
        servers = f"127.0.0.1:{spare_port()},{broker.servers},nowhere.invalid:9092"
        for _ in range(3):  # they are asked in any order
            async with opened({"bootstrap_servers": servers, "timeout": 10}) as notifier:
                assert await notifier.deliver("jobs", payload()) == Delivered()


@pytest.mark.row("F18")
async def test_a_frozen_broker_delays_nothing_else() -> None:
    with Tansu() as broker:
        async with opened({"bootstrap_servers": broker.servers}) as notifier:
            assert await notifier.deliver("jobs", payload("before")) == Delivered()
            broker.freeze()
            results: list[Result] = []

            async def deliver() -> None:
                results.append(await answer_within(AT_ONCE_S, notifier))

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(deliver)
            assert {type(result) for result in results} == {RetryLater}
            broker.thaw()
            await eventually_delivered(notifier)
        assert "before" in str(await read_topic(broker.servers, "jobs"))


async def test_closing_in_the_midst_of_deliveries_to_a_frozen_broker() -> None:
    with Tansu() as broker:
        async with opened({"bootstrap_servers": broker.servers, "timeout": 30}) as notifier:
            assert await notifier.deliver("jobs", payload()) == Delivered()
            broker.freeze()
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(notifier.deliver, "jobs", payload("x" * 200_000))
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()


@pytest.mark.row("F18")
async def test_a_restart_is_survived_by_a_delivery() -> None:
    async with proxied({"timeout": 20}) as (proxy, broker, notifier):
        assert await notifier.deliver("jobs", payload("before")) == Delivered()
        broker.kill()
        results: list[Result] = []

        async def deliver() -> None:
            results.append(await notifier.deliver("jobs", payload("after")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await restart(broker, proxy)
        assert results == [Delivered()]
        [record] = await read_topic(broker.servers, "jobs")
        assert json.loads(record.value) == {"extra": "after"}


async def restart(broker: Tansu, proxy: KafkaProxy) -> None:
    """Start it again with its topics: tansu acknowledges what is sent to one that it does not know."""
    proxy.target = spare_port()
    broker.start()
    await create_topic(broker, "jobs", partitions=4)
    proxy.target = broker.port


async def test_brokers_that_have_all_moved_are_found_by_the_sections_address() -> None:
    """What the client knows of the cluster is of no use any more."""
    old, new = Tansu(), Tansu()
    async with open_kafka_proxy(old.port) as proxy:
        with old, new:
            async with opened({"bootstrap_servers": proxy.servers}) as notifier:
                assert await notifier.deliver("jobs", payload("before")) == Delivered()
                old.kill()
                proxy.target = new.port
                await eventually_delivered(notifier)
            records = await read_topic(new.servers, "jobs")
            # More than one if a delivery that had timed out has arrived after all.
            assert {record.value for record in records} == {b'{"extra": "at last"}'}


async def test_a_leader_that_moves_is_looked_for() -> None:
    async with proxied({}) as (proxy, _, notifier):
        assert await notifier.deliver("jobs", payload()) == Delivered()
        asked = proxy.asked[METADATA]
        proxy.produce_errors.extend([NOT_LEADER, NOT_LEADER])
        assert await notifier.deliver("jobs", payload()) == Delivered()
        assert proxy.asked[METADATA] > asked
        assert proxy.asked[PRODUCE] == 4


@pytest.mark.row("F18")
async def test_a_lost_report_is_no_delivery() -> None:
    async with proxied({**BRIEF}) as (proxy, _, notifier):
        assert await notifier.deliver("jobs", payload()) == Delivered()
        proxy.deaf = True
        assert isinstance(await answer_within(AT_ONCE_S, notifier), RetryLater)
        proxy.deaf = False
        await eventually_delivered(notifier)


@pytest.mark.row("F18")
async def test_an_unknown_topic_is_distinguished_from_a_silent_broker() -> None:
    async with proxied({"timeout": 4}) as (proxy, broker, notifier):
        proxy.no_new_topics = True
        results: dict[str, Result] = {}

        async def deliver(name: str) -> None:
            results[name] = await notifier.deliver(name, payload())

        async with trio.open_nursery() as nursery:
            for name in ("nowhere", "neither"):
                nursery.start_soon(deliver, name)
            # Meanwhile others are delivered.
            await create_topic(broker, "here", partitions=1)
            for _ in range(10):
                assert await answer_within(3.0, notifier_to(notifier, "here")) == Delivered()
        assert results == {
            name: RetryLater(f"{name}: there is no such topic") for name in ("nowhere", "neither")
        }
        proxy.deaf = True
        await deliver("elsewhere")
        assert isinstance(result := results["elsewhere"], RetryLater)
        assert "in time" in result.reason
        proxy.deaf = False
        proxy.drop()
        await create_topic(broker, "nowhere", partitions=1)
        await eventually_delivered(notifier, "nowhere")


def notifier_to(notifier: Notifier, name: str) -> Notifier:
    """A notifier that sends every callback to this destination."""

    class To:
        async def deliver(self, _: str, one: Any) -> Result:
            return await notifier.deliver(name, one)

    return To()


async def test_names_that_are_no_topics_are_forgotten() -> None:
    """Jobs may come with any number of them, and the client would ask for each, again and again."""
    async with proxied({"timeout": 4}) as (proxy, broker, notifier):
        await create_topic(broker, "here", partitions=1)
        proxy.no_new_topics = True
        async with trio.open_nursery() as nursery:
            for number in range(120):
                nursery.start_soon(notifier.deliver, f"nowhere-{number}", payload())
        await eventually_delivered(notifier, "here")
        proxy.metadata_bytes = 0
        await eventually_delivered(notifier, "here")
        while not proxy.metadata_bytes:  # noqa: ASYNC110 - librdkafka asks each second or so
            await trio.sleep(0.1)
        assert proxy.metadata_bytes < 200


async def garbage(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.receive_some(1)
        await stream.send_all(b"\0\0\0\x08HTTP/1.1 400 Bad Request\r\n\r\n")


async def refusal(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)


async def test_a_server_that_is_no_broker_is_tried_again() -> None:
    async def check(handler: Handler) -> None:
        async with serving(handler) as port, opened({"bootstrap_servers": f"127.0.0.1:{port}"}) as notifier:
            for _ in range(3):
                result = await answer_within(AT_ONCE_S, notifier)
                assert isinstance(result, RetryLater)
                assert "in time" in result.reason or f"Kafka: 127.0.0.1:{port}: " in result.reason

    async with trio.open_nursery() as nursery:
        for handler in (garbage, refusal, silence):
            nursery.start_soon(check, handler)


async def test_a_name_that_cannot_be_resolved() -> None:
    async with opened({"bootstrap_servers": "kafka.invalid:9092"}) as notifier:
        result = await notifier.deliver("jobs", payload())
        assert isinstance(result, RetryLater)
        assert "kafka.invalid:9092: " in result.reason


async def test_the_check_of_a_dead_broker_says_so() -> None:
    port = spare_port()
    async with opened({"bootstrap_servers": f"127.0.0.1:{port}"}) as notifier:
        assert isinstance(notifier, Checkable)
        with pytest.raises(
            PluginError, match=f"not connected to Kafka: 127.0.0.1:{port}: Connection refused"
        ):
            await notifier.check()
