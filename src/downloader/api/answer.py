"""A whole response at the ASGI level, for what is answered without Quart."""

from __future__ import annotations

from dataclasses import dataclass

from downloader.api.problems import Problem
from downloader.api.shared import Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def problem_answer(problem: Problem) -> Answer:
    """The problem's document with its headers."""
    body = problem.body()
    headers = [*problem.headers(), (b"content-length", b"%d" % len(body))]
    return Answer(status=problem.status, headers=headers, body=body)


async def send_answer(answer: Answer, send: Send) -> None:
    """Send it; raises what `send` raises when the client has left."""
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})
