"""Chat templates: messages → text, through the sandbox that transformers renders its own templates in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from truing.core.errors import TemplateError, suggest
from truing.data.examples import Message, Messages, Words
from truing.data.template_limits import TooCostly, check_length, limited, refuse_costly_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("alpaca", "chatml", "gemma", "llama3", "plain", "transcript")
"""The templates that come along, in `chat/`."""

MAX_SOURCE = 2**18
"""Bytes of a template file; the longest in use are about a tenth of this."""

REFUSALS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What rendering raises: the template's own refusal, or that of Python to do what it asks for."""

REMEDY = "name one in the recipe: 'template: chatml', 'template: plain', or a Jinja file"


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text, and whether its tokens are trained."""

    text: str
    supervised: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template bound to the tokenizer whose special tokens it renders."""

    name: str
    source: str | None
    """The Jinja text, to be saved beside the model; None where the tokenizer has none and none was named."""
    wraps_text: bool
    """True where raw prompt and completion texts are put into the template too: it was named, and is not `plain`."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the Jinja text."""
        return None if self.source is None else hashlib.sha256(self.source.encode()).hexdigest()

    def render(self, messages: Messages) -> str:
        """A whole conversation as text."""
        return self._render(messages, False)

    def render_prompt(self, messages: Messages) -> str:
        """A conversation as text up to where the assistant's next answer begins."""
        return self._render(messages, True)

    def prompt_text(self, words: Words) -> str:
        """A prompt as the model reads it."""
        turns = self.wrap(words)
        return turns if isinstance(turns, str) else self.render_prompt(turns)

    def wrap(self, words: Words) -> Words:
        """Raw text as a user's turn where the template wraps text; an empty text has no turn and stays as it is."""
        return (Message("user", words),) if self.wraps_text and words and isinstance(words, str) else words

    def parts(self, messages: Messages, trained: Sequence[int]) -> list[Part]:
        """Cut a rendered conversation where the trained assistant turns (indices) begin and end.

        A turn begins where `render_prompt` of what precedes it ends, so that the model is trained from the very text
        that it is given at inference. Raises TemplateError where the template renders earlier turns otherwise when
        later ones follow, for then no such cut exists.
        """
        whole = self.render(messages)
        parts: list[Part] = []
        position = 0
        for turn in trained:
            head = self.render_prompt(messages[:turn])
            through = whole if turn == len(messages) - 1 else self.render(messages[: turn + 1])
            if not (through.startswith(head) and whole.startswith(through) and position <= len(head)):
                raise TemplateError(self._rewrites(turn, len(messages)))
            parts += [Part(whole[position : len(head)], False), Part(whole[len(head) : len(through)], True)]
            position = len(through)
        return [*parts, Part(whole[position:], False)] if position < len(whole) else parts

    def _render(self, messages: Messages, generation: bool) -> str:
        if self.source is None:
            raise TemplateError(f"the data holds conversations, but the tokenizer has no chat template; {REMEDY}")
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            with limited():
                text = str(
                    self.tokenizer.apply_chat_template(
                        turns, chat_template=self.source, tokenize=False, add_generation_prompt=generation
                    )
                )
            check_length(text, sum(len(message.content) for message in messages))
        except jinja2.TemplateSyntaxError as fault:
            raise TemplateError(f"template '{self.name}', line {fault.lineno}: {fault.message}") from None
        except RecursionError:
            raise TemplateError(f"template '{self.name}': endless recursion") from None
        except TooCostly as fault:
            raise TooCostly(f"template '{self.name}' {fault}") from None
        except REFUSALS as fault:
            raise TemplateError(f"template '{self.name}': {fault}") from None
        return text

    def _rewrites(self, turn: int, turns: int) -> str:
        if turn == turns - 1:
            return (
                f"template '{self.name}' renders the last answer otherwise than it prompts for one, so that training "
                f"would not match use; {REMEDY}"
            )
        return (
            f"template '{self.name}' renders the answer in message {turn + 1} otherwise once messages follow it; "
            "train the last answer only (data.loss_on: last), or name another template"
        )


def load_template(spec: str | None, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Find the template that a recipe names: None or `tokenizer`, one of NAMES, or the path of a Jinja file.

    A tokenizer without a template is no fault until a conversation has to be rendered.
    """
    if spec is None or spec == "tokenizer":
        template = Template("tokenizer", _own_source(tokenizer), spec is not None, tokenizer)
    elif spec in NAMES:
        template = Template(spec, _named_source(spec, tokenizer), spec != "plain", tokenizer)
    else:
        template = Template(spec, _file_source(spec), True, tokenizer)
    if template.source is not None:
        if len(template.source) > MAX_SOURCE:
            raise TemplateError(f"template '{template.name}' is over {MAX_SOURCE // 1024} KiB; {REMEDY}")
        refuse_costly_numbers(template.source, template.name)
        _refuse_syntax_errors(template)
    return template


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True where the tokenizer itself puts its BOS in front of a text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and bool(ids) and bool(ids[0] == tokenizer.bos_token_id)


def _own_source(tokenizer: PreTrainedTokenizerBase) -> str | None:
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name; transformers renders the one called default
        own = own.get("default")
    return own if isinstance(own, str) else None


def _named_source(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    source = resources.files("truing.data").joinpath("chat", f"{name}.jinja").read_text(encoding="utf-8")
    # Rendered, not only added to the tokens here: a saved template has to give the same tokens when the model is used.
    return "{{- bos_token -}}\n" + source if adds_bos(tokenizer) else source


def _file_source(spec: str) -> str:
    place = Path(spec)
    try:
        is_file = place.is_file()
    except OSError as fault:  # a name that is too long, a folder that may not be entered
        raise TemplateError(f"template '{spec[:200]}' cannot be looked up: {fault.strerror}") from None
    if not is_file:
        raise TemplateError(f"template '{spec}' is no file and no known name{suggest(spec, [*NAMES, 'tokenizer'])}")
    if place.stat().st_size > MAX_SOURCE:
        raise TemplateError(f"template '{spec}' is over {MAX_SOURCE // 1024} KiB; expected a Jinja chat template")
    try:
        source = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise TemplateError(f"template '{spec}' cannot be read: {fault}") from None
    if not source.strip():
        raise TemplateError(f"template '{spec}' is empty; expected a Jinja chat template")
    return source


def _refuse_syntax_errors(template: Template) -> None:
    """Compile the template now; what it says about a conversation shows when there is one."""
    try:
        with limited():
            template.tokenizer.apply_chat_template(
                [{"role": "user", "content": "a"}], chat_template=template.source, tokenize=False
            )
    except (jinja2.TemplateSyntaxError, SyntaxError) as fault:
        raise TemplateError(f"template '{template.name}', line {fault.lineno}: {fault}") from None
    except TooCostly as fault:
        raise TooCostly(f"template '{template.name}' {fault}") from None
    except REFUSALS:
        return
