"""When to try again, and what `Retry-After` says."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.backoff import MAX_RETRY_AFTER_S, parse_retry_after
from downloader.fetch.errors import Treatment, explain
from downloader.fetch.retry import (
    MAX_BACKOFF_S,
    RELEASE_MAX_S,
    RELEASE_MIN_S,
    decide,
)
from downloader.model import ErrorCode, Verdict
from downloader.net import NetError, TlsFailed

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def _decide(
    treatment: Treatment,
    attempts: int = 0,
    max_retries: int = 2,
    retry_after_s: float | None = None,
    seed: int = 1,
) -> tuple[Verdict, float | None]:
    return decide(
        treatment,
        attempts=attempts,
        max_retries=max_retries,
        backoff_s=120.0,
        retry_after_s=retry_after_s,
        rng=random.Random(seed),
    )


def test_final_failures_are_not_retried() -> None:
    assert _decide(Treatment.FINAL, max_retries=9) == (Verdict.FAILED, None)


@pytest.mark.parametrize(
    ("attempts", "max_retries", "verdict"),
    [
        (0, 0, Verdict.FAILED),
        (0, 1, Verdict.RETRY),
        (1, 1, Verdict.FAILED),
        (1, 2, Verdict.RETRY),
        (7, 2, Verdict.FAILED),
    ],
)
def test_max_retries_counts_retries_not_attempts(attempts: int, max_retries: int, verdict: Verdict) -> None:
    assert _decide(Treatment.RETRY, attempts, max_retries)[0] is verdict


@given(seed=st.integers(0, 2**32), attempts=st.integers(0, 10_000))
def test_delays_stay_in_their_bounds(seed: int, attempts: int) -> None:
    verdict, delay = _decide(Treatment.RETRY, attempts, 20_000, seed=seed)
    assert verdict is Verdict.RETRY
    assert delay is not None
    assert 0 <= delay <= min(120.0 * 2.0 ** min(attempts, 50), MAX_BACKOFF_S)


@pytest.mark.row("F20")
def test_jitter_is_full_and_grows() -> None:
    first = [_decide(Treatment.RETRY, 0, seed=seed)[1] or 0.0 for seed in range(200)]
    second = [_decide(Treatment.RETRY, 1, seed=seed)[1] or 0.0 for seed in range(200)]
    assert min(first) < 12
    assert 108 < max(first) <= 120
    assert 120 < max(second) <= 240


def test_a_long_first_delay_is_kept() -> None:
    delays = [
        decide(
            Treatment.RETRY,
            attempts=3,
            max_retries=9,
            backoff_s=7200.0,
            retry_after_s=None,
            rng=random.Random(seed),
        )[1]
        for seed in range(50)
    ]
    assert max(delay or 0.0 for delay in delays) > MAX_BACKOFF_S


def test_retry_after_is_a_floor() -> None:
    assert _decide(Treatment.RETRY, retry_after_s=5000.0) == (Verdict.RETRY, 5000.0)
    _, delay = _decide(Treatment.RETRY, retry_after_s=0.0)
    assert delay is not None
    assert delay > 0


@given(seed=st.integers(0, 2**32))
@pytest.mark.row("F13")
def test_our_own_faults_never_use_up_attempts(seed: int) -> None:
    verdict, delay = _decide(Treatment.RELEASE, attempts=99, max_retries=0, seed=seed)
    assert verdict is Verdict.RELEASE
    assert delay is not None
    assert RELEASE_MIN_S <= delay <= RELEASE_MAX_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b" 120 ", 120.0),
        (b"86401", MAX_RETRY_AFTER_S),
        (b"9" * 5000, MAX_RETRY_AFTER_S),
        (b"Sun, 01 Mar 2026 12:01:30 GMT", 90.0),
        (b"Sunday, 01-Mar-26 12:01:30 GMT", 90.0),
        (b"Sun Mar  1 12:01:30 2026", 90.0),
        (b"Sun, 01 Mar 2026 11:00:00 GMT", 0.0),
        (b"Sun, 01 Mar 2099 11:00:00 GMT", MAX_RETRY_AFTER_S),
        (b"", None),
        (b"-5", None),
        (b"1.5", None),
        (b"soon", None),
        ("\u0661\u0662".encode(), None),
        (b"\xb2", None),
        (b"Sun, 01 Mar 2026 12:01:30 +" + b"9" * 30, None),
        (b"Sun, 01 Mar 2026 12:01:30 +99999", None),
        (b"Sun, 01 Mar 2026 12:01:30 -0000", 90.0),
        (b"Sun, 01 Mar 99999 12:01:30 GMT", None),
        (b"Sun, 99 Foo 2026 12:01:30 GMT", None),
    ],
)
def test_retry_after(value: bytes, seconds: float | None) -> None:
    assert parse_retry_after(value.decode("latin-1"), NOW) == seconds


_SCRAPS = st.sampled_from(
    [b"Sun,", b" ", b"01", b"Mar", b"2026", b"12:01:30", b"+", b"-", b"9" * 40, b":", b",", b"GMT", b"x"]
)


@given(st.binary(max_size=100) | st.lists(_SCRAPS).map(b"".join))
def test_retry_after_never_raises(value: bytes) -> None:
    seconds = parse_retry_after(value.decode("latin-1"), NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize(
    ("base", "code", "treatment"),
    [
        (TlsFailed, ErrorCode.TLS, Treatment.FINAL),
        (NetError, ErrorCode.CONNECT, Treatment.RETRY),
    ],
)
def test_an_error_without_a_row_is_treated_as_its_base(
    base: type[NetError], code: ErrorCode, treatment: Treatment
) -> None:
    error = explain(type("Special", (base,), {})("text"))
    assert (error.code, error.treatment) == (code, treatment)
