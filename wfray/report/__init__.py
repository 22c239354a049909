"""One self-contained page about a run, made from its directory alone."""

from wfray.report.page import write_report

__all__ = ["write_report"]
