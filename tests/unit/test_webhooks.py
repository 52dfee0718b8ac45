"""What `verify` returns or raises for valid and for forged requests."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from downloader.errors import ConfigError
from downloader.model import ErrorCode, FileFacts, JobSpec, Outcome, Verdict
from downloader.webhooks import NotACallback, NotSigned, SignatureRefused, WebhookError, verify, verify_group
from downloader.wire import Callback, callback_body, group_callback_body

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"another key").decode().rstrip("=")
PAYLOAD: dict[str, Any] = {
    "success": True,
    "error": "",
    "extra": "föo",
    "resource_url": "https://example.org/image.png",
    "download_url": "http://localhost/foo/6QE/6QEywYsd0jrKAg",
    "job_id": "6QEywYsd0jrKAg",
    "response_code": 200,
    "delivered": True,
    "delivery_error": "",
    "image_size": "10x10",
    "error_code": "",
    "size": 10240,
    "sha256": "9f86d0",
    "mime_type": "image/png",
    "attempts": 1,
    "tags": ["a"],
    "etag": '"33a"',
    "last_modified": "Fri, 27 Nov 2026 21:00:00 GMT",
    "content_type": "image/png",
    "final_url": "https://cdn.example.org/image.png",
    "not_modified": False,
    "md5": "",
}
NEWER = ("tags", "etag", "last_modified", "content_type", "final_url", "not_modified", "md5")
"""Fields that a service of an earlier version does not send."""
BODY = json.dumps(PAYLOAD).encode()


def signed(body: bytes = BODY, *secrets: str, age_s: int = 0) -> dict[str, str]:
    """The headers of a callback with this body, signed with each secret."""
    when = int(time.time()) - age_s
    text = body.decode(errors="replace")
    moment = datetime.fromtimestamp(when, UTC)
    signatures = [Webhook(secret).sign("6QEywYsd0jrKAg", moment, text) for secret in secrets or (SECRET,)]
    return {
        "Webhook-Id": "6QEywYsd0jrKAg",
        "webhook-timestamp": str(when),
        "WEBHOOK-SIGNATURE": " ".join(signatures),
    }


def test_a_valid_callback_is_parsed() -> None:
    callback = verify(headers={"Host": "x", **signed()}, body=BODY, secrets=SECRET)
    assert callback == Callback(**PAYLOAD)
    assert callback.model_dump() == PAYLOAD


def test_a_callback_of_an_earlier_version_is_parsed() -> None:
    older = json.dumps({name: value for name, value in PAYLOAD.items() if name not in NEWER}).encode()
    callback = verify(headers=signed(older), body=older, secrets=SECRET)
    assert (callback.job_id, callback.etag, callback.not_modified) == (PAYLOAD["job_id"], "", False)


def test_verify_reads_every_field_of_a_callback() -> None:
    spec = JobSpec(id="6QEywYsd0jrKAg", aggr_id="a", aggr_limit=1, url="http://example.org/x")
    facts = FileFacts(size=3, sha256="ab" * 32, mime_type="image/png", image_size="1x1")
    done = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=facts)
    failed = Outcome(verdict=Verdict.FAILED, error="why", error_code=ErrorCode.DNS)
    for outcome in (done, failed):
        body = callback_body(spec, outcome, attempts=1, download_url="http://d/x")
        received = verify(headers=signed(body), body=body, secrets=SECRET)
        assert received.model_dump() == json.loads(body)


def test_during_a_rotation_each_secret_verifies() -> None:
    both = signed(BODY, OTHER, SECRET)
    for secrets in (SECRET, OTHER, [SECRET, OTHER], (OTHER, SECRET)):
        assert verify(headers=both, body=BODY, secrets=secrets).size == 10240
    assert verify(headers=signed(), body=BODY, secrets=[OTHER, SECRET]).success


def test_fields_of_a_newer_service_do_no_harm() -> None:
    body = json.dumps({**PAYLOAD, "colour": {"from": "the future"}}).encode()
    assert verify(headers=signed(body), body=body, secrets=SECRET) == Callback(**PAYLOAD)


@pytest.mark.parametrize("name", ["Webhook-Id", "webhook-timestamp", "WEBHOOK-SIGNATURE"])
def test_a_missing_header(name: str) -> None:
    headers = signed()
    for without in ({**headers, name: ""}, {k: v for k, v in headers.items() if k != name}):
        with pytest.raises(NotSigned, match=f"missing headers: {name.lower()}"):
            verify(headers=without, body=BODY, secrets=SECRET)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"WEBHOOK-SIGNATURE": "v1,AAAA"}, "No matching"),
        ({"WEBHOOK-SIGNATURE": "v1a,AAAA"}, "No matching"),
        ({"WEBHOOK-SIGNATURE": "nonsense"}, "malformed"),
        ({"WEBHOOK-SIGNATURE": "v1,A,B"}, "malformed"),
        ({"WEBHOOK-SIGNATURE": "v1,A"}, "malformed"),
        ({"Webhook-Id": "another"}, "No matching"),
        ({"webhook-timestamp": "soon"}, "Invalid"),
        ({"webhook-timestamp": "nan"}, "Invalid"),
        ({"webhook-timestamp": "1e300"}, "Invalid"),
        ({"webhook-timestamp": "0"}, "too old"),
    ],
)
def test_a_forged_header(change: dict[str, str], reason: str) -> None:
    with pytest.raises(SignatureRefused, match=reason):
        verify(headers={**signed(), **change}, body=BODY, secrets=SECRET)


@pytest.mark.parametrize(("age_s", "reason"), [(330, "too old"), (-330, "too new")])
def test_a_timestamp_too_far_from_now(age_s: int, reason: str) -> None:
    with pytest.raises(SignatureRefused, match=reason):
        verify(headers=signed(age_s=age_s), body=BODY, secrets=SECRET)
    assert verify(headers=signed(age_s=age_s // 2), body=BODY, secrets=SECRET).success


@pytest.mark.parametrize("body", [BODY + b" ", BODY.replace(b"true", b"false"), b"", b"\xff" + BODY])
def test_another_body(body: bytes) -> None:
    with pytest.raises(SignatureRefused):
        verify(headers=signed(), body=body, secrets=SECRET)


def test_another_secret() -> None:
    with pytest.raises(SignatureRefused, match="No matching"):
        verify(headers=signed(), body=BODY, secrets=OTHER)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"[]", "body"),
        (b"{", "body"),
        (b'"x"', "body"),
        (json.dumps({**PAYLOAD, "size": "10240"}).encode(), "size"),
        (json.dumps({k: v for k, v in PAYLOAD.items() if k != "success"}).encode(), "success"),
    ],
)
def test_a_signed_body_that_is_no_callback(body: bytes, where: str) -> None:
    with pytest.raises(NotACallback, match=f"see {where}$") as caught:
        verify(headers=signed(body), body=body, secrets=SECRET)
    assert "10240" not in str(caught.value)


@pytest.mark.parametrize("secrets", ["", "whsec_", "whsec_ä", "whsec_!!!!", "secret", [], [SECRET, ""]])
def test_an_invalid_secret(secrets: str | list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        verify(headers=signed(), body=BODY, secrets=secrets)
    assert "!!!!" not in str(caught.value)


@given(
    identity=st.text(),
    timestamp=st.text() | st.floats().map(str),
    signature=st.text() | st.text(alphabet="v1, =A/+"),
    body=st.binary(),
)
def test_any_other_request_raises_a_webhook_error(
    identity: str, timestamp: str, signature: str, body: bytes
) -> None:
    headers = {"webhook-id": identity, "webhook-timestamp": timestamp, "webhook-signature": signature}
    with pytest.raises(WebhookError):
        verify(headers=headers, body=body, secrets=SECRET)


def test_the_callback_of_a_group() -> None:
    counts = '{"jobs":2,"succeeded":1,"failed":1,"cancelled":0,"first_at":1,"last_at":2000}'
    spec = JobSpec(id="x", aggr_id="g", aggr_limit=1, url="", completes=counts, extra="\ud800")
    body = group_callback_body(spec)
    assert json.loads(body)["extra"] == "\ud800"
    body = group_callback_body(replace(spec, extra="e"))
    headers = {
        "webhook-id": "x",
        "webhook-timestamp": str(int(time.time())),
        "webhook-signature": Webhook(SECRET).sign("x", datetime.now(UTC), body.decode()),
    }
    callback = verify_group(headers=headers, body=body, secrets=SECRET)
    assert (callback.group, callback.jobs, callback.last_at) == ("g", 2, "1970-01-01T00:00:02.000Z")
    with pytest.raises(SignatureRefused):
        verify_group(headers=headers, body=body + b" ", secrets=SECRET)
    with pytest.raises(NotACallback):
        verify(headers=headers, body=body, secrets=SECRET)
