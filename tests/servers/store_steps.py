"""The steps of a store's test, as Hypothesis draws the steps."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from downloader.errors import StoreUnavailable
from downloader.model import CallbackOutcome, Cooldown, ErrorCode, Kind, Outcome, Verdict
from downloader.store import StoreClient
from servers.store_model import AGGREGATIONS, COOL_MS, DELAY_MS, GAP_MS, JOB_GROUPS, LEASE_MS, OWNERS

OUTCOMES = {
    "succeeded": Outcome(verdict=Verdict.SUCCEEDED, response_code=200),
    "failed": Outcome(verdict=Verdict.FAILED, error="e", error_code=ErrorCode.TIMEOUT),
    "retry": Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT),
    "throttled": Outcome(
        verdict=Verdict.THROTTLED, error="e", cooldown=Cooldown(seconds=COOL_MS / 1000, asked=True)
    ),
}
DELIVERIES = {
    "succeeded": CallbackOutcome(verdict=Verdict.SUCCEEDED),
    "failed": CallbackOutcome(verdict=Verdict.FAILED, error="e"),
    "retry": CallbackOutcome(verdict=Verdict.RETRY, error="e"),
}

kinds, owners, indexes = st.sampled_from(Kind), st.sampled_from(OWNERS), st.integers(0, 99)
ends = st.sampled_from(["succeeded", "failed", "retry", "release"])
submissions = st.tuples(
    st.just("submit"),
    st.sampled_from(AGGREGATIONS),
    st.integers(1, 3),
    st.sampled_from([0, 0, 3, 9]),
    st.sampled_from(["", *JOB_GROUPS]),
    st.sampled_from(["one.test", "two.test", "paced"]),
)
leases = st.tuples(st.just("lease"), kinds, owners, st.integers(0, 4))
settlements = st.tuples(st.just("settle"), kinds, indexes, ends)
adjustments = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.sampled_from([1, 3, None]),
        "rate": st.sampled_from([1000 / GAP_MS, None]),
        "delay": st.sampled_from([GAP_MS / 1000, 0, None]),
        "paused": st.booleans(),
    },
)
steps = st.one_of(
    submissions,
    submissions,
    leases,
    leases,
    settlements,
    settlements,
    st.tuples(st.just("throttle"), indexes),
    st.tuples(st.just("adjust"), st.sampled_from(AGGREGATIONS), adjustments),
    st.tuples(st.just("settle_late"), kinds, indexes, ends),
    st.tuples(st.just("settle_anothers"), kinds, indexes, ends),
    st.tuples(st.just("renew"), kinds, indexes, st.booleans()),
    st.tuples(st.just("lose_answer"), kinds, owners, st.integers(1, 4)),
    st.tuples(st.just("crash"), kinds, owners),
    st.tuples(st.just("move_clock"), st.sampled_from([1, DELAY_MS, LEASE_MS // 2, LEASE_MS])),
    st.tuples(st.just("sweep"), kinds),
    st.tuples(st.just("reap"), st.booleans()),
    st.tuples(st.just("remove"), indexes),
    st.tuples(st.just("retry"), indexes, st.booleans()),
    st.tuples(st.just("cancel"), indexes, st.booleans()),
    st.tuples(st.just("purge"), indexes),
    st.tuples(st.just("define"), st.sampled_from(JOB_GROUPS)),
    st.tuples(st.just("seal"), st.sampled_from(JOB_GROUPS)),
    st.tuples(st.just("reopen"), st.sampled_from(JOB_GROUPS)),
    st.tuples(st.just("restart")),
)
ACTIONS = {
    *("submit", "lease", "settle", "settle_late", "settle_anothers", "renew", "lose_answer", "crash"),
    *("move_clock", "sweep", "reap", "remove", "retry", "cancel", "restart", "throttle", "adjust"),
    *("purge", "define", "seal", "reopen"),
}


class Deaf:
    """A client whose server carries out a call; the answer is lost, unless it says that nothing was done."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self.missed: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def run(self, *arguments: Any, **more: Any) -> Any:
        self.missed = await self._client.run(*arguments, **more)
        if "lacks" in self.missed:
            return self.missed
        raise StoreUnavailable("the answer was lost")
