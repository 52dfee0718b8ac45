"""A way through the states of a store that leaves a key of each kind."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from downloader.model import CallbackOutcome, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Shares, Submission
from downloader.wire import AuditEntry, BacklogPoint
from servers.jobs import closed, downloaded, spec_for, submitted, tried_again

OK = Outcome(verdict=Verdict.SUCCEEDED)


async def use_every_key(store: JobStore) -> None:
    """Bring jobs into all states, at hosts with a limit too; the store has one for `slow.test`, and a
    rate for the destination `http 0`."""
    for aggr_id, host, count in (("a", "slow.test", 2), ("b", "other.test", 4), ("c", "third.test", 2)):
        limit = 1 if aggr_id == "c" else 9
        specs = [
            spec_for(store, aggr_id, aggr_limit=limit, url=f"http://{host}/", priority=1)
            for _ in range(count)
        ]
        await store.submit([Submission(spec=spec, idempotency_key=spec.id) for spec in specs])
    leases = (await store.lease(Kind.DOWNLOAD, "me", 9, 60)).leases
    done, failed, later, cancelled = (lease for lease in leases if lease.queue == "b")
    plans = [CallbackPlan(queue=f"http {number}", limit=4) for number in range(3)]
    no = Outcome(verdict=Verdict.FAILED, error="no")
    await store.settle("me", [downloaded(done, OK, plans[0], 60), downloaded(failed, no, plans[1], 60)])
    await store.settle("me", [tried_again(later, replace(no, verdict=Verdict.RETRY), 4)])
    await store.cancel(cancelled.spec, plans[2], 60)
    callbacks = (await store.lease(Kind.CALLBACK, "me", 2, 60)).leases
    for lease, verdict in zip(callbacks, (Verdict.SUCCEEDED, Verdict.FAILED), strict=True):
        await store.settle("me", [closed(lease, CallbackOutcome(verdict=verdict, error="no"), 60, 4)])
    for name in ("of a token", "of the token too"):
        spec = spec_for(store, name, token="t", counted=True)
        await store.submit([Submission(spec=spec, quota={"jobs": 9})])
    await store.lease(Kind.DOWNLOAD, "me", 2, 60)
    await submitted(store, "e")
    [again] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    await store.share_file(again.id, "file", "ab" * 32)
    await store.share_file(again.id, "file", "ab" * 32, ours=True)
    await store.unshare_file(again.id, "file", "me", 60)
    await store.settle("me", [downloaded(again, OK, plans[1], 60)])
    await submitted(store, "d")
    for idle in ("waits for the timer", "watches"):
        shares = Shares(never=["d"])
        assert not (await store.lease(Kind.DOWNLOAD, idle, 1, 60, shares=shares, room=1)).leases
    for number, types in ((3, "http"), (4, "kafka"), (5, None)):
        await submitted(store, "f")
        [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
        await store.settle("me", [downloaded(lease, OK, CallbackPlan(queue=f"http {number}", limit=4), 60)])
        if types:
            shares = Shares(unproven=1, failing=0)
            await store.lease(Kind.CALLBACK, types, 1, 60, shares=shares, room=2, types=[types])
    await store.set_crawl_delay("slow.test", 1, 60)
    await submitted(store, "h", group="g")
    await store.report("one", "processor", {}, 60, {"bytes": 1})
    await store.pause_all(paused=True)
    for action in ("cancel", "adjust"):
        await store.note_change(
            AuditEntry(at=datetime.now(UTC), action=action, token=None, client="", changed={})
        )
    await store.note_backlog(
        BacklogPoint(at=datetime.now(UTC), downloads=1, callbacks=1, succeeded=1, failed=1)
    )
