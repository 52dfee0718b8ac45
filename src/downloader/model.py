"""The values that all parts share: jobs, tasks, attempts, outcomes, callbacks. No I/O.

A *job* is what a client asked for (`JobSpec`, immutable). The work on it is one or two *tasks*: its
download, then its callback. A task belongs to a *queue* that bounds how many run at once: a download's
queue is its aggregation, a callback's the destination it goes to. A task is *leased* to one instance
at a time. Every lease has a new *generation*, so that the holder of an old lease can change nothing.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from http import HTTPStatus
from operator import attrgetter
from types import MappingProxyType, NoneType
from typing import Any, Literal, NamedTuple, Self

from downloader.ids import ID_PREFIX_LENGTH
from downloader.jsontext import compact_json
from downloader.phases import Phases

FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""A regular expression for the name of a header (RFC 9110, 5.6.2)."""

MAX_AGGREGATION_CHARS = 128
"""Longest name of an aggregation."""

MAX_URL_CHARS = 8192
"""Longest URL: most servers accept a request line of this length. Presigned URLs have up to 2,000
characters."""

POISON_CRASHES = 5
"""A job fails after the death of this many workers during attempts at the job."""

BROKERS = frozenset({"kafka", "sqs"})
"""Callback types with queues or topics of a single host as destinations."""
_BROKER_LIMIT = 4096
"""Callbacks in flight to a broker: more than any process allows (`notifier.concurrency`), so no bound."""

_AUTHORITY_END = re.compile(r"[/?#]")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_RENAMED_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""Names of RFC 9110 that Python uses from 3.13 on, so that our texts are equal on all versions."""


class Kind(StrEnum):
    """The two kinds of leased work."""

    DOWNLOAD = "download"
    CALLBACK = "callback"


class State(StrEnum):
    """States of a task; `docs/state-machine.md` draws the transitions."""

    PENDING = "pending"
    """Waiting until the task is due and the queue has a free slot."""
    RUNNING = "running"
    """Leased to an instance."""
    SUCCEEDED = "succeeded"
    """Terminal: the file is stored, or the callback delivered."""
    FAILED = "failed"
    """Terminal: attempts are used up, or the failure is final."""
    CANCELLED = "cancelled"
    """Terminal, downloads only: a client cancelled the job."""


StateName = Literal["pending", "running", "succeeded", "failed", "cancelled"]
"""The values of `State`, for type checkers and the command line."""


class ErrorCode(StrEnum):
    """`error_code` of the callback; `docs/errors.md` has when a download is tried again."""

    NONE = ""
    HTTP_STATUS = "http_status"
    """The origin answered with a status that means failure."""
    TLS = "tls"
    """TLS failed: the certificate, or the handshake."""
    MIME_TYPE = "mime_type"
    """The content is not of a type that the job asks for."""
    EGRESS = "egress"
    """The configuration does not allow the address."""
    CONNECT = "connect"
    """The connection was refused or reset."""
    DNS = "dns"
    """The host's name could not be resolved."""
    TIMEOUT = "timeout"
    """The origin took too long: to connect, to answer, or to send."""
    TRUNCATED = "truncated"
    """The connection ended before the file was complete."""
    TOO_LARGE = "too_large"
    """The file is larger than `processor.max_size` or the job's `max_size`."""
    TOO_SMALL = "too_small"
    """The file is smaller than the job's `min_size`."""
    IMAGE_SIZE = "image_size"
    """The image's width or height is outside of the job's bounds, or cannot be read."""
    REDIRECTS = "redirects"
    """Too many redirects, or a redirect that cannot be followed."""
    PROTOCOL = "protocol"
    """The response is malformed."""
    STORAGE = "storage"
    """The service's own disk or storage failed, or the job's bucket is missing or forbidden."""
    CANCELLED = "cancelled"
    """A client cancelled the job."""
    POISON = "poison"
    """Five workers died during attempts at the job."""
    DEADLINE = "deadline"
    """The file was not stored by the job's `deadline`."""
    DIGEST = "digest"
    """The file differs from the job's `sha256`, `md5` or `size`, or from the origin's digest."""
    NOT_MODIFIED = "not_modified"
    """A 304 to a condition in `request_headers`."""
    KEY_EXISTS = "key_exists"
    """Another file is stored under the job's `key`, and the job has `key_exists` `fail`."""
    ROBOTS = "robots"
    """Refused by the origin's robots.txt, or robots.txt could not be read."""


