"""A job from its JSON object: the rules between fields, the callbacks, and the faults that are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import islice
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from downloader.api.auth import Caller, check_job
from downloader.api.fields import (
    MAX_DESTINATION_CHARS,
    NO_CALLBACK,
    DownloadRequest,
    check_printable,
    check_subpath,
    check_url,
)
from downloader.api.globs import Allows
from downloader.api.json import member_text
from downloader.api.problems import Fault, Refused, faulty
from downloader.model import JobSpec, is_reserved, now_ms
from downloader.net import EgressPolicy, EgressRefused, Url

_CODES = {
    "missing": "required",
    "string_type": "wrong_type",
    "int_type": "wrong_type",
    "float_type": "wrong_type",
    "bool_type": "wrong_type",
    "dict_type": "wrong_type",
    "string_too_short": "required",
    "string_too_long": "too_long",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "extra_forbidden": "unknown_field",
}
"""Pydantic's error types and their problem codes; the rules of `fields` raise the other codes."""

_DETAILS = {"required": "is required", "unknown_field": "is not a known field"}
"""By problem code, where pydantic's own words would not be understood."""

_KNOWN = frozenset(DownloadRequest.model_fields)

_STAND_INS = {
    "aggr_id": "x",
    "aggr_limit": 1,
    "url": "http://x/",
    "callback_url": "http://x/",
    "s3_bucket": "xxx",
    "s3_region": "x",
}
"""Replaces a field with an error while the other rules are checked, if they need the field."""

MAX_WARNINGS = 10
"""Unknown fields that are answered."""

MAX_NAME_CHARS = 64
"""How much is answered of an unknown field's name."""


def parse_job(
    body: bytes,
    members: Mapping[str, Any],
    *,
    new_id: Callable[[str], str],
    backends: frozenset[str],
    buckets: Allows,
    egress: EgressPolicy,
    caller: Caller | None = None,
    earlier: Sequence[Fault] = (),
) -> JobSpec:
    """Check one job.

    Args:
        body: its JSON object as received.
        members: `parse_object(body)`.
        new_id: returns a new job id, given the aggregation.
        backends: names of the configured notifier backends.
        buckets: whether jobs may name this bucket.
        egress: the policy of callbacks.
        caller: the submitter, whose allow-lists apply; `None` while the API is open.
        earlier: what is wrong with members that are no fields of a job; answered first.

    Raises:
        Refused: with all fields at fault: 422, or 403 if all are well-formed and some are not on the caller's
            allow-lists.
    """
    given = {name: value for name, value in members.items() if value is not None}
    faults = [*earlier]
    try:
        request = DownloadRequest.model_validate(given)
    except ValidationError as error:
        wrong = _faults(error)
        faults += wrong
        at_fault = {fault.field for fault in wrong}
        rest = {name: value for name, value in given.items() if name not in at_fault}
        stand_ins = {name: value for name, value in _STAND_INS.items() if name in at_fault}
        request = DownloadRequest.model_validate(rest | stand_ins)
    fields = vars(request).copy()
    if bool(request.s3_bucket) != bool(request.s3_region):
        missing = "s3_region" if request.s3_bucket else "s3_bucket"
        faults.append(Fault(missing, "required", "is required with the other one"))
    if request.s3_bucket and not buckets(request.s3_bucket):
        faults.append(Fault("s3_bucket", "bucket_not_allowed", "is not allowed by processor.s3.buckets"))
    if request.deadline and request.deadline <= request.not_before:
        faults.append(Fault("deadline", "out_of_range", "must be later than not_before"))
    destination_field = _complete_callbacks(fields, backends, egress, faults)
    if faults:
        raise Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, _first_of_each_field(faults)))
    if not isinstance(request.extra, str):
        fields["extra"] = member_text(body, "extra")
    spec = JobSpec(id=new_id(request.aggr_id), created_ms=now_ms(), **fields)
    if caller is not None:
        check_job(caller, spec, destination_field=destination_field)
    return spec


def unknown_fields(members: Mapping[str, Any]) -> Sequence[Fault]:
    """A warning for each unknown field, with the most similar known name; at most ten."""
    if members.keys() <= _KNOWN:
        return ()
    # No more are compared than are answered: an object may have tens of thousands, at 0.1 ms each.
    names = islice((name for name in members if name not in _KNOWN), MAX_WARNINGS)
    return [_unknown(name[:MAX_NAME_CHARS]) for name in names]


@lru_cache(maxsize=256)
def _unknown(name: str) -> Fault:
    """Cached, since a client sends the same field with each job."""
    near = get_close_matches(name, _KNOWN, 1, 0.7)
    hint = f": do you mean `{near[0]}`?" if near else ""
    return Fault(name, "unknown_field", f"unknown field `{name}`{hint}")


