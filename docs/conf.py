"""Sphinx: MyST pages, furo; built with `-n -W`, so that a broken reference is an error."""

import os
import sys
from pathlib import Path

from downloader import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "downloader"
author = "the downloader contributors"
version = release = __version__

extensions = ["myst_parser", "sphinx_copybutton", "sphinx_design", "reference", "numbers_in_search"]
exclude_patterns = ["_build", "_templates"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"downloader {version}"
html_favicon = "../src/downloader/web/icon.svg"
templates_path = ["_templates"]
html_context = {"site_root": os.environ.get("DOCS_ROOT", "")}
"""Where the newest version and the list of the others are published."""
html_sidebars = {
    "**": [
        *(f"sidebar/{name}.html" for name in ("brand", "search", "scroll-start", "navigation")),
        *("versions.html", "sidebar/scroll-end.html"),
    ]
}
html_baseurl = os.environ.get("DOCS_URL", "")
"""Where the site is published. Without it no sitemap is written, as its addresses are absolute."""
if html_baseurl:
    extensions.append("sphinx_sitemap")
    sitemap_url_scheme = "{link}"
    sitemap_excludes = ["search.html", "genindex.html"]
