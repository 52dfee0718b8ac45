"""Fills a history from the store, the API, the folders and logs of a fleet, and the load."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx2
import redis
import trio

from chaos.history import Closed, Completion, Delivery, File, GroupRecord, History, Record, Resume
from chaos.load import CANCELLED, COOLED, PAUSED, RATE, RATED, RETRY_AFTER_S, Load
from downloader.store import ended
from servers.fleet import Fleet

_SHARD = re.compile(r"downloader:1:\{\d+\}:")
"""The prefix of all keys."""

_OWNED = frozenset(
    {
        *("job", "task", "ended", "reap", "reap_ended", "failed", "failed_downloads"),
        *("layout", "totals", "history", "job_group", "job_groups", "audit"),
    }
)
"""Keys without a time to live that may exist when all jobs have ended: of jobs, or of the whole store."""

AT_ONCE = 16
"""How many jobs the API is asked for at once."""

_UNDONE_S = 3.0
"""With `appendfsync everysec`, a server on a slow disk may answer up to two seconds before it writes."""

BACK_S, POLL_S = 20.0, 0.1
"""How long an API may take until the first response after an outage of the store."""


async def look(client: httpx2.AsyncClient, port: int, job_id: str) -> Record | None:
    """The API's response for a job; `None` for any status but 200."""
    try:
        answer = await client.get(f"http://127.0.0.1:{port}/jobs/{job_id}")
    except httpx2.TransportError:
        return None
    if answer.status_code != 200:
        return None
    job = answer.json()
    file, callback = job["file"], job["callback"]
    return Record(
        state=job["state"],
        attempts=job["attempts"],
        size=file["size"] if file else None,
        sha256=file["sha256"] if file else None,
        callback=callback["state"] if callback else None,
    )


async def look_at_group(client: httpx2.AsyncClient, port: int, name: str) -> GroupRecord | None:
    """The API's response for a group of jobs; `None` for any status but 200."""
    try:
        answer = await client.get(f"http://127.0.0.1:{port}/groups/{name}")
    except httpx2.TransportError:
        return None
    if answer.status_code != 200:
        return None
    group = answer.json()
    return GroupRecord(state=group["state"], callback=group["callback_state"], counts=_counts(group))


def _counts(group: dict[str, Any]) -> dict[str, int]:
    return {name: group[name] for name in ("jobs", "succeeded", "failed", "cancelled")}


async def settled(jobs: Iterable[str], port: int, *, seconds: float) -> None:
    """Wait until the API at this port says that jobs have ended, callbacks included, at most for `seconds`.

    A callback ends after the receiver has it, when the notifier has told the store.
    """
    left = set(jobs)
    with trio.move_on_after(seconds):
        async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
            while left:
                for job_id in list(left):
                    record = await look(client, port, job_id)
                    if record is not None and record.callback in ("succeeded", "failed"):
                        left.discard(job_id)
                if left:
                    await trio.sleep(POLL_S)


def _started(server: redis.Redis) -> dict[str, float | None]:
    """When the download of each job in the store began last, by job id."""
    texts: dict[str, Any] = {}
    for key in map(str, server.scan_iter("downloader:*:job:*", count=1000)):
        texts[key.rpartition(":")[2]] = server.hget(key.replace(":job:", ":download:task:"), "started")
    for key in server.scan_iter("downloader:*:ended", count=1000):
        for job_id, record in server.hscan_iter(key):
            texts[str(job_id)] = ended.parse(str(record)).download.get("started")
    return {job_id: None if text is None else int(text) / 1000 for job_id, text in texts.items()}


async def read_records(history: History, server: redis.Redis, port: int) -> None:
    """Ask the API at this port for every job in the store."""
    patient_until = trio.current_time() + BACK_S
    started = _started(server)
    waiting = iter(started)

    async def read() -> None:
        for job_id in waiting:
            # After an outage of the store, an API may answer 503 to the first requests.
            while (record := await look(client, port, job_id)) is None:
                if trio.current_time() > patient_until:
                    break
                await trio.sleep(POLL_S)
            if record is not None:
                history.records[job_id] = replace(record, started_s=started[job_id])

    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client, trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(read)


