"""Each row of the contract's outcome table (section 4), on real sockets."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from downloader.errors import ConfigError
from downloader.fetch import MAX_COOLDOWN_S
from downloader.fetch.retry import COOLDOWN_JITTER, COOLDOWN_S, FREE_COOLDOWNS, MIN_COOLDOWN_S
from downloader.model import Cooldown, ErrorCode, FileFacts, Verdict, now_ms
from downloader.storage import Body, Storage, StorageError, StorageRefused, StoredFile
from downloader.storage.opening import CheckedStorage
from servers.certs import old_tls_server, server_context, write_authority
from servers.lab import Lab, lease, open_lab, small
from servers.loopback import serving
from servers.origin import BLOCK_BYTES, PNG, Origin, Then, body_of, open_origin, raw, respond
from servers.ports import spare_port
from servers.proxies import open_proxy

OK = b"HTTP/1.1 200 OK\r\n"
LONGEST = ",".join(["image/x-portable-bitmap"] * 170)
"""A list of types about as long as they may be."""


async def test_a_file_is_stored_with_its_facts(lab: Lab, origin: Origin) -> None:
    origin.on("/a.png", respond(200, PNG))
    job = lease(origin.url("/a.png"), extract_image_size=True, subpath="some/folder")
    outcome = await lab.fetcher.attempt(job, still_ours=lambda: True)
    assert outcome.verdict is Verdict.SUCCEEDED
    assert (outcome.error, outcome.error_code, outcome.response_code) == ("", ErrorCode.NONE, 200)
    digest = hashlib.sha256(PNG).hexdigest()
    assert outcome.file == FileFacts(size=len(PNG), sha256=digest, mime_type="image/png", image_size="2x3")
    assert lab.files() == [lab.root / "some/folder" / job.id[:3] / job.id]
    assert lab.stored() == PNG


async def test_the_name_in_a_response_is_reported(lab: Lab, origin: Origin) -> None:
    fields = [("Content-Disposition", 'attachment; filename="../a b.png"')]
    outcome = await lab.fetch(origin.on("/x", respond(200, PNG, fields)))
    assert outcome.file.filename == "a b.png"
    packed = respond(200, gzip.compress(PNG), [*fields, ("Content-Encoding", "gzip")])
    assert (await lab.fetch(origin.on("/y", packed))).file.filename == "a b.png"
    assert (await lab.fetch(origin.on("/z", respond(200, PNG)))).file.filename == ""


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 1_048_576, 3_000_001])
async def test_a_body_of_any_size(lab: Lab, origin: Origin, size: int) -> None:
    outcome = await lab.fetch(origin.url(f"/bytes/{size}"))
    assert outcome.verdict is Verdict.SUCCEEDED
    assert lab.stored() == body_of(size)
    assert outcome.file.size == size
    assert outcome.file.sha256 == hashlib.sha256(body_of(size)).hexdigest()


@pytest.mark.parametrize("status", [200, 201, 203, 226])
async def test_other_2xx_are_successes(lab: Lab, origin: Origin, status: int) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(status, b"body")))
    assert (outcome.verdict, outcome.response_code) == (Verdict.SUCCEEDED, status)
    assert lab.stored() == b"body"


@pytest.mark.row("H13")
async def test_204_is_an_empty_file(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", raw(b"HTTP/1.1 204 No Content\r\n\r\n", "keep")))
    assert (outcome.verdict, outcome.response_code) == (Verdict.SUCCEEDED, 204)
    assert (outcome.file.size, outcome.file.mime_type) == (0, "application/x-empty")
    assert lab.stored() == b""


@pytest.mark.parametrize(
    ("status", "text", "verdict"),
    [
        (500, "500 Internal Server Error", Verdict.RETRY),
        (503, "503 Service Unavailable", Verdict.RETRY),
        (599, "599", Verdict.RETRY),
        (408, "408 Request Timeout", Verdict.RETRY),
        (425, "425 Too Early", Verdict.RETRY),
        (429, "429 Too Many Requests", Verdict.THROTTLED),
        (404, "404 Not Found", Verdict.FAILED),
        (403, "403 Forbidden", Verdict.FAILED),
        (418, None, Verdict.FAILED),
        (206, "206 Partial Content", Verdict.FAILED),
        (300, "300 Multiple Choices", Verdict.FAILED),
        (304, "304 Not Modified", Verdict.FAILED),
        (999, "999", Verdict.FAILED),
    ],
)
@pytest.mark.row("H13")
async def test_status(lab: Lab, origin: Origin, status: int, text: str | None, verdict: Verdict) -> None:
    outcome = await lab.fetch(origin.on("/x", respond(status, b"<h1>reason</h1>")))
    assert outcome.verdict is verdict
    assert (outcome.error_code, outcome.response_code) == (ErrorCode.HTTP_STATUS, status)
    if text is not None:
        assert outcome.error == f"Received Status code {text}"
    assert lab.files() == []


async def test_the_phrase_is_ours(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(
        origin.on("/x", raw(b"HTTP/1.1 404 <script>alert(1)\r\nContent-Length: 0\r\n\r\n"))
    )
    assert outcome.error == "Received Status code 404 Not Found"


@pytest.mark.parametrize("status", [408, 425, 502])
async def test_retry_after_is_obeyed(lab: Lab, origin: Origin, status: int) -> None:
    outcome = await lab.fetch(origin.url(f"/status/{status}?retry_after=4000"))
    assert (outcome.verdict, outcome.retry_after_s) == (Verdict.RETRY, 4000)
    assert outcome.cooldown is None, "it concerns the job alone"


@pytest.mark.parametrize("status", [429, 503])
async def test_an_origin_that_asks_for_a_pause_cools_the_aggregation_down(
    lab: Lab, origin: Origin, status: int
) -> None:
    url = origin.url(f"/status/{status}?retry_after=400")
    pause = Cooldown(seconds=400, asked=True)
    first = await lab.fetch(url, max_retries=0, throttled=FREE_COOLDOWNS - 1)
    assert (first.verdict, first.retry_after_s, first.cooldown) == (Verdict.THROTTLED, 400, pause)
    counted = await lab.fetch(url, max_retries=1, throttled=FREE_COOLDOWNS)
    assert (counted.verdict, counted.retry_after_s, counted.cooldown) == (Verdict.RETRY, 400, pause)
    last = await lab.fetch(url, max_retries=1, attempts=1, throttled=FREE_COOLDOWNS)
    assert (last.verdict, last.cooldown) == (Verdict.FAILED, pause)


async def test_the_length_of_a_cooldown(lab: Lab, origin: Origin) -> None:
    for asked, seconds in (("0", MIN_COOLDOWN_S), ("4000", MAX_COOLDOWN_S)):
        found = (await lab.fetch(origin.url(f"/status/429?retry_after={asked}"))).cooldown
        assert found == Cooldown(seconds=seconds, asked=True)
    found = (await lab.fetch(origin.url("/status/429"))).cooldown
    assert found is not None
    assert not found.asked
    assert COOLDOWN_S < found.seconds < (1 + COOLDOWN_JITTER) * COOLDOWN_S
    assert (await lab.fetch(origin.url("/status/503"))).cooldown is None, "503 alone asks for no pause"


async def test_attempts_are_used_up(lab: Lab, origin: Origin) -> None:
    url = origin.url("/status/503")
    assert (await lab.fetch(url, attempts=1)).verdict is Verdict.RETRY
    assert (await lab.fetch(url, attempts=2)).verdict is Verdict.FAILED
    assert (await lab.fetch(url, max_retries=0)).verdict is Verdict.FAILED
    assert (await lab.fetch(url, attempts=8, max_retries=9)).verdict is Verdict.RETRY


# TLS


async def test_https(tmp_path: Path) -> None:
    async with (
        open_origin(server_context()) as origin,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        outcome = await lab.fetch(origin.url("/bytes/100"))
        assert outcome.verdict is Verdict.SUCCEEDED
        assert (await lab.fetch(origin.url("/bytes/100", host="localhost"))).verdict is Verdict.SUCCEEDED


@pytest.mark.parametrize("text", [None, "not a certificate"])
async def test_a_ca_file_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"processor\.ca_file"):
        async with open_lab(tmp_path, ca_file=str(path)):
            pass


def _bad_contexts() -> dict[str, ssl.SSLContext]:
    return {
        "another authority": server_context(ca=trustme.CA()),
        "expired": server_context(expired=True),
        "wrong host": server_context("elsewhere.example"),
    }


@pytest.mark.parametrize("case", ["another authority", "expired", "wrong host"])
@pytest.mark.row("H10")
async def test_tls_failures_are_final(tmp_path: Path, case: str) -> None:
    async with (
        open_origin(_bad_contexts()[case]) as origin,
        open_lab(tmp_path, ca_file=write_authority(tmp_path)) as lab,
    ):
        outcome = await lab.fetch(origin.url("/bytes/1"))
        assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.TLS)
        assert outcome.error.startswith("TLS Error Occured: ")
        assert outcome.response_code == 0
        assert origin.requests == []


@pytest.mark.row("H10")
async def test_old_tls_is_refused(lab: Lab) -> None:
    with old_tls_server() as url:
        outcome = await lab.fetch(url)
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.TLS)


async def test_plain_http_behind_https_is_a_tls_failure(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.url("/tls").replace("http://", "https://"))
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.TLS)


@pytest.mark.parametrize("said", [b"", b"\x15\x03\x03\x00\x02\x01\x00"], ids=["nothing", "goodbye"])
async def test_a_close_in_the_tls_handshake_is_a_lost_connection(lab: Lab, said: bytes) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said)

    async with serving(close) as port:
        outcome = await lab.fetch(f"https://127.0.0.1:{port}/")
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)
    assert outcome.error == "connection failed: closed during the TLS handshake"


@pytest.mark.row("H10")
async def test_the_word_tls_in_a_url_means_nothing(lab: Lab) -> None:
    outcome = await lab.fetch(f"http://127.0.0.1:{spare_port()}/tls/certificate-verify-failed")
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)
    assert outcome.error == "connection failed: connection refused"


# MIME


@pytest.mark.parametrize(
    ("patterns", "error"),
    [
        ("image/png", ""),
        ("image/*", ""),
        ("!image/jpeg", ""),
        ("image/jpeg", "Expected mime-type to be (image/jpeg), found (image/png)"),
        ("!image/png", "Expected mime-type not to be (image/png), found (image/png)"),
        (LONGEST, f"Expected mime-type to be ({LONGEST}), found (image/png)"),
    ],
)
async def test_mime_type(lab: Lab, origin: Origin, patterns: str, error: str) -> None:
    origin.on("/x", respond(200, PNG, [("Content-Type", "image/jpeg")]))
    outcome = await lab.fetch(origin.url("/x"), mime_type=patterns)
    assert outcome.error == error
    if error:
        assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.MIME_TYPE)
        assert outcome.response_code == 200
        assert lab.files() == []
    else:
        assert outcome.verdict is Verdict.SUCCEEDED


async def test_a_large_file_of_the_wrong_type_is_not_downloaded(lab: Lab, origin: Origin) -> None:
    head = OK + b"Content-Length: 4000000000\r\n\r\n"
    url = origin.on("/x", raw(head + body_of(BLOCK_BYTES), "hang"))
    outcome = await lab.fetch(url, mime_type="image/png")
    assert outcome.error_code is ErrorCode.MIME_TYPE


# egress, DNS, connections


REFUSED_HOSTS = {
    "loopback": [
        *("127.0.0.1", "[::1]", "0.0.0.0", "0", "127.1", "2130706433", "0x7f000001", "[::]"),
        *("localhost", "LOCALHOST.", "\uff11\uff12\uff17.0.0.1"),
    ],
    "IPv4 in IPv6": [
        *("[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]"),
        *("[2001:0:7f00:1::]", "[::127.0.0.1]"),
    ],
    "reserved": [
        *("100.64.0.1", "0.1.2.3", "224.0.0.1", "[ff02::1]", "[fec0::1]", "192.88.99.1", "192.0.2.1"),
        *(
            "198.51.100.1",
            "203.0.113.1",
            "[2001:db8::1]",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "[fc00::1]",
        ),
    ],
    "metadata": ["169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "168.63.129.16"],
}


@pytest.mark.parametrize("host", [host for hosts in REFUSED_HOSTS.values() for host in hosts])
@pytest.mark.row("H1", "H2", "H3")
async def test_a_refused_address_sees_no_syn(tmp_path: Path, origin: Origin, host: str) -> None:
    async with open_lab(tmp_path, allow=()) as lab:
        outcome = await lab.fetch(f"http://{host}:{origin.port}/")
    assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.EGRESS)
    assert "address not allowed" in outcome.error
    assert "egress.downloads" in outcome.error
    assert origin.connections == 0


@pytest.mark.slow  # however the machine's resolver fails
@pytest.mark.row("F20")
async def test_unknown_name(lab: Lab) -> None:
    outcome = await lab.fetch("http://no-such-host.invalid/")
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.DNS)


@pytest.mark.parametrize("then", ["close", "rst"])
@pytest.mark.row("F20")
async def test_no_response(lab: Lab, origin: Origin, then: Then) -> None:
    outcome = await lab.fetch(origin.on("/x", raw(b"", then)))
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.CONNECT)
    assert outcome.response_code == 0


@pytest.mark.parametrize("then", ["close", "rst"])
@pytest.mark.parametrize(
    "data",
    [
        OK + b"Content-Length: 10\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
@pytest.mark.row("H11")
async def test_cut_short(lab: Lab, origin: Origin, data: bytes, then: Then) -> None:
    outcome = await lab.fetch(origin.on("/x", raw(data, then)))
    assert outcome.verdict is Verdict.RETRY
    # A reset may overtake what was sent before it.
    assert outcome.error_code is ErrorCode.TRUNCATED or (
        then == "rst" and outcome.error_code is ErrorCode.CONNECT
    )
    assert outcome.response_code == (200 if outcome.error_code is ErrorCode.TRUNCATED else 0)
    assert lab.files() == []


async def test_cut_in_the_head(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.on("/x", raw(b"HTTP/1.1 200 OK\r\nContent-Le")))
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TRUNCATED)


# too large


@pytest.mark.row("H12")
async def test_too_large(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, max_size=1000) as lab:
        declared = await lab.fetch(origin.url("/bytes/1001"))
        origin.on("/x", raw(OK + b"\r\n" + b"x" * 1001))
        counted = await lab.fetch(origin.url("/x"))
        for outcome in (declared, counted):
            assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.TOO_LARGE)
            assert outcome.response_code == 200
            assert "max_size" in outcome.error
        assert "declared" in declared.error, "it is not received"
        assert (await lab.fetch(origin.url("/bytes/1000"))).verdict is Verdict.SUCCEEDED


# our own side


class BrokenStorage:
    """Raises the given error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def put(self, key: str, body: Body) -> None:  # noqa: ARG002 - the protocol's
        raise self.error

    async def delete(self, key: str) -> None:  # noqa: ARG002 - the protocol's
        raise self.error

    def url(self, key: str) -> str:  # noqa: ARG002 - the protocol's
        return ""

    async def local(self, key: str) -> StoredFile | None:  # noqa: ARG002 - the protocol's
        return None


