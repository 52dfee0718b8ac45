"""Status texts are part of the contract, so they are the same on every version of Python."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from downloader.model import describe_status, status_phrase

RENAMED = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    418: "I'm a Teapot",
    422: "Unprocessable Content",
}
"""The names that differ among the versions of Python."""


@pytest.mark.parametrize("status", HTTPStatus)
def test_the_phrase_of_a_status(status: HTTPStatus) -> None:
    phrase = RENAMED.get(status, status.phrase)
    assert status_phrase(status) == phrase
    assert describe_status(status) == f"{int(status)} {phrase}"


@pytest.mark.parametrize("status", [0, 99, 306, 499, 599, 999])
def test_a_status_without_a_name(status: int) -> None:
    assert status_phrase(status) == ""
    assert describe_status(status) == str(status)
