"""The values that all parts share: jobs, tasks, attempts, outcomes, callbacks. No I/O.

A *job* is what a client asked for (`JobSpec`, immutable). The work on it is one or two *tasks*: its
download, then its callback. A task belongs to a *group* that bounds how many run at once: a download's
group is its aggregation, a callback's the destination it goes to. A task is *leased* to one instance
at a time, and every lease has a new *generation*, so that a late holder changes nothing.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from http import HTTPStatus
from operator import attrgetter
from typing import Any, Self

from downloader.ids import ID_PREFIX_LENGTH

FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""A regular expression for the name of a header (RFC 9110, 5.6.2)."""

MAX_URL_CHARS = 8192
"""What servers commonly accept as a request line; presigned URLs have up to 2,000."""

POISON_CRASHES = 5
"""A job whose worker died this many times is failed instead of being tried again."""

BROKERS = frozenset({"kafka", "sqs"})
"""Types of callbacks whose destinations are queues or topics of one host."""
_BROKER_LIMIT = 4096
"""More than any process has in flight (`notifier.concurrency`)."""

_AUTHORITY_END = re.compile(r"[/?#]")
_PORT = re.compile(r":[0-9]*$")

_RENAMED_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""Names of RFC 9110 that Python has from 3.13 on, so that our texts are the same on all versions."""


class Kind(StrEnum):
    """The two kinds of leased work."""

    DOWNLOAD = "download"
    CALLBACK = "callback"


class State(StrEnum):
    """States of a task; `docs/state-machine.md` draws the transitions."""

    PENDING = "pending"
    """Waits until it is due and its group has a free slot."""
    RUNNING = "running"
    """Leased to an instance."""
    SUCCEEDED = "succeeded"
    """Terminal: the file is stored, or the callback delivered."""
    FAILED = "failed"
    """Terminal: attempts are used up, or the failure is final."""
    CANCELLED = "cancelled"
    """Terminal, downloads only: a client cancelled the job."""


class ErrorCode(StrEnum):
    """`error_code` of the callback; `docs/api.md` has when a download is tried again."""

    NONE = ""
    HTTP_STATUS = "http_status"
    """The origin answered with a status that means failure."""
    TLS = "tls"
    """TLS failed: the certificate, or the handshake."""
    MIME_TYPE = "mime_type"
    """The content is not of a type that the job asks for."""
    EGRESS = "egress"
    """An address that the configuration does not allow."""
    CONNECT = "connect"
    """The connection was refused or reset."""
    DNS = "dns"
    """The host's name could not be resolved."""
    TIMEOUT = "timeout"
    """The origin took too long: to connect, to answer, or to send."""
    TRUNCATED = "truncated"
    """The connection ended before the file was complete."""
    TOO_LARGE = "too_large"
    """The file is larger than `processor.max_size`."""
    REDIRECTS = "redirects"
    """Too many redirects, or one that cannot be followed."""
    PROTOCOL = "protocol"
    """The response is malformed."""
    STORAGE = "storage"
    """The service's own disk or storage failed, or the job's bucket is missing or forbidden."""
    CANCELLED = "cancelled"
    """A client cancelled the job."""
    POISON = "poison"
    """Five workers died while they worked on the job."""
    DEADLINE = "deadline"
    """The file was not stored by the job's `deadline`."""
    DIGEST = "digest"
    """The file differs from the job's `sha256` or `size`, or from the origin's digest."""
    NOT_MODIFIED = "not_modified"
    """A 304 to a conditional request."""
    ROBOTS = "robots"
    """Refused by its origin's robots.txt, or there was no answer for that."""