@pytest.mark.parametrize(
    ("error", "verdict", "text"),
    [
        (StorageError("bucket is busy"), Verdict.RELEASE, "bucket is busy"),
        (StorageRefused("no such bucket"), Verdict.FAILED, "no such bucket"),
        (
            OSError(28, "No space left on device"),
            Verdict.RELEASE,
            "the storage failed: put() raised OSError",
        ),
        (StorageError("two\nlines" + "x" * 999), Verdict.RELEASE, "two lines" + "x" * 491),
        (KeyError("secret"), Verdict.RELEASE, "the storage failed: put() raised KeyError"),
    ],
)
@pytest.mark.row("F13")
async def test_storage(tmp_path: Path, origin: Origin, error: Exception, verdict: Verdict, text: str) -> None:
    async with open_lab(tmp_path, storage=CheckedStorage(BrokenStorage(error))) as lab:
        outcome = await lab.fetch(origin.url("/bytes/100000"), attempts=2)
        assert (outcome.verdict, outcome.error_code, outcome.error) == (verdict, ErrorCode.STORAGE, text)
        assert outcome.response_code == 200
        if verdict is Verdict.RELEASE:
            assert outcome.retry_after_s is not None
            assert 5 <= outcome.retry_after_s <= 30


class SilentStorage(BrokenStorage):
    """Never comes back."""

    async def put(self, key: str, body: Body) -> None:  # noqa: ARG002 - the protocol's
        await trio.sleep_forever()


