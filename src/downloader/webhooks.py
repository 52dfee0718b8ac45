"""For programs that receive callbacks: check the signature and parse the callback.

::

    callback = verify(headers=request.headers, body=request.body, secrets="whsec_...")

The signature is that of Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from standardwebhooks import Webhook, WebhookVerificationError

from downloader.errors import ConfigError, DownloaderError
from downloader.wire import Callback, GroupCallback

_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_PREFIX = "whsec_"


class WebhookError(DownloaderError):
    """The request is not a valid callback; answer 400 or 401 and do nothing else."""


class NotSigned(WebhookError):
    """A signature header is missing."""


class SignatureRefused(WebhookError):
    """No signature matches a secret, or the timestamp is more than five minutes away from now."""


class NotACallback(WebhookError):
    """The signature is valid, but the body is not a callback of the service."""


_ONE, _MANY = TypeAdapter(Callback), TypeAdapter(list[Callback])
_GROUP = TypeAdapter(GroupCallback)

T = TypeVar("T")


def verify(*, headers: Mapping[str, str], body: bytes, secrets: str | Sequence[str]) -> Callback:
    """Check the signature of a received callback, then parse the body.

    A callback may be received more than once, with the same `job_id`.

    Args:
        headers: headers of the request; the case of their names does not matter.
        body: the bytes as received. JSON that was parsed and serialised again has another signature.
        secrets: one or more values of `backends.http.secret`; one of them has to match.

    Raises:
        NotSigned: a signature header is missing.
        SignatureRefused: no signature matches, or the timestamp is too old or too new.
        NotACallback: the signature is valid, but the body is not a callback.
        ConfigError: there is no secret, or a secret is not `whsec_` and base64.
    """
    return _verified(_ONE, headers, body, secrets)


def verify_batch(*, headers: Mapping[str, str], body: bytes, secrets: str | Sequence[str]) -> list[Callback]:
    """Check the signature of a batch of callbacks, then parse the body, a JSON array.

    Arguments and errors are those of `verify`. A response `{"rejected": [job_id, ...]}` has the service send
    those callbacks again.
    """
    return _verified(_MANY, headers, body, secrets)


def verify_group(*, headers: Mapping[str, str], body: bytes, secrets: str | Sequence[str]) -> GroupCallback:
    """Check the signature of the callback of a group of jobs, then parse the body.

    Arguments and errors are those of `verify`.
    """
    return _verified(_GROUP, headers, body, secrets)


def _verified(
    model: TypeAdapter[T], headers: Mapping[str, str], body: bytes, secrets: str | Sequence[str]
) -> T:
    signers = [signer_of(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
    if not signers:
        raise ConfigError("no webhook secret given")
    lowered = {name.lower(): value for name, value in headers.items()}
    if missing := [name for name in _HEADERS if not lowered.get(name)]:
        raise NotSigned(f"missing headers: {', '.join(missing)}")
    _check(signers, {name: lowered[name] for name in _HEADERS}, body)
    try:
        return model.validate_json(body)
    except ValidationError as exc:
        where = ", ".join(sorted({".".join(map(str, error["loc"])) or "body" for error in exc.errors()}))
        raise NotACallback(f"not a callback of downloader, see {where}") from exc


def signer_of(secret: str) -> Webhook:
    """The signer and verifier for a secret.

    Raises:
        ConfigError: the secret is not `whsec_` and base64.
    """
    text = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_PREFIX) or not key:
        raise ConfigError(f"a Standard Webhooks secret is {_PREFIX} and base64")
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
