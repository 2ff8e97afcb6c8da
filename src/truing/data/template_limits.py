"""What a chat template may take: time, memory, and text. It comes with a model, and a model may come from anybody.

The sandbox that transformers renders in keeps a template away from Python, not from eating the machine.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from truing.core.errors import TemplateError

SECONDS = 5.0
"""For one conversation, which takes a ten-thousandth of it."""
MEMORY = 2**30
"""Bytes beyond those that the process has when it begins."""
GROWTH, FREE_TEXT = 100, 2**20
"""A text may be so many times as long as its conversation, beyond so many characters."""
TOO_LARGE = "takes over 1 GiB of memory for one conversation"
TOO_SLOW = f"takes over {SECONDS:g} s for one conversation"


class TooCostly(TemplateError):
    """A template took more than it may, and would again with the next conversation."""


class _TooSlow(Exception):
    """Raised by the alarm, in the middle of a template."""


class _GenerationTag(Extension):
    """Parses transformers' own tag, which marks what the assistant says, as what it holds."""

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse_costly_numbers(source: str, name: str) -> None:
    """Raise TemplateError for arithmetic that can take for ever inside of one operation, where no alarm is heard.

    That is a power, and a product of two numbers that are both computed: no chat template needs either.
    """
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols", _GenerationTag]).parse(source)
    except (TemplateSyntaxError, RecursionError, ValueError, OverflowError):
        return  # rendering parses it in the same way, and says so in its own words
    for node in tree.find_all((nodes.Pow, nodes.Mul, nodes.Filter)):
        computed = isinstance(node, nodes.Mul) and not any(
            isinstance(side, nodes.Const) for side in (node.left, node.right)
        )
        if isinstance(node, nodes.Pow) or computed or (isinstance(node, nodes.Filter) and node.name == "round"):
            what = {"Pow": "a power", "Mul": "a product of two computed numbers"}.get(type(node).__name__, "'round'")
            raise TemplateError(
                f"template '{name}', line {node.lineno}: {what} can take for ever, and no chat template needs it"
            )


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooCostly where what happens inside takes too long or too much memory.

    The alarm is heard in the main thread only, where all rows are rendered. The limit of memory is the process's own,
    for that moment; systems that do not know their size have none.
    """
    before = _limit_memory()
    main = threading.current_thread() is threading.main_thread()
    try:
        if main:
            handler = signal.signal(signal.SIGALRM, _too_slow)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        finally:
            if main:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, handler)
    except _TooSlow:
        raise TooCostly(TOO_SLOW) from None
    except MemoryError:
        raise TooCostly(TOO_LARGE) from None
    finally:
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)


def check_length(text: str, conversation: int) -> None:
    """Raise TooCostly where a text is far longer than a conversation of so many characters."""
    if len(text) > max(FREE_TEXT, GROWTH * conversation):
        raise TooCostly(f"makes {len(text):,} characters of a conversation of {conversation:,}")


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def _limit_memory() -> tuple[int, int] | None:
    """Let the process grow by so much only; returns the limit before."""
    size = Path("/proc/self/statm")
    if not size.exists():
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(size.read_bytes().split()[0]) * resource.getpagesize() + MEMORY
    if (soft != resource.RLIM_INFINITY and soft <= limit) or (hard != resource.RLIM_INFINITY and hard <= limit):
        return None
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return soft, hard
