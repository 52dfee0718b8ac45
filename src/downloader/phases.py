"""The phases of an attempt at a download: how long each took, and which way the requests went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Self

_LETTERS = {
    "queue": "q",
    "robots": "o",
    "dns": "d",
    "connect": "c",
    "tls": "t",
    "first_byte": "f",
    "body": "b",
    "store": "s",
}
"""In the stored form, by the name of the phase."""

_NAMES = {letter: name for name, letter in _LETTERS.items()}

_MAX_URL_CHARS = 200
"""Longest URL of a redirect that is kept."""

_MAX_DIGITS = 15
"""Most characters of a number that is read; Python raises for very long numbers."""

_LONG_S = 1.0
"""The phases of a success are kept if the attempt took at least as long. Most successes take less, and their
records stay short."""


@dataclass(slots=True)
class Phases:
    """Durations, address and redirects of one attempt, filled as the attempt goes on."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, in order; over all requests of the attempt. A kept connection has no `dns`, `connect` and
    `tls`."""
    address: str = ""
    """The address of the last connection; empty through a proxy."""
    redirects: list[tuple[int, str]] = field(default_factory=list)
    """Status and target of each redirect, without passwords and query values."""
    _phase: str = ""
    _since: float = 0.0

    def begin(self, phase: str) -> None:
        """End the present phase and begin another; `""`: begin none."""
        now = perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    @property
    def are_long(self) -> bool:
        """Whether the phases took long enough to be kept for a success."""
        return sum(self.seconds.values()) - self.seconds.get("queue", 0.0) >= _LONG_S

    def to_text(self, seal: Callable[[str], str] | None) -> str:
        """The stored form: words of a letter and a value. `seal` encrypts the URLs."""
        words = [f"{_LETTERS[name]}{round(1000 * seconds)}" for name, seconds in self.seconds.items()]
        if self.address:
            words.append(f"a{self.address}")
        for status, url in self.redirects:
            shown = url if len(url) <= _MAX_URL_CHARS else f"{url[:_MAX_URL_CHARS]}..."
            words.append(f"r{status}:{seal(shown) if seal else shown}")
        return " ".join(words)

    @classmethod
    def from_text(cls, text: str, unseal: Callable[[str], str]) -> Self:
        """Inverse of `to_text`; ignores damaged words, and words of a newer version."""
        phases = cls()
        for letter, value in ((word[:1], word[1:]) for word in text.split(" ")):
            status, _, url = value.partition(":")
            if letter == "a":
                phases.address = value
            elif letter in _NAMES and _is_number(value):
                phases.seconds[_NAMES[letter]] = int(value) / 1000
            elif letter == "r" and _is_number(status):
                phases.redirects.append((int(status), unseal(url)))
        return phases


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
