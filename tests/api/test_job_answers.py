"""Responses to a submitted job: all errors, unknown fields, refused hosts, replays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from downloader.api.parse import MAX_NAME_CHARS, MAX_WARNINGS, warnings_for
from downloader.net import EgressPolicy
from servers.api import JOB, Served, Serving


async def answers(api: Served, job: dict[str, Any], key: str | None = None) -> list[dict[str, Any]]:
    """What `POST /download` and `POST /downloads` answer to the job."""
    single = await api.client.post("/download", json=job, headers={"Idempotency-Key": key} if key else None)
    line = json.dumps(job | ({"idempotency_key": key} if key else {}))
    bulk = await api.client.post("/downloads", content=line)
    return [single.json(), json.loads(bulk.content)]


def faults(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(error["field"], error["code"]) for error in answer["errors"]]


WRONG: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    (
        {},
        [
            *((field, "required") for field in ("aggr_id", "aggr_limit", "url")),
            *((field, "required") for field in ("callback_type", "callback_dst")),
        ],
    ),
    (
        {**JOB, "aggr_limit": 0, "url": "ftp://x/", "subpath": "..", "callback_dst": "gopher://x/"},
        [
            ("aggr_limit", "out_of_range"),
            ("url", "url_scheme"),
            ("subpath", "subpath"),
            ("callback_dst", "url_scheme"),
        ],
    ),
    (
        {**JOB, "callback_type": "kafka", "callback_error_type": "nothing", "callback_error_dst": "x"},
        [("callback_type", "unknown_backend"), ("callback_error_type", "unknown_backend")],
    ),
    (
        {**JOB, "callback_error_dst": "x", "max_retries": -1},
        [("max_retries", "out_of_range"), ("callback_error_type", "required")],
    ),
    # A field at fault is named once, and no rule between fields fails because of it.
    ({**JOB, "callback_type": 1}, [("callback_type", "wrong_type")]),
    ({**JOB, "callback_dst": 1}, [("callback_dst", "wrong_type")]),
    ({**JOB, "callback_error_type": 1}, [("callback_error_type", "wrong_type")]),
    ({**JOB, "callback_type": "", "callback_dst": "", "callback_url": 1}, [("callback_url", "wrong_type")]),
    (
        {**JOB, "callback_type": "", "callback_dst": "", "s3_bucket": "/", "s3_region": "x"},
        [("s3_bucket", "malformed")],
    ),
    ({**JOB, "s3_bucket": "my-bucket", "s3_region": "!"}, [("s3_region", "malformed")]),
    ({**JOB, "s3_bucket": "/"}, [("s3_bucket", "malformed"), ("s3_region", "required")]),
]


@pytest.mark.parametrize(("job", "expected"), WRONG, ids=str)
async def test_all_errors_are_answered(
    api: Served, job: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    for answer in await answers(api, job):
        assert faults(answer) == expected
        assert {name: answer[name] for name in ("code", "detail", "field")} == answer["errors"][0]
        assert all(error["detail"].startswith(f"{error['field']} ") for error in answer["errors"])


async def test_a_line_s_idempotency_key_is_one_of_its_errors(api: Served) -> None:
    answer = await api.client.post("/downloads", json=JOB | {"idempotency_key": "", "aggr_limit": 0})
    expected = [("idempotency_key", "idempotency_key"), ("aggr_limit", "out_of_range")]
    assert faults(json.loads(answer.content)) == expected


async def test_a_job_without_unknown_fields_is_answered_with_its_id_alone(api: Served) -> None:
    single = await api.client.post("/download", json=JOB)
    bulk = await api.client.post("/downloads", json=JOB | {"idempotency_key": "k"})
    assert single.content == b'{"id": "%s"}' % single.json()["id"].encode()
    assert bulk.content == b'{"id": "%s"}\n' % bulk.json()["id"].encode()


async def test_unknown_fields_are_named_with_the_field_that_was_meant(api: Served) -> None:
    expected = [
        {
            "code": "unknown_field",
            "detail": "unknown field `agr_limit`: do you mean `aggr_limit`?",
            "field": "agr_limit",
        },
        {"code": "unknown_field", "detail": "unknown field `x<b>`", "field": "x<b>"},
    ]
    for answer in await answers(api, JOB | {"agr_limit": 3, "x<b>": None}):
        assert answer["id"]
        assert answer["warnings"] == expected
    for answer in await answers(
        api, {name: JOB[name] for name in JOB if name != "aggr_limit"} | {"agr_limit": 3, "x<b>": 0}
    ):
        assert faults(answer) == [("aggr_limit", "required")]
        assert answer["warnings"] == expected


async def test_headers_that_are_not_sent_are_named(api: Served) -> None:
    detail = "header `HOST` is left out: the downloader sets it itself"
    expected = {"code": "header_forbidden", "detail": detail, "field": "request_headers"}
    headers = {"HOST": "a", "X": "b"}
    for answer in await answers(api, JOB | {"request_headers": headers, "x": 0}):
        assert answer["id"]
        assert [warning["field"] for warning in answer["warnings"]] == ["x", "request_headers"]
        assert answer["warnings"][1] == expected
    for answer in await answers(api, JOB | {"request_headers": headers | {"": ""}}):
        assert faults(answer) == [("request_headers", "header_name")]
        assert answer["warnings"] == [expected]


async def test_warnings_are_bounded(api: Served) -> None:
    more = {"request_headers": {"Proxy-" + "x" * 1000: ""}}
    for answer in await answers(api, JOB | more):
        assert len(answer["warnings"][0]["detail"]) < 2 * MAX_NAME_CHARS
    for answer in await answers(api, JOB | more | {f"{'x' * 1000}{n}": n for n in range(100)}):
        assert len(answer["warnings"]) == MAX_WARNINGS
        assert {len(warning["field"]) for warning in answer["warnings"]} == {MAX_NAME_CHARS}


class Members(dict[str, object]):
    """Counts the names that are read."""

    read = 0

    def __iter__(self) -> Iterator[str]:
        for name in super().__iter__():
            self.read += 1
            yield name


def test_only_unknown_fields_that_are_named_are_compared_with_the_known_ones() -> None:
    members = Members({f"agr_limit{n}": n for n in range(1000)})
    assert len(warnings_for(members)) == MAX_WARNINGS
    assert members.read == MAX_WARNINGS


EGRESS: list[tuple[dict[str, str], str]] = [
    ({"callback_dst": "http://127.0.0.1/done"}, "callback_dst"),
    ({"callback_dst": "http://0x7f.1/done"}, "callback_dst"),
    ({"callback_dst": "http://[::ffff:10.0.0.1]/done"}, "callback_dst"),
    ({"callback_dst": "http://169.254.169.254/latest"}, "callback_dst"),
    ({"callback_dst": "http://localhost:9000/"}, "callback_dst"),
    ({"callback_dst": "http://denied.example./"}, "callback_dst"),
    ({"callback_dst": "http://a.denied.net/"}, "callback_dst"),
    ({"callback_url": "http://user:pw@127.0.0.1/"}, "callback_url"),
    ({"callback_error_type": "http", "callback_error_dst": "http://10.1.2.3/"}, "callback_error_dst"),
    ({"callback_dst": "http://192.168.7.7/"}, ""),
    ({"callback_dst": "http://media.internal/"}, ""),
    ({"callback_dst": "http://resolved.later/"}, ""),
    ({"callback_type": "sqs", "callback_dst": "http://127.0.0.1/queue"}, ""),  # its plugin decides
]


@pytest.mark.parametrize(("changes", "field"), EGRESS, ids=str)
@pytest.mark.row("H9")
async def test_a_callback_that_the_policy_refuses_is_refused_at_once(
    serving: Serving, changes: dict[str, str], field: str
) -> None:
    policy = EgressPolicy.parse(
        ["192.168.7.0/24", "media.internal"], ["denied.example", "*.denied.net"], setting="egress.callbacks"
    )
    api = await serving(egress=policy)
    for answer in await answers(api, JOB | changes):
        if not field:
            assert answer["id"]
            continue
        assert (answer["code"], answer["field"]) == ("egress", field)
        assert "egress.callbacks" in answer["detail"]
        assert all(error["code"] == "egress" for error in answer["errors"])


FULL = JOB | {
    "extra": {"b": [1, {"y": 2, "x": "ü"}], "a": None},
    "request_headers": {"X-One": "1", "X-Two": "2"},
    "download_timeout": 60,
}
SAME: list[bytes] = [
    json.dumps(dict(reversed(FULL.items()))).encode(),
    json.dumps(FULL, indent=4, ensure_ascii=False).encode(),
    json.dumps(
        FULL | {"download_timeout": 60.0, "max_retries": None, "subpath": "", "extract_image_size": False}
    ).encode(),
    json.dumps(FULL | {"request_headers": {"X-Two": 2, "X-One": "1"}}).encode(),
    json.dumps(FULL | {"extra": {"a": None, "b": [1, {"x": "ü", "y": 2}]}}).encode(),
    json.dumps(
        FULL | {"callback_type": "", "callback_dst": "", "callback_url": JOB["callback_dst"]}
    ).encode(),
    json.dumps(FULL | {"unknown": 1}).encode(),
]
OTHER: list[dict[str, Any]] = [
    {"url": "https://example.org/image.png?"},
    {"extra": {"b": [{"y": 2, "x": "ü"}, 1], "a": None}},
    {"extra": json.dumps(FULL["extra"])},
    {"max_retries": 0},
    {"request_headers": {"X-One": "1"}},
]


@pytest.mark.parametrize("body", SAME, ids=range(len(SAME)))
async def test_the_same_values_are_the_same_job(api: Served, body: bytes) -> None:
    headers = {"Idempotency-Key": "one"}
    first = await api.client.post("/download", json=FULL, headers=headers)
    again = await api.post(body, headers)
    assert (again.status_code, again.json()["id"]) == (201, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_repeated_job_has_the_key_of_the_first(api: Served) -> None:
    """The id and the date in it are no values of the job."""
    job = FULL | {"key": "{date}/{id}"}
    answers = [await api.client.post("/download", json=job, headers={"Idempotency-Key": "1"}) for _ in "ab"]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    other = await api.client.post("/download", json=job | {"key": "{id}"}, headers={"Idempotency-Key": "1"})
    assert other.json()["code"] == "idempotency_conflict"


@pytest.mark.parametrize("changes", OTHER, ids=str)
async def test_other_values_are_another_job(api: Served, changes: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "one"}
    await api.client.post("/download", json=FULL, headers=headers)
    answer = await api.client.post("/download", json=FULL | changes, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_conflict")
