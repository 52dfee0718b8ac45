"""Breaks the promises one at a time, by a line each, and looks whether a test notices.

Not for pytest: `nox -s mutants` runs it, `nox -s mutants -- limit clock` those whose names have one of these
words. It exits 1 if a mutant survives or no longer fits the code; then mend the test, or the entry.

Half of what is promised is kept by Lua scripts, which the mutation testers for Python do not change, and
each of their thousands of mutants would need a server. So these are chosen: lines that alone keep a promise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import mutants_net

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300.0
OF_STOPS = "tests/faults/test_stops.py"
STORE, SCHEDULER = "downloader/store", "downloader/scheduler"
OF_EMBEDDED = "tests/store/test_embedded.py"
OF_CLUSTER = "tests/faults/test_cluster_faults.py"
OF_STORE = "tests/store/test_transitions.py tests/store/test_lifecycle.py tests/store/test_model.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change that breaks a promise."""

    name: str
    file: str
    """Below `src`."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: str
    """What is to notice: arguments for pytest."""


MUTANTS = (
    Mutant(
        "fencing: an old generation settles",
        f"{STORE}/lua/_lib.lua",
        " and task[3] == generation then return 'held'",
        " then return 'held'",
        OF_STORE,
    ),
    Mutant(
        "fencing: another owner settles",
        f"{STORE}/lua/_lib.lua",
        " and task[2] == owner",
        "",
        OF_STORE,
    ),
    Mutant(
        "reply: a repeated request is given something else",
        f"{STORE}/lua/lease.lua",
        "string.match(memo, '^%S+') == call.request",
        "false",
        OF_STORE,
    ),
    Mutant(
        "reply: a repeated settlement is refused",
        f"{STORE}/lua/_lib.lua",
        "if task[4] == generation then return 'repeated', task[5] end",
        "",
        OF_STORE,
    ),
    Mutant(
        "reply: a lease that was not heard of is not asked for",
        f"{STORE}/redis_store.py",
        'self._unanswered.setdefault(key, f"{self._session}-{next(self._requests)}")',
        'self._unanswered[key] = f"{self._session}-{next(self._requests)}"',
        OF_STORE,
    ),
    Mutant(
        "fencing: the callback of a second run has the generations of the first",
        f"{STORE}/lua/retry.lua",
        "if generation then redis.call('HSET', key_task('callback', id), 'generation', generation) end",
        "",
        OF_STORE,
    ),
    Mutant(
        "lease: swept before its end",
        f"{STORE}/lua/sweep.lua",
        "'-inf', now, 'LIMIT'",
        "'-inf', '+inf', 'LIMIT'",
        OF_STORE,
    ),
    Mutant(
        "lease: not prolonged",
        f"{STORE}/lua/renew.lua",
        "redis.call('ZADD', key_leases(kind), now + call.lease_ms, item.id)",
        "redis.call('ZADD', key_leases(kind), now, item.id)",
        OF_STORE,
    ),
    Mutant(
        "reaper: before its time",
        f"{STORE}/lua/reap.lua",
        "'-inf', now, 'LIMIT'",
        "'-inf', '+inf', 'LIMIT'",
        OF_STORE,
    ),
    Mutant(
        "callbacks: a failing destination is not narrowed",
        f"{STORE}/lua/retry_later.lua",
        "redis.call('HSET', key_group(kind, group), 'limit', 1)",
        "local wide = group",
        OF_STORE,
    ),
    Mutant(
        "newer: an unknown state or code raises",
        f"{STORE}/records.py",
        "        return text\n",
        "        raise\n",
        OF_STORE,
    ),
    Mutant(
        "cluster: one silent shard sinks the call",
        f"{STORE}/redis_store.py",
        "if errors and not answers and not some:",
        "if errors:",
        OF_CLUSTER,
    ),
    Mutant(
        "cluster: a silent shard is waited for again and again",
        f"{STORE}/redis.py",
        "if shard in self._silent:",
        "if False:",
        OF_CLUSTER,
    ),
    Mutant(
        "scale: a lease reads a whole queue",
        f"{STORE}/lua/lease.lua",
        "redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')",
        "redis.call('ZRANGE', queue, 0, -1, 'WITHSCORES')",
        "tests/store/test_scale.py",
    ),
    Mutant(
        "turns: a group that has given a task stays first",
        f"{STORE}/lua/_lib.lua",
        "tonumber(last[2]) + 1, group",
        "tonumber(last[2]) - 1e6, group",
        OF_STORE,
    ),
    Mutant(
        "share: an aggregation never gives way",
        f"{SCHEDULER}/limits.py",
        "return next((group for group in self._large if self._beyond(group) > 0), None)",
        "return None",
        "tests/scheduler",
    ),
    Mutant(
        "share: silent destinations have all slots",
        f"{SCHEDULER}/limits.py",
        "Shares(unproven=max(0, self._share - self._unproven))",
        "Shares()",
        "tests/scheduler",
    ),
    Mutant(
        "limit: the store grants any number",  # two lines look at the count; neither alone keeps the promise
        f"{STORE}/lua/lease.lua",
        "      redis.call('SADD', running, id)\n",
        "",
        OF_STORE,
    ),
    Mutant(
        "limit: the process has no limiter",
        f"{SCHEDULER}/limits.py",
        "            return False\n",
        "            return True\n",
        "tests/scheduler",
    ),
    Mutant(
        "lease: not recovered",
        f"{STORE}/lua/sweep.lua",
        "requeue(kind, id, group, 0)",
        "local forgotten = id",
        OF_STORE,
    ),
    Mutant(
        "lease: a crash is not counted",
        f"{STORE}/lua/sweep.lua",
        "redis.call('HINCRBY', key_task(kind, id), 'crashes', 1)",
        "local uncounted = id",
        f"{OF_STORE} tests/scheduler",
    ),
    Mutant(
        "lease: counted from the answer",
        f"{SCHEDULER}/leases.py",
        "each.prolong(asked_at, lease_s)",
        "each.prolong(clock(), lease_s)",
        "tests/scheduler",
    ),
    Mutant(
        "lease: no margin at its end",
        f"{SCHEDULER}/leases.py",
        "MARGIN = 0.1",
        "MARGIN = 0.0",
        "tests/scheduler",
    ),
    Mutant(
        "lease: always ours",
        f"{SCHEDULER}/leases.py",
        "return self._clock() < self._ends_at",
        "return True",
        "tests/scheduler",
    ),
    Mutant(
        "clock: one that stops in a suspend",
        f"{SCHEDULER}/leases.py",
        "return time.clock_gettime(time.CLOCK_BOOTTIME)",
        "return time.monotonic()",
        "tests/scheduler",
    ),
    Mutant(
        "idempotency: kept for 24 s",
        f"{STORE}/lua/submit.lua",
        "24 * 3600 * 1000",
        "24 * 1000",
        OF_STORE,
    ),
    Mutant(
        "reaper: forgets what it was not given",
        f"{STORE}/lua/remove.lua",
        "if redis.call('HGET', key_task('download', id), 'reaping') then",
        "if true then",
        OF_STORE,
    ),
    Mutant(
        "retry: of what is being reaped",
        f"{STORE}/lua/retry.lua",
        "'reaping'",
        "'never'",
        OF_STORE,
    ),
    Mutant(
        "proxy: the newest job's applies",
        f"{STORE}/lua/submit.lua",
        "redis.call('HSET', record, 'limit', item.limit)",
        "redis.call('HSET', record, 'limit', item.limit, 'proxy', item.proxy)",
        OF_STORE,
    ),
    Mutant(
        "proxy: another tenant's will do",
        f"{STORE}/lua/submit.lua",
        "and proxy ~= item.permitted then",
        "and false then",
        f"{OF_STORE} tests/api/test_auth.py",
    ),
    Mutant(
        "proxy: of somebody else at a retry",
        f"{STORE}/lua/retry.lua",
        "and found ~= proxy then",
        "and false then",
        OF_STORE,
    ),
    Mutant(
        "tokens: a name of any type will do",
        "downloader/api/globs.py",
        "kind in allowed and allowed[kind](destination)",
        "any(allows(destination) for allows in allowed.values())",
        "tests/api/test_auth.py",
    ),
    Mutant(
        "tokens: paths are not decoded",
        "downloader/api/globs.py",
        'plain = unquote(path, errors="strict")',
        "plain = path",
        "tests/api/test_auth.py",
    ),
    Mutant(
        "durability: WAITAOF's answer is not looked at",
        f"{STORE}/redis.py",
        "if reached[0] < 1:",
        "if False:",
        "tests/store/test_durability.py",
    ),
    Mutant(
        "durability: WAIT's answer is not looked at",
        f"{STORE}/redis.py",
        "elif reached < self._replicas:",
        "elif False:",
        "tests/store/test_durability.py",
    ),
    Mutant(
        "embedded: nothing is synced",
        f"{STORE}/embedded.py",
        '"everysec"',
        '"no"',
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: open to everybody's eyes",
        "downloader/folders.py",
        "            os.fchmod(descriptor, MODE)\n",
        "            pass\n",
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: files for everybody",
        f"{STORE}/embedded.py",
        "            umask=0o077,\n",
        "",
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: another user's folder will do",
        "downloader/folders.py",
        "if found.st_uid not in (os.geteuid(), 0):",
        "if False:",
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: a link will do",
        "downloader/folders.py",
        " | os.O_NOFOLLOW",
        "",
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: as much memory as there is",
        f"{STORE}/embedded.py",
        '"--maxmemory", str(max_memory)',
        '"--maxmemory", "0"',
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: throws jobs away when it is full",
        f"{STORE}/embedded.py",
        '"noeviction"',
        '"allkeys-lru"',
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: outlives its parent",
        f"{STORE}/with_parent.py",
        "        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)\n",
        "        pass\n",
        "tests/e2e/test_run.py tests/cli/test_fetch.py",
    ),
    Mutant(
        "disk: leasing does not ask it",
        "downloader/service/instance.py",
        "high=settings.processor.disk_high,",
        "high=101.0,",
        "tests/faults/test_disk.py",
    ),
    Mutant(
        "fsync: not of the spool file",
        "downloader/fetch/sink.py",
        "os.fsync(self._descriptor)",
        "self._descriptor",
        "tests/fetch",
    ),
    Mutant(
        "fsync: not of a copied file",
        "downloader_plugins/filesystem/tree.py",
        "            os.fsync(target)",
        "            pass",
        "tests/plugins/test_filesystem.py",
    ),
    Mutant(
        "fsync: not of folders",
        "downloader_plugins/filesystem/tree.py",
        "                os.fsync(self._open[parts])",
        "                pass",
        "tests/plugins/test_filesystem.py",
    ),
    Mutant(
        "publish: whoever holds the lease",
        "downloader_plugins/filesystem/tree.py",
        "if not body.still_ours():",
        "if False:",
        "tests/plugins/test_filesystem.py",
    ),
    *(Mutant(*row) for row in mutants_net.ROWS),
    Mutant(
        "stop: leases of hung work stay",
        f"{SCHEDULER}/loop.py",
        "        services.start_soon(_hand_back_hung, running)\n",
        "",
        f"{OF_STOPS} -k disk",
    ),
    Mutant(
        "stop: callbacks wait for hung downloads",
        "downloader/service/instance.py",
        "instance.stop.deadline + instance.grace_s * RESERVE / 4",
        "instance.stop.deadline + 1000",
        f"{OF_STOPS} -k disk",
    ),
    Mutant(
        "stop: a lease that comes late is forgotten",
        f"{SCHEDULER}/loop.py",
        "    for lease in batch.leases:\n",
        "    for lease in () if running.stop.over else batch.leases:\n",
        f"{OF_STOPS} -k answered",
    ),
    Mutant(
        "stop: the reaper deletes on",
        f"{SCHEDULER}/reaper.py",
        "        stop.on_begin(end_in_time)\n",
        "",
        f"{OF_STOPS} -k deletions",
    ),
    Mutant(
        "stop: only a task sets the timer",
        "downloader/service/signals.py",
        "            signal.setitimer(signal.ITIMER_REAL, within_s)\n",
        "            pass\n",
        f"{OF_STOPS} -k log",
    ),
    Mutant(
        "webhooks: any secret will do",
        "downloader/webhooks.py",
        "    raise SignatureRefused(reason)",
        "    return",
        "tests/unit/test_webhooks.py",
    ),
)


def run(mutant: Mutant) -> str:
    """Try one: `killed`, `survived`, or why it could not be tried."""
    with tempfile.TemporaryDirectory(prefix="dlm-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / mutant.file
        text = path.read_text("utf-8") if path.exists() else ""
        if text.count(mutant.old) != 1:
            return f"does not fit: its line stands {text.count(mutant.old)} times in src/{mutant.file}"
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        words = mutant.tests.split(" -k ")
        chosen = [one for one in words[0].split() if (ROOT / one).exists()]
        only = ["-k", words[1]] if len(words) > 1 else []
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-n",
            "2",
            "-p",
            "no:cacheprovider",
            *only,
            *chosen,
        ]
        # In front of the installed one, also for the processes that tests start.
        environ = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return "killed (the tests hang)"
    if done.returncode == 0:
        return "survived"
    # 2 is a run that `-x` has interrupted.
    if done.returncode not in (1, 2) or "FAILED" not in done.stdout:
        return f"could not be tried: {done.stdout[-500:]}{done.stderr[-500:]}"
    first = next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), "")
    return f"killed by {first.removeprefix('FAILED ').split(' - ')[0]}"


def main() -> int:
    """Try all that are chosen; 1 if one is not killed."""
    parser = argparse.ArgumentParser(prog="nox -s mutants --", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name has one of these")
    words = parser.parse_args().words
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    bad = 0
    for mutant in chosen:
        began = time.monotonic()
        result = run(mutant)
        bad += not result.startswith("killed")
        sys.stdout.write(f"{mutant.name}: {result} ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - bad} of {len(chosen)} killed\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
