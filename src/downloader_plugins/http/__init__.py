"""Notifier that sends callbacks by POST, signed as Standard Webhooks (https://www.standardwebhooks.com)."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

import trio

from downloader.backoff import parse_retry_after
from downloader.errors import PluginError
from downloader.net import (
    BadRequest,
    NetError,
    Response,
    ResponseBody,
    Route,
    Transport,
    Url,
    UrlError,
)
from downloader.notify import (
    CommitAbandoned,
    Delivered,
    EgressRefused,
    GroupCommit,
    Host,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
    TlsFailed,
    describe_status,
)
from downloader_plugins.http.settings import DestinationSettings, HttpSettings, Target, read_targets

__all__ = ["ANSWER_S", "DestinationSettings", "HttpSettings", "open_http"]

ANSWER_BYTES = 64 * 1024
"""Most bytes read of a response, including head and 1xx."""

ANSWER_S = 2.0
"""Time limit for reading a response after the status."""

BATCH_BYTES = 1024 * 1024
"""Most bytes of the payloads in one request; a larger one is sent alone."""

CE_TYPE, CE_SOURCE = b"downloader.callback", b"/downloader"
"""`ce-type` and `ce-source` of CloudEvents."""

_DESTINATIONS = 1024
"""Number of parsed destinations in the cache."""

_KEPT = 64
"""Most idle connections to one destination. `notifier.per_destination` limits those in use."""

_CONTENT_TYPE = (b"Content-Type", b"application/json")

_TURN = 1.1
"""Longest wait for a place in a batch, in timeouts of a delivery: one batch may be ahead. With a longer wait
the whole delivery would look like a fault of the plugin."""

_Item = tuple[str, Payload, float]
"""Destination, payload, and the latest Trio time at which the batch may begin. A cancel scope for each
payload would be a tenth of the function calls that a callback takes."""

Commit = GroupCommit[_Item, Result]
"""Batches of payloads, a lane for each destination."""


@asynccontextmanager
async def open_http(
    section: Mapping[str, Any], host: Host, *, answer_s: float = ANSWER_S
) -> AsyncIterator[Notifier]:
    """Open the notifier, which sends through the host's transport.

    Raises:
        PluginError: the section is invalid.
    """
    targets = read_targets(section)
    http = _Http(
        answer_s=answer_s,
        transport=host.transport,
        way=lru_cache(_DESTINATIONS)(partial(_way, targets)),
        matches=[target.match for target in targets if target.match],
    )
    async with AsyncExitStack() as stack:
        for target in targets:
            if target.batch > 1:
                commit: Commit = host.group_commit(
                    http.send_batch,
                    max_batch=target.batch,
                    weight=lambda item: len(item[1].body),
                    max_weight=BATCH_BYTES,
                    lane=lambda item: item[0],
                    linger_s=partial(float, target.batch_wait_s),
                )
                await stack.enter_async_context(commit.running())
                http.commits[target] = commit
        yield http


def _way(targets: Sequence[Target], destination: str) -> tuple[Target, Route]:
    """How callbacks to the destination are sent. Raises `UrlError`."""
    url = Url.parse(destination, "callback")
    target = next(target for target in targets if target.matches(url))
    route = Route(
        url=url,
        keep=_KEPT,
        answer_bytes=ANSWER_BYTES,
        tls=target.tls,
        expect=lambda _phase, _seconds: None,  # the delivery as a whole has a deadline
    )
    return target, route


@dataclass(frozen=True, slots=True, kw_only=True)
class _Http:
    answer_s: float
    transport: Transport
    way: Callable[[str], tuple[Target, Route]]
    """See `_way`."""
    matches: Sequence[Url]
    """The `match` of each configured destination."""
    commits: dict[Target, Commit] = field(default_factory=dict)
    """The batches of each target that has batches."""

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """See `Notifier`; reasons contain only the host of the URL."""
        try:
            target, route = self.way(destination)
        except UrlError as exc:
            return Rejected(f"the callback's destination {exc.detail}")
        commit = self.commits.get(target)
        if commit is None:
            return await self._send_one(target, route, payload)
        latest = trio.current_time() + _TURN * target.timeout_s + target.batch_wait_s
        try:
            return await commit.submit((destination, payload, latest))
        except CommitAbandoned:
            return RetryLater("the notifier was closed")

    async def check(self) -> str:
        """Ask each configured destination for the head; any response will do.

        Raises:
            PluginError: a destination does not respond.
        """
        for url in self.matches:
            target, route = self.way(url.text)
            try:
                with trio.fail_after(target.timeout_s):
                    response = await self.transport.send("HEAD", route, target.fields)
                    await response.body.aclose()
            except NetError as exc:
                raise PluginError(f"{url.origin.url}: {exc}") from exc
            except trio.TooSlowError as exc:
                raise PluginError(f"{url.origin.url}: no answer within {target.timeout_s:g} s") from exc
        return f"{len(self.matches)} configured destinations respond" if self.matches else "opens"

    async def _send_one(self, target: Target, route: Route, payload: Payload) -> Result:
        """Send one payload unchanged."""
        fields = _fields(target, payload.message_id, payload.body)
        if payload.traceparent:
            fields.append((b"traceparent", payload.traceparent.encode()))
        if target.cloudevents:
            fields += _cloudevent(payload)
        result, _ = await self._post(target, route, fields, payload.body)
        return result

    async def send_batch(self, items: Sequence[_Item]) -> Sequence[Result]:
        """Send the payloads as one JSON array, without those that have waited too long.

        All have the same destination, and the oldest come first.
        """
        now, late = trio.current_time(), 0
        while late < len(items) and items[late][2] < now:
            late += 1
        again: Sequence[Result] = [RetryLater("the batches ahead took too long")] * late
        return [*again, *await self._send_all(items[late:])] if late < len(items) else again

    async def _send_all(self, items: Sequence[_Item]) -> Sequence[Result]:
        target, route = self.way(items[0][0])
        payloads = [payload for _, payload, _ in items]
        body = b"[%b]" % b",".join(payload.body for payload in payloads)
        result, answer = await self._post(target, route, _fields(target, _batch_id(payloads), body), body)
        if not isinstance(result, Delivered):
            return [result] * len(payloads)
        if answer is None:  # which may have had the ids of rejected ones
            return [RetryLater("the response to the batch was cut short")] * len(payloads)
        rejected, again = _rejected(answer), RetryLater("rejected by the receiver of the batch")
        return [again if payload.job_id in rejected else result for payload in payloads]

    async def _post(
        self, target: Target, route: Route, fields: list[tuple[bytes, bytes]], body: bytes
    ) -> tuple[Result, bytes | None]:
        """Send a request; the result, and the response's body, or `None` for an incomplete body."""
        response: Response | None = None
        answer: bytes | None = None
        try:
            with trio.move_on_after(target.timeout_s) as scope:
                response = await self.transport.send("POST", route, fields, body)
                if response.body.length != 0:  # moving a deadline costs as much as parsing the response
                    scope.deadline = min(scope.deadline, trio.current_time() + self.answer_s)
                with suppress(NetError):
                    answer = await _read(response.body)
        except (EgressRefused, BadRequest) as exc:
            return Rejected(str(exc)), None
        except TlsFailed as exc:
            return RetryLater(f"TLS handshake failed: {exc}"), None
        except NetError as exc:
            return RetryLater(str(exc)), None
        if response is None:
            return RetryLater(f"no answer within {target.timeout_s:g} s"), None
        return _result(response), answer


