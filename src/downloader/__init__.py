"""Downloads files politely: jobs in over HTTP, limits per aggregation over a whole fleet, callbacks out."""

__version__ = "0.1.0"
"""The version of the distribution `downloader-service`, written nowhere else."""