class Verdict(StrEnum):
    """What becomes of a task after an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRY = "retry"
    """Another attempt later; this one counts."""
    RELEASE = "release"
    """A fault of this service, or a stop: handed back, and this attempt does not count."""
    THROTTLED = "throttled"
    """The origin asked for a pause: another attempt after the aggregation's cooldown, and this one does not
    count. Downloads only."""


SEALED_FIELDS = ("url", "request_headers", "user_agent", "callback_dst", "callback_error_dst", "extra")
"""Fields of a job that may contain secrets: those that are encrypted in the store if a key is configured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What the client asked for, checked and normalised; never changes once accepted."""

    id: str
    aggr_id: str
    aggr_limit: int
    url: str
    """As the client wrote it, byte for byte; echoed as `resource_url`."""
    aggr_proxy: str = ""
    aggr_rate: float | None = None
    """Downloads of the aggregation that start in a second at the most; `None`: not named."""
    aggr_delay: float | None = None
    """Seconds between two starts of the aggregation at the least; `None`: not named."""
    callback_type: str = ""
    callback_dst: str = ""
    callback_error_type: str = ""
    """Where failures go; the pair above where the client gave none."""
    callback_error_dst: str = ""
    extra: str = ""
    mime_type: str = ""
    max_retries: int | None = None
    """`None`: the configured default."""
    extract_image_size: bool = False
    download_timeout: int | None = None
    """Seconds for a whole attempt; `None`: no bound of the job's own."""
    request_headers: Mapping[str, str] = field(default_factory=dict)
    user_agent: str = ""
    s3_bucket: str = ""
    s3_region: str = ""
    subpath: str = ""
    sha256: str = ""
    """The digest that the file must have, lower case; empty: any."""
    size: int | None = None
    """Bytes that the file must have; `None`: any number."""
    priority: int = 0
    """0 to 9: of an aggregation's jobs that are due, those of the highest begin first."""
    not_before: int = 0
    """Unix time in ms before which no download begins; 0: at once."""
    deadline: int = 0
    """Unix time in ms at which the job fails if its file is not stored; 0: never."""
    created_ms: int = 0
    """Unix time in ms at which it was accepted, by the accepting instance's clock; for display."""
    host: str = ""
    """Host of the URL, in the clear; only where limits by host are configured."""
    traceparent: str = ""
    """Trace of the request that brought the job (W3C Trace Context); its callbacks send it."""
    sealed: str = ""
    """The `SEALED_FIELDS`, encrypted with a key that this instance does not have. They are empty then: it can
    neither download the job nor deliver its callback."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a newer version stored; carried along untouched."""

    def to_json(self, seal: Callable[[str], str] | None = None) -> str:
        """The stored form: compact JSON without the id and without fields at their default.

        The destination of failures is left out where it equals that of successes, to save memory: millions
        of jobs may be pending. `seal` encrypts the `SEALED_FIELDS`; without it they are stored in the clear.
        """
        body = dict(self.unknown)
        for (name, default), value in zip(_SPEC_DEFAULTS.items(), _spec_values(self), strict=True):
            if value != default:
                body[name] = value
        if self.callback(success=False) == self.callback(success=True):
            body.pop("callback_error_type", None)
            body.pop("callback_error_dst", None)
        else:
            body["callback_error_type"] = self.callback_error_type
            body["callback_error_dst"] = self.callback_error_dst
        if seal is not None:
            secret = {name: body.pop(name) for name in SEALED_FIELDS if name in body}
            body["sealed"] = seal(json.dumps(secret, separators=(",", ":")))
        return _encode(body)

    @classmethod
    def from_json(
        cls, job_id: str, text: str | bytes, unseal: Callable[[str], str | None] = lambda _: None
    ) -> Self:
        """Inverse of `to_json`; fields this version does not know are kept in `unknown`.

        `unseal` decrypts what `seal` has encrypted; it returns `None` if it does not have the key.
        """
        body: dict[str, Any] = json.loads(text)
        if "sealed" in body:
            secret = unseal(body["sealed"])
            if secret is None:
                body["url"] = ""
            else:
                del body["sealed"]
                body |= json.loads(secret)
        unknown = {name: body.pop(name) for name in body.keys() - _SPEC_DEFAULTS.keys()}
        if "callback_error_type" not in body:
            body["callback_error_type"] = body.get("callback_type", "")
            body["callback_error_dst"] = body.get("callback_dst", "")
        return cls(id=job_id, unknown=unknown, **body)

    def callback(self, *, success: bool) -> tuple[str, str]:
        """`(type, destination)` of the callback for this result; `("", "")` when there is none."""
        if success:
            return self.callback_type, self.callback_dst
        return self.callback_error_type, self.callback_error_dst

    def left_s(self, now: int) -> float:
        """Seconds until its deadline at this Unix time in ms; infinite without one, negative after it."""
        return (self.deadline - now) / 1000 if self.deadline else math.inf

    @property
    def storage_key(self) -> str:
        """Path of the file under the storage root; made from our id, never from the client's URL."""
        path = f"{self.id[:ID_PREFIX_LENGTH]}/{self.id}"
        return f"{self.subpath}/{path}" if self.subpath else path


