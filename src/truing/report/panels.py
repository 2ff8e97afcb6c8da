"""Which curves a report shows, in which order, and how to read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from truing.training.figures import ENTROPY


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share their axes."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    """(figure of metrics.jsonl, its name in the legend)"""
    caption: str = ""
    """How to read it, in one sentence."""
    logarithmic: bool = False
    """Whether excursions by orders of magnitude are to be expected, and call for a logarithmic axis."""


THROUGHPUT = "tokens per second"
"""Derived: `tokens` of a step by its `seconds`."""
MEMORY = "memory in GB"
"""Derived: `memory_bytes`."""


def _held_out(metric: str, name: str = "training") -> tuple[tuple[str, str], ...]:
    """A figure, and the same on held-out rows."""
    return ((metric, name), (f"eval_{metric}", "held out"))


QUALITY = (
    Panel("Loss", "loss", _held_out("loss"), "A lower loss is not yet a better model; compare with the samples."),
    Panel(
        "Score of completions",
        "score",
        (
            ("objective/scores", "while training"),
            ("eval_scores", "held-out prompts"),
            ("objective/rlhf_reward", "less the KL term"),
        ),
        "What the rewards say, all together.",
    ),
    Panel(
        "Held-out judge", "score", (("judge/score", "judge"),), "Answers to held-out prompts; nothing is trained on it."
    ),
    Panel("KL to the reference", "KL (nats a completion)", (("objective/kl", "KL"),)),
    Panel("Accuracy", "share of pairs", _held_out("rewards/accuracies"), "Chosen above rejected; ties count half."),
    Panel("Accuracy of scores", "share of pairs", _held_out("accuracy"), "Chosen above rejected; ties count half."),
    Panel(
        "Rewards",
        "reward",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
        "As the loss sees them, mostly β log π/π_ref; what counts is their distance.",
    ),
    Panel("Margin of rewards", "chosen − rejected", _held_out("rewards/margins")),
    Panel("Margin of scores", "chosen − rejected", _held_out("margin")),
    Panel("Scores", "score", (("scores/chosen", "chosen"), ("scores/rejected", "rejected"))),
    Panel(
        "Log-probs of answers",
        "log-prob (nats an answer)",
        (("logps/chosen", "chosen"), ("logps/rejected", "rejected")),
        "Summed over an answer; each step has other rows.",
    ),
    Panel(
        "Log-probs of held-out answers",
        "log-prob (nats an answer)",
        (("eval_logps/chosen", "chosen"), ("eval_logps/rejected", "rejected")),
        "The same rows each time: should the chosen ones fall, training unlearns them.",
    ),
    Panel("Reference point", "kl (nats)", (("kl", "z0"),), "What desirable and undesirable answers are compared with."),
    Panel("Length of completions", "tokens", _held_out("completions/length")),
    Panel("Completions that end", "share", _held_out("completions/ended"), "The others were cut at max_new_tokens."),
    Panel("Length of judged answers", "tokens", (("judge/length", "judged"),)),
    Panel("Judged answers that end", "share", (("judge/end_rate", "judged"),)),
    Panel("Entropy", "entropy (nats a token)", ((ENTROPY, "entropy"),), "How much choice the policy leaves itself."),
)
MECHANICS = (
    Panel("Ratio to the old policy", "π / π_old", (("val/ratio", "mean ratio"),), "1 while the samples fit."),
    Panel("KL of an update", "KL (nats a token)", (("policy/approxkl", "KL"),)),
    Panel("Clip fraction", "share of tokens", (("policy/clipfrac", "policy"), ("val/clipfrac", "value"))),
    Panel("Explained variance", "share", (("val/explained_variance", "value"),), "1: the critic knows every return."),
    Panel("Parts of the loss", "loss", (("loss/policy", "policy"), ("loss/value", "value"))),
    Panel(
        "Groups without spread", "share", (("rewards/equal_groups", "equal rewards"),), "Such a group teaches nothing."
    ),
    Panel(
        "Server against policy",
        "nats a token",
        (("rollout/logprob_gap", "difference of log-probs"),),
        "Rounding alone while the server has the policy's weights.",
    ),
    Panel("Reward and length", "correlation", (("rewards/length_correlation", "correlation"),), "Within a rollout."),
    Panel("Spread within groups", "standard deviation", (("rewards/deviation", "of rewards"),)),
    Panel("KL coefficient", "β", (("objective/kl_coef", "β"),)),
    Panel("Gradient norm", "norm", (("grad_norm", "before clipping"),), logarithmic=True),
    Panel("Learning rate", "rate", (("learning_rate", "rate"),)),
    Panel("Throughput", "tokens a second", ((THROUGHPUT, "tokens a second"),)),
    Panel("Memory", "peak so far (GB)", ((MEMORY, "measured"),)),
)
SAID_ELSEWHERE = frozenset(
    {"step", "tokens", "num_tokens", "rows", "skipped_steps", "seconds", "memory_bytes", "nll", "eval_nll", "val/mean",
     "objective/entropy", "eval_objective/scores", "eval_scores/half_width", "eval_rewards/length_correlation",
     "judge/half_width", "restored_step", "start/judge/score", "start/judge/half_width", "start/judge/length",
     "start/judge/end_rate"}
)  # fmt: skip
MOST_OTHERS = 24
"""Figures of a user's own loss that get a panel each."""

HIGHER_IS_BETTER = (
    "judge/score",
    "eval_scores",
    "objective/scores",
    "eval_rewards/accuracies",
    "rewards/accuracies",
    "eval_accuracy",
    "accuracy",
    "eval_rewards/margins",
    "rewards/margins",
)
LOWER_IS_BETTER = ("eval_loss", "loss")


def quality_of(known: Iterable[str]) -> str:
    """The figure by which a run is judged first: held out before training, quality before loss."""
    names = set(known)
    return next((name for name in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER) if name in names), "loss")


def others(known: Iterable[str]) -> tuple[Panel, ...]:
    """Panels for figures that no panel above has: a user's own loss, single rewards."""
    shown = {metric for panel in (*QUALITY, *MECHANICS) for metric, _ in panel.lines} | SAID_ELSEWHERE
    bare = sorted({name.removeprefix("eval_") for name in set(known) - shown} - shown)
    return tuple(Panel(name, "value", _held_out(name)) for name in bare)[:MOST_OTHERS]