ErrorName = Literal[
    "http_status",
    "tls",
    "mime_type",
    "egress",
    "connect",
    "dns",
    "timeout",
    "truncated",
    "too_large",
    "too_small",
    "image_size",
    "redirects",
    "protocol",
    "storage",
    "cancelled",
    "poison",
    "deadline",
    "digest",
    "not_modified",
    "key_exists",
    "robots",
]
"""The values of `ErrorCode` without the empty one, for type checkers and the command line."""


class Verdict(StrEnum):
    """The next step for a task after an attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETRY = "retry"
    """The attempt counts, and a later attempt follows."""
    RELEASE = "release"
    """A fault of the service, or a stop: the task is handed back, and the attempt does not count."""
    THROTTLED = "throttled"
    """The origin asked for a pause: the attempt does not count, and the next follows after the aggregation's
    cooldown. Downloads only."""


SEALED_FIELDS = ("url", "request_headers", "user_agent", "callback_dst", "callback_error_dst", "extra", "key")
"""Fields of a job that may contain secrets; encrypted in the store if a key is configured."""

KeyExists = Literal["replace", "keep", "fail"]
"""The rules for a file that is already stored under the `key` of a job."""

SHA256_FILLING = "{sha256}"
"""Placeholder in the `key` of a job for the file's SHA-256, which is known after the download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """The client's request, checked and normalised; never changes once accepted."""

    id: str
    aggr_id: str
    aggr_limit: int
    url: str
    """The client's text, byte for byte; echoed as `resource_url`."""
    aggr_proxy: str = ""
    aggr_rate: float | None = None
    """Most downloads of the aggregation that start in a second; `None`: not named."""
    aggr_delay: float | None = None
    """Least seconds between two starts of the aggregation's downloads; `None`: not named."""
    callback_type: str = ""
    callback_dst: str = ""
    callback_error_type: str = ""
    """Type for failures; `callback_type` if the client named none."""
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
    storage_url: str = ""
    """Bucket and prefix of the keys there, without a slash at the end: `gs://NAME/PREFIX`, `az://NAME/PREFIX`,
    or `s3://NAME/PREFIX` with the name in `s3_bucket` too."""
    subpath: str = ""
    key: str = ""
    """Path of the file under the storage root, in place of `subpath` and the path by id; may contain
    `SHA256_FILLING`. The file then belongs to the client, and the service does not delete it, unless the
    job `is_shared`."""
    key_exists: KeyExists = "replace"
    content_type: str = ""
    """Media type of the stored object; empty: the type that the file's bytes have."""
    content_disposition: str = ""
    """`Content-Disposition` of the stored object."""
    sha256: str = ""
    """Required digest of the file, lower case; empty: any."""
    md5: str = ""
    """As `sha256`; kept with the job's result."""
    size: int | None = None
    """Required size of the file in bytes; `None`: any."""
    max_size: int | None = None
    """Most bytes of the file; `None`: the configured bound alone."""
    min_size: int = 0
    """Least bytes of the file."""
    min_width: int = 0
    """Least width of the image in pixels; 0: any, as for `min_height` and `max_pixels`."""
    min_height: int = 0
    max_pixels: int = 0
    """Most pixels of the image: width times height."""
    if_none_match: str = ""
    """ETags for `If-None-Match`; empty: not sent, as for `if_modified_since`."""
    if_modified_since: str = ""
    """HTTP-date (RFC 9110, 5.6.7) for `If-Modified-Since`."""
    tags: Sequence[str] = ()
    """The client's own short texts, without repetitions; may be searched for."""
    group: str = ""
    """Name of the client's group of jobs; empty: none."""
    completes: str = ""
    """For what reports the completion of a group of jobs, and is no job: the counts, as JSON. `aggr_id` is
    the group's name."""
    priority: int = 0
    """0 to 9: among an aggregation's due jobs, the highest priority begins first."""
    not_before: int = 0
    """Unix time in ms before which no download begins; 0: at once."""
    deadline: int = 0
    """Unix time in ms at which the job fails unless the file is stored; 0: never."""
    created_ms: int = 0
    """Unix time in ms of acceptance, by the accepting instance's clock; for display."""
    host: str = ""
    """Host of the URL, never encrypted; only set if limits by host are configured."""
    traceparent: str = ""
    """Trace of the request that brought the job (W3C Trace Context); sent with callbacks of the job."""
    token: str = ""
    """Name of the token that the job came with; empty if the API has no tokens."""
    counted: bool = False
    """Whether the job counts against a quota of the token until the download is over."""
    sealed: str = ""
    """The `SEALED_FIELDS`, if encrypted with a key that the instance does not have. The plain fields are then
    empty, and the instance can neither download the job nor deliver the callback."""
    damage: str = ""
    """Why the stored job is unusable; empty if it is usable. Not stored. Damaged fields have the default."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields that a newer version has stored; kept unchanged."""

    def to_json(self, seal: Callable[[str], str] | None = None) -> str:
        """The stored form: compact JSON of `stored`. `seal` encrypts, see `sealed`."""
        return compact_json(sealed(self.stored(), seal)).decode()

    def stored(self) -> dict[str, Any]:
        """The stored fields: all fields except the id and fields with the default value.

        The destination of failures is omitted if it equals the destination of successes. This saves memory:
        millions of jobs may be pending.
        """
        body = dict(self.unknown)
        for (name, default), value in zip(_SPEC_DEFAULTS.items(), _spec_values(self), strict=True):
            if value != default:
                body[name] = value
        failures = {
            "callback_error_type": self.callback_error_type,
            "callback_error_dst": self.callback_error_dst,
        }
        if (self.callback_type, self.callback_dst) != tuple(failures.values()):
            return body | failures
        return {name: value for name, value in body.items() if name not in failures}

    @classmethod
    def from_json(
        cls, job_id: str, text: str | bytes, unseal: Callable[[str], str | None] = lambda _: None
    ) -> Self:
        """Inverse of `to_json`; unknown fields are kept in `unknown`. Never raises, see `damage`.

        `unseal` decrypts what `seal` has encrypted; it returns `None` if it does not have the key.
        """
        damage = ""
        try:
            body = _json_object(text)
            if "sealed" in body:
                secret = unseal(body["sealed"])
                if secret is None:
                    body["url"] = ""
                else:
                    del body["sealed"]
                    body |= _json_object(secret)
        except (ValueError, TypeError, RecursionError):
            body, damage = {}, "the stored job is damaged: no JSON object"
        unknown = {name: body.pop(name) for name in body.keys() - _SPEC_DEFAULTS.keys()}
        at_fault = (_REQUIRED - body.keys()) | {
            name
            for name, value in body.items()
            if type(value) not in _SPEC_TYPES[name] or (type(value) in _CONTAINERS and not _has_texts(value))
        }
        if at_fault:
            damage = damage or f"the stored job is damaged: {', '.join(sorted(at_fault))}"
            if any(name.startswith("callback") for name in at_fault):
                at_fault |= {name for name in body if name.startswith("callback")}
            body = {"aggr_id": "", "aggr_limit": 1, "url": ""} | {
                name: value for name, value in body.items() if name not in at_fault
            }
        if "tags" in body:
            body["tags"] = tuple(body["tags"])
        if "callback_error_type" not in body:
            body["callback_error_type"] = body.get("callback_type", "")
            body["callback_error_dst"] = body.get("callback_dst", "")
        return cls(id=job_id, unknown=unknown, damage=damage, **body)

    def callback(self, *, success: bool) -> tuple[str, str]:
        """`(type, destination)` of the callback for a success or a failure; `("", "")` for no callback."""
        if success:
            return self.callback_type, self.callback_dst
        return self.callback_error_type, self.callback_error_dst

    def left_s(self, now: int) -> float:
        """Seconds from `now` (Unix time in ms) to the deadline; infinite without a deadline."""
        return (self.deadline - now) / 1000 if self.deadline else math.inf

    @property
    def bucket(self) -> str:
        """The bucket that the job names: the name in S3, or `gs://NAME` or `az://NAME`; empty without one."""
        return self.s3_bucket or "/".join(self.storage_url.split("/")[:3])

    @property
    def prefix(self) -> str:
        """The beginning of the key in the bucket of `storage_url`; empty, or ends with a slash."""
        return "".join(f"{part}/" for part in self.storage_url.split("/")[3:])

    @property
    def is_shared(self) -> bool:
        """Whether equal files of several jobs are one file: in the service's storage, named by its digest."""
        return SHA256_FILLING in self.key and not self.bucket

    def storage_key(self, sha256: str) -> str:
        """Path of the file with this SHA-256 under the storage root, or in the bucket that the job names."""
        if self.key:
            return self.prefix + self.key.replace(SHA256_FILLING, sha256)
        path = f"{self.id[:ID_PREFIX_LENGTH]}/{self.id}"
        return self.prefix + (f"{self.subpath}/{path}" if self.subpath else path)


