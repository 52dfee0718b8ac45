"""What may be secret in a job is not in the store, its files and its answers, if there is a key."""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from downloader.api.views import job_view
from downloader.config import RedisSettings, Settings
from downloader.errors import ConfigError
from downloader.model import CallbackOutcome, JobSpec, Kind, Outcome, ResponseMetadata, State, Verdict
from downloader.notify import Bulkhead
from downloader.observe import PROCESSOR_COUNTERS, Counters
from downloader.service.work import Callbacks, Downloads
from downloader.store import (
    CallbackPlan,
    JobStore,
    Listed,
    Settled,
    Submission,
    asyncio_loop,
    open_sealer,
    open_store,
)
from servers.jobs import closed, downloaded, spec_for
from servers.raw_store import RawStore
from servers.valkey import Valkey

OLD, NEW = (SecretStr(base64.b64encode(bytes([byte]) * 32).decode()) for byte in b"\xfb\xff")
"""Keys with + and / in them, as `openssl rand -base64 32` makes them."""

SECRETS: dict[str, Any] = {
    "url": "https://user:in-the-url@127.0.0.1/file?signature=in-the-query",
    "request_headers": {"Authorization": "Bearer in-the-header", "X-Name": "Zo\xeb in-the-name"},
    "user_agent": "in-the-agent",
    "callback_dst": "https://user:in-the-callback@127.0.0.1/done",
    "callback_error_dst": "https://user:in-the-failure@127.0.0.1/failed",
    "extra": "in-the-extra",
}
CANARIES = (
    *(b"in-the-url", b"in-the-query", b"in-the-header", b"in-the-name", b"in-the-agent"),
    *(b"in-the-callback", b"in-the-failure", b"in-the-extra", b"in-the-target"),
)
FINAL_URL = "https://cdn.example/file?signature=in-the-target"
DONE = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, response=ResponseMetadata(final_url=FINAL_URL))


@asynccontextmanager
async def with_keys(settings: RedisSettings, *keys: SecretStr) -> AsyncIterator[JobStore]:
    async with open_store(settings.model_copy(update={"encryption_keys": list(keys)})) as store:
        yield store


async def submitted(store: JobStore) -> JobSpec:
    spec = spec_for(store, **SECRETS)
    [(_, job_id)] = await store.submit([Submission(spec=spec)])
    assert job_id == spec.id
    return spec


async def run_to_the_end(store: JobStore, verdict: Verdict = Verdict.FAILED) -> None:
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    plan = CallbackPlan(queue="http 127.0.0.1", limit=4)
    assert await store.settle("me", [downloaded(lease, DONE, plan, 60)]) == [Settled.DONE]
    [callback] = (await store.lease(Kind.CALLBACK, "me", 1, 10)).leases
    assert callback.spec.callback_dst == SECRETS["callback_dst"]
    assert callback.result == DONE
    end = CallbackOutcome(verdict=verdict, error="gone" if verdict is Verdict.FAILED else "")
    assert await store.settle("me", [closed(callback, end, 60, 4)]) == [Settled.DONE]


def found_in(server: Valkey) -> set[bytes]:
    """The secrets in a snapshot of all keys, in the append-only file, and in the server's log."""
    assert server.command("SAVE") == b"+OK\r\n"
    text = b"".join(path.read_bytes() for path in sorted(server.folder.rglob("*")) if path.is_file())
    assert b"job:" in text
    return {canary for canary in CANARIES if canary in text}


@pytest.mark.parametrize("keys", [[NEW], []], ids=["encrypted", "in the clear"])
async def test_neither_snapshot_nor_append_only_file_has_a_secret(keys: list[SecretStr]) -> None:
    with Valkey("--appendonly", "yes", "--rdbcompression", "no") as server:
        async with asyncio_loop(), with_keys(RedisSettings(url=server.url), *keys) as store:
            await submitted(store)
            await run_to_the_end(store)
            await submitted(store)
        assert found_in(server) == (set() if keys else set(CANARIES))


