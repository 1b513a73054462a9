"""What a run says about itself: a summary of plain values, a page that stands alone, and several runs side by side.

Reads a run folder and nothing else: no model, no data and no torch, so a run can be looked at on any machine.
"""

from fedgen.report.compare import Row, compare, comparison_rows, comparison_table
from fedgen.report.page import write
from fedgen.report.summary import summarise

__all__ = ["Row", "compare", "comparison_rows", "comparison_table", "summarise", "write"]
