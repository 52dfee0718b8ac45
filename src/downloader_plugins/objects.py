"""Common to the plugins that store objects: keys, metadata, repetitions, and blocking calls in threads."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.charset import BASE64, Charset
from email.header import Header
from typing import TypeVar

import trio

from downloader.backoff import jittered
from downloader.net import is_token
from downloader.paths import is_safe_path
from downloader.storage import Body, StorageError, StorageRefused

THREADS = 16
"""Most requests in flight for one storage, or for all buckets of jobs together."""

_PATIENCE_S = 0.25
"""How long a cancelled call waits for the thread, which can stop between two blocks of a body. After that the
thread is abandoned until a timeout of the socket, so that a hung peer does not delay a stop."""

T = TypeVar("T")


class GivenUp(Exception):
    """The call was cancelled; the thread has to end without publishing anything."""


class Call:
    """The state of a call, shared by the thread and the waiting task."""

    __slots__ = ("begun", "given_up")

    def __init__(self) -> None:
        self.begun = False
        self.given_up = False

    def check(self) -> None:
        """Raise if the call was cancelled; for the thread, before each step that a cancel should prevent.

        Raises:
            GivenUp: the call was cancelled.
        """
        if self.given_up:
            raise GivenUp


class Threads:
    """A limited number of threads."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)

    async def run(self, work: Callable[[Call], T]) -> T:
        """Call `work` in a thread; return the result or raise the exception.

        A cancel prevents work that has not begun. Running work sees the cancel in the `Call`, has
        `_PATIENCE_S` to end, and counts as one of the `THREADS` until its end.
        """
        call, ended = Call(), trio.Event()
        results: list[T] = []
        error: Exception | None = None
        carrying = trio.CancelScope(shield=True)

        def in_thread() -> T:
            call.begun = True
            call.check()
            return work(call)

        async def carry() -> None:
            nonlocal error
            try:
                with carrying:
                    results.append(
                        await trio.to_thread.run_sync(
                            in_thread, abandon_on_cancel=True, limiter=self._limiter
                        )
                    )
            except Exception as exc:  # noqa: BLE001 - raised below, in the caller's task
                error = exc
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            try:
                await ended.wait()
            except trio.Cancelled:
                call.given_up = True
                if call.begun:
                    carrying.deadline = trio.current_time() + _PATIENCE_S
                else:
                    carrying.cancel()
                raise
        if error is not None:
            raise error
        return results[0]


MAX_KEY_BYTES = 1024
"""Longest key of S3, Google and Azure."""


def full_key(folder: str, key: str, *, bucket: str) -> str:
    """Put `folder`, a prefix, before a key; `bucket` is for the error's text.

    Raises:
        StorageRefused: the key is not valid, or the full key is too long.
    """
    full = folder + key
    if not is_safe_path(key):
        raise StorageRefused(f"not a valid key: {key!r}")
    if len(full.encode()) > MAX_KEY_BYTES:
        raise StorageRefused(f"{bucket}: the key has more than {MAX_KEY_BYTES} bytes")
    return full


def check_ours(body: Body) -> None:
    """Raise if the job was lost to a different instance; called right before the file is published.

    Raises:
        StorageError: see above.
    """
    if not body.still_ours():
        raise StorageError("another instance has taken the job")


class PassingError(StorageError):
    """Temporary failure: the request may be repeated within the same call."""


async def repeated(call: Callable[[], Awaitable[T]], pauses_s: Sequence[float]) -> T:
    """Await `call()`, and again after each `PassingError`, at most once for each pause; pauses get jitter."""
    for pause_s in pauses_s:
        try:
            return await call()
        except PassingError:
            await trio.sleep(jittered(pause_s))
    return await call()


MAX_METADATA_BYTES = 2048
"""S3's limit of names and values together."""

_PLAIN = re.compile(r"(?!.*=\?)(?! )(?!.* $)(?!.*  )[\x20-\x7e]*")
"""Values that S3 returns unchanged. HTTP strips spaces at the ends, signing folds repeated spaces, and S3
decodes encoded words (RFC 2047)."""

_UTF8 = Charset("utf-8")
_UTF8.header_encoding = BASE64


def marked_metadata(body: Body, mark: str) -> dict[str, str]:
    """The user metadata of an object; for `key_exists` `fail` with the digest, under the name `mark`.

    A later attempt recognises the object by the digest: an ETag is not always a digest of the bytes.
    """
    marks = {mark: body.sha256} if body.key_exists == "fail" else {}
    return user_metadata(marks | dict(body.metadata))


def user_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Convert metadata to the form that S3 accepts; never raises.

    Names become lower-case; of two equal names the first one counts. Values that are not plain ASCII are
    encoded by RFC 2047 in UTF-8, which S3 decodes. Invalid header names, values with control characters or a
    lone surrogate, and entries beyond 2 KB are left out.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
    """
    accepted: dict[str, str] = {}
    room = MAX_METADATA_BYTES
    for original_name, original_value in metadata.items():
        name, value = original_name.lower(), _encoded(original_value)
        if value is None or name in accepted or not is_token(original_name):
            continue
        size = len(name) + len(value)
        if size <= room:
            accepted[name] = value
            room -= size
    return accepted


def _encoded(value: str) -> str | None:
    if len(value) > MAX_METADATA_BYTES or any(_is_control(character) for character in value):
        return None
    if _PLAIN.fullmatch(value):
        return value
    try:
        return Header(value, charset=_UTF8).encode(linesep="")
    except UnicodeEncodeError:
        return None


def _is_control(character: str) -> bool:
    return character < " " or "\x7f" <= character <= "\x9f"