_SPEC_DEFAULTS: dict[str, Any] = {
    f.name: f.default_factory() if callable(f.default_factory) else f.default  # or `MISSING`
    for f in fields(JobSpec)
    if f.name not in ("id", "unknown", "damage")
}
_REQUIRED = frozenset(name for name, default in _SPEC_DEFAULTS.items() if default is MISSING)
_CONTAINERS = frozenset({list, dict})
_JSON_TYPES: Mapping[str, Collection[type]] = {
    "str": {str},
    "KeyExists": {str},
    "bool": {bool},
    "int": {int},
    "int | None": {int, NoneType},
    "float | None": {int, float, NoneType},
    "Sequence[str]": {list},
    "Mapping[str, str]": {dict},
}
"""Types of a field's value in JSON, by the field's annotation."""
_SPEC_TYPES = {f.name: _JSON_TYPES[str(f.type)] for f in fields(JobSpec) if f.name in _SPEC_DEFAULTS}
_spec_values = attrgetter(*_SPEC_DEFAULTS)


def _json_object(text: str | bytes) -> dict[str, Any]:
    """Raises `ValueError` or `RecursionError` for any other text."""
    body = json.loads(text)
    if not isinstance(body, dict):
        raise ValueError("no JSON object")  # noqa: TRY004  # of the text
    return body


