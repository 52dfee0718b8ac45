"""`downloader receive`: a receiver of HTTP callbacks for trying out."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.options import Json
from downloader.cli.output import write
from downloader.errors import ConfigError
from downloader.printable import escape, escape_all

if TYPE_CHECKING:
    import trio

    from downloader.server import Message, Receive, Send

PORT = 9000
"""Default port; the service listens on 8000."""

BODY_BYTES = 16 * 1024 * 1024
"""Largest body; a batch of a hundred callbacks with an `extra` of 100 KB fits."""

GRACE_S = 1.0
"""Time for requests in progress after Ctrl-C."""


def receive(
    *,
    host: Annotated[str, Parameter(name="--host")] = "127.0.0.1",
    port: Annotated[int, Parameter(name=["--port", "-p"], validator=Number(gte=0, lte=65535))] = PORT,
    secret: Annotated[
        tuple[str, ...],
        Parameter(name="--secret", env_var="DOWNLOADER_SECRET", show_default=False, consume_multiple=False),
    ] = (),
    status: Annotated[int, Parameter(name="--status", validator=Number(gte=200, lte=599))] = HTTPStatus.OK,
    json_: Json = False,
) -> None:
    """Receive HTTP callbacks, and print a line for each, for trying out.

    With --secret it checks signatures, and responds 401 to a callback without a
    right one. Ctrl-C ends it.

    For example:
      downloader receive
      downloader receive --port 9123 --secret whsec_b2xk
      downloader receive --status 500

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes any free one.
        secret: A value of backends.http.secret; may be repeated. Others on this machine can
            see it; prefer the variable.
        status: Status of the responses, for example 500 to see callbacks fail.
        json_: Write each callback as the JSON that was received.
    """
    import trio

    from downloader.webhooks import signer_of

    for text in secret:
        signer_of(text)
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # Python adds the address
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    write(f"listening on http://{host}:{listener.getsockname()[1]}")
    trio.run(_serve, listener, tuple(secret), status, json_)


async def _serve(listener: socket.socket, secrets: Sequence[str], status: int, as_json: bool) -> None:  # noqa: FBT001 - of `trio.run`
    import trio

    from downloader.server import serve_http

    ended = trio.Event()
    broken: list[OSError] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await _respond(scope, receive, send, secrets=secrets, status=status, as_json=as_json)
        except BrokenPipeError as error:  # `downloader receive | head`
            broken.append(error)
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_for_signal, ended)
        await serve_http(app, sockets=[listener], stop=ended.wait, grace_s=GRACE_S)
        nursery.cancel_scope.cancel()
    for error in broken:
        raise error


async def _wait_for_signal(ended: trio.Event) -> None:
    import trio

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            ended.set()


async def _respond(
    scope: Message, receive: Receive, send: Send, *, secrets: Sequence[str], status: int, as_json: bool
) -> None:
    """Read a request, print the callback, and respond."""
    from downloader.server import send_response

    respond = partial(send_response, send, headers=[(b"content-type", b"text/plain; charset=utf-8")])
    if scope["method"] != "POST":
        await respond(status=HTTPStatus.METHOD_NOT_ALLOWED, body=b"callbacks are sent by POST\n")
        return
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES:
            await respond(status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE, body=b"")
            return
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if problem := _signature_problem(headers, bytes(body), secrets):
        write(f"refused: {escape(problem)}")
        await respond(status=HTTPStatus.UNAUTHORIZED, body=f"{problem}\n".encode())
        return
    for line in _lines(bytes(body), as_json=as_json):
        write(line)
    await respond(status=status, body=b"")


def _signature_problem(headers: Mapping[str, str], body: bytes, secrets: Sequence[str]) -> str:
    """Why the signature is refused; empty for a valid signature, and without a secret for the check."""
    from downloader.webhooks import NotACallback, WebhookError, verify

    try:
        if secrets:
            verify(headers=headers, body=body, secrets=secrets)
    except NotACallback:  # the signature is right: a batch, or the callback of a group
        return ""
    except WebhookError as error:
        return str(error)
    return ""


def _lines(body: bytes, *, as_json: bool) -> Sequence[str]:
    """A line for each callback of a body; a batch is a list."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return [f"not JSON: {escape(body.decode('latin-1'))}"]
    items = document if isinstance(document, list) else [document]
    return [escape_all(json.dumps(item)) if as_json else _line(item) for item in items]


def _line(item: Any) -> str:
    """A callback in words, like the lines of `downloader submit --wait`; any other document as JSON."""
    if not isinstance(item, dict) or not {"success", "job_id"} <= item.keys():
        return escape(json.dumps(item))
    shown = {name: value for name, value in item.items() if value not in (None, "")}
    names: Sequence[str] = ("job_id", "size", "download_url", "extra")
    if not item["success"]:
        names = ("job_id", "error_code", "resource_url", "error", "extra")
    state = "succeeded" if item["success"] else "failed"
    return " ".join([state, *(escape(str(shown[name])) for name in names if name in shown)])