def _complete_callbacks(
    fields: dict[str, Any], backends: frozenset[str], egress: EgressPolicy, faults: list[Fault]
) -> str:
    """Check the callbacks, and fill in those given by `callback_url` or left out.

    Adds to `faults`.

    Returns:
        The field that `callback_dst` was read from.
    """
    pair_faults = partial(_pair_faults, fields, backends=backends, check_host=egress.check_host)
    url = fields.pop("callback_url")
    if url:
        if "http" in backends:
            faults += _destination_faults("callback_url", "http", url, egress.check_host)
        else:
            detail = "needs the http backend, which is not configured here"
            faults.append(Fault("callback_url", "unknown_backend", detail))
        fields |= {"callback_type": "http", "callback_dst": url}
    elif fields["callback_type"] == NO_CALLBACK:
        faults += _clear_pair(fields, "callback_type", "callback_dst")
    elif fields["callback_type"] or fields["callback_dst"] or not fields["s3_bucket"]:
        faults += pair_faults("callback_type", "callback_dst")
    if fields["callback_error_type"] == NO_CALLBACK:
        faults += _clear_pair(fields, "callback_error_type", "callback_error_dst")
    elif fields["callback_error_type"] or fields["callback_error_dst"]:
        faults += pair_faults("callback_error_type", "callback_error_dst")
    else:
        fields["callback_error_type"] = fields["callback_type"]
        fields["callback_error_dst"] = fields["callback_dst"]
    return "callback_url" if url else "callback_dst"


def _clear_pair(fields: dict[str, Any], kind: str, destination: str) -> Iterator[Fault]:
    """Set these fields to no callback, and yield the errors."""
    if fields[destination]:
        yield Fault(destination, "malformed", f"must be absent if {kind} is {NO_CALLBACK}")
    fields[kind] = fields[destination] = ""


def _pair_faults(
    fields: Mapping[str, Any],
    kind: str,
    destination: str,
    *,
    backends: frozenset[str],
    check_host: Callable[[str], None],
) -> Iterator[Fault]:
    """The errors of a callback's type and destination, which are in these fields."""
    if missing := [name for name in (kind, destination) if not fields[name]]:
        hints = {"callback_type": f'is required, or "{NO_CALLBACK}" if there is to be no callback'}
        yield from (Fault(name, "required", hints.get(name, "is required")) for name in missing)
    elif fields[kind] not in backends:
        known = ", ".join(sorted(backends))
        yield Fault(kind, "unknown_backend", f"is not a backend that is configured here: {known}")
    else:
        yield from _destination_faults(destination, fields[kind], fields[destination], check_host)


@lru_cache(maxsize=256)
def _destination_faults(
    field: str, kind: str, destination: str, check_host: Callable[[str], None]
) -> Sequence[Fault]:
    """What is wrong with a destination; cached, since jobs of an aggregation nearly always share theirs."""
    try:
        if kind == "http":
            check_host(Url.parse(check_url(destination, "callback"), "callback").origin.host)
        elif kind == "storage":
            check_subpath(destination)
        else:
            check_printable(destination)
    except PydanticCustomError as error:
        return [Fault(field, _code(error.type, error.context), error.message())]
    except EgressRefused:
        return [Fault(field, "egress", "has a host that egress.callbacks does not allow")]
    if is_reserved(kind, destination):
        return [Fault(field, "reserved", "is one of Kafka's internal topics")]
    if kind != "http" and len(destination) > MAX_DESTINATION_CHARS:
        return [Fault(field, "too_long", "has more than 2048 characters")]
    return []


def _first_of_each_field(faults: Iterable[Fault]) -> Sequence[Fault]:
    """The faults as sentences, without those that follow from another fault of the same field."""
    found: dict[str, Fault] = {}
    for fault in faults:
        found.setdefault(fault.field, replace(fault, detail=f"{fault.field} {fault.detail}."))
    return list(found.values())


def refusal(error: ValidationError) -> Refused:
    """422 for a body that a model refused, with all fields at fault."""
    return Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, _first_of_each_field(_faults(error))))


def _faults(error: ValidationError) -> Sequence[Fault]:
    return [_fault(each) for each in error.errors(include_url=False, include_input=False)]


def _fault(error: ErrorDetails) -> Fault:
    """One of pydantic's errors, without the value."""
    code = _code(error["type"], error.get("ctx"))
    detail = _DETAILS.get(code) or error["msg"].replace("Input ", "").replace("dictionary", "object")
    return Fault(str(error["loc"][0]), code, detail)


def _code(kind: str, context: Mapping[str, Any] | None) -> str:
    """The problem code of a pydantic error."""
    return str(context["code"]) if kind == "url" and context else _CODES.get(kind, kind)
