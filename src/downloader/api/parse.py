"""Making a job from a JSON object: rules between fields, callbacks, and the errors in the response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache, partial
from http import HTTPStatus
from itertools import chain, islice
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from downloader.api.auth import Caller, check_job
from downloader.api.fields import (
    CHECKS,
    FieldError,
    check_key,
    check_printable,
    check_subpath,
    check_url,
    filled_key,
)
from downloader.api.json import member_text
from downloader.api.problems import Refused, fault_in, faulty
from downloader.globs import Allows, anything
from downloader.model import JobSpec, is_reserved, now_ms
from downloader.net import EgressPolicy, EgressRefused, Url, is_forbidden
from downloader.storage import BucketUrl
from downloader.wire import NO_CALLBACK, DownloadRequest, Fault

_CODES = {
    "missing": "required",
    "string_type": "wrong_type",
    "int_type": "wrong_type",
    "float_type": "wrong_type",
    "bool_type": "wrong_type",
    "string_too_short": "required",
    "string_too_long": "too_long",
    "too_long": "too_long",
    "list_type": "wrong_type",
    "literal_error": "malformed",
    "greater_than": "out_of_range",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "extra_forbidden": "unknown_field",
    "none_required": "wrong_type",
}
"""The problem codes of pydantic's error types."""

_DETAILS = {"required": "is required", "unknown_field": "is not a known field"}
"""Texts by problem code, where pydantic's own would not be understood."""

_REQUEST = TypeAdapter(DownloadRequest)

_ORDER = {name: place for place, name in enumerate(DownloadRequest.__annotations__)}
"""The known fields with places in the order of a response's errors."""

MAX_DESTINATION_CHARS = 2048
"""Longest destination of a callback that is not a URL: SQS queue URLs and Kafka topics are far shorter."""

MAX_WARNINGS = 10
"""Warnings in one response."""

