"""The `http` notifier against a real server on loopback that behaves in every way that peers do."""

import base64
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import trio
from standardwebhooks import Webhook, WebhookVerificationError

from downloader.errors import PluginError
from downloader.net.stream import Stream
from downloader.notify import Delivered, Notifier, Rejected, RetryLater
from downloader_plugins.http import open_http
from servers.hostile_urls import HOSTILE_URLS
from servers.loopback import Changed
from servers.plugins import opened_notifier
from servers.webhooks import OK, PAYLOAD, Receiver, opened, receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another-secret-of-32-bytes-long!").decode()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
async def notifier() -> AsyncIterator[Notifier]:
    async with opened() as running:
        yield running


def test_it_comes_through_its_entry_point() -> None:
    (point,) = entry_points(group="downloader.notifiers.v1", name="http")
    assert point.load() is open_http


async def test_a_callback_as_the_peer_sees_it(receiver: Receiver, notifier: Notifier) -> None:
    url = f"http://user%40x:p%3Aw@localhost:{receiver.port}/a%20b?x=1&y=\u00fc#fragment"
    assert await notifier.deliver(url, PAYLOAD) == Delivered()
    ((line, headers, body),) = receiver.requests
    assert line == "POST /a%20b?x=1&y=%C3%BC HTTP/1.1"
    assert body == PAYLOAD.body
    assert headers["host"] == f"localhost:{receiver.port}"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == "downloader"
    assert headers["content-length"] == str(len(PAYLOAD.body))
    assert headers["authorization"] == "Basic " + base64.b64encode(b"user@x:p:w").decode()
    assert headers["webhook-id"] == PAYLOAD.job_id
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 10
    assert "webhook-signature" not in headers
    assert "traceparent" not in headers
    assert "transfer-encoding" not in headers


async def test_a_callback_carries_the_trace_of_its_job(receiver: Receiver, notifier: Notifier) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert await notifier.deliver(receiver.url(), replace(PAYLOAD, traceparent=trace)) == Delivered()
    ((_, headers, _),) = receiver.requests
    assert headers["traceparent"] == trace


@pytest.mark.parametrize(
    "status", [b"200 OK", b"201 Created", b"202 Accepted", b"204 No Content", b"299 Odd"]
)
async def test_any_2xx_is_delivered(receiver: Receiver, notifier: Notifier, status: bytes) -> None:
    receiver.answer = (
        b"HTTP/1.1 " + status + b"\r\n" + (b"" if status[:3] == b"204" else b"Content-Length: 0\r\n")
    )
    receiver.answer += b"\r\n"
    assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()


@pytest.mark.parametrize(
    ("status", "result"),
    [
        ("500 Oops", RetryLater("Received Status code 500 Internal Server Error")),
        ("503 <b>", RetryLater("Received Status code 503 Service Unavailable")),
        ("404 Not Found", RetryLater("Received Status code 404 Not Found")),
        ("999 Odd", RetryLater("Received Status code 999")),
        ("410 Gone", Rejected("Received Status code 410 Gone")),
    ],
)
@pytest.mark.row("F16")
async def test_other_statuses(
    receiver: Receiver, notifier: Notifier, status: str, result: RetryLater | Rejected
) -> None:
    receiver.answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    assert await notifier.deliver(receiver.url(), PAYLOAD) == result


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
@pytest.mark.row("F16")
async def test_redirects_are_failures_and_not_followed(
    receiver: Receiver, notifier: Notifier, status: str
) -> None:
    location = receiver.url("/other")
    text = f"HTTP/1.1 {status}\r\nLocation: {location}\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"
    receiver.answer = text.encode()
    assert await notifier.deliver(receiver.url(), PAYLOAD) == RetryLater(
        f"Received Status code {status}: redirects are not followed"
    )
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", None),
        ("99999999999999999999", 86400.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("\u00b2", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015", None),
        ("Wed, 1 Oct 2015 07:28:00 +99999999999999999999", None),
        ("Wed, 99999999999999999999 Oct 2015 07:28:00 GMT", None),
        ("Thu, 24 Dec 2099 12:00:00 GMT", 86400.0),
    ],
)
@pytest.mark.row("F16")
async def test_retry_after(
    receiver: Receiver, notifier: Notifier, header: str, seconds: float | None
) -> None:
    text = f"HTTP/1.1 429 Too Many Requests\r\nRetry-After: {header}\r\nContent-Length: 0\r\n\r\n"
    receiver.answer = text.encode("latin-1")
    assert await notifier.deliver(receiver.url(), PAYLOAD) == RetryLater(
        "Received Status code 429 Too Many Requests", seconds
    )


