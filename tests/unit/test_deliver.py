"""One attempt at one callback, whatever the plugin does."""

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from downloader.model import (
    SHA256_FILLING,
    CallbackOutcome,
    ErrorCode,
    FileFacts,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    Verdict,
)
from downloader.notify import Delivered, Notifier, Payload, Rejected, Result, RetryLater, send_callback
from downloader.notify.bulkhead import SHORTEST_S
from downloader.notify.health import UNHEALTHY_AFTER, Breakers
from downloader.notify.send import QUICK_S
from downloader.storage import Body, StorageError, StorageRefused
from downloader.storage.opening import CheckedStorage

SPEC = JobSpec(
    id="6QEywYsd0jrKAg",
    aggr_id="example.org",
    aggr_limit=8,
    url="https://example.org/image.png?\u00fc",
    callback_type="http",
    callback_dst="https://client.test/hook",
    callback_error_type="other",
    callback_error_dst="errors",
    extra="foo\ud800bar",
    traceparent="00-trace",
)
FILE = FileFacts(size=10240, sha256="9f86d0", mime_type="image/png", image_size="10x10")
SUCCESS = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FILE)
FAILURE = Outcome(
    verdict=Verdict.FAILED,
    error="Received Status code 404 Not Found",
    error_code=ErrorCode.HTTP_STATUS,
    response_code=404,
)
NO_SECONDS = "answered RetryLater with an after_s that is not a number of seconds"
SCHEDULE = [5.0, 60.0]
URL = "http://localhost/foo/6QE/6QEywYsd0jrKAg"


