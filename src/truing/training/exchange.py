"""What an objective looks ahead at, from all ranks: the parts of batches that it reads, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from truing.core.batch import Batch, Layout, Outputs
from truing.training.ranks import Ranks

READ = ("targets", "target_completion", "completion_tree", "pairs", "margins", "labels")
"""Fields of a batch that say something about its completions, rather than how a model computes them."""


def everyones(
    ranks: Ranks, outputs: Sequence[Outputs], batches: Sequence[Batch]
) -> tuple[list[Outputs], list[Batch], slice]:
    """The log-probs and batches of all ranks, in their order, and where this rank's are among them.

    The batches have no tokens: they serve objectives, which never look at those.
    """
    own: dict[str, Tensor] = {}
    for number, (out, batch) in enumerate(zip(outputs, batches, strict=True)):
        own |= {f"{number}.field.{name}": getattr(batch, name) for name in READ}
        own |= {f"{number}.column.{name}": column for name, column in batch.columns.items()}
        own[f"{number}.counts"] = torch.tensor(batch.target_counts, dtype=torch.int64)
        own[f"{number}.logprobs"] = out.logprobs
    parts = ranks.gathered(own)
    sizes = [sum(name.endswith(".counts") for name in part) for part in parts]
    read = [_read(part, number) for part, size in zip(parts, sizes, strict=True) for number in range(size)]
    start = sum(sizes[: ranks.rank])
    return [out for out, _ in read], [batch for _, batch in read], slice(start, start + len(batches))


def _read(part: Mapping[str, Tensor], number: int) -> tuple[Outputs, Batch]:
    nothing = torch.zeros(0, dtype=torch.int64)
    fields = {name: part[f"{number}.field.{name}"] for name in READ}
    prefix = f"{number}.column."
    batch = Batch(
        tokens=nothing,
        positions=nothing,
        layout=Layout((), 0),
        predictors=nothing,
        target_counts=tuple(part[f"{number}.counts"].tolist()),
        digests=(),
        origins=(),
        columns={name.removeprefix(prefix): value for name, value in part.items() if name.startswith(prefix)},
        **fields,
    )
    return Outputs(part[f"{number}.logprobs"]), batch
