"""Sphinx: MyST pages, furo; built with `-n -W`, so that a broken reference is an error."""

from downloader import __version__

project = "downloader"
author = "the downloader contributors"
version = release = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"downloader {version}"
