"""Who may call the API, and for what: bearer tokens (RFC 6750), their scopes and allow-lists. Decisions only.

Tokens are kept and compared as SHA-256 digests, each request with all of them and in constant time, so that
an answer's delay tells nothing of how much of a guess was right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from downloader.api.globs import Allows, destination_globs, text_globs, url_globs
from downloader.api.problems import Problem, Refused
from downloader.config import TokenSettings
from downloader.model import JobSpec

CALLER = "downloader.caller"
"""Key of the ASGI scope: the request's `Caller`, or `None` while the API is open."""

PUBLIC_PATHS = frozenset({"/hb", "/health/live", "/health/ready"})
"""What load balancers and supervisors ask, which have no token."""

SUBMIT_PATHS = frozenset({"/download", "/downloads"})

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner of a token, and what it may do; holds nothing of the token itself."""

    name: str
    scopes: frozenset[str]
    """With what `admin` includes."""
    aggregations: Allows
    """`anything` where all are allowed."""
    destinations: Callable[[str, str], bool]
    """Takes a backend and a destination of it."""
    buckets: Allows
    proxies: Allows


Callers = Sequence[tuple[bytes, Caller]]
"""Callers with the digests of their tokens."""


def read_tokens(tokens: Iterable[TokenSettings]) -> Callers:
    """The configured tokens, made ready for comparison."""
    return [
        (
            hashlib.sha256(token.token.get_secret_value().encode()).digest(),
            Caller(
                name=token.name,
                scopes=frozenset(
                    {"submit", "read", "admin"} if "admin" in token.scopes else {str(s) for s in token.scopes}
                ),
                aggregations=text_globs(token.aggregations),
                destinations=destination_globs(token.destinations),
                buckets=text_globs(token.buckets),
                proxies=url_globs(token.proxies, "proxy"),
            ),
        )
        for token in tokens
    ]


def identify(callers: Callers, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
    """Whose token a request carries.

    Args:
        callers: all that are configured.
        headers: of the request, names in lower case. Exactly one must be `Authorization: Bearer`: of
            two, a proxy in front may have checked the other one.

    Raises:
        Refused: 401; the same for none and for a wrong one.
    """
    found = None
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) == 1:
        scheme, _, token = given[0].partition(b" ")
        if scheme.lower() == b"bearer":
            digest = hashlib.sha256(token.strip(b" ")).digest()
            for known, caller in callers:  # all of them: which one it is does not show in the time it takes
                if hmac.compare_digest(known, digest):
                    found = caller
    if found is None:
        raise Refused(_UNAUTHORIZED)
    return found


def check_scope(caller: Caller, method: str, path: str) -> None:
    """Check that the caller may use this route: to submit, to read, and for all the rest `admin`.

    Raises:
        Refused: 403.
    """
    if method in READ_METHODS:
        scope = "read"
    elif method == "POST" and path in SUBMIT_PATHS:
        scope = "submit"
    else:
        scope = "admin"
    if scope not in caller.scopes:
        raise Refused(
            Problem(
                status=HTTPStatus.FORBIDDEN,
                code="forbidden",
                detail=f"The token lacks the scope {scope}.",
            )
        )


def check_job(caller: Caller, spec: JobSpec, *, destination_field: str) -> None:
    """Check what a job names against the caller's allow-lists.

    Args:
        caller: who submits it.
        spec: the job.
        destination_field: where `spec.callback_dst` came from: itself or `callback_url`.

    Raises:
        Refused: 403 with the field.
    """
    callback, error_callback = spec.callback(success=True), spec.callback(success=False)
    for field, allowed in (
        ("aggr_id", caller.aggregations(spec.aggr_id)),
        ("aggr_proxy", not spec.aggr_proxy or caller.proxies(spec.aggr_proxy)),
        (destination_field, callback == _NO_CALLBACK or caller.destinations(*callback)),
        ("callback_error_dst", error_callback == _NO_CALLBACK or caller.destinations(*error_callback)),
        ("s3_bucket", not spec.s3_bucket or caller.buckets(spec.s3_bucket)),
    ):
        if not allowed:
            raise Refused(
                Problem(
                    status=HTTPStatus.FORBIDDEN,
                    code="forbidden",
                    detail=f"The token may not use this {field}.",
                    field=field,
                )
            )


_NO_CALLBACK = ("", "")

_UNAUTHORIZED = Problem(
    status=HTTPStatus.UNAUTHORIZED,
    code="unauthorized",
    detail="Authorization: Bearer with a token that is configured here is required.",
    more_headers=((b"www-authenticate", b"Bearer"),),
)
