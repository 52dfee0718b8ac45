"""Notifier that sends callbacks as messages to Amazon SQS or a compatible server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from botocore.exceptions import ClientError
from pydantic import Field

from downloader.errors import DownloaderError, PluginError
from downloader.net import parse_endpoint
from downloader.notify import (
    CommitAbandoned,
    GroupCommit,
    Host,
    Notifier,
    Payload,
    Rejected,
    Result,
    RetryLater,
    parse_section,
)
from downloader_plugins.aws import Credentials, EndpointUrl, open_client, open_session
from downloader_plugins.sqs.queue import (
    BadDestination,
    Endpoints,
    Queue,
    aws_hosts,
    parse_destination,
    permitted,
)
from downloader_plugins.sqs.send import (
    BATCH_BYTES,
    FAILURES,
    MESSAGE_BYTES,
    MESSAGES,
    Sent,
    describe,
    find,
    is_denied,
    send,
    size_of,
)

if TYPE_CHECKING:  # stubs, which only type checking has
    import boto3
    from types_boto3_sqs import SQSClient

_PARTITIONS = ("aws", "aws-cn", "aws-us-gov")
"""AWS partitions with accepted queue URLs."""

_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")
"""Domains of AWS, including VPC, FIPS and IPv6 endpoints."""

CONNECTIONS = 8
"""Most requests in flight to one region; each may have ten messages."""

_URLS = 1024
"""Number of URLs of queues in the cache."""


class SqsSettings(Credentials):
    """`[backends.sqs]`."""

    region: str = ""
    """AWS region of queues given by name, such as `eu-west-2`; empty: the region of the environment
    (`AWS_DEFAULT_REGION`) or of the profile."""
    endpoint_url: EndpointUrl = ""
    """URL of a VPC endpoint or of a server other than AWS, such as ElasticMQ. Empty: AWS."""
    queues: list[str] = Field(default_factory=list)
    """Glob patterns of the queues that jobs may name; empty: any. Patterns with a `/` match queue URLs, part
    by part; others match the names of queues in our own account."""
    timeout: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds for a whole delivery, half of the time for connecting."""


@asynccontextmanager
async def open_sqs(section: Mapping[str, Any], host: Host) -> AsyncIterator[Notifier]:
    """Open the notifier; sends no request until the first delivery.

    Closing does not wait for requests in flight; their threads end within one and a half times `timeout`.

    Raises:
        PluginError: the section is invalid, or boto3 finds no region or profile.
    """
    settings = parse_section(SqsSettings, section)
    regions, endpoints = await trio.to_thread.run_sync(_prepare, settings)
    notifier = _Sqs(settings, host, endpoints=endpoints, regions=regions)
    try:
        async with notifier.messages.running():
            yield notifier
    finally:
        regions.close()


def _prepare(settings: SqsSettings) -> tuple[_Regions, Endpoints]:
    """Make the session and a client. Blocks while boto3 reads files; no network."""
    session = open_session(settings, region=settings.region)
    regions = _Regions(settings, session)
    client = regions.connect(session.region_name)
    regions_with_sqs = [
        region
        for partition in _PARTITIONS
        for region in session.get_available_regions("sqs", partition_name=partition)
    ]
    return regions, _endpoints(client.meta.region_name, client.meta.endpoint_url, regions_with_sqs)


def _endpoints(region: str, endpoint_url: str, regions: Sequence[str]) -> Endpoints:
    """The endpoints that queue URLs may have, given the region and endpoint of the configured client."""
    own = aws_hosts([region])
    try:
        origin = parse_endpoint(endpoint_url).origin.url
    except ValueError as exc:  # from the environment or the profile: the section was checked
        raise PluginError(f"endpoint_url, as boto3 finds it, {exc}") from None
    host = origin.partition("://")[2]
    if host in own:
        return Endpoints(region=region, hosts=aws_hosts(regions) | own)
    # A VPC endpoint serves the queues of its region, so it accepts their usual URLs too.
    return Endpoints(region=region, origin=origin, hosts=own if host.endswith(_AWS) else {})


@dataclass(slots=True)
class _Region:
    client: SQSClient
    threads: trio.CapacityLimiter


