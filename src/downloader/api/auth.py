"""Authentication and authorization: bearer tokens (RFC 6750) with scopes and allow-lists, and sessions.

Tokens are kept as SHA-256 digests. A request's token is compared with all of them in constant time, so the
response time does not reveal how much of a guessed token was right.

A session is a cookie of the web page that stands for a token. The cookie has the time at which the session
ends, signed (HMAC-SHA256) with the token's digest. So nothing is stored, every instance with the token
accepts the session, and it ends with the token. The cookie does not contain the token, because browsers send
cookies to every port of a host, so also to other services.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal, cast, get_args

import trio
from quart import request
from werkzeug.datastructures import MultiDict
from werkzeug.sansio.http import parse_cookie

from downloader.api.problems import Refused, fault_in, faulty, refused
from downloader.config import Scope, TokenSettings
from downloader.globs import Allows, anything, destination_globs, text_globs, url_globs
from downloader.model import JobSpec
from downloader.observe import Event, get_logger
from downloader.server import Headers, Message, client_of
from downloader.store import JobStore, StoreError
from downloader.wire import AuditEntry

_log = get_logger()

CALLER = "downloader.caller"
"""Key in the ASGI scope: the request's `Caller`, or `None` while the API is open."""

SESSION = "downloader.session"
"""Key in the ASGI scope: the `Session` by which the request was accepted; absent without one."""

SESSION_S = 12 * 3600
"""A long working day; then the page asks for the token again."""

COOKIE = "downloader-session"
SECURE_COOKIE = f"__Host-{COOKIE}"
"""Browsers accept a cookie of this name only over TLS and from this very host (RFC 6265bis, 4.1.3)."""

_DIGITS = 12
"""Most digits of a Unix time: enough until the year 33658."""

_COOKIES = 4
"""Most session cookies of a request that are checked: each is compared with each token, and a head has room
for hundreds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner and the rights of a token, without the secret."""

    name: str
    scopes: frozenset[str]
    """All for a token with `admin`."""
    aggregations: Allows
    """`anything` if the list is `["*"]`."""
    destinations: Callable[[str, str], bool]
    """Called with a backend's name and a destination."""
    buckets: Allows
    proxies: Allows
    keys: Allows
    quota: Mapping[str, int] | None = None
    """As in `Submission`."""


Action = Literal["cancel", "cancel_jobs", "purge", "retry", "retry_jobs", "adjust", "pause_all"]
"""A change that is logged and noted with the token's name."""

Callers = Sequence[tuple[bytes, Caller]]
"""The owner of each token, by the token's digest."""


def read_tokens(tokens: Iterable[TokenSettings]) -> Callers:
    """Prepare the configured tokens for `identify`."""
    return [
        (
            hashlib.sha256(token.token.get_secret_value().encode()).digest(),
            Caller(
                name=token.name,
                scopes=frozenset(get_args(Scope) if "admin" in token.scopes else token.scopes),
                aggregations=text_globs(token.aggregations),
                destinations=destination_globs(token.destinations),
                buckets=text_globs(token.buckets),
                proxies=url_globs(token.proxies, "proxy"),
                keys=text_globs(token.keys),
                quota=_quota(token),
            ),
        )
        for token in tokens
    ]


def _quota(token: TokenSettings) -> Mapping[str, int] | None:
    quotas = {
        "jobs": token.max_pending,
        "bytes": token.max_pending_bytes,
        "aggregations": token.max_aggregations,
        "groups": token.max_groups,
    }
    return {name: int(most) for name, most in quotas.items() if most is not None} or None