async def test_retry_after_as_a_date(receiver: Receiver, notifier: Notifier) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    receiver.answer = f"HTTP/1.1 503 Busy\r\nRetry-After: {when}\r\nContent-Length: 0\r\n\r\n".encode()
    result = await notifier.deliver(receiver.url(), PAYLOAD)
    assert isinstance(result, RetryLater)
    assert result.after_s is not None
    assert 90 < result.after_s <= 100


async def test_a_dripped_head_meets_the_deadline(receiver: Receiver) -> None:
    async def drip(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\n")
        while True:
            await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n"[:1])
            await trio.sleep(0.005)

    receiver.answer = drip
    async with opened({"timeout": 0.1}) as notifier:
        assert await notifier.deliver(receiver.url(), PAYLOAD) == RetryLater("no answer within 0.1 s")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "connection closed without a response"),
        (b"SMTP ready\r\n\r\n", "malformed HTTP response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "malformed HTTP response"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "malformed HTTP response",
        ),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "more than 64 KiB of response"),
    ],
    ids=["nothing", "smtp", "length", "upgrade", "head"],
)
async def test_an_invalid_answer_is_retried(
    receiver: Receiver, notifier: Notifier, answer: bytes, reason: str
) -> None:
    async def speak(stream: trio.abc.Stream) -> None:
        await stream.send_all(answer)

    receiver.answer = speak
    result = await notifier.deliver(receiver.url(), PAYLOAD)
    assert result == RetryLater(reason)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX\0: "])
async def test_a_peer_that_echoes_our_request_leaks_nothing(
    receiver: Receiver, notifier: Notifier, before: bytes
) -> None:
    async def echo(stream: trio.abc.Stream) -> None:
        line, headers, _ = receiver.requests[-1]
        await stream.send_all(before + f"{line}; {headers['authorization']}\r\n\r\n".encode())

    receiver.answer = echo
    url = receiver.url("/hook?token=canary", host="us:canary@127.0.0.1")
    assert await notifier.deliver(url, PAYLOAD) == RetryLater("malformed HTTP response")


def counted(notifier: Notifier) -> list[int]:
    """The sizes of the reads of the connections."""
    taken: list[int] = []

    def count(stream: Stream) -> None:
        receive = stream.receive

        async def counting(max_bytes: int) -> bytes:
            data = await receive(max_bytes)
            taken.append(len(data))
            return data

        stream.receive = counting  # type: ignore[method-assign] # to count

    Changed(notifier.transport, count)  # type: ignore[attr-defined] # ours
    return taken


async def test_large_hints_count_as_part_of_the_answer(receiver: Receiver) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 30_000 + b"\r\n\r\n"

    async def flood(stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(hint * 10 + OK)

    receiver.answer = flood
    async with opened() as notifier:
        taken = counted(notifier)
        assert await notifier.deliver(receiver.url(), PAYLOAD) == RetryLater("more than 64 KiB of response")
    assert 0 < sum(taken) <= 64 * 1024


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.row("F16")
async def test_of_a_huge_answer_only_64_kib_are_read(receiver: Receiver, chunked: bool) -> None:  # noqa: FBT001 - a parameter
    sent = 0
    gone = trio.Event()

    async def pour(stream: trio.abc.Stream) -> None:
        nonlocal sent
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        size = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 10485760"
        await stream.send_all(b"HTTP/1.1 200 OK\r\n" + size + b"\r\n\r\n")
        block = bytes(1024)
        try:
            for _ in range(10 * 1024):
                await stream.send_all(b"400\r\n" + block + b"\r\n" if chunked else block)
                sent += len(block)
        except trio.BrokenResourceError:
            gone.set()

    receiver.answer = pour
    async with opened() as notifier:
        taken = counted(notifier)
        assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()
        with trio.fail_after(20):
            await gone.wait()
    assert 0 < sum(taken) <= 64 * 1024  # the head and the chunks' sizes included
    assert sent < 10 * 1024 * 1024


async def test_a_dripped_answer_does_not_delay_a_delivery(
    receiver: Receiver,
) -> None:
    gone = trio.Event()

    async def drip(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")  # for more than an hour
        try:
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.005)
        except trio.BrokenResourceError:
            gone.set()

    receiver.answer = drip
    async with opened(answer_s=0.05) as notifier:
        with trio.fail_after(20):
            assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()
            await gone.wait()


async def test_a_body_cut_short_after_a_2xx_is_delivered(receiver: Receiver, notifier: Notifier) -> None:
    async def cut(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")

    receiver.answer = cut
    assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "localhost", "[::ffff:127.0.0.1]"])
