"""Sphinx: MyST pages, furo; built with `-n -W`, so that a broken reference is an error."""

from importlib.metadata import version as installed_version

project = "downloader"
author = "the downloader contributors"
version = release = installed_version("downloader")

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"downloader {version}"