class _Regions:
    """Clients of the regions in use, each with own threads, so that a hung region affects no other."""

    def __init__(self, settings: SqsSettings, session: boto3.Session) -> None:
        self._settings = settings
        self._session = session
        self._open: dict[str, _Region] = {}
        self._lock = trio.Lock()

    async def get(self, region: str) -> _Region:
        """Get the client of a region, made at the first use."""
        if region not in self._open:
            async with self._lock:  # a session is not safe to share between threads
                if region not in self._open:
                    await trio.to_thread.run_sync(self.connect, region)
        return self._open[region]

    def connect(self, region: str | None) -> SQSClient:
        """Make a client. Blocks; no network."""
        settings = self._settings
        first = not self._open  # the configured region; other regions have AWS's own endpoint
        client: SQSClient = open_client(
            self._session,
            "sqs",
            region=region,
            endpoint_url=settings.endpoint_url if first else "",
            connect_s=settings.timeout / 2,
            read_s=settings.timeout,
            connections=CONNECTIONS,
            ignore_configured_endpoint_urls=not first,
        )
        threads = trio.CapacityLimiter(CONNECTIONS)
        self._open[client.meta.region_name] = _Region(client, threads)
        return client

    def close(self) -> None:
        """Close idle connections; threads close the connections in use."""
        for region in self._open.values():
            region.client.close()


class _Message(NamedTuple):
    queue: Queue
    payload: Payload


class _Sqs:
    """The notifier; messages of one queue are sent in batches."""

    def __init__(self, settings: SqsSettings, host: Host, *, endpoints: Endpoints, regions: _Regions) -> None:
        self._settings = settings
        self.endpoints = endpoints
        self.regions = regions
        self._urls: dict[Queue, str] = {}
        self.messages: GroupCommit[_Message, Result] = host.group_commit(
            self._send,
            max_batch=MESSAGES,
            weight=lambda message: size_of(message.payload),
            max_weight=BATCH_BYTES,
            lane=lambda message: message.queue,
        )

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """See `Notifier`; delivered when SQS has accepted the message."""
        try:
            queue = parse_destination(destination, self.endpoints)
        except BadDestination as exc:
            return Rejected(str(exc))
        allowed = permitted(queue, self._settings.queues)
        if allowed is None:
            return Rejected(f"queue {queue.name} is not one of backends.sqs.queues")
        if size_of(payload) > MESSAGE_BYTES:
            return Rejected(f"the callback has {size_of(payload)} bytes; SQS takes {MESSAGE_BYTES}")
        with trio.move_on_after(self._settings.timeout):
            try:
                return await self.messages.submit(_Message(allowed, payload))
            except CommitAbandoned:
                return RetryLater("the backend is closed")
        return self._too_late()

    async def check(self) -> str:
        """Look up the queues that `queues` names without wildcards, else list one queue. Sends nothing.

        Raises:
            DownloaderError: SQS cannot be reached, refuses the credentials, or has no such queue.
        """
        names = [name for name in self._settings.queues if not set(name) & set("*?[/")]
        region = await self.regions.get(self.endpoints.region)
        with trio.move_on_after(self._settings.timeout):
            summary = await trio.to_thread.run_sync(
                partial(_look, region.client, names), abandon_on_cancel=True, limiter=region.threads
            )
            return f"{region.client.meta.endpoint_url}: {summary}"
        raise DownloaderError(self._too_late().reason)

    async def _send(self, messages: Sequence[_Message]) -> Sequence[Result]:
        queue, payloads = messages[0].queue, [message.payload for message in messages]
        region = await self.regions.get(queue.region)
        call = partial(send, region.client, queue, self._urls.get(queue, ""), payloads)
        batch: Sent | None = None
        with trio.move_on_after(self._settings.timeout):
            batch = await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=region.threads)
        if batch is None:
            return [self._too_late()] * len(payloads)
        self._keep_url(queue, batch.url)
        if batch.results:
            return batch.results
        return [(await self._send([message]))[0] for message in messages]

    def _too_late(self) -> RetryLater:
        return RetryLater(f"SQS gave no answer within {self._settings.timeout:g} s")

    def _keep_url(self, queue: Queue, url: str) -> None:
        self._urls.pop(queue, None)
        if url:
            self._urls[queue] = url  # moved to the end: the first entry is the least recently used
        if len(self._urls) > _URLS:
            del self._urls[next(iter(self._urls))]


def _look(client: SQSClient, names: Sequence[str]) -> str:
    """The result of `check`. Blocks."""
    queue: Queue | None = None
    try:
        for name in names:
            queue = Queue(name=name, region=client.meta.region_name)
            find(client, queue)
        some = bool(names) or client.list_queues(MaxResults=1).get("QueueUrls")
    except FAILURES as exc:
        if queue is None and is_denied(exc):
            return "answers; no permission to list queues (sqs:ListQueues), so none was looked up"
        raise DownloaderError(f"{describe(exc, queue)}: {_message(exc)}") from exc
    if names:
        return f"found {', '.join(names)}"
    return "answers" if some else "answers, and has no queue"


def _message(exc: Exception) -> str:
    text = exc.response.get("Error", {}).get("Message", "") if isinstance(exc, ClientError) else str(exc)
    return " ".join(text.split())