@pytest.mark.row("H9")
async def test_a_refused_address_is_final_and_sees_no_syn(receiver: Receiver, host: str) -> None:
    async with opened(allow=()) as notifier:
        result = await notifier.deliver(receiver.url(host=host), PAYLOAD)
    assert isinstance(result, Rejected)
    assert result.reason.startswith("address not allowed: ")
    assert "egress.callbacks.allow" in result.reason
    assert receiver.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        *HOSTILE_URLS,
        *("", "topic", "/path", "ftp://x.test/", "http://a b/", "https:x"),
    ],
)
@pytest.mark.row("H7")
async def test_a_bad_url_is_final(notifier: Notifier, url: str) -> None:
    result = await notifier.deliver(url, PAYLOAD)
    assert isinstance(result, Rejected)
    assert url not in result.reason or not url


# Signatures


async def test_signed_as_standard_webhooks(receiver: Receiver) -> None:
    async with opened({"secret": SECRET}) as notifier:
        assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()
    _, headers, body = receiver.requests[0]
    assert Webhook(SECRET).verify(body, headers) == json.loads(PAYLOAD.body)
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


@pytest.mark.parametrize("section", [{"secrets": [SECRET, OTHER]}, {"secret": OTHER, "secrets": [SECRET]}])
async def test_rotation_signs_with_each_secret(receiver: Receiver, section: dict[str, Any]) -> None:
    async with opened(section) as notifier:
        assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()
    _, headers, body = receiver.requests[0]
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(body, headers)


@pytest.mark.row("F3")
async def test_the_id_is_stable_over_retries(receiver: Receiver, notifier: Notifier) -> None:
    receiver.answer = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
    await notifier.deliver(receiver.url(), PAYLOAD)
    receiver.answer = OK
    await notifier.deliver(receiver.url(), PAYLOAD)
    first, second = receiver.requests
    assert first[1]["webhook-id"] == second[1]["webhook-id"] == PAYLOAD.job_id
    assert first[2] == second[2]


async def test_the_result_of_another_run_has_another_id(receiver: Receiver) -> None:
    async with opened({"secret": SECRET}) as notifier:
        for payload in (PAYLOAD, replace(PAYLOAD, retry="0f")):
            assert await notifier.deliver(receiver.url(), payload) == Delivered()
    ids = [headers["webhook-id"] for _, headers, _ in receiver.requests]
    assert ids == [PAYLOAD.job_id, f"{PAYLOAD.job_id}-0f"]
    for _, headers, body in receiver.requests:
        Webhook(SECRET).verify(body, headers)


# The section


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"timeout": 0}, "timeout: Input should be greater than 0"),
        ({"timeout": "soon"}, "timeout: Input should be a valid number"),
        ({"timout": 3}, "timout: there is no such key; did you mean timeout?"),
        ({"colour": 3}, "colour: there is no such key"),
        ({"secret": "hunter2"}, "secret: a Standard Webhooks secret is whsec_ and base64"),
        ({"secrets": [SECRET, "whsec_"]}, "secrets.1: a Standard Webhooks secret"),
        ({"secrets": ["whsec_h\u00fcnter2"]}, "secrets.0: a Standard Webhooks secret"),
        ({"secrets": "hunter2"}, "secrets: Input should be a valid list"),
        ({"ca_file": "/no/such/file.pem"}, "ca_file: /no/such/file.pem cannot be used: No such file"),
    ],
)
async def test_a_bad_section_is_refused_by_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as caught:
        async with opened_notifier(open_http, section):
            pass
    assert str(caught.value).startswith(message)
    assert "hunter2" not in str(caught.value)


async def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    with pytest.raises(PluginError, match=r"^ca_file: "):
        async with opened_notifier(open_http, {"ca_file": str(path)}):
            pass
