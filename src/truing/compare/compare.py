"""`truing compare`: from arguments to a table, a file for programs, and a page."""

from __future__ import annotations

import torch
from rich.console import Console

from truing.compare.contest import hold
from truing.compare.record import FILE, record
from truing.compare.request import Request
from truing.compare.table import show
from truing.compare.verdict import Verdict


def compare(request: Request, console: Console | None = None) -> Verdict:
    """Hold the comparison, print its table, and write compare.json and report.html into its folder."""
    contest = hold(request, torch.get_num_threads())
    verdict = Verdict.of(contest)
    contest.folder.keep(FILE, record(verdict))
    show(verdict, console)
    return verdict
