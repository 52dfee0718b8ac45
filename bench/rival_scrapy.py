"""A spider whose `FilesPipeline` stores the files at the URLs of a list.

`python -m bench.rival_scrapy LIST FOLDER AT_ONCE`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess

URLS = Path(sys.argv[1]).read_text().split()


class Files(scrapy.Spider):
    """One item with all files."""

    name = "files"

    async def start(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the item; no page is crawled."""
        yield {"file_urls": URLS}


def main() -> None:
    process = CrawlerProcess(
        {
            "ITEM_PIPELINES": {"scrapy.pipelines.files.FilesPipeline": 1},
            "FILES_STORE": sys.argv[2],
            "CONCURRENT_REQUESTS": int(sys.argv[3]),
            "CONCURRENT_REQUESTS_PER_DOMAIN": int(sys.argv[3]),
            "LOG_LEVEL": "CRITICAL",
            "TELNETCONSOLE_ENABLED": False,
        }
    )
    process.crawl(Files)
    process.start()


if __name__ == "__main__":
    main()