async def read_groups(history: History, names: Iterable[str], port: int) -> None:
    """Ask the API at this port for these groups of jobs."""
    async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
        for name in names:
            if (record := await look_at_group(client, port, name)) is not None:
                history.group_records[name] = record


def read_keys(history: History, server: redis.Redis) -> None:
    """Read the leases and the taken slots that are left in a store."""
    for key in map(str, server.scan_iter("*", count=1000)):
        words = _SHARD.sub("", key).split(":")
        # A ttl of -2 means that the key has expired since it was listed.
        if server.ttl(key) != -1 or not _OWNED.isdisjoint(words[:2]):
            continue
        if "leases" in words[:2]:
            left: Any = server.zrange(key, 0, -1)
            history.leases += [f"{words[0]} {lease}" for lease in left]
        else:
            history.tokens.append(key)


def read_fleet(history: History, fleet: Fleet) -> None:
    """Read the files and the logs."""
    for path in fleet.files.rglob("*"):
        if path.is_file() and ".tmp" not in path.parts:
            data = path.read_bytes()
            history.files[path.name] = File(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    history.spool += [str(path) for path in fleet.spool.rglob("*") if path.is_file()]
    # Each DELETE is logged, and repeated if its answer was lost: so count each job once.
    history.ends.update({line["job_id"] for line in fleet.all_events("audit", action="cancel")})
    for running in fleet.running:
        for name in ("job.succeeded", "job.failed", "job.poison"):
            history.ends.update(kept_ends(running.events(name), history.killed_s))
        if tracebacks := [line for line in running.noise if "Traceback" in line]:
            history.complaints.append(f"{running.name}: {len(tracebacks)} tracebacks: {running.tail()}")
        if failed := [line for line in running.log if line.get("exception")]:
            history.complaints.append(f"{running.name}: {failed[0]}")


def kept_ends(lines: Iterable[Mapping[str, Any]], killed_s: Sequence[float]) -> Iterator[str]:
    """The ids of jobs by their lines in the log, without ends that a kill of the store may have undone."""
    for line in lines:
        if not any(0 <= at_s - _time_of(line) < _UNDONE_S for at_s in killed_s):
            yield line["job_id"]


def _time_of(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def read_load(history: History, load: Load, fleet: Fleet) -> None:
    """Read which jobs were accepted, what origin and receiver received, and when no job might be leased."""
    history.closed = list(load.closed)
    for line in fleet.all_events("job.throttled"):
        path = load.paths.get(line["job_id"], "")
        if path in load.throttled_s:
            history.closed.append(
                Closed(
                    group=COOLED,
                    why="cooling down",
                    after_s=_time_of(line),
                    until_s=load.throttled_s[path] + RETRY_AFTER_S,
                )
            )
    history.resumes = [
        Resume(group=PAUSED, sent_s=load.resumed_s[line["client"]], logged_s=_time_of(line))
        for line in fleet.all_events("audit", action="adjust", aggr_id=PAUSED, changes={"paused": False})
        if line["client"] in load.resumed_s
    ]
    history.jobs = dict(load.accepted)
    told: defaultdict[str, set[str]] = defaultdict(set)
    for one in load.sink.received:
        if name := one.payload.get("group") if not one.job_id else None:
            history.completions.setdefault(name, []).append(
                Completion(
                    webhook_id=one.webhook_id,
                    body=one.body,
                    counts=_counts(one.payload),
                    told=len(told[name]),
                )
            )
            history.records.pop(one.webhook_id, None)  # it is sent as the callback of a job
            continue
        deliveries = history.deliveries.setdefault(one.job_id, [])
        if one.job_id in history.jobs and (deliveries or not one.path.startswith("/flaky")):
            told[history.jobs[one.job_id].job_group].add(one.webhook_id)
        deliveries.append(Delivery(webhook_id=one.webhook_id, body=one.body, success=one.payload["success"]))
    # Left out: the origin notices late that the connection of a cancelled job was closed.
    history.limits = {group: limit for group, limit in load.limits.items() if group != CANCELLED}
    history.rates = {group: RATE for group in load.limits if group == RATED}
    history.peaks = dict(load.slots.peak)
    history.complaints += load.complaints