async def test_a_storage_that_hangs_is_given_up(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, storage=SilentStorage(StorageError("")), limits=small(store_s=0.05)) as lab:
        outcome = await lab.fetch(origin.url("/bytes/10"))
    assert (outcome.verdict, outcome.error_code) == (Verdict.RELEASE, ErrorCode.STORAGE)
    assert outcome.error == "the storage did not take the file in time"


class KeepingStorage(BrokenStorage):
    """Remembers the given values."""

    def __init__(self) -> None:
        super().__init__(StorageError("not this one"))
        self.bodies: list[Body] = []

    async def put(self, key: str, body: Body) -> None:  # noqa: ARG002 - the protocol's
        self.bodies.append(body)


@pytest.mark.parametrize(
    ("extra", "metadata"),
    [
        (
            '{"a": "b", "n": 1, "f": 1.50, "big": 12345678901234567890123, "t": true, "z": null, "l": [1]}',
            {"a": "b", "n": "1", "f": "1.50", "big": "12345678901234567890123"},
        ),
        ('{"a": NaN, "b": -Infinity, "c": -1e400}', {"c": "-1e400"}),
        ("[1]", {}),
        ('"text"', {}),
        ("foobar", {}),
        ("", {}),
        ("[" * 100_000, {}),
    ],
)
async def test_the_callers_bucket(
    tmp_path: Path, origin: Origin, extra: str, metadata: dict[str, str]
) -> None:
    bucket, asked = KeepingStorage(), []

    async def own_bucket(name: str, region: str) -> Storage:
        asked.append((name, region))
        return bucket

    async with open_lab(tmp_path, own_bucket=own_bucket) as lab:
        outcome = await lab.fetch(origin.url("/bytes/10"), s3_bucket="b", s3_region="eu", extra=extra)
        assert outcome.verdict is Verdict.SUCCEEDED
        assert asked == [("b", "eu")]
        (body,) = bucket.bodies
        assert (body.data, body.metadata) == (body_of(10), metadata)
        assert lab.files() == []