class Scripted:
    """A backend that returns what a test has set, and records its calls."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act
        self.asked: list[tuple[str, Payload]] = []

    async def deliver(self, destination: str, payload: Payload) -> Result:
        self.asked.append((destination, payload))
        await trio.lowlevel.checkpoint()
        answer: Result = self.act()
        return answer


def raising(exc: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise exc

    return act


def lease(*, attempts: int = 0, result: Outcome = SUCCESS, spec: JobSpec = SPEC) -> Lease:
    return Lease(
        kind=Kind.CALLBACK,
        spec=spec,
        queue="http https://client.test",
        generation=1,
        attempts=attempts,
        crashes=0,
        limit=16,
        result=result,
        result_attempts=3,
    )


async def send(
    act: Callable[[], Any] | Notifier,
    given: Lease | None = None,
    *,
    schedule: Sequence[float] = SCHEDULE,
    health: Breakers | None = None,
    timeout_s: float = 5.0,
    download_url: Callable[[JobSpec, str], str] = lambda _, __: URL,
) -> CallbackOutcome:
    backend = Scripted(act) if callable(act) else act
    return await send_callback(
        given or lease(),
        backends={"http": backend, "other": backend},
        schedule=schedule,
        download_url=download_url,
        timeout_s=timeout_s,
        rng=random.Random(0),
        health=health or Breakers(["http", "other"]),
    )


async def test_without_a_file_the_storage_is_not_asked_for_a_url() -> None:
    # Without a digest, the key `{sha256}` is empty.
    spec = replace(SPEC, key=SHA256_FILLING)

    def url(spec: JobSpec, sha256: str) -> str:
        raise StorageError(f"not a valid key: {spec.storage_key(sha256)!r}")

    sent = await send(Delivered, lease(spec=spec, result=FAILURE), download_url=url)
    assert sent == CallbackOutcome(verdict=Verdict.SUCCEEDED)


@pytest.mark.parametrize("result", [Delivered(), Rejected("no"), RetryLater("later")])
async def test_a_delivery_that_took_long_is_slow(autojump_clock: MockClock, result: Result) -> None:
    class Slow:
        async def deliver(self, destination: str, payload: Payload) -> Result:  # noqa: ARG002
            await trio.sleep(seconds)
            return result

    for seconds in (QUICK_S - 1, QUICK_S + 1):
        assert (await send(Slow(), timeout_s=60)).slow is (seconds > QUICK_S)


async def test_the_payload_of_a_success() -> None:
    backend = Scripted(Delivered)
    assert await send(backend) == CallbackOutcome(verdict=Verdict.SUCCEEDED)
    ((destination, payload),) = backend.asked
    assert destination == "https://client.test/hook"
    assert payload.job_id == SPEC.id
    assert payload.aggr_id == "example.org"
    assert payload.traceparent == SPEC.traceparent == "00-trace"
    assert json.loads(payload.body.decode("utf-8")) == {
        "success": True,
        "error": "",
        "extra": "foo\ud800bar",
        "resource_url": "https://example.org/image.png?\u00fc",
        "download_url": URL,
        "job_id": SPEC.id,
        "response_code": 200,
        "delivered": True,
        "delivery_error": "",
        "image_size": "10x10",
        "error_code": "",
        "size": 10240,
        "sha256": "9f86d0",
        "md5": "",
        "mime_type": "image/png",
        "attempts": 3,
        "tags": [],
        "etag": "",
        "last_modified": "",
        "content_type": "",
        "final_url": "https://example.org/image.png?%C3%BC",
        "not_modified": False,
    }
    assert b": " not in payload.body


async def test_the_payload_of_a_failure_goes_where_failures_go() -> None:
    backend = Scripted(Delivered)
    assert (await send(backend, lease(result=FAILURE))).verdict is Verdict.SUCCEEDED
    ((destination, payload),) = backend.asked
    body = json.loads(payload.body)
    assert destination == "errors"
    assert (body["success"], body["download_url"], body["error_code"]) == (False, "", "http_status")
    assert body["error"] == FAILURE.error


async def test_the_body_is_identical_over_retries() -> None:
    backend = Scripted(Delivered)
    await send(backend, lease(attempts=0))
    await send(backend, lease(attempts=1))
    assert backend.asked[0] == backend.asked[1]


async def test_rejected_is_final() -> None:
    delivery = await send(lambda: Rejected("Received Status code 410 Gone"))
    assert delivery == CallbackOutcome(verdict=Verdict.FAILED, error="Received Status code 410 Gone")


@pytest.mark.parametrize(("attempts", "near"), [(0, 5.0), (1, 60.0)])
async def test_retries_follow_the_schedule(attempts: int, near: float) -> None:
    delivery = await send(lambda: RetryLater("busy"), lease(attempts=attempts))
    assert (delivery.verdict, delivery.error) == (Verdict.RETRY, "busy")
    assert delivery.retry_after_s is not None
    assert 0.8 * near <= delivery.retry_after_s <= 1.2 * near


async def test_the_peers_wish_is_a_floor() -> None:
    delivery = await send(lambda: RetryLater("busy", 1000.0))
    assert delivery.retry_after_s is not None
    assert delivery.retry_after_s >= 1000.0


@pytest.mark.parametrize("schedule", [[], SCHEDULE])
async def test_a_schedule_used_up_is_a_failure(schedule: list[float]) -> None:
    delivery = await send(lambda: RetryLater("busy", 1.0), lease(attempts=len(schedule)), schedule=schedule)
    assert delivery == CallbackOutcome(verdict=Verdict.FAILED, error="busy")


async def test_reasons_are_one_bounded_line() -> None:
    delivery = await send(lambda: RetryLater("a\r\n  b\t" + "x" * 10_000))
    assert delivery.error.startswith("a b xxx")
    assert len(delivery.error) == 500


async def test_a_result_without_a_callback_is_a_failure() -> None:
    delivery = await send(Delivered, lease(spec=replace(SPEC, callback_type="", callback_dst="")))
    assert delivery.verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (raising(ValueError("secret")), "ValueError"),
        (raising(ExceptionGroup("two", [ValueError(), KeyError()])), "ExceptionGroup"),
        (raising(trio.TooSlowError()), "TooSlowError"),
        (raising(SystemExit(0)), "SystemExit"),
        (raising(asyncio.CancelledError()), "CancelledError"),
        (raising(BaseExceptionGroup("two", [SystemExit(), KeyError()])), "BaseExceptionGroup"),
        (
            lambda: RetryLater("x", math.inf),
            NO_SECONDS,
        ),
        (
            lambda: RetryLater("x", math.nan),
            NO_SECONDS,
        ),
        (lambda: RetryLater("x", -1), NO_SECONDS),
        (
            lambda: RetryLater("x", after_s="5"),  # type: ignore[arg-type]
            NO_SECONDS,
        ),
        (lambda: RetryLater(None), "answered RetryLater with a reason that is not a text"),  # type: ignore[arg-type]
        (lambda: Rejected(b"x"), "answered Rejected with a reason that is not a text"),  # type: ignore[arg-type]
        (lambda: "delivered", "answered str"),
        (lambda: None, "answered NoneType"),
        (lambda: Delivered, "answered type"),
    ],
)
@pytest.mark.row("F23")
async def test_a_plugin_that_fails_is_retried_logged_and_counted(act: Callable[[], Any], what: str) -> None:
    health = Breakers(["http"])
    with capture_logs() as logs:
        delivery = await send(act, health=health)
    assert delivery.verdict is Verdict.RETRY
    assert delivery.error == f"backend http failed: {what}"
    assert delivery.retry_after_s is not None
    assert (health["http"].failures, health["http"].last_error) == (1, delivery.error)
    (entry,) = logs
    assert (entry["event"], entry["log_level"]) == ("backend.failed", "warning")
    assert (entry["backend"], entry["job_id"], entry["aggr_id"]) == ("http", SPEC.id, SPEC.aggr_id)
    assert isinstance(entry["exc_info"], BaseException) is not what.startswith("answered")


async def test_a_cancel_in_a_group_of_the_plugins_is_still_a_cancel() -> None:
    """A plugin's nursery in which something else fails while everything is cancelled."""

    class Nursed:
        async def deliver(self, destination: str, payload: Payload) -> Result:
            await fail_when_cancelled()
            raise AssertionError((destination, payload))

    health, ended = Breakers(["http"]), False
    with trio.move_on_after(0.01) as scope:
        await send(Nursed(), health=health)
        ended = True
    assert scope.cancelled_caught
    assert not ended
    assert health["http"].failures == 0


