"""What destinations of the `sqs` notifier mean: which queue, in which region, and whether it may be used.

Pure. A destination never decides where requests go: that is the configured endpoint, or AWS's own host of a
region that AWS has. A URL of any other host is refused, for a request carries our credentials' signature.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from urllib.parse import quote

from downloader.net import Origin, Url, UrlError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo")
"""https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-queues.html"""

_FIFO = ".fifo"

_SHORT = re.compile(r"(?:https?://)?aws\.com/sqs/(.*)")
"""The form that older clients send; only the name in it counts."""

_OWN_PATH = re.compile(r"(?:/[A-Za-z0-9_-]+){0,3}/([^/]+)")
"""Servers that imitate SQS put this and that before the name, which is last."""

_AWS_PATH = re.compile(r"/([0-9]{12})/([^/]+)")

GROUP_CHARS = 128
"""Of a `MessageGroupId`; it may have ASCII letters, digits and punctuation.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html"""

_GROUP_SAFE = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""Punctuation that stays as it is; `%` marks what does not."""

_DIGEST_CHARS = 64


class BadDestination(Exception):
    """It names no queue that can be used; the text is for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue to send to."""

    name: str
    region: str
    url: str = ""
    """As the client gave it, in its usual spelling; empty for one known by name."""
    look_up: bool = True
    """Whether SQS is asked for the URL of the queue of this name in our own account. If `url` is given
    too, it has to be that one's."""

    @property
    def fifo(self) -> bool:
        """SQS has FIFO queues end in `.fifo`, and no others."""
        return self.name.endswith(_FIFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the configured credentials are used."""

    region: str
    """Of queues known by name."""
    origin: str = ""
    """`http://host:port` of an endpoint that is not AWS's own; empty for AWS."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """AWS's host names of SQS that URLs may have, with the region of each."""


def aws_hosts(regions: Iterable[str]) -> dict[str, str]:
    """AWS's host names of SQS, today's and those of old URLs, with their regions.

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


def origin_of(url: str) -> str:
    """`scheme://host[:port]` in lower case, without a port that goes without saying.

    Raises:
        ValueError: it is no http or https URL, or one with a user, a query or a fragment.
    """
    try:
        return _shown(Url.parse(url, "endpoint").origin)
    except UrlError:
        raise ValueError("must be an http or https URL without user, query and fragment") from None


def parse_destination(destination: str, endpoints: Endpoints) -> Queue:
    """The queue that is meant: a name, `aws.com/sqs/NAME`, or the queue's URL.

    Raises:
        BadDestination: it is none of these, or the URL is not one of the configured endpoint.
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
    if endpoints.origin and _shown(origin) == endpoints.origin:
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
    return Queue(name=name, region=region, url=f"{_usual_base(origin.host, region)}{path}", look_up=False)


def permitted(queue: Queue, patterns: Sequence[str]) -> Queue | None:
    """The queue as it may be used under an allow-list; `None` if it may not.

    Patterns with a `/` are of URLs, part by part, others of names. A name means the queue in our own account,
    so a URL that only its name permits is looked up, and has to be that queue's.
    """
    if not patterns or any("/" in pattern and _fits(queue.url, pattern) for pattern in patterns):
        return queue
    if any("/" not in pattern and fnmatchcase(queue.name, pattern) for pattern in patterns):
        return replace(queue, look_up=True)
    return None


def same_queue(url: str, other: str) -> bool:
    """Whether two URLs of one endpoint have the same account and name."""
    return url.split("/")[-2:] == other.split("/")[-2:]


def group_id(aggr_id: str) -> str:
    """`MessageGroupId` of an aggregation: its name, with what SQS does not take there percent-encoded.

    One too long keeps its beginning and gets its SHA-256. Two aggregations never share one.
    """
    encoded = quote(aggr_id.encode("utf-8", "surrogatepass"), safe=_GROUP_SAFE)
    if len(encoded) <= GROUP_CHARS:
        return encoded
    digest = hashlib.sha256(encoded.encode("ascii")).hexdigest()
    return f"{encoded[: GROUP_CHARS - 1 - _DIGEST_CHARS]}%{digest}"


def deduplication_id(job_id: str, body: bytes) -> str:
    """`MessageDeduplicationId`: the job's id; for a failure, with a digest of the payload.

    SQS swallows what comes with a known id within five minutes. A failed job can be downloaded again, and
    what comes of that is news; after a success nothing comes any more.
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagededuplicationid-property.html
    """
    try:
        payload = json.loads(body)
    except ValueError:
        return job_id
    if not isinstance(payload, dict) or payload.get("success") is not False:
        return job_id
    return f"{job_id}-{hashlib.sha256(body).hexdigest()[:16]}"


def _shown(origin: Origin) -> str:
    return f"{origin.scheme}://{origin.authority.decode()}"


def _usual_base(host: str, region: str) -> str:
    return f"https://sqs.{region}.amazonaws.com{'.cn' if host.endswith('.cn') else ''}"


def _fits(url: str, pattern: str) -> bool:
    """Whether each part between slashes fits, so that no wildcard reaches into another account."""
    parts, patterns = url.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadDestination("the callback's destination has a name that no queue can have")
    return name
