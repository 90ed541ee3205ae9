"""Recordings in, one HTML file out: the page people read.

The page is self-contained: it asks nothing of any network. It begins with the verdict, sets several runs side by side
before it speaks of each, and ends with methods and provenance; one script draws the sections of single layers when they
are asked for, from data the page holds, and everything else stands without it. Nothing here estimates or judges; every
number comes from :mod:`covshift.analysis` or :mod:`covshift.diagnosis` and stands under the same path in the JSON twin.
"""

from covshift.reporting.report import ReportExists, write_report

__all__ = ["ReportExists", "write_report"]
