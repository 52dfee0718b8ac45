"""Mutants of the clients and of the work on leases: name, file below `src`, old line, new line, tests."""

from __future__ import annotations

CLIENT = "tests/api/test_client.py"

ROWS = (
    (
        "client: waiting takes no time into account",
        "downloader/client/wire.py",
        "if pause_s is not None and pause_s > left_s:",
        "if False:",
        "tests/api/test_client.py -k waiting_ends",
    ),
    (
        "fetch: an earlier run's note names any file",
        "downloader/cli/fetch_folder.py",
        "safe_name(suggested) or",
        "suggested or",
        "tests/unit/test_fetch_record.py",
    ),
    (
        "fetch: the record may be a link",
        "downloader/cli/fetch_record.py",
        "flags | os.O_NOFOLLOW",
        "flags",
        "tests/unit/test_fetch_record.py",
    ),
    (
        "submit: a line that is no JSON ends it",
        "downloader/cli/submit.py",
        "                continue\n",
        "                return\n",
        "tests/api/test_operator_commands.py -k spoils",
    ),
    (
        "client: only the first hundred are waited for",
        "downloader/client/client.py",
        "left = left[POLLED:] + left[:POLLED]",
        "pass",
        f"{CLIENT} -k behind_many",
    ),
    (
        "client: a 429 is final",
        "downloader/client/wire.py",
        "frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})",
        "frozenset({HTTPStatus.SERVICE_UNAVAILABLE})",
        f"{CLIENT} -k 429",
    ),
    (
        "client: too few answers",
        "downloader/client/client.py",
        "if len(lines) != len(left):",
        "if False:",
        f"{CLIENT} -k too_few",
    ),
    (
        "callbacks: without a slot at once again",
        "downloader/service/work.py",
        "error=slot.reason, retry_after_s=slot.delay_s)",
        "error=slot.reason, retry_after_s=0.0)",
        "tests/unit/test_work.py -k without_a_slot",
    ),
    (
        "files: the storage's own URL wins",
        "downloader/service/files.py",
        "if not base and (url := self.storage.url(key)):",
        "if url := self.storage.url(key):",
        "tests/unit/test_stored_files.py",
    ),
    (
        "files: a path in a URL is not encoded",
        "downloader/service/files.py",
        "/{quote(key)}",
        "/{key}",
        "tests/unit/test_stored_files.py",
    ),
)
