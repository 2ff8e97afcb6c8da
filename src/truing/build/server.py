"""Wires a rollout stage that samples on a server: what the server is given, and what it is held to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from truing.build.cast import Cast
from truing.build.policy import POLICY, BuiltPolicy
from truing.core.errors import RecipeError
from truing.core.trees import Tree
from truing.data.packing import pack
from truing.models.lora.peft_format import save_adapter, written_sizes
from truing.models.roles import Role
from truing.recipe.schema import Stage
from truing.rl.completion_server import CompletionServer
from truing.rl.following import Float, FollowingServer, Known
from truing.rl.served_policy import ServedAdapter, ServedModel, ServedPolicy, Weights
from truing.rl.server_settings import PolicyServerSettings
from truing.training.disk import on_disk

if TYPE_CHECKING:
    from truing.build.stage import Assembled

FOLDER = "served"


def check_server(stage: Stage, built: BuiltPolicy) -> None:
    """Refuse what a vLLM server cannot sample with, or would sample with otherwise than it was trained."""
    if stage.rollout.server is None:
        return
    if built.company.ranks.several:
        raise RecipeError(
            "rollout.server: one process alone gives a server its weights, and this run has several; start it without "
            "--nproc or torchrun, or leave the server out: the processes then write the completions themselves"
        )
    if built.adapters is None:
        return
    settings = built.adapters.settings(POLICY)
    if built.merged_start:
        raise RecipeError(
            "rollout.server: the adapter that this stage starts from is merged into the base in memory, and a server "
            "has no such base; give adapter.between_stages: continue, or merge it first (truing merge) and give the "
            "result as `model`"
        )
    if settings.dora or settings.modules_to_save:
        what = "adapter.dora" if settings.dora else "adapter.modules_to_save"
        raise RecipeError(f"rollout.server: vLLM serves no adapter with {what}; leave it out, or sample in process")
    sizes = sorted(written_sizes(built.adapters, POLICY))
    if len(sizes) > 1:
        listed = ", ".join(f"{rank} with alpha {alpha:g}" for rank, alpha in sizes)
        raise RecipeError(
            f"rollout.server: the layers of the adapter have several ranks ({listed}), and vLLM would scale all alike; "
            "start from an adapter of one rank, or sample in process"
        )


def following(settings: PolicyServerSettings, ready: Assembled, cast: Cast, run: Path) -> FollowingServer:
    """The engine of a stage whose recipe names a server."""
    built = ready.built
    server = CompletionServer(settings, built.loaded.tokenizer, built.loaded.end_tokens)
    if settings.folder is not None:
        folder = Path(settings.folder)
    else:
        folder = run / FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # what a run that was killed left there
    return FollowingServer(
        server,
        _served(server, built, folder, settings.seen_as),
        lambda trees: _known(trees, ready, cast),
        settings.logprob_gap,
    )


def _served(server: CompletionServer, built: BuiltPolicy, folder: Path, seen_as: str | None) -> ServedPolicy:
    adapters = built.adapters
    if adapters is None:
        parameters = list(built.loaded.module.parameters())
        return ServedModel(server, Weights(parameters, _guarded(built.model.save)), folder, seen_as)

    def write(target: Path) -> None:
        save_adapter(adapters, POLICY, target, base_model=built.start.model)

    ((rank, _),) = written_sizes(adapters, POLICY)
    weights = Weights(list(adapters.parameters(POLICY).values()), _guarded(write))
    return ServedAdapter(server, weights, folder, seen_as, rank=rank)


def _guarded(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, with a sentence where the disk refuses."""

    def guarded(target: Path) -> None:
        with on_disk(target):
            write(target)

    return guarded


@torch.no_grad()
def _known(trees: Sequence[Tree], ready: Assembled, cast: Cast) -> Known:
    """Log-probs of trees at temperature 1, in their order."""
    built, micro_tokens = ready.built, ready.stage.batch.micro_tokens
    assert micro_tokens is not None  # filled in when the stage was assembled
    shared = built.model.sharing == "tree"
    groups = pack([tree.size if shared else tree.unshared_size for tree in trees], micro_tokens)
    order = np.argsort([row for group in groups for row in group])

    def logprobs(role: Role) -> Float:
        found: list[Float] = []
        for group in groups:
            micro = [trees[row] for row in group]
            flat = role.at(1.0).outputs(built.model.collate(micro)).logprobs.double().cpu().numpy()
            ends = np.cumsum([sum(len(one.tokens) for one in tree.completions) for tree in micro])
            found += np.split(flat, ends[:-1])
        return np.concatenate([found[place] for place in order])

    return Known(logprobs(cast.policy), logprobs(cast.reference))
