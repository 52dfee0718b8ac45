"""`[[backends.http.destinations]]`: what differs for some destinations, against a real receiver."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trustme
from standardwebhooks import Webhook

from downloader.errors import PluginError
from downloader.notify import Checkable, Delivered, Notifier, Payload, Result, RetryLater
from downloader.webhooks import verify_batch
from servers.ports import spare_port
from servers.webhooks import PAYLOAD, Receiver, opened, receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_YW5vdGhlci1zZWNyZXQtb2YtMzItYnl0ZXMtbG9uZyE="


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


def section(*destinations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"destinations": list(destinations), **more}


def signed_by(secret: str, headers: dict[str, str], body: bytes) -> bool:
    try:
        Webhook(secret).verify(body, {**headers}, json_parse=False)
    except Exception:  # noqa: BLE001 - of any kind
        return False
    return True


async def test_the_longest_match_wins(receiver: Receiver) -> None:
    configured = section(
        {"match": receiver.url(""), "headers": {"X-Of": "origin"}},
        {"match": receiver.url("/a/b"), "headers": {"X-Of": "path"}, "secret": OTHER},
        {"match": receiver.url("", host="localhost"), "headers": {"X-Of": "other"}},
        secret=SECRET,
    )
    paths = ["/", "/a", "/a/bc", "/a/b", "/a/b/c?d", "/a/b?d"]
    async with opened(configured) as notifier:
        for path in paths:
            assert await notifier.deliver(receiver.url(path), PAYLOAD) == Delivered()
    of = [headers["x-of"] for _, headers, _ in receiver.requests]
    assert of == ["origin", "origin", "origin", "path", "path", "path"]
    (_, first, body), (_, last, _) = receiver.requests[0], receiver.requests[-1]
    assert signed_by(SECRET, first, body)
    assert not signed_by(OTHER, first, body)
    assert signed_by(OTHER, last, body)
    assert not signed_by(SECRET, last, body)


@pytest.mark.parametrize("path", ["/a/../b", "/a/%2e%2e/b", "/a/%252e%252e/b", "/a/..;/b"])
async def test_a_path_that_climbs_gets_no_headers_of_another_receiver(receiver: Receiver, path: str) -> None:
    async with opened(section({"match": receiver.url("/a"), "headers": {"X-Token": "t"}})) as notifier:
        assert await notifier.deliver(receiver.url(path), PAYLOAD) == Delivered()
    ((_, headers, _),) = receiver.requests
    assert "x-token" not in headers


async def test_a_configured_header_replaces_the_usual_one(receiver: Receiver) -> None:
    async with opened(section({"match": receiver.url(""), "headers": {"user-agent": "me"}})) as notifier:
        assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()
    ((_, headers, _),) = receiver.requests
    assert headers["user-agent"] == "me"


async def test_a_destination_has_its_own_timeout(receiver: Receiver) -> None:
    async def silence(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1)

    receiver.answer = silence
    async with opened(section({"match": receiver.url(""), "timeout": 0.05})) as notifier:
        assert await notifier.deliver(receiver.url(), PAYLOAD) == RetryLater("no answer within 0.05 s")


async def test_a_receiver_that_demands_a_certificate_gets_it(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("us@example.org").private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    files = {"ca_file": str(tmp_path / "ca.pem"), "certfile": str(tmp_path / "me.pem")}
    async with receiving(context) as receiver:
        url = receiver.url(scheme="https")
        async with opened(section({"match": receiver.url("", scheme="https"), **files})) as notifier:
            assert await notifier.deliver(url, PAYLOAD) == Delivered()


async def test_cloudevents_are_headers_and_the_body_stays(receiver: Receiver) -> None:
    async with opened(section({"match": receiver.url(""), "format": "cloudevents"})) as notifier:
        assert await notifier.deliver(receiver.url(), replace(PAYLOAD, retry="r1")) == Delivered()
    ((_, headers, body),) = receiver.requests
    assert body == PAYLOAD.body
    assert {name: value for name, value in headers.items() if name.startswith("ce-")} == {
        "ce-specversion": "1.0",
        "ce-type": "downloader.callback",
        "ce-source": "/downloader",
        "ce-id": f"{PAYLOAD.job_id}-r1",
        "ce-subject": PAYLOAD.job_id,
    }
    assert headers["content-type"] == "application/json"


def payloads(count: int) -> list[Payload]:
    return [
        Payload(job_id=f"{place:014}", aggr_id="a", body=b'{"job_id":"%014d"}' % place)
        for place in range(count)
    ]


async def delivered(notifier: Notifier, url: str, batch: Sequence[Payload]) -> list[Result]:
    """The results of callbacks that come at the same time."""
    results: dict[str, Result] = {}

    async def deliver(payload: Payload) -> None:
        results[payload.job_id] = await notifier.deliver(url, payload)

    async with trio.open_nursery() as nursery:
        for payload in batch:
            nursery.start_soon(deliver, payload)
    return [results[payload.job_id] for payload in batch]


def ids(body: bytes) -> list[str]:
    return sorted(payload["job_id"] for payload in json.loads(body))


def answering(status: str, text: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


async def test_a_batch_is_one_signed_request(receiver: Receiver) -> None:
    batch = payloads(5)
    wanted = section({"match": receiver.url(""), "batch": 3, "batch_wait": 0.01}, secret=SECRET)
    async with opened(wanted) as notifier:
        assert await delivered(notifier, receiver.url(), batch) == [Delivered()] * 5
    sizes = [len(json.loads(body)) for _, _, body in receiver.requests]
    assert sorted(sizes) == [2, 3]
    sent = [job_id for _, _, body in receiver.requests for job_id in ids(body)]
    assert sorted(sent) == [payload.job_id for payload in batch]
    assert all(signed_by(SECRET, headers, body) for _, headers, body in receiver.requests)


async def test_the_id_of_a_batch_is_stable(receiver: Receiver) -> None:
    batch = payloads(3)
    receiver.answer = answering("500 X", "")
    async with opened(section({"match": receiver.url(""), "batch": 3, "batch_wait": 0.01})) as notifier:
        for again in (batch, batch[::-1]):
            results = await delivered(notifier, receiver.url(), again)
            assert results == [RetryLater("Received Status code 500 Internal Server Error")] * 3
        await delivered(notifier, receiver.url(), batch[:2])
    first, second, other = [headers["webhook-id"] for _, headers, _ in receiver.requests]
    assert first == second != other


async def test_a_receiver_rejects_some_of_a_batch(receiver: Receiver) -> None:
    batch = payloads(3)
    receiver.answer = answering("207 Multi-Status", json.dumps({"rejected": [batch[1].job_id, 7]}))
    again = RetryLater("rejected by the receiver of the batch")
    async with opened(section({"match": receiver.url(""), "batch": 3, "batch_wait": 0.01})) as notifier:
        results = await delivered(notifier, receiver.url(), batch)
    assert results == [Delivered(), again, Delivered()]


@pytest.mark.parametrize("text", ["", "[]", "{", "7", '{"rejected": 7}', '{"rejected": [[]]}', "[" * 9999])
async def test_any_other_response_accepts_the_batch(receiver: Receiver, text: str) -> None:
    receiver.answer = answering("200 OK", text)
    async with opened(section({"match": receiver.url(""), "batch": 3, "batch_wait": 0.01})) as notifier:
        assert await delivered(notifier, receiver.url(), payloads(2)) == [Delivered()] * 2


async def test_a_silent_receiver_of_batches_bounds_all_waits(receiver: Receiver) -> None:
    async def silence(stream: trio.abc.Stream) -> None:
        await stream.receive_some(1)

    receiver.answer = silence
    wanted = {"match": receiver.url(""), "batch": 2, "batch_wait": 0.01, "timeout": 0.1}
    async with opened(section(wanted)) as notifier:
        results = await delivered(notifier, receiver.url(), payloads(12))
    reasons = {result.reason for result in results if isinstance(result, RetryLater)}
    assert reasons == {"no answer within 0.1 s", "the batches ahead took too long"}
    assert len(receiver.requests) <= 3


async def test_only_those_of_a_batch_that_have_waited_too_long_are_not_sent(receiver: Receiver) -> None:
    old, new = payloads(2)
    now = trio.current_time()
    async with opened(section({"match": receiver.url(""), "batch": 2})) as notifier:
        send = cast("Any", notifier).send_batch
        results = await send([(receiver.url(), old, now - 1), (receiver.url(), new, now + 60)])
    assert results == [RetryLater("the batches ahead took too long"), Delivered()]
    [(_, _, body)] = receiver.requests
    assert ids(body) == [new.job_id]


async def test_a_response_that_is_cut_short_accepts_nothing(receiver: Receiver) -> None:
    async def cut(stream: trio.abc.Stream) -> None:
        await stream.send_all(b'HTTP/1.1 207 X\r\nContent-Length: 99\r\n\r\n{"rej')

    receiver.answer = cut
    async with opened(section({"match": receiver.url(""), "batch": 2, "batch_wait": 0.01})) as notifier:
        results = await delivered(notifier, receiver.url(), payloads(2))
    assert results == [RetryLater("the response to the batch was cut short")] * 2


def test_a_batch_is_verified_and_parsed() -> None:
    body = b"[]"
    moment = datetime.now(UTC)
    headers = {
        "webhook-id": "batch-1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("batch-1", moment, body.decode()),
    }
    assert verify_batch(headers=headers, body=body, secrets=SECRET) == []


async def test_doctor_asks_each_destination(receiver: Receiver) -> None:
    async def respond(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 405 X\r\nContent-Length: 0\r\n\r\n")

    receiver.answer = respond
    async with opened(section({"match": receiver.url("/hook")})) as notifier:
        assert isinstance(notifier, Checkable)
        assert await notifier.check() == "1 configured destinations respond"
    port = spare_port()
    async with opened(section({"match": f"http://127.0.0.1:{port}"})) as notifier:
        assert isinstance(notifier, Checkable)
        with pytest.raises(PluginError, match=rf"^http://127\.0\.0\.1:{port}: "):
            await notifier.check()


WRONG = [
    ({}, r"destinations\.0\.match: "),
    ({"match": "ftp://a"}, r"destinations\.0\.match: must begin with http or https"),
    ({"match": "https://a/?b"}, r"destinations\.0\.match: has a user, a query or a fragment"),
    ({"match": "https://a/%2e%2e/b"}, r"destinations\.0\.match: has \.\. in its path"),
    ({"match": "https://a", "header": {}}, r"destinations\.0\.header: there is no such key"),
    ({"match": "https://a", "headers": {"Host": "b"}}, r"destinations\.0\.headers: Host cannot be set"),
    ({"match": "https://a", "headers": {"webhook-id": "b"}}, r"headers: webhook-id cannot be set"),
    ({"match": "https://a", "headers": {"X": "a\nb"}}, r"destinations\.0\.headers\.X: "),
    ({"match": "https://a", "secret": "x"}, r"destinations\.0\.secret: a Standard Webhooks secret"),
    ({"match": "https://a", "concurrency": 0}, r"destinations\.0\.concurrency: "),
    ({"match": "https://a", "rate": 0}, r"destinations\.0\.rate: "),
    ({"match": "https://a/b", "rate": 1}, r"destinations\.0\.rate: needs a match without a path"),
    (
        {"match": "https://a/b", "concurrency": 1},
        r"destinations\.0\.concurrency: needs a match without a path",
    ),
    ({"match": "https://a", "keyfile": "k"}, r"destinations\.0\.keyfile: needs certfile"),
    ({"match": "https://a", "certfile": "/none"}, r"destinations\.0\.certfile: /none cannot be used"),
    ({"match": "https://a", "batch": 0}, r"destinations\.0\.batch: "),
    ({"match": "https://a", "batch": 2, "format": "cloudevents"}, r"destinations\.0\.format: "),
]


@pytest.mark.parametrize(("destination", "message"), WRONG)
async def test_a_wrong_destination_is_one_clear_error(destination: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        async with opened(section(destination)):
            pass


@pytest.mark.parametrize("again", ["HTTPS://A.test:443", "https://a.test/"])
async def test_two_destinations_with_one_match_are_refused(again: str) -> None:
    destinations = [{"match": match, "concurrency": 1} for match in ("https://a.test", "http://b", again)]
    with pytest.raises(PluginError, match=r"^destinations\.2\.match: is that of destinations\.0 too$"):
        async with opened(section(*destinations)):
            pass