async def test_the_callers_bucket_is_forbidden(tmp_path: Path, origin: Origin) -> None:
    async def own_bucket(name: str, region: str) -> Storage:
        raise StorageRefused(f"bucket {name} in {region} is forbidden")

    async with open_lab(tmp_path, own_bucket=own_bucket) as lab:
        outcome = await lab.fetch(origin.url("/bytes/10"), s3_bucket="b", s3_region="eu")
        assert (outcome.verdict, outcome.error_code) == (Verdict.FAILED, ErrorCode.STORAGE)
        assert outcome.error == "bucket b in eu is forbidden"


@pytest.mark.row("F15")
async def test_lost_lease_publishes_nothing(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.url("/bytes/10"), still_ours=lambda: False)
    assert (outcome.verdict, outcome.error_code) == (Verdict.RELEASE, ErrorCode.STORAGE)
    assert lab.files() == []


@pytest.mark.row("H29")
async def test_a_cooldown_is_of_the_host_only_if_the_host_asks_for_it(lab: Lab, origin: Origin) -> None:
    url = origin.on("/busy", respond(429, headers=[("Retry-After", "3600")]))
    async with open_proxy("http") as proxy, open_origin() as other:
        away = other.on("/away", respond(302, headers=[("Location", url)]))
        outcomes = [await lab.fetch(url), await lab.fetch(url, proxy=proxy.url()), await lab.fetch(away)]
    assert [outcome.cooldown for outcome in outcomes] == [
        Cooldown(seconds=3600, asked=True, of_host=of_host) for of_host in (True, False, False)
    ]


