from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.ids import ID_LENGTH, ID_PREFIX_LENGTH, ID_PREFIX_S, JobIds, new_id, shard_of
from downloader.model import (
    ErrorCode,
    FileFacts,
    JobSpec,
    Outcome,
    ResponseMetadata,
    Verdict,
    callback_limit,
    callback_queue,
)
from downloader.wire import callback_body

SPEC = JobSpec(id="0123456789ABCD", aggr_id="a", aggr_limit=1, url="http://example.org/x")


@pytest.mark.parametrize("shards", [1, 16])
def test_an_id_tells_its_shard(shards: int) -> None:
    for shard in range(shards):
        job_id = new_id(shard, shards)
        assert len(job_id) == ID_LENGTH
        assert shard_of(job_id, shards) == shard


def test_ids_do_not_repeat() -> None:
    assert len({new_id(0, 1) for _ in range(10_000)}) == 10_000


def test_ids_of_the_same_seconds_share_their_first_characters_alone() -> None:
    """So the files of a batch share a folder; what follows is random for each."""
    now = 0.0
    ids = JobIds(lambda: now)
    first = [ids.new(shard, 16) for shard in range(16) for _ in range(100)]
    assert len({job_id[:ID_PREFIX_LENGTH] for job_id in first}) == 1
    assert len({job_id[ID_PREFIX_LENGTH:-1] for job_id in first}) == len(first)
    assert [shard_of(job_id, 16) for job_id in first] == [shard for shard in range(16) for _ in range(100)]
    now = ID_PREFIX_S
    assert ids.new(0, 1)[:ID_PREFIX_LENGTH] != first[0][:ID_PREFIX_LENGTH]


@given(st.text(max_size=20))
def test_an_invalid_id_is_refused(text: str) -> None:
    if len(text) == ID_LENGTH and text.isascii() and text.isalnum():
        assert 0 <= shard_of(text, 16) < 16
    else:
        with pytest.raises(ValueError, match="not a job id"):
            shard_of(text, 16)


@given(
    st.builds(
        JobSpec,
        id=st.just("0123456789ABCD"),
        aggr_id=st.text(min_size=1),
        aggr_limit=st.integers(1, 10),
        url=st.text(),
        callback_type=st.sampled_from(["", "http"]),
        callback_dst=st.sampled_from(["", "http://a", "http://b"]),
        callback_error_type=st.sampled_from(["", "http", "kafka"]),
        callback_error_dst=st.sampled_from(["", "http://a", "topic"]),
        extra=st.text(),
        max_retries=st.none() | st.integers(0, 3),
        extract_image_size=st.booleans(),
        tags=st.lists(st.text()).map(tuple),
        request_headers=st.dictionaries(st.text(), st.text()),
        unknown=st.dictionaries(st.just("newer"), st.integers()),
    )
)
def test_a_stored_job_is_read_as_it_was(spec: JobSpec) -> None:
    assert JobSpec.from_json(spec.id, spec.to_json()) == spec


@pytest.mark.row("F37")
@pytest.mark.parametrize("name", [f.name for f in fields(JobSpec)[1:] if f.name not in ("unknown", "damage")])
def test_a_damaged_job_is_read_as_far_as_it_can_be(name: str) -> None:
    body = json.loads(SPEC.to_json()) | {"callback_type": "http", "callback_dst": "http://c/", "extra": "e"}
    for value in ({"a": 1}, [1]):
        spec = JobSpec.from_json(SPEC.id, json.dumps(body | {name: value}))
        assert (spec.damage, spec.id) == (f"the stored job is damaged: {name}", SPEC.id)
        assert spec.extra == ("" if name == "extra" else "e")
        known = ("", "") if name.startswith("callback") else ("http", "http://c/")
        assert spec.callback(success=True) == spec.callback(success=False) == known
        json.loads(spec.to_json())