_SPEC_DEFAULTS: dict[str, Any] = {
    f.name: f.default_factory() if callable(f.default_factory) else f.default  # or `MISSING`
    for f in fields(JobSpec)
    if f.name not in ("id", "unknown")
}
_spec_values = attrgetter(*_SPEC_DEFAULTS)
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """Facts about a stored file; with the defaults, there is no file."""

    size: int = 0
    sha256: str = ""
    """Lower-case hexadecimal."""
    mime_type: str = ""
    image_size: str = ""
    """`"WxH"` in pixels, or empty."""
    filename: str = ""
    """From the response's `Content-Disposition`, made safe; empty if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooldown:
    """A pause that an origin asked for: its aggregation starts no download until then."""

    seconds: float
    asked: bool
    """The origin gave the length. If not, the store doubles it with each cooldown that follows another."""
    of_host: bool = True
    """Whether it is the host's too. It is not if the aggregation's own proxy asked for it, or the origin that
    a redirect led to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one attempt at a download ended."""

    verdict: Verdict
    error: str = ""
    """One line for the callback; empty exactly when `verdict` is `SUCCEEDED`. No secrets."""
    error_code: ErrorCode | str = ErrorCode.NONE
    """A plain string if a newer version has stored a code unknown to this version; it is passed on."""
    response_code: int = 0
    """The last response's status; 0 if there was no response."""
    retry_after_s: float | None = None
    """The origin's `Retry-After`, or the computed delay, for `RETRY` and `RELEASE`."""
    cooldown: Cooldown | None = None
    """Cooldown of the whole aggregation. The attempt may count, or be the last one."""
    file: FileFacts = field(default_factory=FileFacts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackOutcome:
    """How one attempt at a callback ended."""

    verdict: Verdict
    error: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One task, leased to one instance."""

    kind: Kind
    spec: JobSpec
    group: str
    generation: int
    attempts: int
    """Attempts that ended before this one and count against the retries."""
    crashes: int
    """Earlier leases of this task whose holder died."""
    throttled: int = 0
    """Attempts that ended before this one with a cooldown of the aggregation; downloads only."""
    limit: int
    """How many of the group may run at once over the fleet, as of this lease."""
    proxy: str = ""
    """The aggregation's proxy; downloads only."""
    result: Outcome | None = None
    """How the download ended; callbacks only."""
    result_attempts: int = 0
    """Attempts the download took; callbacks only."""
    proven: bool = True
    """Whether its destination has taken a callback lately; callbacks only."""
    waited_s: float | None = field(default=None, compare=False)
    """Seconds since it was due; `None` if the lease was given a second time."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.id


def callback_group(callback_type: str, destination: str) -> str:
    """The group that bounds callbacks to one destination: a URL's host, whatever its port and path.

    So a host that does not answer delays its own callbacks only. The queues of a broker share one host, so
    for brokers the path is part of the group: a missing queue must not delay the others. A destination that
    is not a URL (a topic, a prefix) is its own group. Never raises.
    """
    scheme, mark, rest = destination.partition("://")
    if mark:
        # `urlsplit` raises for some usable URLs, such as one with a `[` in the password.
        authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
        queue = rest[len(authority) :] if callback_type in BROKERS else ""
        host = _PORT.sub("", authority.rpartition("@")[2])
        destination = f"{scheme}://{host}".lower() + queue if queue else host.lower()
    return f"{callback_type} {destination}"[:256]


def is_reserved(callback_type: str, destination: str) -> bool:
    """Whether this is an internal topic of Kafka or its tools (`_schemas`), which gets no callbacks."""
    return callback_type == "kafka" and destination.startswith("_")


def callback_limit(group: str, per_destination: int) -> int:
    """How many callbacks of a group that does not fail may be in flight over the fleet.

    `per_destination` bounds the load on one HTTP host. Brokers take any number of senders, and their plugins
    send in batches, which need many callbacks in flight, so their limit is higher.
    """
    return max(per_destination, _BROKER_LIMIT) if group.partition(" ")[0] in BROKERS else per_destination


def status_phrase(status: int) -> str:
    """The name of an HTTP status as RFC 9110 and IANA's registry have it; empty for an unknown one."""
    try:
        return _RENAMED_PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return ""


def describe_status(status: int) -> str:
    """`404 Not Found`; never the phrase that the peer sent, which may be any text."""
    return f"{status} {status_phrase(status)}".rstrip()


def now_ms() -> int:
    """Unix time in ms by this host's clock, for display and deadlines; the store's decides what is due."""
    return time.time_ns() // 1_000_000