@pytest.mark.parametrize("keys", [[NEW], []], ids=["encrypted", "in the clear"])
async def test_the_record_of_an_ended_job_has_no_secret(
    redis_settings: RedisSettings, raw: RawStore, keys: list[SecretStr]
) -> None:
    async with asyncio_loop(), with_keys(redis_settings, *keys) as store:
        spec = await submitted(store)
        await run_to_the_end(store, Verdict.SUCCEEDED)
        record = raw.command("HGET", raw.key("ended"), spec.id)
        assert [canary for canary in CANARIES if canary.decode() in record] == (
            [] if keys else [b"in-the-extra"]
        )
        view = await store.get(spec.id)
        assert view is not None
        assert view.outcome is not None
        assert view.outcome.response.final_url == "https://cdn.example/file?signature=***"
        [job] = (await store.jobs(Listed.FINISHED, "", "", 9)).jobs
        assert job.destination == "http https://127.0.0.1"
        assert job.url == "https://127.0.0.1/file?signature=***"


async def test_a_key_that_was_the_first_still_decrypts(redis_settings: RedisSettings) -> None:
    async with asyncio_loop():
        async with with_keys(redis_settings) as store:
            plain = await submitted(store)
        async with with_keys(redis_settings, OLD) as store:
            old = await submitted(store)
        async with with_keys(redis_settings, NEW, OLD) as store:
            new = await submitted(store)
            for spec in (plain, old, new):
                view = await store.get(spec.id)
                assert view is not None
                assert view.spec == spec
        async with with_keys(redis_settings, NEW) as store:
            views = [await store.get(spec.id) for spec in (plain, old, new)]
            assert [view.spec.url for view in views if view] == [plain.url, "", new.url]


async def test_an_instance_without_the_key_hands_the_job_back(
    redis_settings: RedisSettings, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"data_dir": str(tmp_path)})
    async with (
        asyncio_loop(),
        with_keys(redis_settings, NEW) as right,
        with_keys(redis_settings, OLD) as wrong,
    ):
        common: dict[str, Any] = {"settings": settings, "counters": Counters(PROCESSOR_COUNTERS)}
        unused = cast("Any", None)
        downloads = Downloads(**common, fetcher=unused, disk_has_room=lambda: True, delete=unused)
        callbacks = Callbacks(
            **common,
            backends={},
            bulkhead=cast("Bulkhead", None),
            rng=random.Random(),
            download_url=lambda spec, _: spec.id,
            leases_at_stop=False,
        )
        spec = await submitted(right)
        [lease] = (await wrong.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
        settlement = await downloads.attempt(lease, lambda: True)
        assert await wrong.settle("me", [settlement]) == [Settled.DONE]
        downloads.note_end(settlement, 0.0)
        view = await wrong.get(spec.id)
        assert view is not None
        assert (view.download.state, view.download.attempts) == (State.PENDING, 0)
        assert "redis.encryption_keys" in view.download.errors[0].error
        assert job_view(view, lambda _, __: "").url == ""

        # Also what can be done without the key is left to who has it: the callback would have nowhere to go.
        other = await submitted(right)
        [lease] = (await right.lease(Kind.DOWNLOAD, "you", 1, 10)).leases
        plan = CallbackPlan(queue="http 127.0.0.1", limit=4)
        assert await right.settle("you", [downloaded(lease, DONE, plan, 60)]) == [Settled.DONE]
        [lease] = (await wrong.lease(Kind.CALLBACK, "me", 1, 10)).leases
        settlement = await callbacks.attempt(lease, lambda: True)
        assert await wrong.settle("me", [settlement]) == [Settled.DONE]
        view = await right.get(other.id)
        assert view is not None
        assert view.callback is not None
        assert (view.callback.state, view.callback.attempts) == (State.PENDING, 0)


def test_without_the_package_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert open_sealer([]) is None
    with pytest.raises(ConfigError, match=r"^redis\.encryption_keys: .*downloader-service\[encryption\]$"):
        open_sealer([NEW])