MAX_NAME_CHARS = 64
"""Most characters of a name in a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRules:
    """What the configuration permits in a job."""

    backends: frozenset[str]
    """Names of the configured notifier backends; any other `callback_type` is refused."""
    buckets: Allows = anything
    """Whether jobs may use this `JobSpec.bucket` (`processor.s3.buckets`, `processor.cloud.buckets`)."""
    egress: EgressPolicy
    """The policy of callbacks. A POST is refused if the policy refuses its callback without a DNS look-up."""


def parse_job(
    body: bytes,
    members: Mapping[str, Any],
    rules: JobRules,
    *,
    new_id: Callable[[str], str],
    caller: Caller | None = None,
    earlier: Sequence[Fault] = (),
) -> JobSpec:
    """Check one job.

    Args:
        body: its JSON object as received.
        members: `parse_object(body)`.
        rules: what the configuration permits.
        new_id: returns a new job id, given the aggregation.
        caller: the submitter, whose allow-lists apply; `None` while the API is open.
        earlier: errors of members that are no fields of a job; first in the response.

    Raises:
        Refused: with all fields at fault: 422, or 403 if all are well-formed and some are not on the caller's
            allow-lists.
    """
    fields, faults = _checked({name: value for name, value in members.items() if value is not None})
    wrong = {fault.field for fault in faults}
    faults = [*earlier, *faults, *_bucket_faults(fields, wrong, rules.buckets), *_deadline_faults(fields)]
    faults += _key_faults(fields, wrong)
    destination_field = _complete_callbacks(fields, wrong, rules, faults)
    if faults:
        raise Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, _first_of_each_field(faults)))
    if not isinstance(fields.get("extra", ""), str):
        fields["extra"] = member_text(body, "extra")
    spec = JobSpec(id=new_id(fields["aggr_id"]), created_ms=now_ms(), **fields)
    if spec.key:
        spec = replace(spec, key=filled_key(spec))
    if caller is None:
        return spec
    check_job(caller, spec, destination_field=destination_field)
    return replace(spec, token=caller.name, counted=caller.quota is not None)


def _checked(given: dict[str, Any]) -> tuple[dict[str, Any], Sequence[Fault]]:
    """The valid fields, and the errors of the others."""
    faults: list[Fault] = []
    try:
        fields = cast("dict[str, Any]", _REQUEST.validate_python(given))
    except ValidationError as error:
        faults = [_fault(details) for details in error.errors(include_url=False, include_input=False)]
        wrong = {fault.field for fault in faults}
        fields = {name: value for name, value in given.items() if name in _ORDER and name not in wrong}
    for name, check in CHECKS.items():
        if name in fields:
            try:
                fields[name] = check(fields[name])
            except FieldError as error:
                faults.append(fault_in(name, error.code, error.detail))
                del fields[name]
    return fields, sorted(faults, key=lambda fault: _ORDER[fault.field]) if faults else ()


def _bucket_faults(fields: dict[str, Any], wrong: AbstractSet[str], buckets: Allows) -> Iterator[Fault]:
    """The errors of the bucket; sets `s3_bucket` for a `storage_url` that is in S3."""
    if url := fields.get("storage_url"):
        yield from _url_faults(fields, wrong, BucketUrl.parse(url), buckets)
        return
    missing = [name for name in ("s3_bucket", "s3_region") if not (fields.get(name) or name in wrong)]
    if len(missing) == 1:
        yield fault_in(missing[0], "required", "is required with the other one")
    bucket = fields.get("s3_bucket")
    if bucket and not buckets(bucket):
        yield fault_in("s3_bucket", "bucket_not_allowed", "is not allowed by processor.s3.buckets")


def _url_faults(
    fields: dict[str, Any], wrong: AbstractSet[str], url: BucketUrl, buckets: Allows
) -> Iterator[Fault]:
    if fields.get("s3_bucket"):
        yield fault_in("s3_bucket", "malformed", "must be absent if the job has a storage_url")
    in_s3 = url.scheme == "s3"
    if in_s3 and not (fields.get("s3_region") or "s3_region" in wrong):
        yield fault_in("s3_region", "required", "is required with a storage_url in S3")
    if not in_s3 and fields.get("s3_region"):
        yield fault_in("s3_region", "malformed", "must be absent if the storage_url is not in S3")
    if not buckets(url.name if in_s3 else url.bucket):
        setting = f"processor.{'s3' if in_s3 else 'cloud'}.buckets"
        yield fault_in("storage_url", "bucket_not_allowed", f"is not allowed by {setting}")
    if in_s3:
        fields["s3_bucket"] = url.name


def _deadline_faults(fields: Mapping[str, Any]) -> Iterator[Fault]:
    deadline = fields.get("deadline")
    if deadline and deadline <= fields.get("not_before", 0):
        yield fault_in("deadline", "out_of_range", "must be later than not_before")


def _key_faults(fields: Mapping[str, Any], wrong: AbstractSet[str]) -> Iterator[Fault]:
    key = fields.get("key")
    if not key:
        if "key_exists" in fields and "key" not in wrong:
            yield fault_in("key", "required", "is required with key_exists")
        return
    if fields.get("subpath"):
        yield fault_in("subpath", "malformed", "must be absent if the job has a key")
    if "url" in fields:
        try:
            check_key(key, fields["url"])
        except FieldError as error:
            yield fault_in("key", error.code, error.detail)


def warnings_for(members: Mapping[str, Any]) -> Sequence[Fault]:
    """A warning for each unknown field, and for each of the job's headers that is not sent; at most ten."""
    headers = members.get("request_headers")
    if headers is None and members.keys() <= _ORDER.keys():
        return ()
    unknown = (_unknown(name[:MAX_NAME_CHARS]) for name in members if name not in _ORDER)
    names = headers if isinstance(headers, dict) else ()
    unsent = (_unsent(name[:MAX_NAME_CHARS]) for name in names if is_forbidden(name))
    # Only names in the response are compared: an object may have tens of thousands, at 0.1 ms each.
    return list(islice(chain(unknown, unsent), MAX_WARNINGS))


def _unsent(name: str) -> Fault:
    detail = f"header `{name}` is left out: the downloader sets it itself"
    return fault_in("request_headers", "header_forbidden", detail)


@lru_cache(maxsize=256)
def _unknown(name: str) -> Fault:
    """The warning about an unknown field; cached, since a client sends the same field with each job."""
    near = get_close_matches(name, _ORDER, 1, 0.7)
    hint = f": do you mean `{near[0]}`?" if near else ""
    return fault_in(name, "unknown_field", f"unknown field `{name}`{hint}")


