"""The `kafka` notifier against real brokers: what arrives, what is refused, what is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from downloader.errors import PluginError
from downloader.notify import Checkable, Delivered, Notifier, Rejected, Result, RetryLater
from downloader_plugins.kafka import open_kafka
from downloader_plugins.kafka.settings import BATCH_BYTES
from servers.certs import server_context, write_authority
from servers.kafka import Tansu, create_topic, mock_cluster, read_topic
from servers.kafka_notifier import eventually_delivered, payload, proxied, topic
from servers.kafka_proxy import NOT_ENOUGH_REPLICAS, TOPIC_AUTHORIZATION_FAILED
from servers.plugins import opened_notifier

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def tansu() -> Iterator[Tansu]:
    with Tansu() as running:
        yield running


@pytest.fixture(scope="module", params=["tansu", "librdkafka"])
def servers(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both kinds of broker."""
    if request.param == "tansu":
        yield request.getfixturevalue("tansu").servers
    else:
        with mock_cluster() as addresses:
            yield addresses


async def test_a_callback_arrives_with_the_jobs_id_as_key(servers: str) -> None:
    name, body = topic(), payload("h\u00e9llo \U0001f642")
    async with opened_notifier(open_kafka, {"bootstrap_servers": servers}) as notifier:
        assert await notifier.deliver(name, body) == Delivered()
        [record] = await read_topic(servers, name)
        assert (record.key, record.value) == (b"6QEywYsd0jrKAg", body.body)


async def test_the_trace_goes_along(servers: str) -> None:
    name = topic()
    async with opened_notifier(open_kafka, {"bootstrap_servers": servers}) as notifier:
        for one in (replace(payload(), traceparent=TRACE), payload()):
            assert await notifier.deliver(name, one) == Delivered()
        found = [record.headers for record in await read_topic(servers, name)]
    assert found == [[("traceparent", TRACE.encode())], []]


async def test_many_at_once_arrive_once_each_and_by_key(servers: str) -> None:
    names = [topic() for _ in range(3)]
    results: list[Result] = []

    async def deliver(notifier: Notifier, number: int) -> None:
        body = payload(str(number), job_id=f"job{number % 50:011}")
        results.append(await notifier.deliver(names[number % 3], body))

    async with opened_notifier(open_kafka, {"bootstrap_servers": servers}) as notifier:
        async with trio.open_nursery() as nursery:
            for number in range(600):
                nursery.start_soon(deliver, notifier, number)
        assert results == [Delivered()] * 600
        for turn, name in enumerate(names):
            records = await read_topic(servers, name)
            assert sorted(json.loads(record.value)["extra"] for record in records) == sorted(
                str(number) for number in range(turn, 600, 3)
            )
            # One job's callbacks are in one partition, and jobs spread over all.
            partitions: dict[bytes, set[int]] = {}
            for record in records:
                partitions.setdefault(record.key, set()).add(record.partition)
            assert {len(found) for found in partitions.values()} == {1}
            assert len(set.union(*partitions.values())) == 4


async def test_the_partition_is_that_of_other_clients(tansu: Tansu) -> None:
    """The default of Java's client: MurmurHash2 of the key."""
    name = topic()
    async with opened_notifier(open_kafka, {"bootstrap_servers": tansu.servers}) as notifier:
        await notifier.deliver(name, payload())
    [record] = await read_topic(tansu.servers, name)
    assert (record.key, record.partition) == (b"6QEywYsd0jrKAg", 2)


@pytest.mark.parametrize("kind", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_compression(servers: str, kind: str) -> None:
    name, section = topic(), {"bootstrap_servers": servers, "compression_type": kind}
    async with opened_notifier(open_kafka, section) as notifier:
        assert await notifier.deliver(name, payload("x" * 10_000)) == Delivered()
    [record] = await read_topic(servers, name)
    assert json.loads(record.value) == {"extra": "x" * 10_000}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a b", "a/b", "h\u00e9", "x" * 250, "a\n", "http://x/", "a\0"]
)
async def test_an_invalid_topic_is_rejected(tansu: Tansu, name: str) -> None:
    async with opened_notifier(open_kafka, {"bootstrap_servers": tansu.servers}) as notifier:
        result = await notifier.deliver(name, payload())
    assert isinstance(result, Rejected)
    assert result.reason.startswith("the callback's destination is not a Kafka topic")


