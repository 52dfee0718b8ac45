"""What destinations of the `sqs` notifier mean, and the ids of FIFO queues. Pure."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.net import parse_endpoint
from downloader_plugins.sqs.queue import (
    BadDestination,
    Endpoints,
    Queue,
    aws_hosts,
    group_id,
    parse_destination,
    permitted,
    same_queue,
)

REGION = "eu-west-2"
AWS = Endpoints(region=REGION, hosts=aws_hosts(["eu-west-2", "us-east-1", "cn-north-1"]))
LOCAL = Endpoints(region=REGION, origin="http://localhost:4566")
JOBS = Queue(name="jobs", region=REGION)


@pytest.mark.parametrize("destination", ["jobs", "aws.com/sqs/jobs", "https://aws.com/sqs/jobs"])
@pytest.mark.parametrize("endpoints", [AWS, LOCAL])
def test_a_queue_by_name(destination: str, endpoints: Endpoints) -> None:
    assert parse_destination(destination, endpoints) == JOBS


@pytest.mark.parametrize(
    ("url", "region", "usual"),
    [
        ("https://sqs.eu-west-2.amazonaws.com/123456789012/a_B-9", "eu-west-2", ""),
        ("https://sqs.us-east-1.amazonaws.com/123456789012/a_B-9", "us-east-1", ""),
        (
            "https://SQS.us-east-1.amazonaws.com:443/123456789012/a_B-9",
            "us-east-1",
            "https://sqs.us-east-1.amazonaws.com/123456789012/a_B-9",
        ),
        (
            "https://eu-west-2.queue.amazonaws.com/123456789012/a_B-9",
            "eu-west-2",
            "https://sqs.eu-west-2.amazonaws.com/123456789012/a_B-9",
        ),
        (
            "http://queue.amazonaws.com/123456789012/a_B-9",
            "us-east-1",
            "https://sqs.us-east-1.amazonaws.com/123456789012/a_B-9",
        ),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/a_B-9", "cn-north-1", ""),
    ],
)
def test_a_queue_by_its_url_at_aws(url: str, region: str, usual: str) -> None:
    found = parse_destination(url, AWS)
    assert found == Queue(name="a_B-9", region=region, url=usual or url, look_up=False)


@pytest.mark.parametrize(
    "path", ["/000000000000/jobs", "/queue/jobs", "/jobs", "/queue/eu-west-2/000000000000/jobs"]
)
def test_a_queue_by_its_url_at_an_endpoint_of_our_own(path: str) -> None:
    found = parse_destination(f"http://LocalHost:4566{path}", LOCAL)
    assert found == Queue(name="jobs", region=REGION, url=f"http://localhost:4566{path}", look_up=False)


@pytest.mark.parametrize(
    "destination",
    [
        "",
        " jobs",
        "jobs ",
        "jo bs",
        "jobs\n",
        "jobs.fif",
        ".fifo",
        "jobs.fifo.fifo",
        "a" * 81,
        "a" * 76 + ".fifo",
        "j\u00f6bs",
        "aws.com/sqs/",
        "aws.com/sqs/a/b",
        "aws.com/sqs/../jobs",
        "arn:aws:sqs:eu-west-2:123456789012:jobs",
        "sqs.eu-west-2.amazonaws.com/123456789012/jobs",
        "ftp://sqs.eu-west-2.amazonaws.com/123456789012/jobs",
        # Other hosts, however much they look like ours: the request would carry our signature.
        "http://127.0.0.1/123456789012/jobs",
        "http://localhost:4567/000000000000/jobs",
        "https://localhost:4566/000000000000/jobs",
        "https://sqs.eu-west-2.amazonaws.com.evil.test/123456789012/jobs",
        "https://evil.test/sqs.eu-west-2.amazonaws.com/123456789012/jobs",
        "https://sqs.eu-west-2.amazonaws.com@evil.test/123456789012/jobs",
        "https://evil.test\\@sqs.eu-west-2.amazonaws.com/123456789012/jobs",
        "https://sqs.evil.test/123456789012/jobs",
        "https://sqs.xx-nowhere-1.amazonaws.com/123456789012/jobs",
        "https://sqs.eu-west-2.amazonaws.com.cn/123456789012/jobs",
        "https://sqs.cn-north-1.amazonaws.com/123456789012/jobs",
        "https://sqs.eu-west-2.amazonaws.com:8443/123456789012/jobs",
        "https://s3.eu-west-2.amazonaws.com/123456789012/jobs",
        # No queue's URL.
        "https://sqs.eu-west-2.amazonaws.com",
        "https://sqs.eu-west-2.amazonaws.com/",
        "https://sqs.eu-west-2.amazonaws.com/jobs",
        "https://sqs.eu-west-2.amazonaws.com/12345678901/jobs",
        "https://sqs.eu-west-2.amazonaws.com/123456789012/jobs/x",
        "https://sqs.eu-west-2.amazonaws.com/123456789012/jobs?Action=DeleteQueue",
        "https://sqs.eu-west-2.amazonaws.com/123456789012/jobs#x",
        "https://sqs.eu-west-2.amazonaws.com/123456789012/%6aobs",
        "http://localhost:4566/",
        "http://localhost:4566/0/../jobs",
        "http://localhost:4566/0//jobs",
        "http://localhost:4566/a/b/c/d/jobs",
    ],
)
def test_destinations_that_are_no_queue_of_ours(destination: str) -> None:
    for endpoints in (
        AWS,
        Endpoints(region=REGION, origin="https://vpce-1.sqs.eu-west-2.vpce.amazonaws.com"),
    ):
        with pytest.raises(BadDestination) as caught:
            parse_destination(destination, endpoints)
        assert "evil" not in str(caught.value)
    with pytest.raises(BadDestination):
        parse_destination(destination, LOCAL)


def test_urls_of_aws_are_not_of_an_endpoint_of_our_own() -> None:
    with pytest.raises(BadDestination):
        parse_destination("https://sqs.eu-west-2.amazonaws.com/123456789012/jobs", LOCAL)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://LocalHost:4566", "http://localhost:4566"),
        ("https://sqs.test:443/", "https://sqs.test"),
        ("http://[::1]:80/base", "http://[::1]"),
    ],
)
def test_origins(url: str, origin: str) -> None:
    assert parse_endpoint(url).origin.url == origin


@pytest.mark.parametrize(
    "url", ["", "localhost", "ftp://x", "http://u:p@x", "http://x?q", "http://x/#f", "http://", "http://x:y"]
)
def test_invalid_endpoints(url: str) -> None:
    with pytest.raises(ValueError, match="must be an absolute http or https URL"):
        parse_endpoint(url)


BY_URL = parse_destination("https://sqs.eu-west-2.amazonaws.com/123456789012/jobs", AWS)


@pytest.mark.parametrize(
    ("queue", "patterns", "allowed", "look_up"),
    [
        (JOBS, [], True, True),
        (BY_URL, [], True, False),
        (JOBS, ["jobs"], True, True),
        (JOBS, ["other", "j*"], True, True),
        (JOBS, ["job", "JOBS", "jobs.fifo"], False, True),
        (JOBS, ["https://*"], False, True),
        # A URL that only its name permits has to be that of our own account's queue.
        (BY_URL, ["jobs"], True, True),
        (BY_URL, ["other"], False, False),
        (BY_URL, ["https://sqs.eu-west-2.amazonaws.com/123456789012/*"], True, False),
        (BY_URL, ["https://sqs.eu-west-2.amazonaws.com/123456789013/*"], False, False),
        (BY_URL, ["https://*/*/jobs"], True, False),
        (BY_URL, ["https://*", "https://sqs.eu-west-2.amazonaws.com/*", "*/jobs"], False, False),
    ],
)
def test_the_allow_list(queue: Queue, patterns: list[str], allowed: bool, look_up: bool) -> None:  # noqa: FBT001 - parameters of a table
    found = permitted(queue, patterns)
    assert (found is not None) == allowed
    if found is not None:
        assert (found.name, found.url, found.look_up) == (queue.name, queue.url, look_up)


def test_the_same_queue_under_two_urls() -> None:
    url = "https://sqs.eu-west-2.amazonaws.com/123456789012/jobs"
    assert same_queue(url, "https://vpce-1.sqs.eu-west-2.vpce.amazonaws.com/123456789012/jobs")
    assert not same_queue(url, "https://sqs.eu-west-2.amazonaws.com/123456789013/jobs")
    assert not same_queue(url, "https://sqs.eu-west-2.amazonaws.com/123456789012/jobs2")


ALLOWED = set(string.ascii_letters + string.digits + string.punctuation)


@pytest.mark.parametrize(
    ("aggr_id", "expected"),
    [
        ("example.org", "example.org"),
        ("a:b/c_d-e@f", "a:b/c_d-e@f"),
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("\u00fc", "%C3%BC"),
        ("a" * 128, "a" * 128),
    ],
)
def test_the_group_of_an_aggregation(aggr_id: str, expected: str) -> None:
    assert group_id(aggr_id) == expected


@given(st.text(min_size=1, max_size=128), st.text(min_size=1, max_size=128))
def test_groups_are_what_sqs_takes_and_tell_aggregations_apart(one: str, other: str) -> None:
    found = group_id(one)
    assert found == group_id(one)
    assert 1 <= len(found) <= 128
    assert set(found) <= ALLOWED
    assert (found == group_id(other)) == (one == other)


def test_a_long_name_keeps_its_beginning() -> None:
    one, other = group_id("\u00fc" * 100 + "a"), group_id("\u00fc" * 100 + "b")
    assert one != other
    assert len(one) == 128
    assert one.startswith("%C3%BC%C3%BC")
