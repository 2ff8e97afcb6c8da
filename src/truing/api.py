"""The public Python interface: what a script or a user's own loss imports."""

from truing.core.batch import Batch, Outputs, Totals
from truing.core.errors import TruingError
from truing.core.reduce import Metric, Share, completion_lengths, metric, sum_by_completion
from truing.core.trees import Completion, Tree
from truing.objectives.base import Objective
from truing.objectives.judged import Judged, JudgedObjective
from truing.objectives.pairwise import LogRatioObjective, Pairs, PairwiseObjective

__all__ = [
    "Batch",
    "Completion",
    "Judged",
    "JudgedObjective",
    "LogRatioObjective",
    "Metric",
    "Objective",
    "Outputs",
    "Pairs",
    "PairwiseObjective",
    "Share",
    "Totals",
    "Tree",
    "TruingError",
    "completion_lengths",
    "metric",
    "sum_by_completion",
]
