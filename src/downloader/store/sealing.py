"""Encryption of the secret fields of jobs in the store, by `cryptography`'s Fernet."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr

from downloader.errors import ConfigError


class Sealer:
    """Encrypts with the first key and decrypts with any key."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        """Use the keys of `redis.encryption_keys`.

        Raises:
            ConfigError: the package `cryptography` is not installed.
        """
        try:
            from cryptography import fernet  # noqa: PLC0415 - optional
        except ImportError:
            raise ConfigError(
                "redis.encryption_keys: cryptography is missing: install downloader-service[encryption]"
            ) from None
        self._fernet = fernet.MultiFernet([fernet.Fernet(key.get_secret_value()) for key in keys])
        self._invalid = fernet.InvalidToken

    def seal(self, text: str) -> str:
        """Encrypt a text; returns ASCII."""
        return self._fernet.encrypt(text.encode()).decode()

    def unseal(self, sealed: str) -> str | None:
        """Decrypt the result of `seal`; `None` if no key fits or the text was changed."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except self._invalid:
            return None


def open_sealer(keys: Sequence[SecretStr]) -> Sealer | None:
    """A sealer with these keys; `None` without keys. Raises as `Sealer` does."""
    return Sealer(keys) if keys else None