@pytest.mark.row("H27")
@pytest.mark.parametrize("patterns", [[], ["*"], ["__consumer_offsets"]])
async def test_an_internal_topic_is_rejected(tansu: Tansu, patterns: list[str]) -> None:
    section = {"bootstrap_servers": tansu.servers, "topics": patterns}
    async with opened_notifier(open_kafka, section) as notifier:
        for name in ("__consumer_offsets", "__transaction_state", "_schemas"):
            result = await notifier.deliver(name, payload())
            assert result == Rejected(f"topic {name} is one of Kafka's internal topics")


async def test_the_longest_name_and_every_character(tansu: Tansu) -> None:
    name = "A.z_0-9".ljust(249, "x")
    async with opened_notifier(open_kafka, {"bootstrap_servers": tansu.servers}) as notifier:
        assert await notifier.deliver(name, payload()) == Delivered()


@pytest.mark.parametrize(
    ("patterns", "name", "allowed"),
    [
        (["jobs"], "jobs", True),
        (["jobs"], "jobs2", False),
        (["jobs"], "Jobs", False),
        (["errors", "jobs-*"], "jobs-eu", True),
        (["jobs-[ab]"], "jobs-b", True),
        (["jobs-?"], "jobs-eu", False),
        (["*"], "anything", True),
        ([], "anything", True),
    ],
)
async def test_only_listed_topics(tansu: Tansu, patterns: list[str], name: str, allowed: bool) -> None:  # noqa: FBT001
    async with opened_notifier(
        open_kafka, {"bootstrap_servers": tansu.servers, "topics": patterns}
    ) as notifier:
        expected = (
            Delivered() if allowed else Rejected(f"topic {name} is not allowed by backends.kafka.topics")
        )
        assert await notifier.deliver(name, payload()) == expected


async def test_a_callback_too_large_for_a_request_is_rejected_unsent() -> None:
    async with proxied({"max_request_size": 5000}) as (proxy, _, notifier):
        assert await notifier.deliver("jobs", payload("x" * 4900)) == Delivered()
        asked = proxy.asked[0]
        traced = await notifier.deliver("jobs", replace(payload("x" * 4900), traceparent=TRACE))
        assert isinstance(traced, Rejected)
        result = await notifier.deliver("jobs", payload("x" * 5000))
        assert result == Rejected("the callback has 5013 bytes, too many for max_request_size")
        assert proxy.asked[0] == asked


async def test_a_callback_larger_than_a_batch_goes_alone(servers: str) -> None:
    name = topic()
    async with opened_notifier(open_kafka, {"bootstrap_servers": servers}) as notifier:
        for size in (BATCH_BYTES + 1, 10):
            assert await notifier.deliver(name, payload("x" * size)) == Delivered()
    assert len(await read_topic(servers, name)) == 2


@pytest.mark.row("F18")
async def test_a_callback_too_large_for_the_topic_affects_no_other() -> None:
    async with proxied({}) as (proxy, broker, notifier):
        await create_topic(broker, "one", partitions=1)
        assert await notifier.deliver("one", payload("first")) == Delivered()
        proxy.largest = 3000
        results: dict[int, Result] = {}

        async def deliver(size: int) -> None:
            results[size] = await notifier.deliver("one", payload("x" * size))

        async with trio.open_nursery() as nursery:
            for size in (1, 2, 4000, 3, 5000, 4):
                nursery.start_soon(deliver, size)
        too_large = Rejected("one: the topic does not take callbacks of this size")
        assert results == {
            **dict.fromkeys((4000, 5000), too_large),
            **dict.fromkeys((1, 2, 3, 4), Delivered()),
        }


