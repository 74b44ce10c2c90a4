"""From studies to one self-contained HTML page with figures and tables. Entry: `build_report`."""

from harness.report.page import build_report

__all__ = ["build_report"]