def _has_texts(container: Any) -> bool:
    """Whether a list or an object from JSON has no other values than texts."""
    texts = container.values() if isinstance(container, dict) else container
    return all(isinstance(text, str) for text in texts)


def sealed(body: dict[str, Any], seal: Callable[[str], str] | None) -> dict[str, Any]:
    """Stored fields of a job, with the `SEALED_FIELDS` encrypted; unchanged without `seal`."""
    if seal is None:
        return body
    secret = {name: body[name] for name in SEALED_FIELDS if name in body}
    rest = {name: value for name, value in body.items() if name not in secret}
    return {**rest, "sealed": seal(compact_json(secret).decode())}


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
    """From the response's `Content-Disposition`, made safe; empty without a name in the header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseMetadata:
    """Metadata of the file from a successful response; an absent header is an empty text."""

    etag: str = ""
    """`ETag` as received, with quotes."""
    last_modified: str = ""
    """`Last-Modified` as received."""
    content_type: str = ""
    """`Content-Type` as received."""
    final_url: str = ""
    """The URL after redirects, without user and password; empty if there was no redirect."""
    not_modified: bool = False
    """Whether the response was a 304 to the job's own condition, so that there is no file."""


class StartRate(NamedTuple):
    """How fast a process starts downloads of an aggregation, or at a host."""

    per_s: float
    """Starts per second; 0 if no download was accepted lately."""
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooldown:
    """A pause that an origin asked for: the aggregation starts no download for `seconds`."""

    seconds: float
    asked: bool
    """Whether the origin gave the length. If not, the store doubles it with each successive cooldown."""
    of_host: bool = True
    """Whether the cooldown also applies to the URL's host. False if the aggregation's own proxy asked for it,
    or the origin of a redirect."""
    had: StartRate | None = None
    """This process's rate of starts in the aggregation. `None`: the pace does not change."""
    host_had: StartRate | None = None
    """This process's rate of starts at the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of an attempt at a download."""

    verdict: Verdict
    error: str = ""
    """One line for the callback, without secrets; empty exactly when `verdict` is `SUCCEEDED`."""
    error_code: ErrorCode | str = ErrorCode.NONE
    """A plain string if a newer version has stored an unknown code, which is passed on."""
    response_code: int = 0
    """The last response's status; 0 if there was no response."""
    retry_after_s: float | None = None
    """The origin's `Retry-After`, or the computed delay, for `RETRY` and `RELEASE`."""
    cooldown: Cooldown | None = None
    """Cooldown of the whole aggregation; independent of whether the attempt counts or is the last."""
    file: FileFacts = field(default_factory=FileFacts)
    response: ResponseMetadata = field(default_factory=ResponseMetadata)
    phases: Phases | None = field(default=None, compare=False)
    """Phases of the attempt; `None` if they are not kept."""

    @property
    def has_file(self) -> bool:
        """Whether the attempt stored a file."""
        return self.verdict is Verdict.SUCCEEDED and not self.response.not_modified


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackOutcome:
    """The result of an attempt at a callback."""

    verdict: Verdict
    error: str = ""
    retry_after_s: float | None = None
    slow: bool = False
    """Whether the delivery took long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A task that is leased to an instance."""

    kind: Kind
    spec: JobSpec
    queue: str
    generation: int
    attempts: int
    """Earlier attempts that count against the retries."""
    crashes: int
    """Earlier leases of the task that ended with the death of the holder."""
    throttled: int = 0
    """Earlier attempts that ended with a cooldown of the aggregation; downloads only."""
    limit: int
    """How many tasks of the queue may run at once in the fleet, at the time of the lease."""
    proxy: str = ""
    """The aggregation's proxy; downloads only."""
    token: str = ""
    """The token that the queue belongs to; empty: none."""
    result: Outcome | None = None
    """How the download ended; callbacks only."""
    result_attempts: int = 0
    """Attempts the download took; callbacks only."""
    result_retry: str = ""
    """Names the request by which a client had the failed download run again; empty for a job that ran once.
    Callbacks only."""
    proven: bool = True
    """Whether the destination has taken a callback quickly lately; callbacks only."""
    failing: bool = False
    """Whether a callback to the destination has failed or taken long lately, and none was taken quickly;
    callbacks only."""
    waited_s: float | None = field(default=None, compare=False)
    """Seconds from the due time to the lease; `None` if the lease call was repeated."""
    age_s: float = field(default=0.0, compare=False)
    """Seconds since the callback became pending, by the end of the download or by a retry; callbacks only."""

    @property
    def id(self) -> str:
        """The job's id."""
        return self.spec.id


