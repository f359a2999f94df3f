"""A page of HTML for a folder of results, made of its files alone; it needs no network."""

from ph_l2o.reports.pages import REPORT, page_of, write_report

__all__ = ["REPORT", "page_of", "write_report"]
