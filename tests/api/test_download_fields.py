"""Every field of POST /download: what is taken, what is refused, with which code and field."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downloader.api.json import parse_object
from downloader.api.parse import MAX_WARNINGS, JobRules, parse_job, warnings_for
from downloader.api.problems import Refused
from downloader.globs import text_globs
from downloader.model import JobSpec
from downloader.net import EgressPolicy, Url
from servers.api import JOB

ABSENT = ...  # its repr is the same in every test worker
BUCKET = {"s3_bucket": "my-bucket", "s3_region": "eu-west-2"}
NO_CALLBACK = {"callback_type": ABSENT, "callback_dst": ABSENT}


def body(**changes: Any) -> bytes:
    job = {name: value for name, value in (JOB | changes).items() if value is not ABSENT}
    return json.dumps(job).encode()


def parse(data: bytes) -> JobSpec:
    rules = JobRules(
        backends=frozenset({"http", "sqs", "kafka", "storage"}),
        buckets=text_globs(["my-*", "[ga][sz]://my-*"]),
        egress=EgressPolicy("egress.callbacks"),
    )
    return parse_job(data, parse_object(data), rules, new_id=lambda _: "0" * 14)


def refusal(data: bytes) -> tuple[int, str, str]:
    with pytest.raises(Refused) as caught:
        parse(data)
    problem = caught.value.problem
    return problem.status, problem.code, problem.field


def test_the_least_job() -> None:
    spec = parse(body())
    assert spec.id == "0" * 14
    assert (spec.aggr_id, spec.aggr_limit, spec.url) == ("example.org", 4, "https://example.org/image.png")
    assert spec.callback(success=True) == ("http", "https://client.example/done")
    assert spec.callback(success=False) == ("http", "https://client.example/done")
    assert spec.max_retries is None
    assert spec.created_ms > 0


def test_every_field_arrives() -> None:
    spec = parse(
        body(
            aggr_proxy="socks5://user:pass@proxy.example:1080",
            aggr_rate=2,
            aggr_delay=0.5,
            extra="foobar",
            mime_type="!image/vnd.adobe.photoshop,image/*",
            max_retries=0,
            extract_image_size=True,
            download_timeout=60,
            request_headers={"Referer": "https://example.org/", "X-Number": 7},
            user_agent="agent/1.0",
            subpath="pictures/2024",
            sha256="AB" * 32,
            md5="CD" * 16,
            size=0,
            tags=["b", "a", "b"],
            max_size=9,
            min_size=1,
            min_width=2,
            min_height=3,
            max_pixels=4,
            if_none_match='"33a", W/"b"',
            content_type="image/png",
            content_disposition='attachment; filename="a.png"',
            if_modified_since="Fri, 27 Nov 2026 21:00:00 GMT",
            callback_error_type="sqs",
            callback_error_dst="aws.com/sqs/errors",
            **BUCKET,
        )
    )
    assert spec.aggr_proxy == "socks5://user:pass@proxy.example:1080"
    assert (spec.aggr_rate, spec.aggr_delay) == (2, 0.5)
    assert spec.extra == "foobar"
    assert spec.mime_type == "!image/vnd.adobe.photoshop,image/*"
    assert spec.max_retries == 0
    assert spec.extract_image_size is True
    assert spec.download_timeout == 60
    assert spec.request_headers == {"Referer": "https://example.org/", "X-Number": "7"}
    assert spec.user_agent == "agent/1.0"
    assert spec.subpath == "pictures/2024"
    assert (spec.sha256, spec.md5, spec.size) == ("ab" * 32, "cd" * 16, 0)
    assert spec.tags == ("b", "a")
    assert (spec.max_size, spec.min_size) == (9, 1)
    assert (spec.min_width, spec.min_height, spec.max_pixels) == (2, 3, 4)
    assert spec.if_none_match == '"33a", W/"b"'
    assert (spec.content_type, spec.content_disposition) == ("image/png", 'attachment; filename="a.png"')
    assert spec.if_modified_since == "Fri, 27 Nov 2026 21:00:00 GMT"
    assert spec.callback(success=False) == ("sqs", "aws.com/sqs/errors")
    assert (spec.s3_bucket, spec.s3_region) == ("my-bucket", "eu-west-2")


@pytest.mark.parametrize(
    ("url", "kept", "bucket", "prefix"),
    [
        ("gs://my-bucket", "gs://my-bucket", "gs://my-bucket", ""),
        ("gs://my-bucket/", "gs://my-bucket", "gs://my-bucket", ""),
        ("az://my-files/a/b c/", "az://my-files/a/b c", "az://my-files", "a/b c/"),
        ("s3://my-bucket/a", "s3://my-bucket/a", "my-bucket", "a/"),
    ],
)
def test_a_job_may_bring_a_bucket_by_url(url: str, kept: str, bucket: str, prefix: str) -> None:
    """Then it needs no callback, and its keys begin with the prefix."""
    region = {"s3_region": "eu-west-2"} if url.startswith("s3") else {}
    spec = parse(body(storage_url=url, **region, **NO_CALLBACK))
    assert (spec.storage_url, spec.bucket, spec.prefix) == (kept, bucket, prefix)
    assert spec.storage_key("") == f"{prefix}000/{'0' * 14}"
    keyed = parse(body(storage_url=url, key="x/{sha256}", **region, **NO_CALLBACK))
    assert keyed.storage_key("7f") == f"{prefix}x/7f"
    assert JobSpec.from_json(spec.id, spec.to_json()) == spec


ACCEPTED = [
    {"aggr_id": "x" * 128},
    {"sha256": "", "size": None},
    {"size": 2**63 - 1},
    {"aggr_id": "../x"},
    {"key": "", "key_exists": None, "content_type": "", "content_disposition": ""},
    {"key": "a/b c/ü", "key_exists": "", "content_type": "text/html; charset=utf-8"},
    {"key": "{id}"},
    *({"key": key} for key in ("1.x", "a/b", "abü", "a c")),  # no id begins so
    {"aggr_id": "<img onerror>"},
    {"aggr_id": "*"},
    {"aggr_id": "bücher mit Leerzeichen"},
    {"aggr_limit": 2**31 - 1},
    {"aggr_proxy": ""},
    {"aggr_proxy": "http://proxy.example:3128/"},
    {"aggr_proxy": "https://proxy.example"},
    {"url": "HTTP://EXAMPLE.ORG"},
    {"url": "http://example.org./"},
    {"url": "http://bücher.example/straße?q=ü#f"},
    {"url": "http://[::1]:8080/"},
    {"url": "http://127.0.0.1:9000/a/../b//c?x=%2f@&y=a..b"},
    {"url": "http://2130706433/"},
    {"url": "http://under_score.example:65535/"},
    {"url": "http://example.org?q"},
    {"url": "http://h/" + "x" * 8183},
    {"callback_dst": "https://user:pass@client.example/"},
    {"callback_type": "sqs", "callback_dst": "aws.com/sqs/name"},
    {"callback_error_type": "", "callback_error_dst": ""},
    {"callback_url": "http://client.example/", **NO_CALLBACK},
    {"callback_url": "http://client.example/", "callback_type": "", "callback_dst": ""},
    {"callback_url": ""},
    {"extra": ""},
    {"extra": {"a": [1, {"b": None}]}},
    *({"url": f"http://example.org/{text}"} for text in ("a b", "a|b", "^{}`", '"<>"', "%", "\u202e", "ä?ö")),
    {"url": "  http://example.org/ "},
    {"url": "http://user:pass@example.org/"},
    {"url": "http://@example.org/"},
    {"mime_type": ""},
    {"mime_type": "image/png,image/webp"},
    {"max_retries": 1000},
    {"max_retries": None},
    {"extract_image_size": False},
    {"download_timeout": 1},
    {"request_headers": {}},
    {"request_headers": {f"X-{n}": n for n in range(32)}},
    {"request_headers": {"Authorization": "Bearer x", "Accept-Encoding": "gzip", "User-Agent": "x"}},
    {"request_headers": {"X": ""}},
    {"user_agent": ""},
    {"user_agent": "größer 下载"},
    {"request_headers": {"User-Agent": "", "X": "größer 下载"}},
    {"subpath": ""},
    {"subpath": "x/" * 31 + "x"},
    {"subpath": "NSb/other/NSb4FOAs9fVaQw"},
    {"priority": 9.0},
    {"deadline": "2026-11-27T21:00:00.001Z", "not_before": "2026-11-27T21:00:00Z"},
    {"subpath": "a/b c/ü/..c/<img onerror>"},
    {**BUCKET, **NO_CALLBACK},
    {"s3_bucket": "", "s3_region": ""},
    {"unknown": 1, "callback": {"x": []}, "": None},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_accepted(changes: dict[str, Any]) -> None:
    spec = parse(body(**changes))
    assert JobSpec.from_json(spec.id, spec.to_json()) == spec
    if "url" in changes:
        assert spec.url == changes["url"]
        assert Url.parse(spec.url).target


URLS = [  # one of each kind: tests/net/test_url.py has the others
    ("http://a@b@example.org/", "url_userinfo"),
    ("http://evil.example\\.example.org/", "url_host"),
    ("http://example.org:22/", "url_port"),
    ("file:///etc/passwd", "url_scheme"),
    ("socks5://example.org/", "url_scheme"),
    ("http://example.org/\r\nX: y", "url_characters"),
    ("http://example.org/\n", "url_characters"),
    ("//example.org/", "url_malformed"),
    ("http://h/" + "x" * 8184, "url_too_long"),
    ("", "required"),
]

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"not_before": "tomorrow"}, "malformed", "not_before"),
    ({"deadline": "tomorrow"}, "malformed", "deadline"),
    (
        {"not_before": "2026-11-27T21:00:00+01:00", "deadline": "2026-11-27T20:00:00Z"},
        "out_of_range",
        "deadline",
    ),
    ({"deadline": "1969-12-31T00:00:00Z", "not_before": "2026-11-27T21:00:00Z"}, "out_of_range", "deadline"),
    ({"not_before": "9999-12-31T23:59:59.999999Z"}, "out_of_range", "not_before"),
    ({"deadline": "9999-12-31T23:59:59.999999Z"}, "out_of_range", "deadline"),
    ({"priority": -1}, "out_of_range", "priority"),
    ({"priority": 10}, "out_of_range", "priority"),
    ({"priority": True}, "wrong_type", "priority"),
    ({"priority": "9"}, "wrong_type", "priority"),
    ({"not_before": "2026-11-27T21:00:00"}, "malformed", "not_before"),
    ({"not_before": "0001-01-01T00:00:00+23:59"}, "malformed", "not_before"),
    ({"not_before": "9999-12-31T23:59:59-23:59"}, "malformed", "not_before"),
    ({"not_before": 1795000000}, "wrong_type", "not_before"),
    ({"callback_type": "none"}, "malformed", "callback_dst"),
    ({"callback_error_type": "none", "callback_error_dst": "x"}, "malformed", "callback_error_dst"),
    *(({"url": url}, code, "url") for url, code in URLS),
    ({"url": ABSENT}, "required", "url"),
    ({"url": None}, "required", "url"),
    ({"url": 7}, "wrong_type", "url"),
    ({"url": ["http://example.org/"]}, "wrong_type", "url"),
    ({"aggr_id": ABSENT}, "required", "aggr_id"),
    ({"aggr_id": ""}, "required", "aggr_id"),
    ({"aggr_id": "x" * 129}, "too_long", "aggr_id"),
    ({"aggr_id": "x" * 4096}, "too_long", "aggr_id"),
    ({"aggr_id": "a\x00"}, "characters", "aggr_id"),
    ({"aggr_id": "a\n"}, "characters", "aggr_id"),
    ({"aggr_id": "\u202e"}, "characters", "aggr_id"),
    ({"aggr_id": 5}, "wrong_type", "aggr_id"),
    ({"aggr_limit": ABSENT}, "required", "aggr_limit"),
    ({"aggr_limit": 0}, "out_of_range", "aggr_limit"),
    ({"aggr_limit": -1}, "out_of_range", "aggr_limit"),
    ({"aggr_limit": 2**31}, "out_of_range", "aggr_limit"),
    ({"aggr_limit": 10**30}, "out_of_range", "aggr_limit"),
    ({"aggr_limit": True}, "wrong_type", "aggr_limit"),
    ({"aggr_limit": "3"}, "wrong_type", "aggr_limit"),
    ({"aggr_proxy": "ftp://proxy.example"}, "url_scheme", "aggr_proxy"),
    ({"aggr_proxy": "proxy.example:3128"}, "url_malformed", "aggr_proxy"),
    ({"aggr_proxy": "http://proxy.example/path"}, "url_malformed", "aggr_proxy"),
    ({"aggr_proxy": "http://proxy.example:0"}, "url_port", "aggr_proxy"),
    ({"aggr_proxy": "http://a@b@proxy.example"}, "url_userinfo", "aggr_proxy"),
    ({"aggr_rate": 0}, "out_of_range", "aggr_rate"),
    ({"aggr_rate": 2_000_000}, "out_of_range", "aggr_rate"),
    ({"aggr_rate": "3"}, "wrong_type", "aggr_rate"),
    ({"aggr_delay": True}, "wrong_type", "aggr_delay"),
    ({"aggr_delay": -0.5}, "out_of_range", "aggr_delay"),
    ({"aggr_delay": 86401}, "out_of_range", "aggr_delay"),
    ({"aggr_proxy": 1}, "wrong_type", "aggr_proxy"),
    (NO_CALLBACK, "required", "callback_type"),
    ({"callback_type": "", "callback_dst": ""}, "required", "callback_type"),
    ({"callback_type": ABSENT}, "required", "callback_type"),
    ({"callback_dst": ABSENT}, "required", "callback_dst"),
    ({"callback_dst": ""}, "required", "callback_dst"),
    ({"callback_type": "pigeon"}, "unknown_backend", "callback_type"),
    ({"callback_type": "HTTP"}, "unknown_backend", "callback_type"),
    ({"callback_type": 1}, "wrong_type", "callback_type"),
    ({"callback_dst": "client.example"}, "url_malformed", "callback_dst"),
    ({"callback_dst": "http://client.example:25/"}, "url_port", "callback_dst"),
    ({"callback_type": "sqs", "callback_dst": "a\r\nb"}, "characters", "callback_dst"),
    ({"callback_type": "sqs", "callback_dst": "x" * 2049}, "too_long", "callback_dst"),
    ({"callback_type": "storage", "callback_dst": "../x"}, "subpath", "callback_dst"),
    ({"callback_type": "storage", "callback_dst": "/etc"}, "subpath", "callback_dst"),
    ({"callback_url": "nonsense"}, "url_malformed", "callback_url"),
    ({"callback_url": 1}, "wrong_type", "callback_url"),
    ({"callback_error_type": "http"}, "required", "callback_error_dst"),
    ({"callback_error_dst": "http://x/"}, "required", "callback_error_type"),
    (
        {"callback_error_type": "pigeon", "callback_error_dst": "t"},
        "unknown_backend",
        "callback_error_type",
    ),
    ({"callback_error_type": "http", "callback_error_dst": "x"}, "url_malformed", "callback_error_dst"),
    ({"mime_type": "[a"}, "mime_pattern", "mime_type"),
    ({"mime_type": "\\"}, "mime_pattern", "mime_type"),
    ({"mime_type": 1}, "wrong_type", "mime_type"),
    ({"max_retries": -1}, "out_of_range", "max_retries"),
    ({"max_retries": 1001}, "out_of_range", "max_retries"),
    ({"max_retries": False}, "wrong_type", "max_retries"),
    ({"max_retries": "1"}, "wrong_type", "max_retries"),
    ({"extract_image_size": 1}, "wrong_type", "extract_image_size"),
    ({"extract_image_size": "true"}, "wrong_type", "extract_image_size"),
    ({"download_timeout": 0}, "out_of_range", "download_timeout"),
    ({"download_timeout": 1.5}, "wrong_type", "download_timeout"),
    ({"download_timeout": True}, "wrong_type", "download_timeout"),
    ({"request_headers": []}, "wrong_type", "request_headers"),
    ({"request_headers": "X: y"}, "wrong_type", "request_headers"),
    ({"request_headers": {"X": True}}, "wrong_type", "request_headers"),
    ({"request_headers": {"X": 1.5}}, "wrong_type", "request_headers"),
    ({"request_headers": {"X": None}}, "wrong_type", "request_headers"),
    ({"request_headers": {"X": ["y"]}}, "wrong_type", "request_headers"),
    ({"request_headers": {f"X-{n}": "" for n in range(33)}}, "too_many_headers", "request_headers"),
    ({"request_headers": {f"X-{n}": "" for n in range(1000)}}, "too_many_headers", "request_headers"),
    ({"request_headers": {"X": "y" * 8192}}, "headers_too_large", "request_headers"),
    *(
        ({"request_headers": {name: "x"}}, "header_name", "request_headers")
        for name in ("", "a b", "a:", "ü", "a\r\nb", "a\x00", "(a)")
    ),
    *(
        ({"request_headers": {"X": value}}, "header_value", "request_headers")
        for value in ("a\r\nHost: b", "a\n", "a\r", "\x00", "\x7f", "\x85")
    ),
    *(
        ({"request_headers": {name: "a\r\nb"}}, "header_value", "request_headers")
        for name in ("Host", "Proxy-X")
    ),
    ({"request_headers": {"X": "a\nb", "x": "c"}}, "header_value", "request_headers"),
    ({"user_agent": "a\r\nb"}, "header_value", "user_agent"),
    ({"user_agent": "x" * 1025}, "too_long", "user_agent"),
    ({"user_agent": 1}, "wrong_type", "user_agent"),
    ({"tags": "a"}, "wrong_type", "tags"),
    ({"tags": [1]}, "wrong_type", "tags"),
    ({"tags": [str(n) for n in range(9)]}, "too_long", "tags"),
    *(({"tags": [tag]}, "malformed", "tags") for tag in ("", "a,b", "x" * 65)),
    ({"tags": ["a\nb"]}, "characters", "tags"),
    ({"max_size": -1}, "out_of_range", "max_size"),
    ({"min_width": 2**31}, "out_of_range", "min_width"),
    ({"max_pixels": 1.5}, "wrong_type", "max_pixels"),
    ({"if_none_match": "a\r\nb"}, "header_value", "if_none_match"),
    ({"if_none_match": "x" * 1025}, "too_long", "if_none_match"),
    *(
        ({"if_modified_since": text}, "malformed", "if_modified_since")
        for text in ("yesterday", "2026-11-27T21:00:00Z", "Fri, 32 Nov 2026 21:00:00 GMT")
    ),
    ({"if_modified_since": "a\nb"}, "header_value", "if_modified_since"),
    *(
        ({"key": key}, "key", "key")
        for key in (
            *("..", "a/../{path}", "/{path}", "a//b", "a\\b", "a%2f", "a\nb", ".tmp/a", "a/", "{path}/", "/"),
            *("{url}", "{}", "{Host}", "a}", "{{id}}", "x" * 256, "abc", "{name}/NUL.txt", "a/com1"),
            *("NSb/NSb4FOAs9fVaQw", "a/NSb/NSb4FOAs9fVaQw/{name}"),
        )
    ),
    ({"key": "x/" * 32 + "x"}, "too_long", "key"),
    ({"key": "x/" * 256 + "x"}, "too_long", "key"),
    ({"key": "/".join(["{sha256}"] * 8)}, "too_long", "key"),
    ({"key": 1}, "wrong_type", "key"),
    ({"key": "a", "subpath": "b"}, "malformed", "subpath"),
    ({"key_exists": "keep"}, "required", "key"),
    ({"key": "a", "key_exists": "Keep"}, "malformed", "key_exists"),
    ({"content_type": "image"}, "malformed", "content_type"),
    ({"content_type": "a/b\nc"}, "malformed", "content_type"),
    ({"content_disposition": "a\nb"}, "header_value", "content_disposition"),
    ({"content_disposition": "ü"}, "header_value", "content_disposition"),
    ({"s3_bucket": "my-bucket"}, "required", "s3_region"),
    ({"s3_region": "eu-west-2"}, "required", "s3_bucket"),
    *(
        ({**BUCKET, "s3_bucket": name}, "malformed", "s3_bucket")
        for name in ("ab", "a" * 64, "Upper", "a..b", "-ab", "ab-", "1.2.3.4", "a/b", "a_b")
    ),
    ({**BUCKET, "s3_bucket": "your-bucket"}, "bucket_not_allowed", "s3_bucket"),
    *(
        ({"storage_url": url}, "malformed", "storage_url")
        for url in (
            "my-bucket",
            "http://my-bucket",
            "gs://x",
            "gs://my-bucket//x",
            "az://my.files",
            "GS://my-b",
        )
    ),
    ({"storage_url": f"gs://my-bucket/{'x' * 513}"}, "too_long", "storage_url"),
    ({"storage_url": "gs://my-bucket/abc/abcDEFGHIJKLMN"}, "malformed", "storage_url"),
    ({"storage_url": "gs://your-bucket"}, "bucket_not_allowed", "storage_url"),
    ({"storage_url": "s3://your-bucket", "s3_region": "eu"}, "bucket_not_allowed", "storage_url"),
    ({"storage_url": "s3://my-bucket"}, "required", "s3_region"),
    ({"storage_url": "az://my-files", "s3_region": "eu"}, "malformed", "s3_region"),
    ({"storage_url": "gs://my-files", "s3_bucket": "my-bucket"}, "malformed", "s3_bucket"),
    ({**BUCKET, "s3_region": "eu west"}, "malformed", "s3_region"),
    *(
        ({"subpath": path}, "subpath", "subpath")
        for path in (
            *("..", "a/../b", "../x", "/etc", "/", "a//b", "a\\b", "a%2f..", "a\x00", "a\nb", "\u202e"),
            *("./a", ".", "x" * 256, ".tmp", ".spool/a"),
            *("NSb/NSb4FOAs9fVaQw", "a/NSb/NSb4FOAs9fVaQw/b"),
        )
    ),
    ({"subpath": "x/" * 256 + "x"}, "too_long", "subpath"),
    ({"subpath": "x/" * 32 + "x"}, "too_long", "subpath"),
    ({"subpath": "x" * 4096}, "too_long", "subpath"),
    ({"subpath": 1}, "wrong_type", "subpath"),
    *(({"sha256": text}, "malformed", "sha256") for text in ("ab", "g" * 64, "0" * 65, "0" * 64 + "\n")),
    ({"sha256": 1}, "wrong_type", "sha256"),
    *(({"md5": text}, "malformed", "md5") for text in ("ab" * 15, "g" * 32, "XrY7u+Ae7tCTyyK7j1rNww==")),
    ({"size": -1}, "out_of_range", "size"),
    ({"size": 2**63}, "out_of_range", "size"),
    ({"size": "1"}, "wrong_type", "size"),
]


@pytest.mark.parametrize(("changes", "code", "field"), REFUSED, ids=lambda value: str(value)[:60])
@pytest.mark.row("H7", "H8", "H14")
def test_refused(changes: dict[str, Any], code: str, field: str) -> None:
    assert refusal(body(**changes)) == (422, code, field)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (NO_CALLBACK, 'callback_type is required, or "none" if there is to be no callback'),
        ({"callback_type": "pigeon"}, "callback_type is not a backend that is configured here: http, k"),
        ({"url": "example.org/a"}, "url is not an absolute URL: https:// or"),
        ({"tags": [str(n) for n in range(9)]}, "tags should have at most 8 items"),
        ({"user_agent": "x" * 1025}, "user_agent should have at most 1024 characters"),
    ],
)
def test_a_refusal_says_what_to_write_instead(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(body(**changes))
    assert caught.value.problem.detail.startswith(words)


def test_callback_url_wins() -> None:
    spec = parse(body(callback_type="sqs", callback_dst="q", callback_url="http://old.example/"))
    assert spec.callback(success=True) == ("http", "http://old.example/")
    assert spec.callback(success=False) == ("http", "http://old.example/")


def test_a_bucket_makes_the_callback_optional_but_not_half_of_it() -> None:
    assert parse(body(**BUCKET, **NO_CALLBACK)).callback(success=True) == ("", "")
    assert refusal(body(**BUCKET, callback_dst=ABSENT)) == (422, "required", "callback_dst")


@pytest.mark.parametrize("text", ["1", "2.50", "true", "false", '["a",  1]', "-0", "{}", "[]", "1e3"])
def test_extra_of_any_kind_is_its_own_text(text: str) -> None:
    assert parse(body()[:-1] + f', "extra": {text}}}'.encode()).extra == text


@pytest.mark.parametrize("field", ["aggr_limit", "max_retries", "download_timeout", "size"])
def test_a_number_is_a_number(field: str) -> None:
    for text in ("4.0", "4", "0.4e1", "4E0"):
        job = parse(body(**{field: ABSENT})[:-1] + f', "{field}": {text}}}'.encode())
        assert repr(getattr(job, field)) == "4"
    for value in (2.5, 1e300, -1.0, True, "4"):
        assert refusal(body(**{field: value}))[2] == field


def test_whole_numbers_as_header_values() -> None:
    assert parse(body(request_headers={"X": 4.0, "Y": 5})).request_headers == {"X": "4", "Y": "5"}
    assert refusal(body(request_headers={"X": 2.5}))[1] == "wrong_type"


def test_headers_are_measured_as_they_are_sent() -> None:
    assert parse(body(request_headers={"X": "ü" * 4095})).request_headers
    assert refusal(body(request_headers={"X": "ü" * 4096}))[1] == "headers_too_large"


@pytest.mark.parametrize("topic", ["__consumer_offsets", "__transaction_state", "_schemas", "_"])
def test_h27_kafka_s_internal_topics_are_refused(topic: str) -> None:
    success = {"callback_type": "kafka", "callback_dst": topic}
    failure = {"callback_error_type": "kafka", "callback_error_dst": topic}
    assert refusal(body(**success)) == (422, "reserved", "callback_dst")
    assert refusal(body(**failure)) == (422, "reserved", "callback_error_dst")
    assert parse(body(callback_type="sqs", callback_dst=topic)).callback_dst == topic
    assert parse(body(callback_type="kafka", callback_dst=f"a{topic}")).callback_dst == f"a{topic}"


def test_extra_as_an_object_is_its_own_text() -> None:
    text = '{"b" : 1.0,\n "a":"\\u00fc", "n": 123456789012345678901234567890}'
    data = body()[:-1] + b', "first": [1, "}"] , "extra":\t' + text.encode() + b' ,"z": 1}'
    assert parse(data).extra == text


def test_a_trailing_slash_of_the_subpath_is_dropped() -> None:
    assert parse(body(subpath="a/b/")).subpath == "a/b"


def test_header_values_lose_surrounding_blanks() -> None:
    assert parse(body(request_headers={"X": " a b\t"})).request_headers == {"X": "a b"}


OURS = (
    *("Host", "content-length", "Transfer-Encoding", "Connection", "Keep-Alive", "TE", "Trailer"),
    *("Upgrade", "Expect", "RANGE", "Proxy-Authorization", "proxy-connection", "Proxy-X"),
)


@pytest.mark.row("H8")
def test_headers_that_the_downloader_sets_are_left_out() -> None:
    headers: dict[str, Any] = dict.fromkeys(OURS, "x") | {"Referer": "y"}
    assert parse(body(request_headers=headers)).request_headers == {"Referer": "y"}
    warnings = warnings_for({"request_headers": headers})
    assert {(warning.code, warning.field) for warning in warnings} == {
        ("header_forbidden", "request_headers")
    }
    assert [warning.detail.split("`")[1] for warning in warnings] == list(OURS[:MAX_WARNINGS])


def test_of_two_headers_of_one_name_the_last_counts() -> None:
    headers = {"X-One": "a", "Y": 1, "x-one": "b", "HOST": "c", "X-ONE": 4}
    assert parse(body(request_headers=headers)).request_headers == {"X-ONE": "4", "Y": "1"}


CANARY = "c4n4ry"


@pytest.mark.parametrize("field", [*JOB, "extra", "mime_type", "request_headers", "subpath", "s3_bucket"])
@pytest.mark.parametrize(
    "value", [f"\x00{CANARY}[", {CANARY: f"\x00{CANARY}"}, [CANARY]], ids=["text", "object", "array"]
)
@pytest.mark.row("H20")
def test_no_value_is_echoed(field: str, value: object) -> None:
    data = body(**{field: value})
    if field == "extra":
        assert CANARY in parse(data).extra
        return
    with pytest.raises(Refused) as caught:
        parse(data)
    assert CANARY.encode() not in caught.value.problem.body()


def nested(opening: str, depth: int, closing: str) -> tuple[bytes, str]:
    """A body of this many levels, and the text of `extra`."""
    text = '{"\\ud83d\\ude00":' + opening * (depth - 2) + '"]}"' + closing * (depth - 2) + "}"
    return body()[:-1] + f', "extra": {text}}}'.encode(), text


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"[":', "}"), ('{"a\\"\\\\": ', "}\n")])
def test_a_hundred_levels_of_nesting(opening: str, closing: str) -> None:
    data, text = nested(opening, 100, closing)
    assert parse(data).extra == text
    data, _ = nested(opening, 101, closing)
    assert refusal(data) == (400, "too_deep", "")
    with pytest.raises(Refused, match="more than 100 levels"):
        parse(data)


@pytest.mark.parametrize("extra", ["[" * 1000, '\\"[{' * 1000, {"a": [{"b": []}] * 1000}])
def test_brackets_that_nest_nothing(extra: object) -> None:
    assert parse(body(extra=extra)).extra


@pytest.mark.parametrize(
    "data", [b'{"a": "' + b"[" * 1000, b'{"a": "' + b'\\"[' * 1000, b'{"a": "' + b'\\"[' * 1000 + b"\\"]
)
def test_brackets_in_a_string_without_end(data: bytes) -> None:
    assert refusal(data) == (400, "bad_json", "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # its tables are made at first use
@given(
    st.dictionaries(
        st.sampled_from([*JOB, *BUCKET, "extra", "mime_type", "request_headers", "subpath"]), json_values
    )
)
def test_anything_is_taken_or_refused(changes: dict[str, Any]) -> None:
    with suppress(Refused):
        parse(body(**changes))


@pytest.mark.parametrize(
    ("key", "url", "filled"),
    [
        ("{host}/{path}", "http://Example.org:8080/a%20b/ü.tar.gz?q=1#f", "example.org/a b/ü.tar.gz"),
        ("{name}-{id}{ext}", "http://h.test/a/b.tar.gz", "b-00000000000000.tar.gz"),
        ("{host}/{path}", "http://h.test", "h.test/index"),
        ("{path}", "http://h.test/a/", "a/index"),
        ("{path}", "http://h.test/%2e%2e/..%2f..%2fetc/./passwd%00", "_.._etc/passwd"),
        ("{path}", "http://h.test/.git//config", "git/config"),
        ("{path}", "http://h.test/con/100%25%7bid%7d", "_con/100__id_"),
        ("{host}/x", "http://[::1]/", "__1/x"),
        ("{sha256}{ext}", "http://h.test/a.png", "{sha256}.png"),
        ("{sha256}", "http://h.test/%7Bsha256%7D", "{sha256}"),
        ("{path}", "http://h.test/%7Bsha256%7D", "_sha256_"),
    ],
)
def test_a_key_is_filled_in(key: str, url: str, filled: str) -> None:
    assert parse(body(key=key, url=url)).key == filled


def test_the_date_of_a_key_is_that_of_acceptance() -> None:
    spec = parse(body(key="{date}/a"))
    assert spec.key == f"{datetime.fromtimestamp(spec.created_ms / 1000, UTC):%Y-%m-%d}/a"


@pytest.mark.parametrize("url", ["http://h.test/NSb/NSb4FOAs9fVaQw", f"http://h.test/{'a/' * 40}"])
def test_a_key_is_checked_as_filled_in(url: str) -> None:
    assert refusal(body(key="{path}", url=url))[2] == "key"


def test_a_key_that_ends_with_a_slash_when_filled_in_is_refused() -> None:
    assert refusal(body(key="a/{ext}", url="http://h.test/b"))[2] == "key"
    assert parse(body(key="a/{ext}", url="http://h.test/b.png")).key == "a/.png"
