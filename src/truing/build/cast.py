"""Policy, reference, critic and reward models of a rollout stage: adapters over one base, or models of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import Parameter

from truing.build.load_result import RESULT, adapter_base, check_same_vocabulary, open_scorer, result_folder
from truing.build.policy import POLICY, REFERENCE, BuiltPolicy, merge_start
from truing.core.batch import Batch
from truing.core.parameters import ParameterGroup
from truing.core.trees import Tree
from truing.data.packing import pack
from truing.models.heads import attach_score_head
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE, load_model, model_digest
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter
from truing.models.lora.settings import AdapterSettings
from truing.models.roles import ActorCritic, AdapterOverBase, FullModel, Role, Trained
from truing.recipe.schema import Stage
from truing.rl.rewards import FunctionReward, ModelReward, Reward
from truing.rl.settings import RewardSettings
from truing.training.progress import Reporter
from truing.training.rollouts import Weighed

VALUE = "value"


@dataclass(frozen=True, slots=True, eq=False)
class Cast:
    """Everyone who computes in a rollout stage."""

    policy: Role
    """At the sampling temperature."""
    reference: Role
    value: Role | None
    rewards: tuple[Weighed, ...]
    groups: Callable[[float], list[ParameterGroup]]
    """What is trained, for a peak rate of the policy."""

    @property
    def trained(self) -> Trained:
        """What the trainer moves."""
        return self.policy if self.value is None else ActorCritic(self.policy, self.value)


def build_cast(stage: Stage, built: BuiltPolicy, *, criticised: bool, reporter: Reporter) -> Cast:
    """Load whoever is not there yet."""
    rewards, adapted = _rewards(stage, built)
    value = _value(stage, built, adapted, reporter) if criticised else None

    def groups(lr: float) -> list[ParameterGroup]:
        found = built.parameter_groups(lr)
        if value is not None:
            found.append(ParameterGroup(value.parameters, stage.rollout.value_lr or lr))
        return found

    return Cast(
        _policy(stage, built),
        _reference(stage, built),
        None if value is None else value.role,
        rewards,
        groups,
    )


def _policy(stage: Stage, built: BuiltPolicy) -> Role:
    temperature = stage.rollout.temperature
    if built.adapters is None:
        return FullModel(built.model, temperature)
    drops = built.adapters.settings(POLICY).dropout > 0
    return AdapterOverBase(built.model, built.adapters, POLICY, drops, temperature)


def _reference(stage: Stage, built: BuiltPolicy) -> Role:
    temperature = stage.rollout.temperature
    if built.adapters is not None and stage.rollout.share_base:
        frozen = REFERENCE if REFERENCE in built.adapters.names else None
        return AdapterOverBase(built.model, built.adapters, frozen, temperature=temperature)
    module, model = _another(built, merged=built.adapters is None or built.merged_start)
    module.requires_grad_(False)
    if built.adapters is None or built.merged_start or built.start.adapter is None:
        return FullModel(model, temperature)
    adapters = Adapters(module)
    load_adapter(adapters, REFERENCE, built.start.adapter)
    adapters.set_trainable(REFERENCE, False)
    return AdapterOverBase(model, adapters, REFERENCE, temperature=temperature)


@dataclass(frozen=True, slots=True, eq=False)
class _Critic:
    role: Role
    parameters: dict[str, Parameter]


def _value(stage: Stage, built: BuiltPolicy, reward: Path | None, reporter: Reporter) -> _Critic:
    """The critic: layers of the reward model or of the policy as it starts, and a head of zeros.

    `reward` is the folder of a reward adapter over the same base, if there is one.
    """
    asked = stage.rollout.value_start
    start = reward if reward is not None and asked != "policy" else built.start.adapter
    if asked == "reward" and reward is None:
        reporter.warn("rollout.value_start: reward, but no reward model is an adapter over this base; the policy it is")
    if built.adapters is None:
        return _full_critic(stage, built)
    if stage.rollout.share_base:
        module: nn.Module = built.loaded.module
        model, adapters = built.model, built.adapters
    else:
        module, model = _another(built, merged=built.merged_start)
        module.requires_grad_(False)
        attach_score_head(model.module, SCORE)
        adapters = Adapters(model.module)
    attach_score_head(model.module, SCORE)
    settings = stage.adapter
    assert settings is not None  # there are adapters
    if start is None or (built.merged_start and start == built.start.adapter):
        own = settings.model_copy(update={"modules_to_save": tuple(dict.fromkeys((*settings.modules_to_save, SCORE)))})
        adapters.add(VALUE, own, seed=stage.seed + 1)
    else:
        load_adapter(adapters, VALUE, start, training=settings, also_saved=(SCORE,))
    adapters.set_trainable(VALUE, True)
    _zero(adapters.saved_modules(VALUE)[SCORE])
    if stage.precision.gradient_checkpointing and model is not built.model:
        model.enable_checkpointing(adapters.checkpoint_contexts)
    role = AdapterOverBase(model, adapters, VALUE, _drops(adapters.settings(VALUE)))
    return _Critic(role, {f"{VALUE}.{name}": p for name, p in adapters.parameters(VALUE).items()})


def _full_critic(stage: Stage, built: BuiltPolicy) -> _Critic:
    loaded = load_model(built.start.model, dtype=built.dtype, device=built.device, scores=True)
    if built.start.adapter is not None:
        merge_start(loaded, built.start.adapter)
    _zero(loaded.module.get_submodule(SCORE))
    loaded.module.requires_grad_(True)
    model = LanguageModel(loaded.module, sharing=built.model.sharing)
    if stage.precision.gradient_checkpointing:
        model.enable_checkpointing()
    return _Critic(FullModel(model), {f"{VALUE}.{name}": p for name, p in loaded.module.named_parameters()})


def _drops(settings: AdapterSettings) -> bool:
    return settings.dropout > 0


def _zero(head: nn.Module) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()


def _another(built: BuiltPolicy, *, merged: bool) -> tuple[nn.Module, LanguageModel]:
    """The stage's model once more, with the start's adapter merged into it where the policy has it so."""
    loaded = load_model(built.start.model, dtype=built.dtype, device=built.device)
    if merged and built.start.adapter is not None:
        merge_start(loaded, built.start.adapter)
    return loaded.module, LanguageModel(loaded.module, sharing=built.model.sharing)


def _rewards(stage: Stage, built: BuiltPolicy) -> tuple[tuple[Weighed, ...], Path | None]:
    """All rewards of the recipe, and the folder of the first that is an adapter over the policy's own base."""
    found: list[Weighed] = []
    adapted: list[Path] = []
    for settings in stage.rollout.rewards:
        if ".py:" in settings.uses[0]:
            reward: Reward = FunctionReward(settings.uses[0], stage.rollout.reward_timeout)
        else:
            reward = _model_reward(settings, stage, built, adapted)
        normalize = settings.normalize if settings.normalize is not None else isinstance(reward, ModelReward)
        found.append(Weighed(_named_apart(reward, found), settings.weight, normalize))
    return tuple(found), adapted[0] if adapted else None