async def fail_when_cancelled() -> None:
    """Raises a group of the cancel and an error."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("on its way out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await trio.sleep_forever()


async def test_a_cancel_in_a_group_of_a_storage_passes_through() -> None:
    async def call(*_: object) -> None:
        await fail_when_cancelled()

    plugin: Any = SimpleNamespace(put=call, delete=call, local=call)
    storage, body = CheckedStorage(plugin), Body(size=0, sha256="", mime_type="", data=b"")
    actions: list[Callable[[], Awaitable[object]]] = [
        lambda: storage.put("a", body),
        lambda: storage.delete("a"),
        lambda: storage.local("a"),
    ]
    for action in actions:
        ended = False
        with trio.move_on_after(0.01) as scope:
            await action()
            ended = True
        assert scope.cancelled_caught
        assert not ended


async def test_a_group_of_errors_of_a_storage_is_a_storage_error() -> None:
    async def call(*_: object) -> None:
        raise BaseExceptionGroup("two", [SystemExit(), KeyError("secret")])

    plugin: Any = SimpleNamespace(delete=call)
    with pytest.raises(StorageError, match=r"^the storage failed: delete\(\) raised BaseExceptionGroup$"):
        await CheckedStorage(plugin).delete("a")


@pytest.mark.parametrize("kind", [StorageError, StorageRefused])
@pytest.mark.row("F23")
async def test_an_error_of_a_storage_is_one_line_that_the_store_can_keep(kind: type[StorageError]) -> None:
    class Busy(kind):  # type: ignore[misc,valid-type]
        """A plugin's own."""

    async def call(*_: object) -> None:
        raise Busy("two\nlines of \udcff" + "x" * 999)

    plugin: Any = SimpleNamespace(delete=call)
    with pytest.raises(kind) as caught:
        await CheckedStorage(plugin).delete("a")
    assert (type(caught.value), str(caught.value)) == (kind, "two lines of ?" + "x" * 486)


