"""Mutants of `downloader.scheduler`: name, file below `src`, old line, new line, tests."""

from __future__ import annotations

LEASES, LIMITS, LOOP, REAPER, STOP, SWEEP = (
    f"downloader/scheduler/{name}.py" for name in ("leases", "limits", "loop", "reaper", "stop", "sweep")
)
KEEPING, LEASING, STOPPING = (
    f"tests/scheduler/test_{name}.py" for name in ("keeping", "leasing", "stopping")
)

ROWS = (
    (
        "host: hosts cool down where nobody has limited them",
        "downloader/config/models.py",
        "        return self.hosts if self.hosts or self.robots else None\n",
        "        return self.hosts\n",
        "tests/unit/test_settings.py -k hosts_are_limited",
    ),
    (
        "lease: the work of a lost one goes on",
        LEASES,
        "                each.lose()\n",
        "                pass\n",
        KEEPING,
    ),
    (
        "lease: only the first 500 are renewed",
        LEASES,
        "range(0, len(held), RENEW_BATCH)",
        "range(0, min(len(held), RENEW_BATCH), RENEW_BATCH)",
        f"{KEEPING} -k however_many",
    ),
    (
        "lease: a renewal without an answer is not tried sooner",
        LEASES,
        "                unknown.append(each)\n",
        "                pass\n",
        KEEPING,
    ),
    (
        "lease: the margin has no bound",
        LEASES,
        "min(lease_s * MARGIN, MAX_MARGIN_S)",
        "lease_s * MARGIN",
        KEEPING,
    ),
    (
        "lease: a call takes all that fits",
        LOOP,
        "await _take(running, tasks, min(running.free, LEASE_BATCH))\n        if not",
        "await _take(running, tasks, running.free)\n        if not",
        f"{KEEPING} -k however_many",
    ),
    (
        "sweep: not done",
        LOOP,
        "        services.start_soon(sweep_leases, store, workload.kind, workload.lease_s, workload.swept)\n",
        "",
        f"{KEEPING} -k dead_instances",
    ),
    (
        "sweep: a silent store ends the process",
        SWEEP,
        "            continue\n        for job_id",
        "            raise\n        for job_id",
        f"{KEEPING} -k dead_instances",
    ),
    (
        "sweep: every ten leases",
        SWEEP,
        "lease_s / SWEEPS_PER_LEASE",
        "lease_s * SWEEPS_PER_LEASE",
        f"{KEEPING} -k dead_instances",
    ),
    (
        "sweep: one call, however many leases have ended",
        SWEEP,
        "        found = len(ids)\n",
        "",
        f"{KEEPING} -k found_by_one_sweep",
    ),
    (
        "disk: it is not looked at again",
        LOOP,
        "_look_again(running.wake, LOOK_S)",
        "_look_again(running.wake, math.inf)",
        f"{LEASING} -k nothing_may_be",
    ),
    (
        "room: more is leased than there is",
        LOOP,
        "await _take(running, tasks, min(running.free, LEASE_BATCH))\n        if not",
        "await _take(running, tasks, LEASE_BATCH)\n        if not",
        LEASING,
    ),
    (
        "backoff: without bound",
        LOOP,
        "            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)\n            continue",
        "            backoff_s = 2 * backoff_s\n            continue",
        LEASING,
    ),
    (
        "limit: the first one stays in the process",
        LIMITS,
        "elif limiter.total_tokens != lease.limit:",
        "elif False:",
        f"{LEASING} -k raised",
    ),
    (
        "share: the oldest is cut off",
        LIMITS,
        "own[len(own) - count :]",
        "own[:count]",
        LEASING,
    ),
    (
        "share: what is cut off already is counted again",
        LIMITS,
        " and not each.work.cancel_called",
        "",
        f"{LEASING} -k does_not_end",
    ),
    (
        "share: it never ends",
        LIMITS,
        "if until <= now]",
        "if False]",
        LEASING,
    ),
    (
        "share: a silent destination keeps its slot",
        LIMITS,
        "        self._unproven -= not held.lease.proven\n",
        "",
        LEASING,
    ),
    (
        "share: all of the excess is cut off for one",
        LIMITS,
        "count = min(others, len(own) - self._share)",
        "count = len(own) - self._share",
        LEASING,
    ),
    (
        "share: a silent store ends the process",
        LOOP,
        "reason=str(error))\n        return\n",
        "reason=str(error))\n        raise\n",
        f"{LEASING} -k silent_store",
    ),
    (
        "stop: a silent store holds it up",
        LOOP,
        "while not answered and trio.current_time() < give_up_at:",
        "while not answered:",
        f"{STOPPING} -k hold_up",
    ),
    (
        "stop: a second one moves the deadline",
        STOP,
        "        if self.begun:\n            return\n",
        "",
        f"{STOPPING} -k second_stop",
    ),
    (
        "stop: what hangs counts as lost",
        LOOP,
        "        if held.abandoned:\n            return\n",
        "",
        f"{STOPPING} -k hangs",
    ),
    (
        "reaper: a deletion may take any time",
        REAPER,
        "trio.fail_after(DELETION_S)",
        "trio.fail_after(1e9)",
        f"{STOPPING} -k few_at_once",
    ),
    (
        "reaper: all deletions at once",
        REAPER,
        "trio.CapacityLimiter(DELETIONS)",
        "trio.CapacityLimiter(10**6)",
        f"{STOPPING} -k few_at_once",
    ),
    (
        "reaper: a silent store ends the process",
        REAPER,
        "        return LOOK_S\n    return LOOK_S if",
        "        raise\n    return LOOK_S if",
        f"{STOPPING} -k answers_again",
    ),
    (
        "end: the job of a failed callback is kept as short as one that was delivered",
        "downloader/service/work.py",
        "notifier.deletion_interval if success else notifier.failed_retention",
        "notifier.deletion_interval",
        "tests/unit/test_work.py -k kept_longer",
    ),
)
