"""A chat template comes with a model: it gets neither at Python nor at more time and memory than a template needs."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from tests.data.tiny import byte_level
from truing.core.errors import TemplateError
from truing.core.trees import Origin
from truing.data import template_limits
from truing.data.encoding import encode
from truing.data.examples import Message, Prompt
from truing.data.settings import DataSettings
from truing.data.template_limits import refuse_costly_numbers
from truing.data.templates import Template, load_template

TURNS = (Message("user", "hello"), Message("assistant", "world"))


def rendered(source: str) -> str:
    refuse_costly_numbers(source, "t")
    return Template("t", source, True, byte_level()).render(TURNS)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__['os'].popen('id').read() }}",
        "{{ (messages|attr('__class__')).__base__ }}",
        "{{ messages[0].content.format.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ namespace(__class__=1) }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
    ],
)
def test_the_sandbox_keeps_a_template_from_python(source: str) -> None:
    """It is refused, or finds nothing there."""
    with suppress(TemplateError):
        assert rendered(source) == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes over 0.2 s"),
        (
            "{% macro f(n) %}{% for i in range(9) %}{{ f(n+1) if n < 99 }}{% endfor %}{% endmacro %}{{ f(0) }}",
            "takes over",
        ),
        ("{{ range(10 * 1000000000) }}", "Range too big"),
        ("{{ 'a' * 100000000000 }}", "1 GiB of memory"),
        ("{{ 'x'.ljust(100000000000) }}", "1 GiB of memory"),
        ("{{ ('a' * 100000)|replace('a', 'b' * 1000000) }}", "1 GiB of memory"),
        (
            "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "takes over",
        ),
        ("{{ 'a' * 3000000 }}", "makes 3,000,000 characters of a conversation of 10"),
        ("{{ 9 ** 9 ** 9 ** 9 }}", "a power can take for ever"),
        ("{%+ generation %}{{ 9 ** 9 ** 9 ** 9 }}{%- endgeneration %}", "a power can take for ever"),
        ("{{ " + "9" * 5000 + " }}", "4300 digits"),
        ("{% set x = 9 %}{{ x * x }}", "a product of two computed numbers"),
        ("{{ 1.5 | round(999999999, 'ceil') }}", "'round' can take for ever"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "endless recursion"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
    ],
)
def test_a_template_takes_no_more_than_it_may(source: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    monkeypatch.setattr(template_limits, "TOO_SLOW", "takes over 0.2 s")
    began = time.process_time()
    with pytest.raises(TemplateError) as refused:
        rendered(source)
    assert said in str(refused.value)
    assert time.process_time() - began < 10


def test_a_template_within_its_limits_is_rendered_as_before() -> None:
    turns = rendered("{% for m in messages %}{{ m.role ~ ' ' * 2 ~ m.content }};{% endfor %}")
    assert turns == "user  hello;assistant  world;"
    assert rendered("{% generation %}{{ messages[0].content * 2 }}{% endgeneration %}") == "hellohello"


def test_a_costly_template_stops_at_its_first_row() -> None:
    """Dropping bad rows would wait for every one of them."""
    tokenizer = byte_level()
    template = Template("t", "{{ 'a' * 100000000000 }}", True, tokenizer)
    rows = [Prompt((Message("user", "x"),), {}, Origin("f", n)) for n in range(3)]
    settings = DataSettings(path="f", on_bad_row="drop")
    with pytest.raises(TemplateError, match=r"f:0: .* takes over 1 GiB"):
        encode(rows, tokenizer, template, settings, frozenset({1}), lambda done, total: None)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "alpaca", "plain", "transcript"])
def test_our_own_templates_are_within_their_limits(name: str) -> None:
    assert "hello" in load_template(name, byte_level()).render(TURNS)
