"""What the `s3` storage says and takes: sections, URLs, metadata, reasons. No server."""

from __future__ import annotations

import subprocess
import sys
from email.header import decode_header, make_header
from typing import Any

import pytest
from botocore import exceptions as aws
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from downloader.errors import PluginError
from downloader.storage import StorageError, StorageRefused
from downloader_plugins.objects import MAX_METADATA_BYTES, PassingError, user_metadata
from downloader_plugins.s3 import open_buckets, open_s3
from downloader_plugins.s3.client import explain
from downloader_plugins.s3.settings import object_url
from servers.plugins import opened_storage


def test_services_without_s3_do_not_import_boto3() -> None:
    code = "import sys, downloader_plugins.s3; print([m for m in ('boto3', 'botocore') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "bucket: the s3 storage needs the name of a bucket"),
        ({"bucket": ""}, "bucket: the s3 storage needs the name of a bucket"),
        ({"bucket": "b", "buket": "c"}, "buket: there is no such key; did you mean bucket?"),
        ({"bucket": "b", "endpoint_url": "s3.test"}, "endpoint_url: must be an absolute"),
        ({"bucket": "b", "endpoint_url": "http://a:b@s3.test"}, "endpoint_url: must be an absolute"),
        ({"bucket": "b", "endpoint_url": "http://s3.test/?x"}, "endpoint_url: must be an absolute"),
        ({"bucket": "b", "prefix": "a/../b"}, "prefix: not a folder"),
        ({"bucket": "b", "prefix": "a\nb"}, "prefix: not a folder"),
        ({"bucket": "b", "access_key_id": "x"}, "access_key_id and secret_access_key: "),
        ({"bucket": "b", "secret_access_key": "x"}, "access_key_id and secret_access_key: "),
        ({"bucket": "b", "session_token": "x"}, "session_token: "),
        (
            {"bucket": "b", "access_key_id": "x", "secret_access_key": "y", "profile": "z"},
            "profile: ",
        ),
        ({"bucket": "b", "kms_key_id": "x", "server_side_encryption": "AES256"}, "kms_key_id: "),
        ({"bucket": "b", "server_side_encryption": "aws"}, "server_side_encryption: "),
        ({"bucket": "b", "timeout": 51}, "timeout: "),
        (
            {"bucket": "b", "profile": "there-is-none"},
            "profile: ",
        ),
        (
            {"bucket": "b", "region": "not a region"},
            "region: ",
        ),
    ],
)
async def test_a_section_that_is_at_fault_is_one_line(section: dict[str, Any], said: str) -> None:
    section = {"region": "eu-west-2", **section}
    with pytest.raises(PluginError) as caught:
        async with opened_storage(open_s3, section):
            pass
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


async def test_the_section_of_callers_buckets_is_checked() -> None:
    with pytest.raises(PluginError, match="endpoint_ur: there is no such key; did you mean endpoint_url"):
        async with opened_storage(open_buckets, {"endpoint_ur": "http://s3.test"}):
            pass


@pytest.mark.parametrize(
    "name",
    [
        *("", "ab", "UPPER", "a..b", "192.168.1.1", "a/b", "a@b.test", "a#b", "a b", "evil.test/x", "x" * 64),
        *(
            "-ab",
            "ab-",
            "arn:aws:s3:::b",
            "a--use1-az4--x-s3",
            "alias--op-s3",
            "b.mrap",
            "a\n",
            "b?c",
            "b%2f",
        ),
    ],
)
async def test_no_name_of_a_bucket_leads_elsewhere(name: str) -> None:
    async with opened_storage(open_buckets, {}) as buckets:
        with pytest.raises(StorageRefused):
            await buckets.bucket(name, "eu-west-2")


@pytest.mark.slow
@pytest.mark.row("H27")
@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        ([], []),
        (["*"], ["ours", "ours-eu", "theirs"]),
        (["ours"], ["ours"]),
        (["ours-*", "theirs"], ["ours-eu", "theirs"]),
        (["our[st]"], ["ours"]),
    ],
)
async def test_only_listed_buckets(patterns: list[str], allowed: list[str]) -> None:
    async with opened_storage(open_buckets, {"buckets": patterns}) as buckets:
        for name in allowed:
            await buckets.bucket(name, "eu-west-2")
        for name in {"ours", "ours-eu", "theirs"}.difference(allowed):
            with pytest.raises(StorageRefused, match=f"{name} is not allowed by processor.s3.buckets"):
                await buckets.bucket(name, "eu-west-2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "region", ["", "eu-west-2.evil.test", "EU-WEST-2", "a/b", "eu-west-17", "aws-global"]
)
async def test_only_regions_of_aws_are_asked(region: str) -> None:
    async with opened_storage(open_buckets, {}) as buckets:
        with pytest.raises(StorageRefused):
            await buckets.bucket("bucket", region)


