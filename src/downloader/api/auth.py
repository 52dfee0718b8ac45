"""Who may call the API, and for what: bearer tokens (RFC 6750), their scopes and allow-lists. Decisions only.

Tokens are kept and compared as SHA-256 digests, each request with all of them and in constant time, so that
an answer's delay tells nothing of how much of a guess was right.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from http import HTTPStatus
from urllib.parse import unquote

from downloader.api.problems import Problem, Refused
from downloader.config import TokenSettings
from downloader.model import JobSpec

CALLER = "downloader.caller"
"""Key of the ASGI scope: the request's `Caller`, or `None` while the API is open."""

PUBLIC_PATHS = frozenset({"/hb", "/health/live", "/health/ready"})
"""What load balancers and supervisors ask, which have no token."""

SUBMIT_PATHS = frozenset({"/download", "/downloads"})

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

Allows = Callable[[str], bool]
"""Whether an allow-list has a pattern for the text."""

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_QUERY = re.compile(r"[?#]")
_SLASHES = re.compile(r"[/\\]")
_URL = re.compile(r"([^:/?#]+)://([^/?#\\]*)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The owner of a token, and what it may do; holds nothing of the token itself."""

    name: str
    scopes: frozenset[str]
    """With what `admin` includes."""
    aggregations: Allows
    """`anything` where all are allowed; so for the other three."""
    destinations: Allows
    buckets: Allows
    proxies: Allows


Callers = Sequence[tuple[bytes, Caller]]
"""Callers with the digests of their tokens."""


def anything(_text: str) -> bool:
    """The allow-list `["*"]`."""
    return True


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
                proxies=destination_globs(token.proxies),
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
    fields = [
        ("aggr_id", caller.aggregations, spec.aggr_id),
        ("aggr_proxy", caller.proxies, spec.aggr_proxy),
        (destination_field, caller.destinations, spec.callback_dst),
        ("s3_bucket", caller.buckets, spec.s3_bucket),
    ]
    if spec.callback_error_dst != spec.callback_dst:
        fields.append(("callback_error_dst", caller.destinations, spec.callback_error_dst))
    for field, allows, value in fields:
        # The aggregation is never empty; the others are where a job has none.
        if value and not allows(value):
            raise Refused(
                Problem(
                    status=HTTPStatus.FORBIDDEN,
                    code="forbidden",
                    detail=f"The token may not use this {field}.",
                    field=field,
                )
            )


def text_globs(patterns: Iterable[str]) -> Allows:
    """Match the whole text, case-sensitively, as `fnmatch.fnmatchcase` does."""
    listed = list(patterns)
    if "*" in listed:
        return anything
    found = re.compile("|".join(map(translate, listed)) or "(?!)").match
    return lambda text: found(text) is not None


def destination_globs(patterns: Iterable[str]) -> Allows:
    """Match destinations: URLs in two parts, everything else as `text_globs` does.

    A URL is matched by patterns that are URLs too: scheme, host and port by what stands before the path, the
    rest by the rest. So no `*` for a part of a host reaches into the path, where anybody can write
    the allowed name. Case of scheme and host, user and password, and a default port make no difference.
    A destination with a part `..` is not allowed: it may lead out of an allowed folder.
    """
    listed = list(patterns)
    if "*" in listed:
        return anything
    urls = [_compiled_url(pattern) for pattern in listed if "://" in pattern]
    is_listed = text_globs(pattern for pattern in listed if "://" not in pattern)

    def allows(text: str) -> bool:
        match = _URL.fullmatch(text)
        path = match[3] if match else text
        if _climbs(path):
            return False
        if match is None:
            return is_listed(text)
        origin = _origin(match[1], match[2])
        if not path.startswith("/"):
            path = "/" + path
        return any(at(origin) and under(path) for at, under in urls)

    return allows


def _compiled_url(pattern: str) -> tuple[Callable[[str], object], Callable[[str], object]]:
    scheme, _, rest = pattern.partition("://")
    authority, _, path = rest.partition("/")  # only there: `?` is a glob in a pattern
    origin = _origin(scheme, authority)
    return re.compile(translate(origin)).match, re.compile(translate("/" + path)).match


def _origin(scheme: str, authority: str) -> str:
    scheme, host = scheme.lower(), authority.rpartition("@")[2].lower()
    return f"{scheme}://{host.removesuffix(_DEFAULT_PORTS.get(scheme, ':')).removesuffix(':')}"


def _climbs(path: str) -> bool:
    """Whether a client or server that resolves dots would leave the folder that the text shows."""
    if ".." not in path and "%" not in path:  # nearly every path
        return False
    plain = unquote(_QUERY.split(path, maxsplit=1)[0])
    return ".." in _SLASHES.split(plain)


_UNAUTHORIZED = Problem(
    status=HTTPStatus.UNAUTHORIZED,
    code="unauthorized",
    detail="Authorization: Bearer with a token that is configured here is required.",
    more_headers=((b"www-authenticate", b"Bearer"),),
)