def _named_apart(reward: Reward, others: Sequence[Weighed]) -> Reward:
    names = {weighed.reward.name for weighed in others}
    base, number = reward.name, 2
    while reward.name in names:
        reward.name = f"{base}-{number}"
        number += 1
    return reward


def _model_reward(settings: RewardSettings, stage: Stage, built: BuiltPolicy, adapted: list[Path]) -> ModelReward:
    roles: list[Role] = []
    remedy = "a reward model reads the policy's token ids, so train it from the same base"
    for use in settings.uses:
        path = Path(use)
        check_same_vocabulary(path, built.loaded.tokenizer, built.start.model, remedy)
        if stage.rollout.share_base and built.adapters is not None and _same_base(path, built):
            attach_score_head(built.model.module, SCORE)
            name = f"reward{sum(n.startswith('reward') for n in built.adapters.names)}"
            load_adapter(built.adapters, name, result_folder(path))
            built.adapters.set_trainable(name, False)
            roles.append(AdapterOverBase(built.model, built.adapters, name))
            adapted.append(result_folder(path))
            continue
        opened = open_scorer(path, built.dtype)
        opened.loaded.module.requires_grad_(False)
        if opened.adapters is None:
            roles.append(FullModel(opened.model))
        else:
            roles.append(AdapterOverBase(opened.model, opened.adapters, RESULT))
            if _same_base(path, built):
                adapted.append(result_folder(path))
    capacity = stage.batch.micro_tokens or 4096

    def batches(trees: Sequence[Tree]) -> Iterator[tuple[Sequence[int], Batch]]:
        model = roles[0].model
        shared = model.sharing == "tree"
        for rows in pack([tree.size if shared else tree.unshared_size for tree in trees], capacity):
            yield rows, model.collate([trees[row] for row in rows])

    return ModelReward(_short(settings.uses[0]), tuple(roles), settings.deviations, batches)


def _short(use: str) -> str:
    """A name for metrics: of `runs/chain/2-reward/final`, `2-reward`."""
    parts = [part for part in Path(use).parts if part != "final"]
    return parts[-1] if parts else use


def _same_base(path: Path, built: BuiltPolicy) -> bool:
    base = adapter_base(path)
    if base is None or built.merged_start:
        return False
    return base == built.start.model or model_digest(base) == built.loaded.digest
