"""What follows from the tour's measurements, in sentences; nothing is ranked that the intervals do not tell apart."""

from __future__ import annotations

from collections.abc import Sequence

from truing.lab.arms import BASE, REFERENCE
from truing.lab.summary import Row, Summary, difference
from truing.tour.arms import LORA_SFT, PPO, PPO_FREE


def conclusions(summary: Summary) -> list[str]:
    """Sentences about this world, each with the figures it rests on."""
    methods = [row for row in summary.rows if row.arm not in (BASE, REFERENCE, LORA_SFT)]
    best = max(methods, key=lambda row: row.reward.mean)
    ties = [row for row in methods if row is not best and not summary.separated(best.arm, row.arm)]
    worse = [row for row in methods if row is not best and row not in ties]
    return [
        _first(best, ties, summary.basis),
        *([f"Below it beyond the intervals: {_names(worse)}."] if worse else []),
        _against_start(methods),
        _cheapest([best, *ties]),
        _closest(methods),
        *_hacking(summary),
        *_lora(summary),
    ]


def recommendation(summary: Summary) -> str:
    """What to try first on data of one's own, and what would change the answer."""
    dpo, reference = summary.row("dpo"), summary.row(REFERENCE)
    gained = difference(dpo, reference)
    if not gained.excludes_zero:
        return (
            "DPO with LoRA did not beat SFT beyond the intervals here, so this run is no evidence for it; repeat with "
            "--seeds 3 before trusting a ranking."
        )
    return (
        f"SFT, then DPO with LoRA: one run over {dpo.rows:,} comparisons and no sampling added {gained.mean:.2f} of "
        "reward. Take kto where answers carry thumbs and not comparisons; a reward model with best-of-n or ppo where "
        "that model can be trusted and sampling is affordable; sft alone where there are only demonstrations. On "
        "another model and other data the order may differ: measure it there too."
    )


def _first(best: Row, ties: Sequence[Row], basis: str) -> str:
    told = f"{best.arm} has the highest true reward, {best.reward}"
    if ties:
        return f"{told}; the intervals ({basis}) do not tell it from {_names(ties)}."
    return f"{told}, above every other beyond the intervals ({basis})."


def _against_start(methods: Sequence[Row]) -> str:
    better = [row for row in methods if row.gain.excludes_zero and row.gain.mean > 0]
    worse = [row for row in methods if row.gain.excludes_zero and row.gain.mean < 0]
    unclear = [row for row in methods if row not in better and row not in worse]
    parts = [
        f"better than SFT: {', '.join(f'{row.arm} (+{row.gain.mean:.2f})' for row in better)}" if better else "",
        f"worse: {_names(worse)}" if worse else "",
        f"not told apart from it: {_names(unclear)}" if unclear else "",
    ]
    told = "; ".join(part for part in parts if part)
    return told[0].upper() + told[1:] + "."


def _cheapest(tied: Sequence[Row]) -> str:
    fastest = min(tied, key=lambda row: row.seconds)
    return (
        f"Of those at the top, {fastest.arm} took the least training: {fastest.seconds:.0f} s and "
        f"{fastest.bytes / 1e6:.0f} MB."
    )


def _closest(methods: Sequence[Row]) -> str:
    best = min(methods, key=lambda row: row.regret)
    return (
        f"{best.arm} comes closest to what is possible at its distance from the start: the exact optimum of the "
        f"same KL divergence, {best.kl:.2f} nats, has {best.regret:.2f} more."
    )


def _hacking(summary: Summary) -> list[str]:
    held, free = summary.row(PPO), summary.row(PPO_FREE)
    if held.proxy is None or free.proxy is None:
        return []
    fell = difference(held, free)
    if not fell.excludes_zero or fell.mean < 0:
        return [
            "The KL term of PPO made no difference that the intervals show; longer runs exploit a reward model more."
        ]
    gap = "more" if free.proxy > held.proxy else "no more"
    return [
        f"Without its KL term PPO pleases the reward model {gap} ({free.proxy:.2f} against {held.proxy:.2f}) and is "
        f"worth {fell.mean:.2f} less in truth: it learned what the reward model gets wrong."
    ]


def _lora(summary: Summary) -> list[str]:
    full, lora = summary.row("dpo on all weights"), summary.row("dpo")
    apart = "" if difference(full, lora).excludes_zero else ", which the intervals do not tell apart"
    return [
        f"DPO with LoRA reached {lora.reward.mean:.2f} and with all weights {full.reward.mean:.2f}{apart}; it trained "
        f"{lora.parameters:,} weights against {full.parameters:,}."
    ]


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(row.arm for row in rows)
