"""Sphinx: MyST pages, furo; built with `-n -W`, so that a broken reference is an error."""

import sys
from pathlib import Path

from downloader import __version__

sys.path.insert(0, str(Path(__file__).parent))

project = "downloader"
author = "the downloader contributors"
version = release = __version__

extensions = ["myst_parser", "reference"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"downloader {version}"