async def test_a_topic_that_we_may_not_write_to_is_tried_again() -> None:
    async with proxied({}) as (proxy, _, notifier):
        proxy.produce_error = TOPIC_AUTHORIZATION_FAILED
        result = await notifier.deliver("jobs", payload())
        assert result == RetryLater("jobs: not authorized to write to the topic")
        proxy.produce_error = 0
        await eventually_delivered(notifier)


async def test_too_few_replicas_is_no_delivery() -> None:
    async with proxied({"timeout": 1.5}) as (proxy, _, notifier):
        assert await notifier.deliver("jobs", payload()) == Delivered()
        proxy.produce_error = NOT_ENOUGH_REPLICAS
        result = await notifier.deliver("jobs", payload())
        assert result == RetryLater("jobs: the broker answered NOT_ENOUGH_REPLICAS")
        # One that passes is waited for.
        proxy.produce_error = 0
        proxy.produce_errors.extend([NOT_ENOUGH_REPLICAS, NOT_ENOUGH_REPLICAS])
        assert await notifier.deliver("jobs", payload()) == Delivered()


async def test_tls(tmp_path: Path) -> None:
    section = {"security_protocol": "SSL", "ssl_cafile": write_authority(tmp_path)}
    async with proxied(section, tls=server_context()) as (_, _, notifier):
        assert await notifier.deliver("jobs", payload()) == Delivered()


async def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    section = {"timeout": 5.0, "security_protocol": "SSL", "ssl_cafile": write_authority(tmp_path)}
    async with proxied(section, tls=server_context("kafka.example.org")) as (_, _, notifier):
        result = await notifier.deliver("jobs", payload())
    assert isinstance(result, RetryLater)
    assert "SSL handshake failed: certificate verify failed" in result.reason
    async with proxied({**section, "ssl_check_hostname": False}, tls=server_context("kafka.example.org")) as (
        _,
        _,
        notifier,
    ):
        assert await notifier.deliver("jobs", payload()) == Delivered()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
async def test_sasl(mechanism: str) -> None:
    section = {
        "timeout": 5.0,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": "alice",
        "sasl_plain_password": "hunter2",
    }
    opened = partial(proxied, users={"alice": "hunter2"})
    async with opened(section) as (_, _, notifier):
        assert await notifier.deliver("jobs", payload()) == Delivered()
    for wrong in ({"sasl_plain_password": "hunter3"}, {"sasl_plain_username": "bob"}):
        async with opened({**section, **wrong, "timeout": 1.0}) as (proxy, _, notifier):
            result = await notifier.deliver("jobs", payload())
            assert isinstance(result, RetryLater)
            failed = f"not connected to Kafka: {proxy.servers}: SASL authentication error"
            assert result.reason.startswith(failed)
    async with opened({**section, "sasl_mechanism": "SCRAM-SHA-512", "timeout": 1.0}) as (_, _, notifier):
        result = await notifier.deliver("jobs", payload())
        assert isinstance(result, RetryLater)
        assert "Unsupported SASL mechanism" in result.reason


async def check(notifier: Notifier) -> str:
    assert isinstance(notifier, Checkable)
    return await notifier.check()


async def test_the_check_tells_of_brokers_and_topics() -> None:
    with mock_cluster() as servers:
        async with opened_notifier(open_kafka, {"bootstrap_servers": servers}) as notifier:
            assert await check(notifier) == "3 brokers, 0 topics"
            await notifier.deliver("jobs", payload())
            await notifier.deliver("errors", payload())
            assert await check(notifier) == "3 brokers, 2 topics"
        async with opened_notifier(
            open_kafka, {"bootstrap_servers": servers, "topics": ["jobs", "errors", "x-*"]}
        ) as notifier:
            assert await check(notifier) == "3 brokers, topics jobs, errors found"
        async with opened_notifier(
            open_kafka, {"bootstrap_servers": servers, "topics": ["jobs", "other"]}
        ) as notifier:
            with pytest.raises(PluginError, match="3 brokers, but no topic other"):
                await check(notifier)
