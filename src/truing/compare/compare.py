"""`truing compare`: from arguments to a table, a file for programs, and a page."""

from __future__ import annotations

import torch
from rich.console import Console

from truing.compare import page
from truing.compare.contest import hold
from truing.compare.record import FILE, record
from truing.compare.request import Request
from truing.compare.table import show
from truing.compare.verdict import Verdict
from truing.training.run_directory import replace_file


def compare(request: Request, console: Console | None = None) -> Verdict:
    """Hold the comparison, print its table, and write compare.json and report.html into its folder."""
    contest = hold(request, torch.get_num_threads())
    verdict = Verdict.of(contest)
    contest.folder.keep(FILE, record(verdict))
    show(verdict, console)
    target = contest.folder.path / page.FILE
    replace_file(target, page.comparison_page(verdict))
    (console or Console()).print(f"report: {target}", markup=False, highlight=False)
    return verdict