# time


async def test_an_attempt_ends_with_its_jobs_deadline(lab: Lab, origin: Origin) -> None:
    with trio.fail_after(5):
        outcome = await lab.fetch(origin.url("/hang"), deadline=now_ms() + 200)
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TIMEOUT)


@pytest.mark.row("F20")
async def test_no_response_in_time(tmp_path: Path, origin: Origin) -> None:
    async with open_lab(tmp_path, response_timeout=0.1) as lab:
        outcome = await lab.fetch(origin.url("/hang"))
        assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TIMEOUT)
        assert outcome.error == "no response within 0.1 s"
        assert outcome.response_code == 0


async def test_a_job_may_wait_for_a_response_as_long_as_its_own_download_timeout(
    tmp_path: Path, origin: Origin
) -> None:
    async with open_lab(tmp_path, response_timeout=0.05) as lab:
        assert (await lab.fetch(origin.url("/slow/0.2/10"), download_timeout=10)).verdict is Verdict.SUCCEEDED
        assert (await lab.fetch(origin.url("/slow/0.2/10"))).error == "no response within 0.05 s"


@pytest.mark.slow
async def test_download_timeout(lab: Lab, origin: Origin) -> None:
    outcome = await lab.fetch(origin.url("/hang"), download_timeout=1)
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TIMEOUT)
    assert outcome.error == "not done within the job's download_timeout of 1 s"


