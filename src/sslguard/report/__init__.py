"""What a result looks like: a page, pictures and tables, rendered from plain numbers. Nothing here computes one."""

from sslguard.report.data import (
    Accuracy,
    Bar,
    Curve,
    ExactReport,
    ExactRow,
    KeyReport,
    ReportData,
    Scores,
    Suspect,
    TriggerPictures,
    printable,
)
from sslguard.report.output import check_report_folder, write_report
from sslguard.report.page import render_page
from sslguard.report.tables import render_tables

__all__ = [
    "Accuracy",
    "Bar",
    "Curve",
    "ExactReport",
    "ExactRow",
    "KeyReport",
    "ReportData",
    "Scores",
    "Suspect",
    "TriggerPictures",
    "check_report_folder",
    "printable",
    "render_page",
    "render_tables",
    "write_report",
]
