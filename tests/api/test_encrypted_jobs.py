"""Jobs that are encrypted with a key that the API does not have."""

from __future__ import annotations

import base64

import pytest
from pydantic import SecretStr

from downloader.api.routes.aggregations import CANCELLED_AT_ONCE
from downloader.config import RedisSettings
from downloader.model import State
from downloader.store import JobStore, Submission, open_store
from servers.api import Serving
from servers.jobs import spec_for, submitted

KEY = SecretStr(base64.urlsafe_b64encode(bytes(range(32))).decode())


@pytest.mark.parametrize("callback_type", ["http", ""])
async def test_an_encrypted_job_with_a_callback_is_not_cancelled(
    serving: Serving, redis_settings: RedisSettings, store: JobStore, callback_type: str
) -> None:
    destination = "http://127.0.0.1/secret" if callback_type else ""
    settings = redis_settings.model_copy(update={"encryption_keys": [KEY]})
    async with open_store(settings) as with_key:
        spec = spec_for(with_key, callback_type=callback_type, callback_dst=destination)
        await with_key.submit([Submission(spec=spec)])
    api = await serving()
    answer = await api.client.delete(f"/jobs/{spec.id}")
    view = await store.get(spec.id)
    assert view is not None
    found = answer.status_code, answer.json().get("code"), view.download.state
    assert found == ((409, "encrypted", State.PENDING) if callback_type else (202, None, State.CANCELLED))


async def test_jobs_cancelled_before_an_encrypted_one_are_noted(
    serving: Serving, redis_settings: RedisSettings, store: JobStore
) -> None:
    await store.submit([Submission(spec=spec_for(store)) for _ in range(CANCELLED_AT_ONCE)])
    settings = redis_settings.model_copy(update={"encryption_keys": [KEY]})
    async with open_store(settings) as with_key:
        await submitted(with_key, callback_dst="http://127.0.0.1/secret", not_before=2**42)
    api = await serving()
    answer = await api.client.delete("/aggregations/a/jobs")
    assert (answer.status_code, answer.json()["code"]) == (409, "encrypted")
    entries = (await api.client.get("/audit")).json()
    assert [entry["changed"] for entry in entries] == [{"aggr_id": "a", "count": CANCELLED_AT_ONCE}]
