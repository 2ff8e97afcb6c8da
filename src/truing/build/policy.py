"""The model of a stage: base and adapter as the stage finds them, and the frozen start to compare with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from truing.build.company import Company, choose_shard
from truing.build.environment import choose_device, choose_dtype, widths_of
from truing.core.errors import AdapterError, NothingToTrain
from truing.core.parameters import ParameterGroup
from truing.models.calibration import Calibration, apply, calibrate, fixed
from truing.models.language_model import LanguageModel
from truing.models.loading import SCORE, LoadedModel, load_model
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_format import load_adapter
from truing.models.lora.settings import AdapterSettings
from truing.models.nf4 import Storage, storage_of
from truing.models.roles import AdapterOverBase, FullModel, Role
from truing.models.selfcheck import SelfCheck, self_check
from truing.recipe.schema import Stage
from truing.training.manifest import file_digest
from truing.training.progress import Reporter
from truing.training.ranks import ALONE, Ranks

POLICY, REFERENCE = "policy", "reference"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stage begins: a model folder or hub id, and an adapter folder over it."""

    model: str
    adapter: Path | None = None

    def digest(self, model_digest: str, storage: Storage) -> str:
        """Identify the weights a stage begins with: packed ones answer otherwise than those they were made of."""
        parts = [model_digest if storage is None else f"{model_digest}/{storage}"]
        if self.adapter is not None:
            parts.append(file_digest(self.adapter / "adapter_model.safetensors"))
        return "+".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class BuiltPolicy:
    """The policy of a stage and all that stands around it."""

    start: Start
    loaded: LoadedModel
    model: LanguageModel
    adapters: Adapters | None
    policy: Role
    reference: Role
    check: SelfCheck
    calibration: Calibration
    device: torch.device
    dtype: torch.dtype
    merged_start: bool
    """Whether the adapter that the stage started from was merged into the base in memory."""
    company: Company

    @property
    def start_digest(self) -> str:
        return self.start.digest(self.loaded.digest, self.loaded.storage)

    def parameter_groups(self, lr: float) -> list[ParameterGroup]:
        """Return what is trained, at which peak rate."""
        if self.adapters is not None:
            return list(self.adapters.parameter_groups(POLICY, lr))
        named = {name: p for name, p in self.loaded.module.named_parameters() if p.requires_grad}
        if not named:
            raise NothingToTrain(f"{self.start.model} has no trainable parameter")
        return [ParameterGroup(named, lr)]


def build_policy(
    stage: Stage,
    start: Start,
    calibration: Calibration | None,
    reporter: Reporter,
    *,
    scores: bool = False,
    moving: bool = False,
    ranks: Ranks = ALONE,
) -> BuiltPolicy:
    """Load the stage's model on its device, in its precision, with its adapter in place.

    With `scores` it is a reward model, and its head is trained beside the adapter. With `moving` the reference is an
    adapter even where the stage begins from the base, so that it can follow the policy.
    `calibration` is that of the interrupted run when one is resumed, so that numbers come out the same.
    """
    device = choose_device(stage.device, ranks.local if ranks.several else None)
    calibration = calibration or _calibrated(device, start, ranks)
    if stage.precision.matmul != "auto":
        calibration = fixed(calibration, stage.precision.matmul)
    apply(calibration)
    dtype = choose_dtype(stage, start.model, device, calibration)
    merged = start.adapter is not None and (stage.adapter is None or stage.adapter.between_stages == "merge")
    storage = storage_for(stage.adapter)
    home = torch.device("cpu") if ranks.several and storage is None else device
    if merged:
        loaded = load_merged(start, dtype, home, scores=scores)
    else:
        loaded = load_model(start.model, dtype=dtype, device=home, scores=scores, storage=storage)
    company = Company(device, ranks, choose_shard(stage, ranks, device, loaded.module))
    loaded.module.to(company.loads_on)
    check = self_check(loaded.module)
    if check.sharing != "tree" or check.slowed:
        reporter.warn(check.sentence)
    model = LanguageModel(loaded.module, sharing=check.sharing)
    torch.manual_seed(stage.seed)
    begun = None if merged else start.adapter
    adapters = _adapters(stage, begun, loaded, (SCORE,) if scores else (), reporter)
    if stage.precision.gradient_checkpointing:
        model.enable_checkpointing(adapters.checkpoint_contexts if adapters is not None else None)
    if adapters is None:
        role: Role = FullModel(model)
        return BuiltPolicy(start, loaded, model, None, role, role, check, calibration, device, dtype, merged, company)
    if moving and REFERENCE not in adapters.names:
        adapters.copy(POLICY, REFERENCE)
    frozen = REFERENCE if REFERENCE in adapters.names else None
    return BuiltPolicy(
        start,
        loaded,
        model,
        adapters,
        AdapterOverBase(model, adapters, POLICY, drops=adapters.settings(POLICY).dropout > 0),
        AdapterOverBase(model, adapters, frozen),
        check,
        calibration,
        device,
        dtype,
        merged,
        company,
    )