@pytest.mark.parametrize(
    ("name", "region", "endpoint", "url"),
    [
        ("our-b", "eu-west-2", "", "https://our-b.s3.eu-west-2.amazonaws.com/a%20b/%C3%A9/x"),
        ("our.b", "eu-west-2", "", "https://s3.eu-west-2.amazonaws.com/our.b/a%20b/%C3%A9/x"),
        ("our-b", "cn-north-1", "", "https://our-b.s3.cn-north-1.amazonaws.com.cn/a%20b/%C3%A9/x"),
        ("our-b", "eu-west-2", "http://[::1]:9000", "http://[::1]:9000/our-b/a%20b/%C3%A9/x"),
        ("our-b", "eu-west-2", "https://s3.test/x", "https://s3.test/x/our-b/a%20b/%C3%A9/x"),
    ],
)
def test_where_an_object_is(name: str, region: str, endpoint: str, url: str) -> None:
    assert object_url(name, region, "a b/é/x", endpoint_url=endpoint) == url


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [
        ("plain", "plain"),
        ("", ""),
        ("1.50", "1.50"),
        ("é", "=?utf-8?b?w6k=?="),
        (" blank ", "=?utf-8?b?IGJsYW5rIA==?="),
        ("a  b", "=?utf-8?b?YSAgYg==?="),
        ("=?utf-8?q?a?=", "=?utf-8?b?PT91dGYtOD9xP2E/PQ==?="),
        ("two\nlines", None),
        ("nul\0", None),
        ("\x85", None),
        ("\ud800", None),
        ("x" * 3000, None),
    ],
)
def test_values_of_metadata(given_value: str, kept: str | None) -> None:
    assert user_metadata({"a": given_value}).get("a") == kept


def test_names_of_metadata() -> None:
    names = ["Album", "album", "a_b", "a-b", "a b", "a:b", "é", "", "a\r\nx-amz-acl", "x" * 3000]
    assert user_metadata({name: f"{number}" for number, name in enumerate(names)}) == {
        "album": "0",
        "a_b": "2",
        "a-b": "3",
    }


def test_metadata_that_does_not_fit_is_left_out() -> None:
    found = user_metadata({"first": "x" * 2000, "second": "y" * 100, "third": "z" * 30})
    assert list(found) == ["first", "third"]


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=400), max_size=20))
def test_metadata_is_always_fit_for_headers(given_metadata: dict[str, str]) -> None:
    found = user_metadata(given_metadata)
    assert sum(len(name) + len(value) for name, value in found.items()) <= MAX_METADATA_BYTES
    for name, value in found.items():
        assert name.isascii()
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip()
        # Of equal names the first, unless its value is left out.
        same = [each for given_name, each in given_metadata.items() if given_name.lower() == name]
        assert str(make_header(decode_header(value))) in same


def said(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "secret"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]  # the rest is not looked at
        "PutObject",
    )


@pytest.mark.parametrize(
    ("exc", "callers", "own"),
    [
        (said("NoSuchBucket", 404), StorageRefused, StorageError),
        (said("AccessDenied", 403), StorageRefused, StorageError),
        (said("403", 403), StorageRefused, StorageError),
        (said("InvalidAccessKeyId", 403), StorageRefused, StorageError),
        (said("PermanentRedirect", 301), StorageRefused, StorageError),
        (said("AuthorizationHeaderMalformed", 400), StorageRefused, StorageError),
        (said("KMS.DisabledException", 400), StorageRefused, StorageError),
        (said("EntityTooLarge", 400), StorageRefused, StorageRefused),
        (said("KeyTooLongError", 400), StorageRefused, StorageRefused),
        (said("InternalError", 500), PassingError, PassingError),
        (said("SlowDown", 503), PassingError, PassingError),
        (said("TooManyRequests", 429), PassingError, PassingError),
        (said("RequestTimeout", 400), PassingError, PassingError),
        (said("502", 502), PassingError, PassingError),
        *((said("Unheard", status), PassingError, PassingError) for status in (408, 425, 429, 500, 599)),
        *(
            (said(code, 400), StorageError, StorageError)
            for code in (
                *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed"),
                *("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "OperationAborted"),
                *("NoSuchUpload", "InvalidPart", "InvalidPartOrder", "ConditionalRequestConflict"),
            )
        ),
        (aws.NoCredentialsError(), StorageError, StorageError),
        (aws.ReadTimeoutError(endpoint_url="https://secret"), StorageError, StorageError),
        (aws.ConnectTimeoutError(endpoint_url="https://secret"), StorageError, StorageError),
        (aws.EndpointConnectionError(endpoint_url="https://secret"), PassingError, PassingError),
        (aws.ConnectionClosedError(endpoint_url="https://secret"), PassingError, PassingError),
        (OSError(5, "Input/output error", "/secret"), StorageError, StorageError),
    ],
)
@pytest.mark.row("F14")
def test_errors_are_final_for_a_job_s_own_bucket_only(
    exc: Exception, callers: type[StorageError], own: type[StorageError]
) -> None:
    for is_own, kind in ((False, callers), (True, own)):
        found = explain(exc, bucket="some-bucket", own=is_own)
        assert type(found) is kind
        assert str(found).startswith("S3 bucket some-bucket: ")
        assert "secret" not in str(found)


def test_a_code_that_is_none_is_not_repeated() -> None:
    assert str(explain(said("<b>\n", 400), bucket="b", own=True)) == "S3 bucket b: an error (400)"
