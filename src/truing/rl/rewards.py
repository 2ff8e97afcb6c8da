"""What scores completions: a user's Python function, or reward models."""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from truing.core.batch import Batch
from truing.core.ensemble import ensemble_score
from truing.core.errors import RewardError
from truing.core.text import harmless
from truing.core.trees import Tree
from truing.models.roles import Role

Turns = list[dict[str, str]]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Completions to be scored, flat, in the order of their trees; N prompts with n completions each."""

    prompts: Sequence[str | Turns]
    """Of each completion: its prompt as the row has it, text or a list of {role, content}."""
    completions: Sequence[str]
    """Decoded, without special tokens."""
    columns: Mapping[str, Sequence[Any]]
    """Every other column of the prompts' rows, a value a completion; None where a row has none."""
    trees: Sequence[Tree]
    """The same as tokens, a tree a prompt."""


class Reward(Protocol):
    """Scores completions; higher is better."""

    name: str
    """What metrics call it."""

    def __call__(self, answers: Answers) -> list[float]:
        """Return one finite number a completion; raise RewardError where that cannot be."""
        ...

    def close(self) -> None:
        """Let go of processes."""
        ...


@dataclass(frozen=True, slots=True)
class Keys:
    """What messages call the places where a reward was asked for."""

    rewards: str
    timeout: str
    """Where its time limit can be changed."""
    stages: bool = False
    """Whether a reward can be the name of an earlier stage."""


IN_RECIPE = Keys("rollout.rewards", "rollout.reward_timeout", stages=True)


class FunctionReward:
    """`fn(prompts, completions, **columns) -> list[float]` of a user's file, called in a process of its own."""

    def __init__(self, spec: str, timeout: float, keys: Keys = IN_RECIPE) -> None:
        file, _, function = spec.rpartition(":")
        path = Path(file)
        if not path.is_file():
            raise RewardError(f"{keys.rewards}: there is no file '{file}'; write it as ./rewards.py:fn")
        self.spec, self.name, self._timeout, self._keys = spec, function, timeout, keys
        self._process = subprocess.Popen(
            [sys.executable, "-m", "truing.rl.reward_worker", str(path), function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            start_new_session=True,  # Ctrl-C is for the run, which needs this one until its step is made
        )
        self._left = b""
        self._answer("importing it")

    def __call__(self, answers: Answers) -> list[float]:
        asked = {"prompts": answers.prompts, "completions": answers.completions, "columns": answers.columns}
        line = (json.dumps(asked) + "\n").encode()
        # A function that hangs does not read either, and a full pipe would make this process hang with it.
        threading.Thread(target=self._write, args=(line,), daemon=True).start()
        found = self._answer(f"scoring {len(answers.completions)} completions").get("rewards")
        return checked(found, answers, f"{self._keys.rewards}: {self.spec}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # the answer says what happened

    def _answer(self, doing: str) -> dict[str, Any]:
        """The next line that the process writes, within the time limit."""
        assert self._process.stdout is not None
        ends = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._left:
                if not selector.select(max(0.0, ends - time.monotonic())):
                    self.close()
                    raise RewardError(
                        f"{self._keys.rewards}: {self.spec} did not return within {self._timeout:g} s while {doing}; "
                        f"make it faster, or raise {self._keys.timeout}"
                    )
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise RewardError(f"{self._keys.rewards}: the process of {self.spec} ended while {doing}")
                self._left += piece
        line, _, self._left = self._left.partition(b"\n")
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            self.close()
            raise RewardError(f"{self._keys.rewards}: {harmless(content['error'])}")
        return content


def checked(found: Any, answers: Answers, who: str) -> list[float]:
    """Return what a reward gave as finite numbers, or say what is wrong with it and with which completion."""
    if isinstance(found, Mapping):
        raise RewardError(f"{who} returned a {found.get('type')}; expected a list with one number a completion")
    if len(found) != len(answers.completions):
        raise RewardError(
            f"{who} returned {len(found)} numbers for {len(answers.completions)} completions; expected one for each"
        )
    for index, value in enumerate(found):
        if not isinstance(value, float) or not math.isfinite(value):
            text = harmless(repr(answers.completions[index])[:80])
            raise RewardError(
                f"{who} returned {value} for completion {index} ({text}); expected a finite number, such as 0.0 where "
                "there is nothing to say"
            )
    return list(found)


@dataclass(slots=True, eq=False)
class ModelReward:
    """The score of a reward model at a completion's last token, or of several, together as an ensemble."""

    name: str
    roles: tuple[Role, ...]
    deviations: float
    """How many standard deviations between the members are taken off their mean."""
    batches: Callable[[Sequence[Tree]], Iterable[tuple[Sequence[int], Batch]]]
    """Packs trees: which of them, and their batch."""

    def __call__(self, answers: Answers) -> list[float]:
        starts = [0]
        for tree in answers.trees:
            starts.append(starts[-1] + len(tree.completions))
        scores = torch.zeros(len(self.roles), starts[-1], dtype=torch.float64)
        for indices, batch in self.batches(answers.trees):
            where = [place for index in indices for place in range(starts[index], starts[index + 1])]
            for member, role in enumerate(self.roles):
                with torch.no_grad():
                    scores[member, where] = role.scores(batch).double().cpu()
        found: list[float] = ensemble_score(scores, self.deviations).tolist()
        return checked(found, answers, f"reward model {self.name}")

    def close(self) -> None:
        """Nothing to let go of."""
