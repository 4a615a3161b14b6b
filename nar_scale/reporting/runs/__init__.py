"""Runs as a page to look at: what lies in their directories, drawn and written into one HTML file."""

from nar_scale.reporting.runs.page import write_page
from nar_scale.reporting.runs.run_files import RunFiles, read_run, read_runs

__all__ = ["RunFiles", "read_run", "read_runs", "write_page"]