@pytest.mark.row("F37")
@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", "{}", "[" * 100_000, '{"aggr_id": "a"}'])
def test_a_job_that_cannot_be_read_is_damaged(text: str) -> None:
    spec = JobSpec.from_json(SPEC.id, text)
    assert spec.damage.startswith("the stored job is damaged: ")
    assert spec.callback(success=False) == ("", "")


def test_a_job_with_few_fields_is_stored_in_few_bytes() -> None:
    assert SPEC.to_json() == '{"aggr_id":"a","aggr_limit":1,"url":"http://example.org/x"}'


@pytest.mark.parametrize(("subpath", "key"), [("", "012/0123456789ABCD"), ("a/b", "a/b/012/0123456789ABCD")])
def test_a_file_is_stored_under_its_id(subpath: str, key: str) -> None:
    spec = JobSpec(id=SPEC.id, aggr_id="a", aggr_limit=1, url="http://h/../../etc/passwd", subpath=subpath)
    assert spec.storage_key("") == key


@pytest.mark.parametrize(
    ("kind", "destination", "queue"),
    [
        ("http", "http://Host:80/a?b", "http http://host"),
        ("http", "http://host:443/", "http http://host:443"),
        ("http", "HTTPS://user:secret@host:443/x", "http https://host"),
        ("http", "http://[u:p@Host:8080/x", "http http://host:8080"),
        ("http", "http://u:\u2100@Host:?x#y", "http http://host"),
        ("http", "http://u@[::1]:80", "http http://[::1]"),
        ("storage", "a://[b", "storage a://[b"),
        ("kafka", "topic", "kafka topic"),
        ("sqs", "aws.com/sqs/name", "sqs aws.com/sqs/name"),
        ("sqs", "https://u:p@SQS.test/1/Name", "sqs https://sqs.test/1/Name"),
    ],
)
def test_callbacks_to_one_origin_share_a_queue(kind: str, destination: str, queue: str) -> None:
    assert callback_queue(kind, destination) == queue


def test_the_payload_always_has_every_field() -> None:
    done = Outcome(
        verdict=Verdict.SUCCEEDED,
        response_code=200,
        file=FileFacts(size=3, sha256="ab", mime_type="image/png", image_size="1x2"),
        response=ResponseMetadata(etag='"33a"', last_modified="Fri", content_type="image/x"),
    )
    failed = Outcome(verdict=Verdict.FAILED, error="why", error_code=ErrorCode.DNS)
    spec = replace(SPEC, md5="cd")
    good = json.loads(
        callback_body(spec, done, attempts=1, download_url="http://d/x", final_url="http://f/x")
    )
    bad = json.loads(callback_body(spec, failed, attempts=3, download_url="http://d/x"))
    assert good == {
        "success": True,
        "error": "",
        "extra": "",
        "resource_url": SPEC.url,
        "download_url": "http://d/x",
        "job_id": SPEC.id,
        "response_code": 200,
        "delivered": True,
        "delivery_error": "",
        "image_size": "1x2",
        "error_code": "",
        "size": 3,
        "sha256": "ab",
        "md5": "cd",
        "mime_type": "image/png",
        "attempts": 1,
        "tags": [],
        "etag": '"33a"',
        "last_modified": "Fri",
        "content_type": "image/x",
        "final_url": "http://f/x",
        "not_modified": False,
    }
    assert list(bad) == list(good)
    assert bad["md5"] == ""
    assert (bad["success"], bad["error"], bad["error_code"], bad["download_url"], bad["response_code"]) == (
        False,
        "why",
        "dns",
        "",
        0,
    )


def test_a_file_that_is_not_modified_has_no_url() -> None:
    unchanged = Outcome(verdict=Verdict.SUCCEEDED, response=ResponseMetadata(not_modified=True))
    payload = json.loads(callback_body(SPEC, unchanged, attempts=1, download_url="http://d/x"))
    assert (payload["success"], payload["not_modified"], payload["download_url"]) == (True, True, "")


@pytest.mark.parametrize(
    ("queue", "limit"),
    [("http https://a.example", 16), ("storage done", 16), ("pigeon kafka", 16), ("kafka jobs", 4096)],
)
def test_brokers_are_made_for_many_callbacks_at_once(queue: str, limit: int) -> None:
    assert callback_limit(queue, 16) == limit


def test_a_broker_has_at_least_what_the_operator_gives_to_all() -> None:
    assert callback_limit("sqs jobs", 9999) == 9999
