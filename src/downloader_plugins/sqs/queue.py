"""Parsing of destinations of the `sqs` notifier: queue, region, and permission.

Pure. Requests go only to the configured endpoint or to AWS's own host of a known region. A URL of another
host is refused, as requests are signed with the service's credentials.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from urllib.parse import quote

from downloader.net import Url, UrlError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo")
"""https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html"""

_FIFO = ".fifo"

_SHORT = re.compile(r"(?:https?://)?aws\.com/sqs/(.*)")
"""Form of destinations from older clients; only the queue name is used."""

_OWN_PATH = re.compile(r"(?:/[A-Za-z0-9_-]+){0,3}/([^/]+)")
"""Path on servers compatible with SQS; the last part is the name."""

_AWS_PATH = re.compile(r"/([0-9]{12})/([^/]+)")

GROUP_CHARS = 128
"""Most characters of a `MessageGroupId`, which may have ASCII letters, digits and punctuation.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""

_GROUP_SAFE = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""Punctuation that is not percent-encoded."""

_DIGEST_CHARS = 64


class BadDestination(Exception):
    """The destination is not a usable queue; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue to send to."""

    name: str
    region: str
    url: str = ""
    """URL from the client in normal form; empty for a queue given by name."""
    look_up: bool = True
    """Whether to ask SQS for the URL of the service's own queue with that name. A given `url` must be the
    same queue."""

    @property
    def fifo(self) -> bool:
        """Whether the queue is a FIFO queue, which has a name with the ending `.fifo`."""
        return self.name.endswith(_FIFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Endpoints that get requests with the configured credentials."""

    region: str
    """Region of queues given by name."""
    origin: str = ""
    """`http://host:port` of an endpoint other than AWS's own; empty for AWS."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """AWS's host names of SQS in accepted URLs, with the region of each."""


def aws_hosts(regions: Iterable[str]) -> dict[str, str]:
    """Current and legacy host names of SQS on AWS, each with the region.

    https://docs.aws.amazon.com/general/latest/gr/sqs-service.html
    """
    hosts = {}
    for region in regions:
        suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        hosts[f"sqs.{region}.{suffix}"] = region
        hosts[f"{region}.queue.{suffix}"] = region
        if region == "us-east-1":
            hosts[f"queue.{suffix}"] = region
    return hosts


def parse_destination(destination: str, endpoints: Endpoints) -> Queue:
    """Parse a destination: a queue's name, `aws.com/sqs/NAME`, or the queue's URL.

    Raises:
        BadDestination: not a queue, or the URL has another host than the endpoint.
    """
    short = _SHORT.fullmatch(destination)
    if short or "/" not in destination:
        name = short[1] if short else destination
        return Queue(name=_checked(name), region=endpoints.region)
    try:
        url = Url.parse(destination, "endpoint")
    except UrlError:
        raise BadDestination("the callback's destination is neither a queue's name nor its URL") from None
    origin, path = url.origin, url.target.decode()
    if endpoints.origin and origin.url == endpoints.origin:
        own = _OWN_PATH.fullmatch(path)
        if own is None:
            raise BadDestination("the callback's destination is no queue's URL")
        at = f"{endpoints.origin}{path}"
        return Queue(name=_checked(own[1]), region=endpoints.region, url=at, look_up=False)
    region = endpoints.hosts.get(origin.authority.decode())
    if region is None:
        raise BadDestination("the callback's destination is a URL of another host than the configured SQS")
    account = _AWS_PATH.fullmatch(path)
    if account is None:
        raise BadDestination("the callback's destination is no queue's URL: its path is /ACCOUNT/NAME")
    name = _checked(account[2])
    # In the form that SQS returns, whichever of its host names the client has used.
    base = f"https://sqs.{region}.amazonaws.com{'.cn' if origin.host.endswith('.cn') else ''}"
    return Queue(name=name, region=region, url=f"{base}{path}", look_up=False)


def permitted(queue: Queue, patterns: Sequence[str]) -> Queue | None:
    """The queue if permitted by an allow-list, else `None`.

    Patterns with a `/` match URLs, part by part; others match names of queues in the own account. If only a
    name pattern matches a URL, the queue is looked up: the URL has to be that of the own queue.
    """
    if not patterns or any("/" in pattern and _fits(queue.url, pattern) for pattern in patterns):
        return queue
    if any("/" not in pattern and fnmatchcase(queue.name, pattern) for pattern in patterns):
        return replace(queue, look_up=True)
    return None


def same_queue(url: str, second_url: str) -> bool:
    """Whether two URLs of one endpoint have the same account and name."""
    return url.split("/")[-2:] == second_url.split("/")[-2:]


def group_id(aggr_id: str) -> str:
    """`MessageGroupId` of an aggregation: the name, with characters refused by SQS percent-encoded.

    A long name is cut and gets the SHA-256, so that two aggregations never have the same id.
    """
    encoded = quote(aggr_id.encode("utf-8", "surrogatepass"), safe=_GROUP_SAFE)
    if len(encoded) <= GROUP_CHARS:
        return encoded
    digest = hashlib.sha256(encoded.encode("ascii")).hexdigest()
    return f"{encoded[: GROUP_CHARS - 1 - _DIGEST_CHARS]}%{digest}"


def _fits(url: str, pattern: str) -> bool:
    """Match each part between slashes separately, so that no wildcard matches another account."""
    parts, patterns = url.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadDestination("the callback's destination is not a valid queue name")
    return name
