"""Authentication and authorization: bearer tokens (RFC 6750), their scopes and allow-lists. No I/O.

Tokens are kept as SHA-256 digests. A request's token is compared with all of them in constant time, so the
time of an answer does not reveal how much of a guessed token was right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import get_args

from downloader.api.globs import Allows, destination_globs, text_globs, url_globs
from downloader.api.intake import BULK_PATH, SINGLE_PATH
from downloader.api.origin import SAFE_METHODS
from downloader.api.problems import Fault, Problem, Refused, faulty
from downloader.config import Scope, TokenSettings
from downloader.model import JobSpec

CALLER = "downloader.caller"
"""Key in the ASGI scope: the request's `Caller`, or `None` while the API is open."""

PUBLIC_PATHS = frozenset({"/hb", "/health/live", "/health/ready"})
"""Routes for load balancers and supervisors, which have no token."""

SESSION_PATH = "/session"

RETRY_PATH = "/retry"
"""Route of retries: in bulk, or with a job's id behind it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner of a token and what it allows, without the token itself."""

    name: str
    scopes: frozenset[str]
    """All for a token with `admin`."""
    aggregations: Allows
    """`anything` if the list is `["*"]`."""
    destinations: Callable[[str, str], bool]
    """Called with a backend's name and a destination."""
    buckets: Allows
    proxies: Allows


Callers = Sequence[tuple[bytes, Caller]]
"""The digest of each token, with its owner."""


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
            ),
        )
        for token in tokens
    ]


def needs_token(method: str, path: str) -> bool:
    """Whether the route needs a token, if there are any.

    The page's static files do not: the page asks for the token. `SESSION_PATH` checks it by itself.
    """
    static = method in SAFE_METHODS and (path == "/" or path.startswith("/web/"))
    return not static and path not in PUBLIC_PATHS and path != SESSION_PATH


def identify(callers: Callers, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """The owner of the request's token; names of `headers` are in lower case.

    Exactly one must be `Authorization`: if there were two, a proxy in front might have checked the other one.

    Raises:
        Refused: 401, the same for a missing and for a wrong token.
    """
    given = [value for name, value in headers if name == b"authorization"]
    scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    found = find_token(callers, token.strip(b" ")) if scheme.lower() == b"bearer" else None
    if found is None:
        raise Refused(UNAUTHORIZED)
    return found[1]


def find_token(callers: Callers, token: bytes) -> tuple[bytes, Caller] | None:
    """The token's digest and its owner; `None` if it is not configured."""
    digest = hashlib.sha256(token).digest()
    found = None
    for known in callers:  # no break: the time must not depend on which one matches
        if hmac.compare_digest(known[0], digest):
            found = known
    return found


def check_scope(caller: Caller, method: str, path: str) -> None:
    """Check that the caller's scopes include the route's.

    Raises:
        Refused: 403.
    """
    scope = scope_of(method, path)
    if scope not in caller.scopes:
        raise Refused(
            Problem(HTTPStatus.FORBIDDEN, "forbidden", detail=f"The token lacks the scope {scope}.")
        )


def scope_of(method: str, path: str) -> Scope:
    """The scope that a request needs."""
    if method in SAFE_METHODS:
        return "read"
    if method == "DELETE" or (method == "POST" and path in (SINGLE_PATH, BULK_PATH)):  # DELETE cancels a job
        return "submit"
    if method == "POST" and (path == RETRY_PATH or path.startswith(f"{RETRY_PATH}/")):
        return "retry"
    return "admin"


def check_job(caller: Caller, spec: JobSpec, *, destination_field: str) -> None:
    """Check a job against the caller's allow-lists; `destination_field` is that of `spec.callback_dst`.

    Raises:
        Refused: 403 with the fields.
    """
    callback, error_callback = spec.callback(success=True), spec.callback(success=False)
    fields = (
        ("aggr_id", caller.aggregations(spec.aggr_id)),
        ("aggr_proxy", not spec.aggr_proxy or caller.proxies(spec.aggr_proxy)),
        (destination_field, callback == _NO_CALLBACK or caller.destinations(*callback)),
        ("callback_error_dst", error_callback == _NO_CALLBACK or caller.destinations(*error_callback)),
        ("s3_bucket", not spec.s3_bucket or caller.buckets(spec.s3_bucket)),
    )
    if not all(allowed for _, allowed in fields):
        refused = [field for field, allowed in fields if not allowed]
        faults = [Fault(field, "forbidden", f"The token may not use this {field}.") for field in refused]
        raise Refused(faulty(HTTPStatus.FORBIDDEN, faults))


_NO_CALLBACK = ("", "")

UNAUTHORIZED = Problem(
    HTTPStatus.UNAUTHORIZED,
    "unauthorized",
    detail="A configured token is required: in the header Authorization: Bearer, or by POST /session.",
    more_headers=((b"www-authenticate", b"Bearer"),),
)
