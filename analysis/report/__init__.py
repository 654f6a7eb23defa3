"""Reports: one object built from a run folder, and its renderers (terminal, JSON, HTML)."""

from kvload.analysis.report.build import build
from kvload.analysis.report.model import Report

__all__ = ["Report", "build"]