def _complete_callbacks(
    fields: dict[str, Any], wrong: AbstractSet[str], rules: JobRules, faults: list[Fault]
) -> str:
    """Check the callbacks; fill in callbacks that are left out or given by `callback_url`.

    Adds to `faults`. The fields in `wrong` have a fault already.

    Returns:
        The field that `callback_dst` was read from.
    """
    pair_faults = partial(_pair_faults, fields, rules)
    url, kind = fields.pop("callback_url", ""), fields.get("callback_type")
    if url:
        if "http" in rules.backends:
            faults += _destination_faults("callback_url", "http", url, rules.egress.check_host)
        else:
            detail = "needs the http backend, which is not configured here"
            faults.append(fault_in("callback_url", "unknown_backend", detail))
        fields |= {"callback_type": "http", "callback_dst": url}
    elif kind == NO_CALLBACK:
        faults += _clear_pair(fields, "callback_type", "callback_dst")
    elif (
        kind
        or fields.get("callback_dst")
        or not (fields.get("s3_bucket") or fields.get("storage_url") or wrong & _IN_PLACE_OF_PAIR)
    ):
        faults += pair_faults("callback_type", "callback_dst")
    kind = fields.get("callback_error_type")
    if kind == NO_CALLBACK:
        faults += _clear_pair(fields, "callback_error_type", "callback_error_dst")
    elif kind or fields.get("callback_error_dst"):
        faults += pair_faults("callback_error_type", "callback_error_dst")
    else:
        fields["callback_error_type"] = fields.get("callback_type", "")
        fields["callback_error_dst"] = fields.get("callback_dst", "")
    return "callback_url" if url else "callback_dst"


_IN_PLACE_OF_PAIR = {"callback_url", "s3_bucket", "storage_url"}
"""Fields with which a job needs no `callback_type` and `callback_dst`."""


def _clear_pair(fields: dict[str, Any], kind: str, destination: str) -> Iterator[Fault]:
    """Set the fields `kind` and `destination` to no callback, and yield the errors."""
    if fields.get(destination):
        yield fault_in(destination, "malformed", f"must be absent if {kind} is {NO_CALLBACK}")
    fields[kind] = fields[destination] = ""


def _pair_faults(fields: Mapping[str, Any], rules: JobRules, kind: str, destination: str) -> Iterator[Fault]:
    """The errors of a callback; `kind` and `destination` are the names of the two fields."""
    if missing := [name for name in (kind, destination) if not fields.get(name)]:
        hints = {"callback_type": f'is required, or "{NO_CALLBACK}" if there is to be no callback'}
        yield from (fault_in(name, "required", hints.get(name, "is required")) for name in missing)
    elif fields[kind] not in rules.backends:
        configured = ", ".join(sorted(rules.backends))
        yield fault_in(kind, "unknown_backend", f"is not a backend that is configured here: {configured}")
    else:
        check_host = rules.egress.check_host
        yield from _destination_faults(destination, fields[kind], fields[destination], check_host)


@lru_cache(maxsize=256)
def _destination_faults(
    field: str, kind: str, destination: str, check_host: Callable[[str], None]
) -> Sequence[Fault]:
    """The errors of a destination; cached, since most jobs of an aggregation have the same one."""
    try:
        if kind == "http":
            check_host(Url.parse(check_url(destination, "callback"), "callback").origin.host)
        elif kind == "storage":
            check_subpath(destination)
        else:
            check_printable(destination)
    except FieldError as error:
        return [fault_in(field, error.code, error.detail)]
    except EgressRefused:
        return [fault_in(field, "egress", "has a host that egress.callbacks does not allow")]
    if is_reserved(kind, destination):
        return [fault_in(field, "reserved", "is one of Kafka's internal topics")]
    if kind != "http" and len(destination) > MAX_DESTINATION_CHARS:
        return [fault_in(field, "too_long", "has more than 2048 characters")]
    return []


def _first_of_each_field(faults: Iterable[Fault]) -> Sequence[Fault]:
    """The faults as sentences, only the first of each field: later faults follow from the first."""
    firsts: dict[str, Fault] = {}
    for fault in faults:
        detail = f"{fault.field} {fault.detail}."
        firsts.setdefault(fault.field, fault_in(fault.field, fault.code, detail))
    return list(firsts.values())


def refusal(error: ValidationError) -> Refused:
    """422 for a body that a model refused, with all fields at fault."""
    faults = [_fault(details) for details in error.errors(include_url=False, include_input=False)]
    return Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, _first_of_each_field(faults)))


def _fault(error: ErrorDetails) -> Fault:
    """An error of pydantic, without the value."""
    code = _CODES.get(error["type"], error["type"])
    _, should, rule = error["msg"].partition("should")  # before it stands what the value is: Input, List
    detail = _DETAILS.get(code) or (should + rule or error["msg"]).replace("None", "null")
    return fault_in(str(error["loc"][0]), code, detail)