def callback_queue(callback_type: str, destination: str) -> str:
    """The queue of callbacks to a destination: the origin of a URL.

    A destination that does not respond therefore delays no other one, also on the same host. The queues of a
    broker share an origin, so for brokers the path is part of the name: a missing queue must not delay the
    others. A destination that is not a URL (a topic, a prefix) has a queue of its own. Never raises.
    """
    scheme, mark, address = destination.partition("://")
    if mark:
        # `urlsplit` raises for some usable URLs, such as one with a `[` in the password.
        authority = _AUTHORITY_END.split(address, maxsplit=1)[0]
        path = address[len(authority) :] if callback_type in BROKERS else ""
        scheme, host = scheme.lower(), authority.rpartition("@")[2].lower().removesuffix(":")
        destination = f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ':'))}{path}"
    return f"{callback_type} {destination}"[:256]


def is_reserved(callback_type: str, destination: str) -> bool:
    """Whether the destination is an internal topic of Kafka (such as `_schemas`), which gets no callbacks."""
    return callback_type == "kafka" and destination.startswith("_")


NO_LIMITS: Mapping[str, int] = MappingProxyType({})


def callback_limit(queue: str, per_destination: int, own: Mapping[str, int] = NO_LIMITS) -> int:
    """How many callbacks of a healthy queue may be in flight in the fleet; `own`: limits of single queues.

    `per_destination` bounds the load on an HTTP host. Brokers accept any number of senders, and their plugins
    need many callbacks in flight to send in batches, so brokers have a higher limit.
    """
    if queue in own:
        return own[queue]
    return max(per_destination, _BROKER_LIMIT) if queue.partition(" ")[0] in BROKERS else per_destination


def status_phrase(status: int) -> str:
    """The name of an HTTP status in IANA's registry; empty for an unknown status."""
    try:
        return _RENAMED_PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return ""


def describe_status(status: int) -> str:
    """Status and name, as in `404 Not Found`; never the peer's phrase, which may be any text."""
    return f"{status} {status_phrase(status)}".rstrip()


def now_ms() -> int:
    """Unix time in ms by the clock of the host, which the store does not use."""
    return time.time_ns() // 1_000_000
