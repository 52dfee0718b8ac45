"""The check of paths that come from outside."""

from __future__ import annotations

import pytest

from downloader.paths import is_safe_path, split_folder, split_path


@pytest.mark.parametrize("path", ["a", "a/b c/\u00fc", "..c/.d", "a%2f", "x" * 2000])
def test_safe_paths(path: str) -> None:
    assert is_safe_path(path)
    assert "/".join(split_path(path)) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "a/./b", "../a", "a/.."),
        *("a\\b", "a\0", "a\nb", "a\x7f", "a\u200b", "\udcff"),
    ],
)
def test_paths_that_may_lead_elsewhere(path: str) -> None:
    assert not is_safe_path(path)


@pytest.mark.parametrize("path", [".a", "a%2f..", "x" * 513, "/a", "a/../b", ""])
def test_folders_that_no_job_may_name(path: str) -> None:
    with pytest.raises(ValueError, match=r"^(must not|has) "):
        split_folder(path)


def test_a_slash_at_the_end_of_a_folder() -> None:
    assert split_folder("a/b/") == split_folder("a/b") == ("a", "b")
    assert split_folder("x" * 512)
