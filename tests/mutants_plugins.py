"""Mutants of the plugins and of `downloader.notify`: name, file below `src`, old line, new line, tests."""

from __future__ import annotations

ROWS = (
    (
        "answers: a wait for ever",
        "downloader/notify/delivery.py",
        " if math.isfinite(after_s) and after_s >= 0:",
        ":",
        "tests/unit/test_deliver.py",
    ),
    (
        "answers: a wait of any type",
        "downloader/notify/delivery.py",
        "float() | int() as after_s",
        "after_s",
        "tests/unit/test_deliver.py",
    ),
    (
        "answers: a day is no bound",
        "downloader/notify/delivery.py",
        "min(result.after_s, _MAX_AFTER_S)",
        "result.after_s",
        "tests/unit/test_deliver.py",
    ),
    (
        "answers: a storage's url of any type",
        "downloader/storage/checked.py",
        "    if not isinstance(url, str):",
        "    if False:",
        "tests/unit/test_deliver.py",
    ),
    (
        "answers: what a storage raises passes",
        "downloader/storage/checked.py",
        "    except BaseException as exc:",
        "    except OSError as exc:",
        "tests/unit/test_deliver.py",
    ),
    (
        "backends: a missing one uses up attempts",
        "downloader/notify/bulkhead.py",
        "            return self._not_here(name)",
        "            backend = self._backends[next(iter(self._backends))]",
        "tests/unit/test_health.py",
    ),
    (
        "backends: never unhealthy",
        "downloader/notify/health.py",
        "return self.failures < UNHEALTHY_AFTER",
        "return self.failures >= 0",
        "tests/unit/test_health.py",
    ),
    (
        "kafka: internal topics",
        "downloader_plugins/kafka/__init__.py",
        "        if is_reserved(",
        "        if False and is_reserved(",
        "tests/plugins/test_kafka_notifier.py -k internal",
    ),
    (
        "s3: any bucket of jobs",
        "downloader_plugins/s3/__init__.py",
        "if not self._allows(name):",
        "if False:",
        "tests/plugins/test_s3_words.py tests/plugins/test_s3_storage.py",
    ),
    (
        "files: the umask decides",
        "downloader_plugins/filesystem/tree.py",
        "    os.fchmod(put.fd, mode)  # independent of the umask\n",
        "",
        "tests/plugins/test_filesystem.py",
    ),
    (
        "fsync: not of a small file",
        "downloader_plugins/filesystem/tree.py",
        "        os.fsync(put.fd)\n",
        "        pass\n",
        "tests/plugins/test_filesystem.py",
    ),
    (
        "fsync: not of a moved file's folders",
        "downloader_plugins/filesystem/tree.py",
        "            os.close(fd)\n        if fsync:\n            folders.sync()",
        "            os.close(fd)",
        "tests/plugins/test_filesystem.py",
    ),
    (
        "shares: silent destinations take all slots",
        "downloader/scheduler/limits.py",
        "return Shares(unproven=max(0, self._share - self._unproven))",
        "return Shares(unproven=1000)",
        "tests/faults/test_callbacks.py -k h21",
    ),
    (
        "shares: a backend that hangs takes all slots of new destinations",
        "downloader/notify/bulkhead.py",
        "return proven or backend.unproven < share(half, others=others, backends=backends)",
        "return True",
        "tests/unit/test_health.py",
    ),
)
