"""Every exception this project raises on purpose.

::

    DownloaderError                one clear line for a person; never a traceback
    ├── ConfigError                wrong usage or configuration: exit status 2
    │   └── PluginError            a backend or storage cannot be found, imported or opened
    ├── StoreError                 Redis or Valkey cannot answer
    │   ├── StoreUnavailable       unreachable, loading, read-only, out of memory: try again later
    │   └── StoreRefused           wrong password, wrong layout: trying again does not help
    └── StorageError               a storage could not take or delete a file
        └── StorageRefused         final: the bucket is missing or forbidden

Those of one part live in it: `EgressRefused`, `NameNotResolved` and `TlsFailed` in `downloader.net`, and
how an attempt can fail (an exception for each row of the contract's table) in `downloader.fetch`.
"""

from __future__ import annotations

from collections.abc import Iterator


class DownloaderError(Exception):
    """Base of everything below; ``str()`` is one line fit for a person."""


class ConfigError(DownloaderError):
    """Wrong usage or configuration. The text names the key, file or plugin at fault."""


class PluginError(ConfigError):
    """A plugin is missing, cannot be imported, has a wrong interface or refuses its section."""


class StoreError(DownloaderError):
    """The store did not carry out a call. The call may nevertheless have been applied."""


class StoreUnavailable(StoreError):
    """The store is out of reach, loading, read-only or out of memory; a later try may succeed."""


class StoreRefused(StoreError):
    """The store refuses us (password, layout version); a later try would fail alike."""


class StorageError(DownloaderError):
    """A storage could not take or delete a file; a later try may succeed."""


class StorageRefused(StorageError):
    """The destination itself is at fault (missing or forbidden bucket); final."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors that nurseries have wrapped in groups, in order; of a lone error, itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def first_leaf(error: BaseException) -> BaseException:
    """The first of the errors in a group, or the error itself."""
    return next(leaves(error))