def _fields(target: Target, message_id: str, body: bytes) -> list[tuple[bytes, bytes]]:
    now = int(time.time())
    fields = [
        *target.fields,
        _CONTENT_TYPE,
        (b"webhook-id", message_id.encode()),
        (b"webhook-timestamp", b"%d" % now),
    ]
    if target.signers:
        moment, text = datetime.fromtimestamp(now, UTC), body.decode()
        signatures = " ".join(signer.sign(message_id, moment, text) for signer in target.signers)
        fields.append((b"webhook-signature", signatures.encode()))
    return fields


def _cloudevent(payload: Payload) -> list[tuple[bytes, bytes]]:
    """The context attributes of CloudEvents 1.0, in the binary mode of the HTTP binding."""
    return [
        (b"ce-specversion", b"1.0"),
        (b"ce-type", CE_TYPE),
        (b"ce-source", CE_SOURCE),
        (b"ce-id", payload.message_id.encode()),
        (b"ce-subject", payload.job_id.encode()),
    ]


def _batch_id(payloads: Sequence[Payload]) -> str:
    """The same for the same callbacks, also in another order."""
    ids = " ".join(sorted(payload.message_id for payload in payloads))
    return f"batch-{hashlib.sha256(ids.encode()).hexdigest()[:32]}"


async def _read(body: ResponseBody) -> bytes:
    """Read a response's body, at most `ANSWER_BYTES`. Raises `NetError`."""
    pieces = []
    while (piece := await body.read()) is not None:
        pieces.append(bytes(piece))
    return b"".join(pieces)


def _rejected(body: bytes) -> frozenset[str]:
    """The ids in the `rejected` of a JSON object; none in any other body."""
    try:
        ids = json.loads(body)["rejected"]
        return frozenset(job_id for job_id in ids if isinstance(job_id, str))
    except (ValueError, TypeError, LookupError, RecursionError):
        return frozenset()


def _result(response: Response) -> Result:
    """The result for a status."""
    status = response.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Delivered()
    reason = f"Received Status code {describe_status(status)}"
    if status == HTTPStatus.GONE:
        return Rejected(reason)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return RetryLater(f"{reason}: redirects are not followed")
    after = next((value for name, value in response.fields if name.lower() == b"retry-after"), b"")
    after_s = parse_retry_after(after.decode("latin-1"), datetime.now(UTC))
    return RetryLater(reason, after_s or None)
