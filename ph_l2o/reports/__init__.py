"""A page of HTML for a folder of results, made of its files alone; it needs no network."""

from ph_l2o.reports.pages import REPORT, page_of, write_report
from ph_l2o.reports.settings import UNKNOWN

__all__ = ["REPORT", "UNKNOWN", "page_of", "write_report"]
