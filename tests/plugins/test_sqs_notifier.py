"""The `sqs` notifier against moto's server, and against one that answers as a test says."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from downloader.errors import DownloaderError, PluginError
from downloader.notify import Checkable, Delivered, Notifier, Payload, Rejected, Result, RetryLater
from downloader_plugins.sqs import CONNECTIONS, open_sqs
from servers import aws_front
from servers.aws import ACCOUNT, CREDENTIALS, REGION, Moto
from servers.aws_front import Exchange, Front
from servers.plugins import opened_notifier
from servers.ports import spare_port
from servers.sqs import batches, error, open_sqs_proxy, response

pytestmark = pytest.mark.slow

KEYS = {"access_key_id": "testing", "secret_access_key": "a-secret-of-tests"}
PAYLOAD = Payload(job_id="6QEywYsd0jrKAg", aggr_id="example.org", body=b'{"success":true}')
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MISSING = "AWS.SimpleQueueService.NonExistentQueue"
AT_ONCE_S = 10.0
"""For what waits for no answer, on a busy machine; who waits for one does so for longer."""


@pytest.fixture
async def proxy(moto: Moto) -> AsyncIterator[Front]:
    async with open_sqs_proxy(moto) as running:
        yield running


@asynccontextmanager
async def opened(server: Moto | Front, **more: Any) -> AsyncIterator[Notifier]:
    async with opened_notifier(
        open_sqs, {"region": REGION, "endpoint_url": server.url, **KEYS, **more}
    ) as notifier:
        yield notifier


def payload(number: int, *, group: str = "a", size: int = 0) -> Payload:
    body = json.dumps({"success": True, "number": number, "extra": "x" * size}).encode()
    return Payload(job_id=f"job{number:011}", aggr_id=group, body=body)


def create(moto: Moto, name: str = "jobs", **attributes: str) -> str:
    """A new queue; returns the URL."""
    given: Any = {**attributes, **({"FifoQueue": "true"} if name.endswith(".fifo") else {})}
    return moto.sqs.create_queue(QueueName=name, Attributes=given)["QueueUrl"]


def messages(moto: Moto, name: str = "jobs") -> list[dict[str, Any]]:
    """All messages of a consumer, in order."""
    url = moto.sqs.get_queue_url(QueueName=name)["QueueUrl"]
    found: list[dict[str, Any]] = []
    while True:
        answer = moto.sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        batch: list[dict[str, Any]] = [dict(message) for message in answer.get("Messages", [])]
        found += batch
        for message in batch:
            moto.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        if not batch:
            return found


def bodies(moto: Moto, name: str = "jobs") -> list[bytes]:
    return [message["Body"].encode() for message in messages(moto, name)]


async def deliver_all(
    notifier: Notifier, payloads: list[Payload], *, destination: str = "jobs"
) -> list[Result]:
    """Deliver all at once; returns the results in order."""
    results: dict[int, Result] = {}

    async def one(index: int) -> None:
        results[index] = await notifier.deliver(destination, payloads[index])

    async with trio.open_nursery() as nursery:
        for index in range(len(payloads)):
            nursery.start_soon(one, index)
    return [results[index] for index in range(len(payloads))]


def hold(proxy: Front, operation: str) -> trio.Event:
    """The first request of this kind waits until the event is set."""
    go = trio.Event()

    async def rule(exchange: Exchange) -> None:
        await go.wait()
        await aws_front.forward(exchange)

    proxy.on(operation, rule)
    return go


def test_it_comes_through_its_entry_point() -> None:
    (point,) = entry_points(group="downloader.notifiers.v1", name="sqs")
    assert point.load() is open_sqs


# -- destinations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jobs", "aws.com/sqs/jobs", "https://aws.com/sqs/jobs", "URL"])
async def test_every_form_of_a_destination(moto: Moto, form: str) -> None:
    url = create(moto)
    async with opened(moto) as notifier:
        assert await notifier.deliver(url if form == "URL" else form, PAYLOAD) == Delivered()
    [message] = messages(moto)
    assert message["Body"].encode() == PAYLOAD.body
    assert "MessageGroupId" not in message["Attributes"]


async def test_a_url_of_another_host_gets_no_request(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(moto) as notifier:
        answer = await notifier.deliver(f"{proxy.url}/{ACCOUNT}/jobs", PAYLOAD)
    assert answer == Rejected("the callback's destination is a URL of another host than the configured SQS")
    assert proxy.asked == []


async def test_the_trace_goes_along(moto: Moto) -> None:
    create(moto)
    async with opened(moto, timeout=60) as notifier:
        for one in (replace(PAYLOAD, traceparent=TRACE), PAYLOAD):
            assert await notifier.deliver("jobs", one) == Delivered()
    found = [each.get("MessageAttributes", {}) for each in messages(moto)]
    assert sorted(each.get("traceparent", {}).get("StringValue", "") for each in found) == ["", TRACE]


async def test_a_fifo_queue_gets_group_and_deduplication(moto: Moto) -> None:
    create(moto, "jobs.fifo")
    again = replace(PAYLOAD, aggr_id="b\u00fccher & co", retry="0f")
    async with opened(moto) as notifier:
        for one in (PAYLOAD, PAYLOAD, again, again):
            assert await notifier.deliver("jobs.fifo", one) == Delivered()
    first, second = messages(moto, "jobs.fifo")
    assert first["Attributes"]["MessageGroupId"] == "example.org"
    assert first["Attributes"]["MessageDeduplicationId"] == PAYLOAD.job_id
    assert second["Attributes"]["MessageGroupId"] == "b%C3%BCcher%20&%20co"
    assert second["Attributes"]["MessageDeduplicationId"] == f"{PAYLOAD.job_id}-0f"


async def test_a_name_is_looked_up_once(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(proxy) as notifier:
        for number in range(3):
            assert await notifier.deliver("jobs", payload(number)) == Delivered()
    assert proxy.counts == {"GetQueueUrl": 1, "SendMessageBatch": 3}


async def test_a_url_is_not_looked_up(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(proxy) as notifier:
        assert await notifier.deliver(f"{proxy.url}/{ACCOUNT}/jobs", PAYLOAD) == Delivered()
    assert proxy.counts == {"SendMessageBatch": 1}


@pytest.mark.row("F18")
async def test_a_missing_queue_is_missing_only_until_it_is_there(moto: Moto) -> None:
    missing = RetryLater(f"queue jobs does not exist or may not be used ({MISSING})")
    async with opened(moto) as notifier:
        assert await notifier.deliver("jobs", payload(1)) == missing
        assert await notifier.deliver(f"{moto.url}/{ACCOUNT}/jobs", payload(1)) == missing
        create(moto)
        assert await notifier.deliver("jobs", payload(2)) == Delivered()
        assert await notifier.deliver(f"{moto.url}/{ACCOUNT}/jobs", payload(3)) == Delivered()
        moto.reset()
        assert await notifier.deliver("jobs", payload(4)) == missing
        create(moto)
        assert await notifier.deliver("jobs", payload(5)) == Delivered()
    assert bodies(moto) == [payload(5).body]


# -- the allow-list -----------------------------------------------------------------------------------


async def test_only_listed_queues(moto: Moto, proxy: Front) -> None:
    create(moto)
    create(moto, "secret")
    async with opened(proxy, queues=["jo*", "other"]) as notifier:
        assert await notifier.deliver("jobs", payload(1)) == Delivered()
        assert await notifier.deliver("aws.com/sqs/jobs", payload(2)) == Delivered()
        asked = len(proxy.asked)
        for destination in ("secret", f"{proxy.url}/{ACCOUNT}/secret", "JOBS", "jobs/../secret"):
            assert isinstance(await notifier.deliver(destination, payload(3)), Rejected), destination
        assert await notifier.deliver("secret", payload(3)) == Rejected(
            "queue secret is not one of backends.sqs.queues"
        )
        assert len(proxy.asked) == asked
    assert bodies(moto, "secret") == []


async def test_a_listed_name_is_that_of_our_own_account(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(proxy, queues=["jobs"]) as notifier:
        foreign = f"{proxy.url}/999999999999/jobs"
        answer = await notifier.deliver(foreign, payload(1))
        assert answer == Rejected(f"{foreign} is not the queue jobs of this account")
        assert await notifier.deliver(f"{proxy.url}/{ACCOUNT}/jobs", payload(2)) == Delivered()
    assert bodies(moto) == [payload(2).body]


async def test_a_listed_url_may_be_of_another_account(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(proxy, queues=[f"{proxy.url}/999999999999/*"]) as notifier:
        foreign = f"{proxy.url}/999999999999/jobs"
        await notifier.deliver(foreign, payload(1))
        assert isinstance(await notifier.deliver("jobs", payload(2)), Rejected)
    [asked] = proxy.asked
    assert json.loads(asked.body)["QueueUrl"] == foreign


# -- batches ------------------------------------------------------------------------------------------


async def test_items_that_wait_together_share_a_call(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(proxy) as notifier:
        go = hold(proxy, "SendMessageBatch")
        async with trio.open_nursery() as nursery:
            results: list[Result] = []

            async def send(payloads: list[Payload]) -> None:
                results.extend(await deliver_all(notifier, payloads))

            nursery.start_soon(send, [payload(0)])
            await proxy.seen("SendMessageBatch")
            nursery.start_soon(send, [payload(number) for number in range(1, 25)])
            await trio.testing.wait_all_tasks_blocked(0.02)
            go.set()
        assert results == [Delivered()] * 25
    # The lone one has gone at once; the others are as many as fit.
    assert [len(batch) for batch in batches(proxy)] == [1, 10, 10, 4]
    assert sorted(bodies(moto)) == sorted(payload(number).body for number in range(25))


async def test_batches_stay_below_what_every_sqs_takes(moto: Moto, proxy: Front) -> None:
    create(moto)
    sizes = [100_000, 100_000, 100_000, 300_000, 10, 200_000]
    payloads = [payload(number, size=size) for number, size in enumerate(sizes)]
    async with opened(proxy) as notifier:
        assert await deliver_all(notifier, payloads) == [Delivered()] * len(sizes)
    sent = [[len(entry["MessageBody"]) for entry in batch] for batch in batches(proxy)]
    several = [batch for batch in sent if len(batch) > 1]
    assert several
    assert all(sum(batch) <= 256 * 1024 for batch in several)
    assert sorted(bodies(moto)) == sorted(one.body for one in payloads)


async def test_queues_do_not_wait_for_each_other(moto: Moto, proxy: Front) -> None:
    create(moto)
    create(moto, "other")

    async def only_other(exchange: Exchange) -> None:
        body = await exchange.body()
        if json.loads(body)["QueueUrl"].endswith("/jobs"):
            await trio.sleep_forever()
        await exchange.send(await exchange.ask_moto(body))

    proxy.on("SendMessageBatch", only_other)
    async with opened(proxy) as notifier, trio.open_nursery() as nursery:
        nursery.start_soon(notifier.deliver, "jobs", payload(1))
        await proxy.seen("SendMessageBatch")
        assert await notifier.deliver("other", payload(2)) == Delivered()
        nursery.cancel_scope.cancel()


async def test_each_message_is_judged_by_itself(moto: Moto, proxy: Front) -> None:
    create(moto)
    body = {
        "Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "x"}],
        "Failed": [
            {"Id": "1", "Code": "InternalError", "SenderFault": False},
            {"Id": "2", "Code": "InvalidMessageContents", "SenderFault": True, "Message": "secret"},
        ],
    }
    proxy.on("SendMessageBatch", aws_front.answer(response(200, json.dumps(body).encode())))
    async with opened(proxy) as notifier:
        results = await deliver_all(notifier, [payload(number) for number in range(4)])
    assert sorted(results, key=str) == sorted(
        [
            Delivered(),
            RetryLater("SQS refused the message: InternalError"),
            Rejected("SQS refused the message: InvalidMessageContents"),
            RetryLater("SQS gave no result for the message"),
        ],
        key=str,
    )


async def test_one_message_too_large_for_the_queue_spoils_no_other(moto: Moto) -> None:
    create(moto, MaximumMessageSize="2048")
    payloads = [payload(1), payload(2, size=5000), payload(3)]
    async with opened(moto) as notifier:
        results = await deliver_all(notifier, payloads)
    assert results == [Delivered(), Rejected("SQS answered 400 InvalidParameterValue"), Delivered()]
    assert sorted(bodies(moto)) == [payloads[0].body, payloads[2].body]


@pytest.mark.parametrize("trace", ["", TRACE])
@pytest.mark.parametrize(("size", "taken"), [(1024 * 1024, True), (1024 * 1024 + 1, False)])
async def test_the_largest_message(moto: Moto, proxy: Front, size: int, trace: str, taken: bool) -> None:  # noqa: FBT001 - of a table
    create(moto, MaximumMessageSize="1048576")
    attribute = len("traceparent" + "String" + trace) if trace else 0
    body = b'"' + b"x" * (size - attribute - 2) + b'"'
    async with opened(proxy, timeout=60) as notifier:
        answer = await notifier.deliver(
            "jobs", Payload(job_id="a", aggr_id="a", body=body, traceparent=trace)
        )
    assert answer == (Delivered() if taken else Rejected("the callback has 1048577 bytes; SQS takes 1048576"))
    assert bool(proxy.asked) == taken


async def test_a_fifo_queue_keeps_the_order_of_arrival(moto: Moto, proxy: Front) -> None:
    create(moto, "jobs.fifo")
    payloads = [payload(number, group="ab"[number % 2]) for number in range(23)]
    async with opened(proxy) as notifier:
        results = [trio.Event() for _ in payloads]

        async def one(index: int) -> None:
            assert await notifier.deliver("jobs.fifo", payloads[index]) == Delivered()
            results[index].set()

        async with trio.open_nursery() as nursery:
            for index in range(len(payloads)):
                nursery.start_soon(one, index)
                await trio.testing.wait_all_tasks_blocked()
    sent = [entry["MessageBody"].encode() for batch in batches(proxy) for entry in batch]
    assert sent == [one.body for one in payloads]
    groups = {entry["MessageGroupId"] for batch in batches(proxy) for entry in batch}
    assert groups == {"a", "b"}


# -- failures -----------------------------------------------------------------------------------------


MAY_PASS = [
    (error(400, "RequestThrottled"), "SQS answered 400 RequestThrottled"),
    (error(400, "ThrottlingException"), "SQS answered 400 ThrottlingException"),
    (error(403, "AccessDeniedException"), "SQS answered 403 AccessDeniedException"),
    (error(403, "InvalidClientTokenId"), "SQS answered 403 InvalidClientTokenId"),
    (error(400, "KmsThrottled"), "SQS answered 400 KmsThrottled"),
    (error(500, "InternalFailure"), "SQS answered 500 InternalFailure"),
    (error(400, MISSING), f"queue jobs does not exist or may not be used ({MISSING})"),
    (aws_front.response(500, b"oops", Content_Type="text/html"), "SQS answered 500"),
    (aws_front.response(503, Content_Type="text/plain"), "SQS answered 503"),
    (aws_front.response(301, Location="http://127.0.0.1:1/"), "SQS answered 301"),
    (response(200, b"{}"), "SQS gave no result for the message"),
    (response(200, b'{"Successful":[{"Id":"7"}]}'), "SQS gave no result for the message"),
    (aws_front.response(200, b"<html>", Content_Type="text/html"), "SQS gave no result for the message"),
    (response(200, b"[]"), "SQS: invalid answer"),
    (response(200, b"null"), "SQS: invalid answer"),
    (response(200, b'{"Successful":5,"QueueUrl":5}'), "SQS: invalid answer"),
    (response(200, b'{"Successful":[5]}'), "SQS: invalid answer"),
    (b"garbage\r\n\r\n", "SQS: connection lost"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "SQS gave no result for the message"),
    (b"", "SQS: connection lost"),
]
"""Answers, and what is made of them."""


@pytest.mark.parametrize("operation", ["SendMessageBatch", "GetQueueUrl"])
@pytest.mark.row("F18")
async def test_a_temporary_error_is_retried(moto: Moto, proxy: Front, operation: str) -> None:
    create(moto)
    async with opened(proxy) as notifier:
        for answer, reason in MAY_PASS:
            proxy.asked.clear()
            proxy.on(operation, aws_front.answer(answer))
            found = await notifier.deliver("jobs", PAYLOAD)
            if operation == "SendMessageBatch" or not answer.startswith(b"HTTP/1.1 200"):
                assert found == RetryLater(reason), answer
            else:
                assert found == RetryLater("SQS: invalid answer"), answer
            assert proxy.counts[operation] == 1, "boto3 repeats nothing by itself"
            # What had been looked up does not hide the next failure to look it up.
            assert await notifier.deliver("jobs", PAYLOAD) == found
        proxy.heal()
        assert await notifier.deliver("jobs", PAYLOAD) == Delivered()
    assert bodies(moto) == [PAYLOAD.body]


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch, moto: Moto) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    async with opened_notifier(open_sqs, {"region": REGION, "endpoint_url": moto.url}) as notifier:
        assert await notifier.deliver("jobs", PAYLOAD) == RetryLater("SQS: no credentials were found")


@pytest.mark.row("F18")
async def test_a_silent_sqs_is_given_up(moto: Moto, proxy: Front) -> None:
    create(moto)
    proxy.on("*", aws_front.hang)
    async with opened(proxy, timeout=0.4) as notifier:
        with trio.fail_after(AT_ONCE_S):
            results = await deliver_all(notifier, [payload(number) for number in range(12)])
        for answer in results:
            assert isinstance(answer, RetryLater)
            assert answer.reason in ("SQS gave no answer within 0.4 s", "SQS: no answer in time")
        proxy.heal()
        with trio.fail_after(20):
            while await notifier.deliver("jobs", PAYLOAD) != Delivered():
                pass


async def test_a_cancel_is_heeded_at_once_and_so_is_closing(moto: Moto, proxy: Front) -> None:
    names = [f"jobs-{number}" for number in range(CONNECTIONS + 1)]
    for name in names:
        create(moto, name)
    proxy.on("*", aws_front.hang)
    manager = opened(proxy, timeout=6 * AT_ONCE_S)
    notifier = await manager.__aenter__()
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(notifier.deliver, name, PAYLOAD)
        await proxy.seen("GetQueueUrl", CONNECTIONS)
        began = time.monotonic()
        nursery.cancel_scope.cancel()
    await manager.__aexit__(None, None, None)
    assert time.monotonic() - began < AT_ONCE_S
    assert len(proxy.asked) == CONNECTIONS


async def test_a_message_withdrawn_before_it_leaves_is_not_sent(moto: Moto, proxy: Front) -> None:
    create(moto)
    async with opened(proxy) as notifier:
        go = hold(proxy, "SendMessageBatch")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.deliver, "jobs", payload(1))
            await proxy.seen("SendMessageBatch")
            with trio.move_on_after(0.02):
                await notifier.deliver("jobs", payload(2))
            go.set()
        assert await notifier.deliver("jobs", payload(3)) == Delivered()
    assert bodies(moto) == [payload(1).body, payload(3).body]


# -- the section --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reigon": "x"}, r"reigon: there is no such key; did you mean region\?"),
        ({"region": 7}, "region: "),
        ({"region": "x y"}, "region: Provided region_name 'x y'"),
        ({"timeout": 0}, "timeout: "),
        ({"timeout": "inf"}, "timeout: "),
        ({"queues": "jobs"}, "queues: "),
        ({"endpoint_url": "localhost:4566"}, "endpoint_url: must be an absolute http or https URL"),
        ({"endpoint_url": "http://user:canary@x"}, "endpoint_url: must be an absolute http or https URL"),
        ({"access_key_id": "canary"}, "access_key_id and secret_access_key: both are required"),
        (
            {"secret_access_key": "canary"},
            "access_key_id and secret_access_key: both are required, or neither",
        ),
        ({"session_token": "canary"}, "session_token: needs access_key_id"),
        ({"profile": "p", **KEYS}, "profile: cannot be used together with access_key_id"),
        ({"profile": "nobody"}, r"profile: The config profile \(nobody\) could not be found"),
    ],
)
async def test_a_section_at_fault_is_one_clear_line(section: Mapping[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"^{message}") as caught:
        async with opened_notifier(open_sqs, {"region": REGION, **section}):
            pass
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)


async def test_a_region_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(PluginError, match=r"^region: is required, as boto3 finds none$"):
        async with opened_notifier(open_sqs, {}):
            pass


async def test_an_endpoint_of_the_environment_is_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://user:canary@127.0.0.1:9")
    with pytest.raises(PluginError, match=r"^endpoint_url, as boto3 finds it, must be") as caught:
        async with opened_notifier(open_sqs, {"region": REGION}):
            pass
    assert "canary" not in str(caught.value)


async def test_region_and_credentials_come_as_boto3_finds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, proxy: Front, moto: Moto
) -> None:
    create(moto)
    config = tmp_path / "config"
    config.write_text(
        "[profile ours]\nregion = ap-south-1\naws_access_key_id = OURS\naws_secret_access_key = x\n"
        f"endpoint_url = {proxy.url}\n"
    )
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    async with opened_notifier(open_sqs, {"endpoint_url": proxy.url}) as notifier:
        await notifier.deliver("jobs", PAYLOAD)
    assert "Credential=testing/" in proxy.asked[-1].headers["authorization"]
    assert "/eu-north-1/sqs/" in proxy.asked[-1].headers["authorization"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION"):  # they win over a profile
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    async with opened_notifier(open_sqs, {"profile": "ours"}) as notifier:
        await notifier.deliver("jobs", PAYLOAD)
    assert "Credential=OURS/" in proxy.asked[-1].headers["authorization"]
    assert "/ap-south-1/sqs/" in proxy.asked[-1].headers["authorization"]


async def test_at_aws_a_url_tells_the_region_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with opened_notifier(open_sqs, {"region": REGION}) as notifier:
        endpoints = notifier.endpoints  # type: ignore[attr-defined]
        regions = notifier.regions  # type: ignore[attr-defined]
        assert (endpoints.region, endpoints.origin) == (REGION, "")
        assert endpoints.hosts[f"sqs.{REGION}.amazonaws.com"] == REGION
        assert endpoints.hosts["queue.amazonaws.com"] == "us-east-1"
        # The environment may redirect the configured region, not another one.
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        for region, host in {
            REGION: f"sqs.{REGION}.amazonaws.com",
            "us-gov-west-1": "sqs.us-gov-west-1.amazonaws.com",
            "cn-north-1": "sqs.cn-north-1.amazonaws.com.cn",
        }.items():
            opened_region = await regions.get(region)
            assert opened_region.client.meta.endpoint_url == f"https://{host}"
            assert endpoints.hosts[host] == region


async def test_a_vpc_endpoint_serves_the_queues_of_its_region() -> None:
    endpoint = "https://vpce-1-abc.sqs.eu-west-2.vpce.amazonaws.com"
    async with opened_notifier(open_sqs, {"region": REGION, "endpoint_url": endpoint, **KEYS}) as notifier:
        endpoints = notifier.endpoints  # type: ignore[attr-defined]
        assert endpoints.origin == endpoint
        assert set(endpoints.hosts) == {f"sqs.{REGION}.amazonaws.com", f"{REGION}.queue.amazonaws.com"}


# -- the check ----------------------------------------------------------------------------------------


async def test_the_check_finds_what_the_list_names(moto: Moto) -> None:
    create(moto)
    async with opened(moto, queues=["jobs", "more-*"]) as notifier:
        assert await check(notifier) == f"{moto.url}: found jobs"
    async with opened(moto, queues=["jobs", "absent"]) as notifier:
        with pytest.raises(DownloaderError, match=f"queue absent does not exist.*{MISSING}"):
            await check(notifier)
    assert bodies(moto) == []


async def test_the_check_without_names(moto: Moto, proxy: Front) -> None:
    async with opened(proxy) as notifier:
        assert await check(notifier) == f"{proxy.url}: answers, and has no queue"
        create(moto)
        assert await check(notifier) == f"{proxy.url}: answers"
        proxy.on("ListQueues", aws_front.answer(error(403, "AccessDeniedException")))
        assert "sqs:ListQueues" in await check(notifier)
        proxy.on("ListQueues", aws_front.answer(error(403, "InvalidClientTokenId", "no such key")))
        with pytest.raises(DownloaderError, match=r"^SQS answered 403 InvalidClientTokenId: no such key$"):
            await check(notifier)


async def test_the_check_is_bounded(proxy: Front) -> None:
    proxy.on("*", aws_front.hang)
    async with opened(proxy, timeout=0.1) as notifier:
        with pytest.raises(DownloaderError, match="SQS gave no answer"):
            await check(notifier)
    async with opened_notifier(
        open_sqs, {"region": REGION, "endpoint_url": f"http://127.0.0.1:{spare_port()}", **KEYS}
    ) as notifier:
        with pytest.raises(DownloaderError, match=r"^SQS: not connected"):
            await check(notifier)


async def check(notifier: Notifier) -> str:
    assert isinstance(notifier, Checkable)
    return await notifier.check()
