"""A search that finds numbers, such as 429: Sphinx leaves them out of index and query.

A number is indexed as a word, and the page's script turns a number of the query into the same word.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.search.en import SearchEnglish

WORD = re.compile(r"\w+")


class SearchWithNumbers(SearchEnglish):
    """English, and numbers."""

    lang = "en"
    js_splitter_code = """
var splitQuery = (query) => query
    .split(/[^\\p{Letter}\\p{Number}_\\p{Emoji_Presentation}]+/gu)
    .filter((term) => term)
    .map((term) => /^\\d+$/.test(term) ? `number${term}` : term);
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 - Sphinx's name
        """Split a text into words."""
        return [f"number{word}" if word.isdecimal() else word for word in WORD.findall(input)]


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_search_language(SearchWithNumbers)
    return {"parallel_read_safe": True}