def _calibrated(device: torch.device, start: Start, ranks: Ranks) -> Calibration:
    """What suits this machine, timed by one rank for all."""
    return Calibration(**ranks.from_first(asdict(calibrate(device, widths_of(start.model))) if ranks.first else None))


def storage_for(settings: AdapterSettings | None) -> Storage:
    """How a stage keeps its base: weights that are all trained are never packed."""
    return None if settings is None else settings.base


def _adapters(
    stage: Stage, begun: Path | None, loaded: LoadedModel, heads: tuple[str, ...], reporter: Reporter
) -> Adapters | None:
    """Put the policy adapter in place, and the frozen copy of it where the stage did not begin from the base.

    `begun` is the folder of the adapter that it continues; `heads` are modules that it trains whole, whatever the
    recipe says.
    """
    settings = stage.adapter
    if settings is not None and heads:
        settings = settings.model_copy(
            update={"modules_to_save": tuple(dict.fromkeys((*settings.modules_to_save, *heads)))}
        )
    if settings is None:
        loaded.module.requires_grad_(True)
        return None
    loaded.module.requires_grad_(False)
    adapters = Adapters(loaded.module)
    if begun is None:
        summary = adapters.add(POLICY, settings, seed=stage.seed)
    else:
        summary = load_adapter(adapters, POLICY, begun, training=settings, also_saved=heads)
        _refuse_other_shape(settings, adapters.settings(POLICY), begun)
        if storage_of(begun) != loaded.storage:
            reporter.warn(_other_storage(begun, loaded.storage))
        if not heads:  # a reward model is compared with nothing
            adapters.copy(POLICY, REFERENCE)
        adapters.set_trainable(POLICY, True)
    for note in summary.notes:
        reporter.say(f"  {note}")
    adapters.switch(POLICY)
    return adapters


def load_merged(start: Start, dtype: torch.dtype, device: torch.device, *, scores: bool = False) -> LoadedModel:
    """Load a start with its adapter written into the weights: of a 4-bit base, into what it was trained over."""
    assert start.adapter is not None
    storage = storage_of(start.adapter)
    loaded = load_model(start.model, dtype=dtype, device=device, scores=scores, storage=storage)
    adapters = Adapters(loaded.module)
    load_adapter(adapters, "start", start.adapter)
    adapters.merge("start")
    adapters.unload()
    return replace(loaded, storage=None)


def _other_storage(folder: Path, storage: Storage) -> str:
    then, now = ("nf4", "left out") if storage is None else ("left out", storage)
    return (
        f"adapter.base is {now}, but {folder} was trained with adapter.base {then}: over the other base it answers a "
        "little otherwise, and this stage begins, and is compared, with that"
    )


def _refuse_other_shape(asked: AdapterSettings, found: AdapterSettings, folder: Path) -> None:
    """A stage that asks for another adapter than the one it continues would silently train the old shape."""
    for name, wanted, have in (
        ("rank", asked.rank, found.rank),
        ("alpha", asked.effective_alpha, found.effective_alpha),
        ("rslora", asked.rslora, found.rslora),
        ("dora", asked.dora, found.dora),
    ):
        if wanted != have and name in asked.model_fields_set | {"rank"}:
            raise AdapterError(
                f"adapter.{name} is {wanted}, but the adapter this stage continues ({folder}) has {have}; "
                "give the same, or adapter.between_stages: merge to fold it into the base and begin a new one"
            )
