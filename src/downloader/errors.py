"""The exceptions that all parts of the project raise on purpose.

`downloader.net` has the errors of requests (`NetError`), `downloader.fetch` those of attempts (`FetchError`).
"""

from __future__ import annotations

from collections.abc import Iterator


class DownloaderError(Exception):
    """Base of all exceptions below; ``str()`` is one line that a person can read."""


class ConfigError(DownloaderError):
    """Wrong usage or configuration: exit status 2. The text names the wrong key, file or plugin."""

    def __init__(self, text: str, *others: str) -> None:
        super().__init__(text)
        self.others = others
        """Further errors, one line per error."""


class PluginError(ConfigError):
    """A plugin is missing, cannot be imported, has a wrong interface or refuses the configured section."""


class StoreError(DownloaderError):
    """The store did not carry out a call. The call may nevertheless have been applied."""


class StoreUnavailable(StoreError):
    """The store is out of reach, loading, read-only or out of memory; a later try may succeed."""


class PartlyChanged(StoreUnavailable):
    """Some shards of a Cluster have made a change, others are silent; call again to complete the change."""


class StoreRefused(StoreError):
    """The store refuses us (password, layout version); a later try would fail in the same way."""


class StorageError(DownloaderError):
    """A storage could not take or delete a file; a later try may succeed."""


class StorageRefused(StorageError):
    """The bucket is missing or forbidden; a later try would fail in the same way."""


class KeyTaken(StorageRefused):
    """Another file is stored under the key, and the job permits no replacement."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested exception groups, in order; a plain error alone."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def first_leaf(error: BaseException) -> BaseException:
    """The first error inside nested exception groups; an error that is no group is returned unchanged."""
    return next(leaves(error))
