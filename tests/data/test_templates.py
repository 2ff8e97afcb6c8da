from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.tiny import byte_level
from truing.core.errors import TemplateError
from truing.data.examples import Message, Messages
from truing.data.templates import NAMES, Part, load_template

TALK: Messages = (
    Message("system", "S"),
    Message("user", "q1"),
    Message("assistant", "a1"),
    Message("user", "q2"),
    Message("assistant", "a2"),
)

RENDERED = {
    "plain": "S\nq1\na1</s>q2\na2</s>",
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>\n"
    ),
    "llama3": (
        "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\na1<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nq2"
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na2<|eot_id|>"
    ),
    "gemma": (
        "<start_of_turn>user\nS\n\nq1<end_of_turn>\n<start_of_turn>model\na1<end_of_turn>\n"
        "<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\na2<end_of_turn>\n"
    ),
    "alpaca": (
        "S\n\n### Instruction:\nq1\n\n### Response:\na1</s>\n\n### Instruction:\nq2\n\n### Response:\na2</s>\n\n"
    ),
    "transcript": "S\n\nHuman: q1\n\nAssistant: a1</s>\n\nHuman: q2\n\nAssistant: a2</s>",
}


@pytest.mark.parametrize("name", NAMES)
def test_each_named_template_renders_a_conversation_as_its_models_expect(name: str) -> None:
    assert load_template(name, byte_level()).render(TALK) == RENDERED[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_template_renders_the_bos_that_its_tokenizer_would_put(name: str) -> None:
    assert load_template(name, byte_level(bos=True)).render(TALK) == "<s>" + RENDERED[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trained", [(2, 4), (4,)])
def test_parts_join_to_the_whole_and_hold_the_trained_answers(name: str, trained: tuple[int, ...]) -> None:
    template = load_template(name, byte_level())
    parts = template.parts(TALK, trained)
    assert "".join(part.text for part in parts) == RENDERED[name]
    answers = [part.text for part in parts if part.supervised]
    assert [answer.strip()[:2] for answer in answers] == [TALK[turn].content for turn in trained]
    for turn in trained:
        before = template.render_prompt(TALK[:turn])
        assert RENDERED[name].startswith(before)
        assert RENDERED[name][len(before) :].lstrip().startswith(TALK[turn].content)


def test_plain_text_cuts_where_the_answer_begins() -> None:
    assert load_template("plain", byte_level()).parts(TALK, (2, 4)) == [
        Part("S\nq1\n", False),
        Part("a1</s>", True),
        Part("q2\n", False),
        Part("a2</s>", True),
    ]


FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}...{% else %}{{ m.content }}{% endif %}|"
    "{% endfor %}"
)


def test_a_template_that_rewrites_earlier_answers_is_refused_with_the_way_out(tmp_path: Path) -> None:
    place = tmp_path / "forgetful.jinja"
    place.write_text(FORGETFUL)
    template = load_template(str(place), byte_level())
    with pytest.raises(TemplateError, match=r"answer in message 3 otherwise.*data\.loss_on: last"):
        template.parts(TALK, (2, 4))
    assert [part.text for part in template.parts(TALK, (4,))] == ["S|q1|...|q2|", "a2|"]


def test_a_template_that_prompts_otherwise_than_it_renders_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "other.jinja"
    place.write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}ANSWER{% endif %}"
    )
    with pytest.raises(TemplateError, match="renders the last answer otherwise than it prompts for one"):
        load_template(str(place), byte_level()).parts(TALK, (4,))


def test_a_tokenizer_without_a_template_is_no_fault_until_a_conversation_comes() -> None:
    template = load_template(None, byte_level())
    assert (template.source, template.digest, template.prompt_text("raw")) == (None, None, "raw")
    with pytest.raises(TemplateError, match=r"has no chat template.*template: chatml.*template: plain"):
        template.render(TALK)


def test_raw_text_is_wrapped_only_by_a_template_that_was_named() -> None:
    assert load_template("plain", byte_level()).prompt_text("q") == "q"
    assert load_template("alpaca", byte_level()).prompt_text("q") == "### Instruction:\nq\n\n### Response:\n"
    assert load_template("alpaca", byte_level()).prompt_text("") == ""


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ messages.x.y }}", "has no attribute"),
        ("{{ raise_exception('no system turns') }}", "no system turns"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ messages[0]['content'] + 1 }}", "concatenate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_goes_wrong_in_a_template_names_it(tmp_path: Path, source: str, message: str) -> None:
    place = tmp_path / "broken.jinja"
    place.write_text(source)
    template = load_template(str(place), byte_level())
    with pytest.raises(TemplateError, match=rf"broken\.jinja'.*({message})"):
        template.render(TALK)


def test_a_template_with_a_syntax_error_is_refused_when_loaded(tmp_path: Path) -> None:
    place = tmp_path / "broken.jinja"
    place.write_text("{{ messages }}\n{% for %}")
    with pytest.raises(TemplateError, match=r"broken\.jinja', line 2: "):
        load_template(str(place), byte_level())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chatlm", None, r"no file and no known name; did you mean 'chatml'\?"),
        ("x" * 5000, None, "cannot be looked up"),
        ("empty.jinja", b" ", "is empty"),
        ("bytes.jinja", b"\xff\xfe", "cannot be read"),
        ("huge.jinja", b"x" * 300_000, "is over 256 KiB"),
    ],
)
def test_a_template_that_cannot_be_had_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TemplateError, match=message):
        load_template(name if content is None else str(tmp_path / name), byte_level())
