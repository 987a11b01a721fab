"""A work folder in; tables for the terminal, plots and one HTML page for people out.

WORK_DIR/report.html     the page; it shows the plots beside it
WORK_DIR/plots/*.png     loss curves, dev WER, spike offsets, error rates
"""

from kdasr.report.page import write_report
from kdasr.report.table import print_results

__all__ = ["print_results", "write_report"]
