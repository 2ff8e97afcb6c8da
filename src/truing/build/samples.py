"""Completions of fixed prompts over the course of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truing.build.policy import POLICY, BuiltPolicy
from truing.data.dataset import Dataset
from truing.data.encoding import encode_prompts
from truing.data.examples import Message, Words
from truing.models.decoding import Choice
from truing.models.sampling import sample
from truing.recipe.schema import Stage
from truing.training.settings import SampleSettings


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Completes the same prompts each time it is asked."""

    built: BuiltPolicy
    prompts: tuple[list[int], ...]
    settings: SampleSettings
    seed: int

    @classmethod
    def of(cls, built: BuiltPolicy, dataset: Dataset, stage: Stage) -> Sampler | None:
        """Take the recipe's prompts, else the first ones of the held-out rows, else of the training rows."""
        settings = stage.samples
        if settings.prompts:
            own = encode_prompts(
                [_asked(text, dataset) for text in settings.prompts],
                built.loaded.tokenizer,
                dataset.template,
                built.loaded.end_tokens,
            )
            return cls(built, tuple(own), settings, stage.seed)
        trees = (dataset.held_out or dataset.train)[: settings.count]
        room = (built.model.max_positions or 1 << 30) - settings.max_new_tokens
        prompts = tuple(tree.prompt.tolist() for tree in trees if len(tree.prompt) <= room)
        return cls(built, prompts, settings, stage.seed) if prompts else None

    def __call__(self, step: int) -> Sequence[Mapping[str, Any]]:
        """Return one row of samples.jsonl for each prompt."""
        if self.built.adapters is None:
            answers = self._answers()
        else:
            with self.built.adapters.use(POLICY):
                answers = self._answers()
        decode = self.built.loaded.tokenizer.decode
        ends = self.built.loaded.end_tokens
        return [
            {
                "step": step,
                "prompt": decode(prompt, skip_special_tokens=True),
                "completion": decode(answer, skip_special_tokens=True),
                "tokens": len(answer),
                "ended": bool(answer) and answer[-1] in ends,
            }
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]

    def _answers(self) -> list[list[int]]:
        written = sample(
            self.built.model,
            self.prompts,
            max_new_tokens=self.settings.max_new_tokens,
            choice=Choice(self.settings.temperature, self.settings.top_k, self.settings.top_p),
            seed=self.seed,
            end_tokens=self.built.loaded.end_tokens,
        )
        return [rows[0].tokens.tolist() for rows in written]


def _asked(text: str, dataset: Dataset) -> Words:
    """A prompt of the recipe: a user's turn where there is a template, else the text itself."""
    return text if dataset.template.source is None else (Message("user", text),)