@pytest.mark.row("F23")
async def test_an_endless_retry_after_is_a_day() -> None:
    delivery = await send(lambda: RetryLater("x", 1e300))
    assert delivery.retry_after_s is not None
    assert 86400 <= delivery.retry_after_s < 1.3 * 86400


async def test_a_reason_that_the_store_cannot_keep_is_changed() -> None:
    assert (await send(lambda: RetryLater("h\ud800"))).error == "h?"


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (raising(ValueError("secret")), "raised ValueError"),
        (raising(SystemExit()), "raised SystemExit"),
        (lambda: None, "answered NoneType"),
    ],
)
@pytest.mark.row("F23")
async def test_a_storage_whose_url_fails(act: Callable[[], Any], what: str) -> None:
    plugin: Any = SimpleNamespace(url=lambda _: act())
    storage = CheckedStorage(plugin)
    backend = Scripted(Delivered)
    delivery = await send(backend, download_url=lambda spec, _: storage.url(spec.id))
    assert (delivery.verdict, delivery.error) == (Verdict.RETRY, f"the storage failed: url() {what}")
    assert delivery.retry_after_s is not None
    assert backend.asked == []


class Hanging:
    async def deliver(self, destination: str, payload: Payload) -> Result:
        await trio.sleep_forever()
        raise AssertionError((destination, payload))


async def test_a_plugin_that_hangs_is_retried() -> None:
    health = Breakers(["http"])
    with capture_logs():
        delivery = await send(Hanging(), timeout_s=0.01, health=health)
    assert delivery.verdict is Verdict.RETRY
    assert delivery.error == "backend http failed: no answer within 0.01 s"
    assert health["http"].failures == 1


async def test_a_cancel_from_outside_is_no_failure() -> None:
    health = Breakers(["http"])
    with trio.move_on_after(0.01) as scope:
        await send(Hanging(), health=health)
    assert scope.cancelled_caught
    assert health["http"].failures == 0


async def test_a_failure_of_an_unhealthy_plugin_uses_up_no_attempt() -> None:
    health = Breakers(["http"])
    with capture_logs() as logs:
        deliveries = [
            await send(raising(OSError("no")), lease(attempts=len(SCHEDULE) - 1), health=health)
            for _ in range(UNHEALTHY_AFTER + 2)
        ]
    verdicts = [delivery.verdict for delivery in deliveries]
    assert verdicts == [Verdict.RETRY] * (UNHEALTHY_AFTER - 1) + [Verdict.RELEASE] * 3
    assert deliveries[-1].error == "backend http failed: OSError"
    assert deliveries[-1].retry_after_s == SHORTEST_S
    levels = [entry["log_level"] for entry in logs if entry["event"] == "backend.failed"]
    assert levels == ["warning"] * UNHEALTHY_AFTER + ["debug"] * 2
    assert len([entry for entry in logs if entry["event"] == "backend.unhealthy"]) == 1


async def test_health_is_lost_and_regained() -> None:
    health = Breakers(["http", "other"])
    with capture_logs() as logs:
        for number in range(UNHEALTHY_AFTER):
            assert health["http"].healthy, number
            await send(raising(OSError("no")), health=health)
        assert health.healthy() == {"http": False, "other": True}
        assert health.unhealthy == 1
        assert logs[-1]["event"] == "backend.unhealthy"
        await send(lambda: RetryLater("the destination is at fault, not the plugin"), health=health)
    assert logs[-1]["event"] == "backend.healthy"
    assert health.facts() == {
        "http": {"healthy": True, "last_error": "backend http failed: OSError"},
        "other": {"healthy": True, "last_error": ""},
    }
    assert len(logs) == UNHEALTHY_AFTER + 2


async def test_successful_deliveries_do_not_change_the_health() -> None:
    health = Breakers(["http"])
    with capture_logs() as logs:
        await send(Delivered, health=health)
    assert health.facts() == {"http": {"healthy": True, "last_error": ""}}
    assert logs == []
