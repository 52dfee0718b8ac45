"""Turns of tokens: however many queues one has, each other token's first queue is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from downloader.model import CallbackOutcome, JobSpec, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Shares, Submission, TokenShare
from servers.jobs import closed, downloaded, leased, spec_for, submitted
from servers.raw_store import RawStore

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
FAILED = Outcome(verdict=Verdict.FAILED, error="no")
LAST = TokenShare(before_last=0)


async def submit(store: JobStore, token: str, queues: Sequence[str], **fields: object) -> list[JobSpec]:
    """A job of this token in each of these aggregations."""
    specs = [spec_for(store, queue, token=token, **fields) for queue in queues]
    await store.submit([Submission(spec=spec) for spec in specs])
    return specs


async def call_back(store: JobStore, token: str, destinations: Sequence[str]) -> None:
    """Have a callback of this token wait for each destination, with a limit of 9."""
    for destination in destinations:
        await submit(store, token, [destination])
        lease = await leased(store)
        plan = CallbackPlan(queue=destination, limit=9, token=token)
        await store.settle("me", [downloaded(lease, OK, plan, 0)])


async def tokens(
    store: JobStore, count: int, kind: Kind = Kind.DOWNLOAD, shares: Shares | None = None
) -> list[str]:
    batch = await store.lease(kind, "me", count, 60, shares=shares or Shares())
    return [lease.token for lease in batch.leases]


def names(count: int, prefix: str = "a") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@pytest.mark.row("H28")
async def test_the_first_job_of_a_token_is_next_whatever_another_has(raw: RawStore, store: JobStore) -> None:
    await submit(store, "alice", names(1000))
    assert await tokens(store, 10) == ["alice"] * 10
    await submit(store, "bob", ["b"])
    await submit(store, "", ["c"])
    await submit(store, "carol", names(20, "d"))
    # The others join at the second place, beside the second of the one that was there.
    assert Counter(await tokens(store, 5)) == {"": 1, "bob": 1, "alice": 2, "carol": 1}
    assert Counter(await tokens(store, 30)) == {"alice": 15, "carol": 15}
    # One that was not there for long has no advantage from that.
    await submit(store, "bob", names(20, "e"))
    assert max(Counter(await tokens(store, 9)).values()) <= 4
    assert raw.command("ZCARD", raw.key("ready", "download")) > 900


async def test_a_token_whose_queues_were_away_is_not_put_back(store: JobStore) -> None:
    await submit(store, "bob", names(100, "b"))
    for _ in range(3):
        specs = await submit(store, "alice", names(50))
        for spec in specs:
            await store.cancel(spec, None, 60)
    await submit(store, "alice", names(50))
    assert Counter(await tokens(store, 20)) == {"alice": 10, "bob": 10}


async def test_without_tokens_nothing_is_kept_of_them(raw: RawStore, store: JobStore) -> None:
    for name in "abc":
        await submitted(store, name)
    await leased(store)
    assert raw.command("KEYS", raw.keys.base(0) + "t*n*") == []
    await submitted(store, "d", token="alice")
    assert raw.command("PTTL", raw.key("tokens")) > 0


async def test_a_queue_that_an_earlier_version_moves_keeps_the_turns(raw: RawStore, store: JobStore) -> None:
    await submit(store, "alice", names(5))
    await submit(store, "bob", names(5, "b"))
    ready = raw.key("ready", "download")
    # Earlier versions take the first and add queues at the end.
    [first, *_] = raw.command("ZRANGE", ready, 0, 0)
    raw.command("ZADD", ready, 1000, first)
    assert Counter(await tokens(store, 8)) == {"alice": 4, "bob": 4}


async def test_an_aggregation_belongs_to_the_first_token_until_it_is_empty(store: JobStore) -> None:
    await submit(store, "alice", ["a"], aggr_limit=1, priority=1)
    await submit(store, "bob", ["a"])
    for token in ("alice", "alice", "bob"):
        lease = await leased(store)
        assert lease.token == token
        await store.settle("me", [downloaded(lease, FAILED, None, 60)])
        if token == "alice" and lease.spec.token == "bob":
            await submit(store, "bob", ["a"])
    assert await store.retry(lease.id, download=True, limit=1)
    assert (await leased(store)).token == "bob"


async def test_a_token_with_more_than_its_share_comes_last_or_not_at_all(store: JobStore) -> None:
    await submit(store, "alice", names(300))
    await submit(store, "bob", names(3, "b"), aggr_limit=9)
    await submit(store, "", ["c"])
    assert sorted(await tokens(store, 9, shares=Shares(tokens={"alice": TokenShare(most=0)}))) == [
        "",
        "bob",
        "bob",
        "bob",
    ]
    assert await store.waiting(Kind.DOWNLOAD, token="alice") == 0
    assert await store.waiting(Kind.DOWNLOAD, token="bob") == 1
    await submit(store, "bob", names(3, "b"), aggr_limit=9)
    assert await store.waiting(Kind.DOWNLOAD, token="alice") == 1
    [first, *others] = await tokens(store, 9, shares=Shares(tokens={"alice": LAST}, last=["b0"]))
    assert first == "bob"
    assert Counter(others) == {"alice": 6, "bob": 2}


async def test_while_a_token_gives_way_the_others_take_turns(store: JobStore) -> None:
    for name in ("alice", "bob", "carol"):
        await submit(store, name, names(9, name))
    turns = Shares(tokens={"alice": TokenShare(most=0)})
    found = [token for _ in range(6) for token in await tokens(store, 1, shares=turns)]
    assert Counter(found) == {"bob": 3, "carol": 3}
    turns = Shares(tokens={"alice": TokenShare(most=0), "bob": LAST, "carol": LAST})
    found = [token for _ in range(6) for token in await tokens(store, 1, shares=turns)]
    assert Counter(found) == {"bob": 3, "carol": 3}, "also if both come last"
    turns = Shares(tokens={"alice": TokenShare(before_last=2), "bob": LAST, "carol": LAST})
    assert Counter((await tokens(store, 3, shares=turns))[:2]) == {"alice": 2}


async def test_a_large_aggregation_does_not_hide_the_others_of_its_token(store: JobStore) -> None:
    await submit(store, "alice", ["large", "small"])
    shares = Shares(tokens={"alice": LAST}, never=["large"])
    assert [
        lease.queue for lease in (await store.lease(Kind.DOWNLOAD, "me", 9, 60, shares=shares)).leases
    ] == ["small"]


async def test_with_many_tokens_each_is_found(store: JobStore) -> None:
    """The script examines a hundred at a time."""
    for number in range(250):
        await submit(store, f"t{number}", [f"g{number}"])
    await tokens(store, 250)
    await submit(store, "alice", names(9))
    await submit(store, "t199", ["late"])
    shares = Shares(tokens={"alice": TokenShare(most=0)})
    found = [token for _ in range(4) for token in await tokens(store, 9, shares=shares)]
    assert found == ["t199"]


async def test_callbacks_take_turns_by_token(store: JobStore) -> None:
    await call_back(store, "alice", [f"http a{number}" for number in range(20)])
    await call_back(store, "bob", ["http b"])
    assert "bob" in await tokens(store, 3, Kind.CALLBACK)
    await call_back(store, "bob", ["http b"])
    shares = Shares(tokens={"alice": TokenShare(unproven=0)})
    assert await tokens(store, 9, Kind.CALLBACK, shares) == ["bob"]


async def test_a_callback_that_is_sent_again_belongs_to_its_token(store: JobStore) -> None:
    await call_back(store, "alice", ["http a"])
    lease = await leased(store, kind=Kind.CALLBACK)
    failed = CallbackOutcome(verdict=Verdict.FAILED, error="no")
    await store.settle("me", [closed(lease, failed, 60, 9)])
    await store.retry(lease.id, download=False, limit=1)
    assert (await leased(store, kind=Kind.CALLBACK)).token == "alice"


async def test_one_call_gives_a_token_no_more_than_its_share(store: JobStore) -> None:
    await submit(store, "alice", names(20))
    await submit(store, "", names(7, "b"))
    assert Counter(await tokens(store, 20, shares=Shares(token=TokenShare(most=5)))) == {"alice": 5, "": 7}
    none = TokenShare(before_last=0, most=0, unproven=0)
    one = TokenShare(before_last=1, most=1, unproven=0)
    assert await tokens(store, 9, shares=Shares(tokens={"x": none, "alice": one})) == ["alice"]
    await submit(store, "bob", names(9, "c"))
    found = await tokens(store, 9, shares=Shares(token=TokenShare(before_last=2, most=9)))
    assert Counter(found[:4]) == {"alice": 2, "bob": 2}
    assert len(found) == 9
    await call_back(store, "carol", [f"http d{number}" for number in range(5)])
    shares = Shares(token=TokenShare(unproven=2))
    assert await tokens(store, 9, Kind.CALLBACK, shares) == ["carol"] * 2
    await call_back(store, "dave", ["http e"])
    shares = Shares(tokens={"dave": TokenShare(unproven=0), "carol": TokenShare(unproven=1)})
    assert await tokens(store, 9, Kind.CALLBACK, shares) == ["carol"]


async def test_a_queue_that_an_earlier_version_has_added_is_found(raw: RawStore, store: JobStore) -> None:
    """That version does not note in `turns` what it adds, at the end of the set."""
    await submit(store, "alice", names(40))
    await submit(store, "", ["b"])
    await submit(store, "carol", ["c"])
    await submit(store, "alice", names(40, "d"))
    ready = raw.key("ready", "download")
    raw.command("DEL", raw.key("turns", "download:ready", ""), raw.key("turns", "download:ready", "carol"))
    raw.command("ZREM", raw.key("tokens"), "carol")
    # The one is at the end of the set then, the other among its first.
    raw.command("ZADD", ready, 1000, "b")
    assert await store.waiting(Kind.DOWNLOAD, token="alice") == 2
    raw.command("DEL", raw.key("turns", "download:ready", ""), raw.key("turns", "download:ready", "carol"))
    raw.command("ZREM", raw.key("tokens"), "carol")
    shares = Shares(tokens={"alice": TokenShare(most=0)})
    assert sorted(await tokens(store, 9, shares=shares)) == ["", "carol"]
    await submit(store, "carol", ["e"])
    assert raw.command("PTTL", raw.key("turns", "download:ready", "carol")) > 0


async def test_with_full_memory_tokens_have_their_shares(raw: RawStore, store: JobStore) -> None:
    """Leasing goes on, so that jobs end and free memory."""
    await submit(store, "alice", ["a"])
    await submit(store, "bob", ["b"])
    raw.command("CONFIG", "SET", "maxmemory", 1)
    try:
        assert await store.waiting(Kind.DOWNLOAD, token="alice") == 1
        assert await tokens(store, 1, shares=Shares(tokens={"alice": LAST})) == ["bob"]
    finally:
        raw.command("CONFIG", "SET", "maxmemory", 0)
