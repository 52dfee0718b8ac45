"""For programs that receive callbacks: is this one from our service, and what does it say?

::

    callback = verify(headers=request.headers, body=request.body, secrets="whsec_...")

The signature is that of Standard Webhooks (https://www.standardwebhooks.com). The service itself does not use
this module, and the module imports nothing of the service.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from downloader.errors import ConfigError, DownloaderError

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_PREFIX = "whsec_"


class WebhookError(DownloaderError):
    """The request is not a callback that can be relied on; answer 400 or 401 and do nothing."""


class NotSigned(WebhookError):
    """A header of the signature is missing."""


class SignatureRefused(WebhookError):
    """No signature in it fits any of the secrets, or it was made more than five minutes from now."""


class NotACallback(WebhookError):
    """Signed with the right secret, but the body is not a callback of this service."""


class Callback(BaseModel):
    """What a callback says; fields that a newer service adds are left out."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)

    success: bool
    """Whether the file was downloaded and stored."""
    job_id: str
    """The answer to `POST /download`; the same in every repetition, and equal to `webhook-id`."""
    extra: str
    """What the job brought along."""
    resource_url: str
    download_url: str
    """Empty where there is no file."""
    error: str
    """For people; empty for a success."""
    error_code: str
    """For programs; empty for a success."""
    response_code: int
    """0 where no response came."""
    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal digits."""
    mime_type: str
    image_size: str
    """`"WxH"`, if the job asked for it."""
    attempts: int
    delivered: bool
    delivery_error: str


def verify(*, headers: Mapping[str, str], body: bytes, secrets: str | Sequence[str]) -> Callback:
    """Check the signature of a received callback, then read it.

    The same callback may come more than once, with the same `job_id`.

    Args:
        headers: those of the request; the case of their names does not matter.
        body: the bytes as they came. JSON that was parsed and written again has another signature.
        secrets: as in `backends.http.secret`, or several while one replaces another: one has to fit.

    Raises:
        NotSigned: a header of the signature is missing.
        SignatureRefused: no signature fits, or it is too old or too new.
        NotACallback: the signature fits, but the body is something else.
        ConfigError: a secret is not `whsec_` and base64, or there is none.
    """
    signers = [_signer(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not signers:
        raise ConfigError("no webhook secret given")
    lowered = {name.lower(): value for name, value in headers.items()}
    if missing := [name for name in _HEADERS if not lowered.get(name)]:
        raise NotSigned(f"missing headers: {', '.join(missing)}")
    _check(signers, {name: lowered[name] for name in _HEADERS}, body)
    try:
        return Callback.model_validate_json(body)
    except ValidationError as exc:
        where = ", ".join(sorted({".".join(map(str, error["loc"])) or "body" for error in exc.errors()}))
        raise NotACallback(f"not a callback of downloader, see {where}") from exc


def _signer(secret: str) -> Webhook:
    text = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_PREFIX) or not key:
        raise ConfigError(f"a webhook secret is {_PREFIX} and base64")
    return Webhook(key)


def _check(signers: Sequence[Webhook], headers: dict[str, str], body: bytes) -> None:
    reason = ""
    for signer in signers:
        try:
            signer.verify(body, headers, json_parse=False)
        except WebhookVerificationError as exc:
            reason = str(exc)
        except ValueError:  # a body that is not UTF-8, a signature without a comma or not in base64
            reason = "malformed signature or body"
        else:
            return
    raise SignatureRefused(reason)
