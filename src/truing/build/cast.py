"""Policy, reference, critic and reward models of a rollout stage: adapters over one base, or models of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import Parameter

from truing.build.load_result import result_folder
from truing.build.policy import POLICY, REFERENCE, BuiltPolicy, load_merged
from truing.build.rewards import MICRO_TOKENS, Judged, Seat, build_reward, named_apart
from truing.core.parameters import ParameterGroup
from truing.models.heads import attach_score_head
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE, load_model
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter
from truing.models.lora.settings import AdapterSettings
from truing.models.roles import ActorCritic, AdapterOverBase, FullModel, Role, Trained
from truing.recipe.schema import Stage
from truing.rl.rewards import ModelReward, Reward
from truing.training.progress import Reporter
from truing.training.rollouts import Weighed
from truing.training.shared_rollouts import SharedReward

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
    policy, reference = _policy(stage, built), _reference(stage, built)

    def groups(lr: float) -> list[ParameterGroup]:
        found = built.parameter_groups(lr)
        if value is not None:
            found.append(ParameterGroup(value.parameters(), stage.rollout.value_lr or lr))
        return found

    roles = [policy, reference, *((value.role,) if value is not None else ()), *_scorers(rewards)]
    for role in roles:
        built.company.share(role.model, role.adapters if isinstance(role, AdapterOverBase) else None, built.dtype)
    return Cast(
        policy,
        reference,
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
    parameters: Callable[[], dict[str, Parameter]]
    """Those that it has when asked: cutting a model over ranks makes new ones."""


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
    return _Critic(role, lambda: {f"{VALUE}.{name}": p for name, p in adapters.parameters(VALUE).items()})


def _full_critic(stage: Stage, built: BuiltPolicy) -> _Critic:
    if built.start.adapter is not None:
        loaded = load_merged(built.start, built.dtype, built.company.loads_on, scores=True)
    else:
        loaded = load_model(built.start.model, dtype=built.dtype, device=built.company.loads_on, scores=True)
    _zero(loaded.module.get_submodule(SCORE))
    loaded.module.requires_grad_(True)
    model = LanguageModel(loaded.module, sharing=built.model.sharing)
    if stage.precision.gradient_checkpointing:
        model.enable_checkpointing()
    return _Critic(FullModel(model), lambda: {f"{VALUE}.{name}": p for name, p in loaded.module.named_parameters()})


def _drops(settings: AdapterSettings) -> bool:
    return settings.dropout > 0


def _zero(head: nn.Module) -> None:
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()


def _another(built: BuiltPolicy, *, merged: bool) -> tuple[nn.Module, LanguageModel]:
    """The stage's model once more, with the start's adapter merged into it where the policy has it so."""
    if merged and built.start.adapter is not None:
        loaded = load_merged(built.start, built.dtype, built.company.loads_on)
    else:
        home, storage = built.company.loads_on, built.loaded.storage
        loaded = load_model(built.start.model, dtype=built.dtype, device=home, storage=storage)
    return loaded.module, LanguageModel(loaded.module, sharing=built.model.sharing)


def _rewards(stage: Stage, built: BuiltPolicy) -> tuple[tuple[Weighed, ...], Path | None]:
    """All rewards of the recipe, and the folder of the first that is an adapter over the policy's own base."""
    judged = judged_by(stage, built)
    ranks = built.company.ranks
    found: list[Weighed] = []
    adapted: list[Path] = []
    for settings in stage.rollout.rewards:
        reward: Reward = build_reward(settings, judged, stage.rollout.reward_timeout)
        if ranks.several and isinstance(reward, ModelReward):
            reward = SharedReward(reward, ranks)
        named_apart(reward, [weighed.reward for weighed in found])
        of_model = isinstance(reward, ModelReward | SharedReward)
        normalize = settings.normalize if settings.normalize is not None else of_model
        found.append(Weighed(reward, settings.weight, normalize))
        if of_model:
            adapted += [result_folder(Path(use)) for use in settings.uses if judged.is_over(Path(use))]
    return tuple(found), adapted[0] if adapted else None


def _scorers(rewards: Sequence[Weighed]) -> list[Role]:
    """The models among the rewards."""
    found = [w.reward.reward if isinstance(w.reward, SharedReward) else w.reward for w in rewards]
    return [role for reward in found if isinstance(reward, ModelReward) for role in reward.roles]


def judged_by(stage: Stage, built: BuiltPolicy) -> Judged:
    """What reward models have to know of a stage's policy."""
    shared = built.adapters if stage.rollout.share_base else None
    return Judged(
        built.start.model,
        None if built.merged_start else built.loaded.digest,
        built.loaded.tokenizer,
        None if shared is None else Seat(built.model, shared),
        built.dtype,
        stage.batch.micro_tokens or MICRO_TOKENS,
        built.company.ranks,
        built.loaded.storage,
    )
