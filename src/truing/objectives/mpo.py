"""Mixed Preference Optimization: several losses on the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, model_validator
from torch import Tensor

from truing.core.batch import Batch, Outputs, Totals
from truing.core.errors import RecipeError
from truing.core.reduce import Metric, Share
from truing.core.settings import Settings
from truing.objectives.base import Objective
from truing.objectives.pairwise import PairwiseObjective


class Term(Settings):
    """One loss of a sum, written flat: `{use: dpo, weight: 0.8, beta: 0.1}`."""

    weight: float = Field(default=1.0, gt=0)
    """How much it counts."""
    spec: dict[str, Any]
    """The loss, as `objective:` would name it."""

    def __repr__(self) -> str:
        fields = {"use": self.spec.get("use"), "weight": self.weight, **self.spec}
        return "{" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}"

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "spec" in value:
            return value
        return {"weight": value.get("weight", 1.0), "spec": {k: v for k, v in value.items() if k != "weight"}}


class MPO(Objective):
    """L = Σ wᵢ Lᵢ over `losses`, any of those that learn from comparisons.

    The default is the paper's: 0.8 DPO for the preference, 0.2 BCO on pairs for quality, and the NLL of the chosen
    answer per token, which is DPO's `sft_weight` times its weight. `loss/NAME` in the metrics is each loss by itself;
    the other figures are those of the first.
    """

    name: ClassVar[str] = "mpo"
    paper: ClassVar[str] = "arXiv:2411.10442, eq. 2; weights of its section 4"
    purpose: ClassVar[str] = "Comparisons, when one loss is not enough: any sum of losses, each with a weight."
    avoid: ClassVar[str] = "Avoid as a cure for a loss that fails alone; then data or settings are wrong."
    watch: ClassVar[str] = (
        "Each term has its own figure before its weight, by default `loss/dpo` and `loss/bco_pair`; all should fall. "
        "The second starts at 2 ln 2, the first at ln 2 plus 1.25 times the NLL of a token."
        "\n`rewards/margins`, `rewards/accuracies` and the rest are those of the first term, and are read as on its "
        "page."
    )
    failure: ClassVar[str] = (
        PairwiseObjective.failure
        + "\nOne term falls while another rises: they disagree. Lower the weight of the one that matters less, or "
        "leave it out."
        "\nOne term is many times the size of the others: it makes the gradient alone. Bring them together with the "
        "weights."
    )
    examples = PairwiseObjective.examples
    learning_rate: ClassVar[float] = PairwiseObjective.learning_rate
    learning_rate_range: ClassVar[tuple[float, float]] = PairwiseObjective.learning_rate_range

    losses: tuple[Term, ...] = Field(
        default=(
            Term(weight=0.8, spec={"use": "dpo", "sft_weight": 1.25}),
            Term(weight=0.2, spec={"use": "bco_pair"}),
        ),
        min_length=1,
    )
    """Losses with their weights and fields, such as `[{use: dpo, weight: 0.8}, {use: simpo, weight: 0.2}]`; by
    default the paper's."""

    _parts: tuple[Objective, ...] = PrivateAttr(default=())
    _keys: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _create(self) -> Self:
        from truing.objectives.registry import create

        parts = tuple(create(term.spec) for term in self.losses)
        for part in parts:
            if (part.examples, part.reads) != (self.examples, self.reads) or part.looks_ahead or isinstance(part, MPO):
                raise RecipeError(f"objective mpo: '{part.name}' cannot be a term; take losses on single comparisons")
        self._parts = parts
        names = [part.name for part in parts]
        repeats = [names[:place].count(name) for place, name in enumerate(names)]
        self._keys = tuple(f"loss/{name}" + (f"_{n + 1}" if n else "") for name, n in zip(names, repeats, strict=True))
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column for part in self._parts for column in part.needs))

    @property
    def wants_squares(self) -> bool:
        return any(part.wants_squares for part in self._parts)

    def __call__(self, outputs: Outputs, batch: Batch, totals: Totals) -> Share:
        shares = [part(outputs, batch, totals) for part in self._parts]
        weighed = [term.weight * share.loss for term, share in zip(self.losses, shares, strict=True)]
        metrics = dict(shares[0].metrics)
        for key, share in zip(self._keys, shares, strict=True):
            # A share is already divided by the step's pairs: times them it is a sum over this batch's.
            metrics[key] = Metric(share.loss.detach() * totals.pairs, float(batch.num_pairs))
        return Share(_sum(weighed), metrics)

    def start_complaint(self, loss: float, metrics: Mapping[str, float], vocab_size: int) -> str | None:
        parts = zip(self._parts, self._keys, strict=True)
        found = (part.start_complaint(metrics[key], metrics, vocab_size) for part, key in parts)
        return next((complaint for complaint in found if complaint is not None), None)


def _sum(losses: Sequence[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total