def identify(callers: Callers, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """The owner of the request's token; names of `headers` are in lower case.

    Exactly one header must be `Authorization`: with two, a proxy in front might have checked the other one.

    Raises:
        Refused: 401, the same for a missing and for a wrong token.
    """
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    owner = find_token(callers, token.strip(b" ")) if scheme.lower() == b"bearer" else None
    if owner is None:
        raise unauthorized()
    _, caller = owner
    return caller


def find_token(callers: Callers, token: bytes) -> tuple[bytes, Caller] | None:
    """Digest and owner of a token; `None` if the token is not configured."""
    digest = hashlib.sha256(token).digest()
    owner = None
    for configured, caller in callers:  # no break: the time must not depend on which one matches
        if hmac.compare_digest(configured, digest):
            owner = configured, caller
    return owner


def check_scope(caller: Caller, scope: Scope) -> None:
    """Check that the caller has this scope.

    Raises:
        Refused: 403.
    """
    if scope not in caller.scopes:
        raise refused("forbidden", f"The token lacks the scope {scope}.")


def present_caller() -> Caller | None:
    """The caller of Quart's request; `None` while the API is open."""
    return cast("Caller | None", request.scope.get(CALLER))


async def audit(store: JobStore, action: Action, **changed: Any) -> None:
    """Log a change made by Quart's current request, and note the change for `GET /audit`.

    `changed` must contain no secret. A store that does not answer within `redis.timeout` loses the note: the
    change itself is done, and the log has it.
    """
    caller, client = present_caller(), client_of(cast("Message", request.scope))
    token = caller.name if caller else None
    _log.info(Event.AUDIT, action=action, token=token, client=client, **changed)
    entry = AuditEntry(at=datetime.now(UTC), action=action, token=token, client=client, changed=changed)
    # Shielded: the change is done, whether the client waits for the response or not.
    with trio.CancelScope(shield=True), suppress(StoreError):
        await store.note_change(entry)


def visible_aggregations() -> Allows:
    """The aggregations that the caller of Quart's request may see."""
    caller = present_caller()
    return anything if caller is None else caller.aggregations


def named_keys() -> Allows:
    """The keys that the token of Quart's request lists; the default `["*"]` lists none."""
    caller = present_caller()
    return text_globs([]) if caller is None or caller.keys is anything else caller.keys


def sees_all() -> bool:
    """Whether the caller of Quart's request may see every aggregation."""
    return visible_aggregations() is anything


def check_sees_all() -> None:
    """Check that the caller of Quart's request may see the whole fleet: every aggregation.

    Raises:
        Refused: 403.
    """
    if not sees_all():
        detail = "This route is about the whole fleet, and the token may not see all aggregations."
        raise refused("forbidden", detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that has not ended."""

    caller: Caller
    ends: int
    """Unix time in seconds."""

    def left_s(self) -> float:
        """Seconds until the session ends."""
        return self.ends - time.time()


def sign(digest: bytes, ends: int) -> str:
    """The cookie's value, for the token with this digest."""
    return f"{ends}.{hmac.digest(digest, b'session %d' % ends, 'sha256').hex()}"


def find_session(callers: Callers, scope: Message) -> Session | None:
    """The session of a request without `Authorization`; `None` if no cookie has a valid session.

    Over TLS only `SECURE_COOKIE` is accepted, because other hosts of the same domain can set `COOKIE`.
    Without TLS both are accepted, `SECURE_COOKIE` first, because a proxy in front may use TLS.
    """
    headers: Headers = scope["headers"]
    if any(name == b"authorization" for name, _ in headers):
        return None
    names = (SECURE_COOKIE,) if scope["scheme"] == "https" else (SECURE_COOKIE, COOKIE)
    given = cookies(headers)
    session = None
    for value in [value for name in names for value in given.getlist(name)][:_COOKIES]:
        ends = value.partition(".")[0]
        if not (ends.isascii() and ends.isdigit() and len(ends) <= _DIGITS) or int(ends) <= time.time():
            continue
        for digest, caller in callers:  # no break: the time must not depend on which one matches
            if hmac.compare_digest(sign(digest, int(ends)).encode(), value.encode()):
                session = session or Session(caller=caller, ends=int(ends))
    return session


def cookies(headers: Headers) -> MultiDict[str, str]:
    """The cookies by name; a proxy may spread cookies over several headers."""
    given = [value.decode("latin-1") for name, value in headers if name == b"cookie"]
    return parse_cookie("; ".join(given))


def check_job(caller: Caller, spec: JobSpec, *, destination_field: str) -> None:
    """Check a job against the caller's allow-lists.

    `destination_field`: the field of the request that has `spec.callback_dst`.

    Raises:
        Refused: 403 with the fields.
    """
    callback, error_callback = spec.callback(success=True), spec.callback(success=False)
    if spec.key:
        place_field, place = "key", f"{spec.prefix}{spec.key}"
    elif spec.subpath:
        place_field, place = "subpath", f"{spec.prefix}{spec.subpath}/"
    else:
        place_field, place = "storage_url", spec.prefix
    fields = (
        ("aggr_id", caller.aggregations(spec.aggr_id)),
        ("group", not spec.group or caller.aggregations(spec.group)),
        ("aggr_proxy", not spec.aggr_proxy or caller.proxies(spec.aggr_proxy)),
        (destination_field, callback == _NO_CALLBACK or caller.destinations(*callback)),
        ("callback_error_dst", error_callback == _NO_CALLBACK or caller.destinations(*error_callback)),
        ("storage_url" if spec.storage_url else "s3_bucket", not spec.bucket or caller.buckets(spec.bucket)),
        (place_field, not place or caller.keys(place)),
    )
    if not all(allowed for _, allowed in fields):
        wrong = dict.fromkeys(field for field, allowed in fields if not allowed)
        faults = [fault_in(field, "forbidden", f"The token may not use this {field}.") for field in wrong]
        raise Refused(faulty(HTTPStatus.FORBIDDEN, faults))


_NO_CALLBACK = ("", "")


def unauthorized() -> Refused:
    """The refusal of a request without a valid token: 401."""
    return refused("unauthorized", more_headers=((b"www-authenticate", b"Bearer"),))