@pytest.mark.parametrize(
    "settings",
    [{"download_timeout": 0.1}, {"download_timeout": 0.05, "max_download_timeout": 0.1}],
    ids=["default", "cap"],
)
async def test_download_timeout_has_a_default_and_a_cap(
    tmp_path: Path, origin: Origin, settings: dict[str, Any]
) -> None:
    async with open_lab(tmp_path, **settings) as lab:
        wanted = None if "max_download_timeout" not in settings else 3000
        outcome = await lab.fetch(origin.url("/hang"), download_timeout=wanted)
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TIMEOUT)
    assert outcome.error == "not done within the job's download_timeout of 0.1 s"


@pytest.mark.slow
async def test_download_timeout_covers_storing(tmp_path: Path, origin: Origin) -> None:
    storage = SilentStorage(StorageError(""))
    async with open_lab(tmp_path, storage=storage, download_timeout=1.5) as lab:
        outcome = await lab.fetch(origin.url("/bytes/10"))
    assert (outcome.verdict, outcome.error_code) == (Verdict.RETRY, ErrorCode.TIMEOUT)
    assert (outcome.error, outcome.response_code) == (
        "not done within the job's download_timeout of 1.5 s",
        200,
    )


async def test_a_lack_of_descriptors_is_our_own_fault(lab: Lab, origin: Origin) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        outcome = await lab.fetch(origin.url("/bytes/10"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (outcome.verdict, outcome.error_code) == (Verdict.RELEASE, ErrorCode.STORAGE)
    assert outcome.error == "our own system: too many open files"
