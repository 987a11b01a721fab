"""Reports on a work folder: tables for the terminal, plots and an HTML page.

WORK_DIR/report.html     the page, which shows the plots
WORK_DIR/plots/*.png     loss curves, dev WER, spike offsets, error rates
"""

from kdasr.report.page import write_report
from kdasr.report.table import print_results

__all__ = ["print_results", "write_report"]
