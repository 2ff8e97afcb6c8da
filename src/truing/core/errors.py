"""Every error that truing raises on purpose, and the exit code that each becomes.

    TruingError
    ├── InputError         2  what the user gave is wrong; the message names file, row or key, and the remedy
    │   ├── RecipeError       a recipe or a command-line override
    │   ├── DataError         a data file or a row of one
    │   ├── TemplateError     a chat template
    │   ├── ModelError        a model or tokenizer folder
    │   ├── AdapterError      an adapter folder, or targets that match nothing
    │   ├── RewardError       a reward function or a reward model
    │   └── RunError          a run directory
    ├── GuardError         3  the run was stopped rather than let it do harm
    │   ├── PreflightFailed   an invariant did not hold before the first update
    │   ├── NothingToTrain    no supervised token, no trainable parameter
    │   ├── NonFinite         a loss or gradient that is not a number
    │   ├── Unhealthy         a figure left its range, and the recipe says to stop then
    │   ├── OffPolicy         a completion server samples from other weights than the policy's
    │   └── ParityFailed      what was saved does not answer as what was trained
    └── MachineError       4  disk, memory, permissions, a server that fails
        └── OutOfMemory       memory has run out; the message says in what, and what would need less

A traceback is never the answer to bad input: the command line prints the message alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TruingError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(TruingError):
    """The user's recipe, data, model or arguments are wrong."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe or a command-line override is wrong."""


class DataError(InputError):
    """A data file, or a row of it, cannot be used."""


class TemplateError(InputError):
    """A chat template is missing or cannot be rendered."""


class ModelError(InputError):
    """A model or tokenizer folder cannot be used."""


class AdapterError(InputError):
    """An adapter folder cannot be used, or its targets match nothing."""


class RewardError(InputError):
    """A reward function does not do what one has to, or a reward model does not fit the policy."""


class RunError(InputError):
    """A run directory is in use, missing, or not one."""


class GuardError(TruingError):
    """The run was stopped rather than let it do harm."""

    exit_code = 3


class PreflightFailed(GuardError):
    """An invariant that must hold before the first update does not."""


class NothingToTrain(GuardError):
    """There is no supervised token or no trainable parameter."""


class NonFinite(GuardError):
    """A loss or a gradient is not a finite number, several steps in a row."""


class Unhealthy(GuardError):
    """A figure of the run left its healthy range, and the recipe's guards say to stop then."""


class OffPolicy(GuardError):
    """A server that should sample from the policy samples from other weights."""


class ParityFailed(GuardError):
    """What was saved does not answer as what was trained."""


class MachineError(TruingError):
    """The disk, the memory, a permission or a server failed."""

    exit_code = 4


class OutOfMemory(MachineError):
    """Memory ran out while a model was loaded or trained."""


class Stopped(TruingError):
    """Ctrl-C asked the run to end; what was done is saved. The code is a shell's: 128 and the signal's number."""

    exit_code = 130


class Terminated(Stopped):
    """SIGTERM asked the run to end; what was done is saved."""

    exit_code = 143


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or the list of known words.

    >>> suggest("lerning_rate", ["learning_rate", "steps"])
    "; did you mean 'learning_rate'?"
    >>> suggest("zzz", ["b", "a"])
    '; known: a, b'
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
