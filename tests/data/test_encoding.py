from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.data.tiny import byte_level, sentencepiece
from truing.core.errors import DataError, ModelError, TemplateError
from truing.core.trees import Completion, Origin, Tree
from truing.data.encoding import Encoded, encode
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Message, Messages, Prompt
from truing.data.settings import DataSettings
from truing.data.templates import load_template
from truing.data.tokens import Pieces
from truing.data.truncation import truncate

AT = Origin("f.json", 1)
LONG = 10**6
TOKENIZERS = [byte_level(), byte_level(bos=True), sentencepiece(), sentencepiece(bos=True)]
KINDS = ["byte level", "byte level, bos", "sentencepiece", "sentencepiece, bos"]
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=KINDS)


def u(text: str) -> Message:
    return Message("user", text)


def a(text: str) -> Message:
    return Message("assistant", text)


def run(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast, template: str | None = "plain", **options: object
) -> Encoded:
    wanted = DataSettings.model_validate({"path": "f.json", "max_length": LONG, **options})
    ends = frozenset({tokenizer.eos_token_id})
    return encode(examples, tokenizer, load_template(template, tokenizer), wanted, ends, lambda done, total: None)


def one(
    example: Example, tokenizer: PreTrainedTokenizerFast, template: str | None = "plain", **options: object
) -> Tree:
    (tree,) = run([example], tokenizer, template, **options).trees
    return tree


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def trained_text(tokenizer: PreTrainedTokenizerFast, completion: Completion) -> str:
    """The trained tokens as text, with a bar where untrained ones stand between."""
    runs = np.split(np.arange(len(completion.mask)), np.flatnonzero(np.diff(completion.mask)) + 1)
    return "|".join(tokenizer.decode(completion.tokens[run]) for run in runs if completion.mask[run[0]])


@every_tokenizer
def test_a_prompt_and_its_answer_read_as_the_text_they_were(tokenizer: PreTrainedTokenizerFast) -> None:
    tree = one(Demonstration((u("what is two"),), (a("the answer, four"),), AT), tokenizer)
    joined = [*tree.prompt, *tree.completions[0].tokens]
    bos = "<s>" if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    assert tokenizer.decode(joined).replace("<s> ", "<s>") == bos + "what is two\nthe answer, four</s>"
    assert list(tree.prompt) == ids(tokenizer, "what is two\n")  # exactly what the model is given at inference


def test_an_answer_that_continues_a_text_gets_no_space_that_was_not_written() -> None:
    tokenizer = sentencepiece()
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, "the")) == ["▁the"]
    tree = one(Demonstration("say ", "the", AT), tokenizer)
    assert tokenizer.convert_ids_to_tokens(tree.completions[0].tokens.tolist()) == ["t", "he", "</s>"]
    spaced = one(Demonstration("say", " the", AT), tokenizer)
    assert tokenizer.convert_ids_to_tokens(spaced.completions[0].tokens.tolist()) == ["▁the", "</s>"]


def test_a_later_user_turn_reads_as_when_the_conversation_is_read_again() -> None:
    tokenizer = sentencepiece()
    tree = one(Demonstration((u("hi"),), (a("yes"), u("the end"), a("no")), AT), tokenizer)
    assert [*tree.prompt, *tree.completions[0].tokens] == ids(tokenizer, "hi\nyes</s>the end\nno</s>")


@every_tokenizer
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
@pytest.mark.parametrize("template", ["plain", "alpaca", "transcript", "chatml"])
def test_bos_stands_once_or_not_at_all(tokenizer: PreTrainedTokenizerFast, template: str, loss_on: str) -> None:
    bos = tokenizer.bos_token_id
    puts = tokenizer("a")["input_ids"][0] == bos
    expected = [
        (Demonstration((u("q"),), (a("x"),), AT), puts),
        (Demonstration("q", "x", AT), puts),
        (Demonstration("", "once", AT), True),
        (Demonstration("", "<s>once", AT), True),
    ]
    if template == "plain":  # it wraps no text, so that a BOS written in front of a prompt is the BOS
        expected += [(Demonstration("<s>q", "x", AT), True), (Demonstration("<s><s>q", "x", AT), True)]
    trees = run([example for example, _ in expected], tokenizer, template, loss_on=loss_on).trees
    for (example, there), tree in zip(expected, trees, strict=True):
        joined = [*tree.prompt, *tree.completions[0].tokens]
        assert [token == bos for token in joined] == [there, *[False] * (len(joined) - 1)], example


@pytest.mark.parametrize(
    ("loss_on", "prompt", "trained"),
    [
        ("assistant", "q1\n", "a1</s>|a2</s>"),
        ("last", "q1\na1</s>q2\n", "a2</s>"),
        ("all", "q", "1\na1</s>q2\na2</s>"),
    ],
)
def test_loss_falls_on_the_turns_that_were_asked_for(loss_on: str, prompt: str, trained: str) -> None:
    tokenizer = byte_level()
    tree = one(Demonstration((u("q1"),), (a("a1"), u("q2"), a("a2")), AT), tokenizer, loss_on=loss_on)
    assert tokenizer.decode(tree.prompt) == prompt
    assert trained_text(tokenizer, tree.completions[0]) == trained


def test_only_the_completion_of_a_prompt_with_earlier_answers_is_trained() -> None:
    tokenizer = byte_level()
    tree = one(Demonstration((u("q1"), a("a1"), u("q2")), (a("a2"),), AT), tokenizer)
    assert tokenizer.decode(tree.prompt) == "q1\na1</s>q2\n"
    assert trained_text(tokenizer, tree.completions[0]) == "a2</s>"


def test_what_a_template_puts_behind_an_end_token_is_not_trained() -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    settings_ = DataSettings(path="f.json", max_length=LONG)
    example = Demonstration((u("q1"),), (a("a1"), u("q2"), a("a2")), AT)
    template = load_template("chatml", tokenizer)
    (tree,) = encode([example], tokenizer, template, settings_, frozenset({end, 1}), lambda done, total: None).trees
    (completion,) = tree.completions
    assert trained_text(tokenizer, completion) == "a1<|im_end|>|a2<|im_end|>"
    assert completion.tokens[-1] == end
    between = "\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(completion.tokens) == f"a1<|im_end|>{between}a2<|im_end|>"


def test_an_end_token_is_added_to_each_trained_turn_where_the_template_renders_none(tmp_path: Path) -> None:
    place = tmp_path / "bare.jinja"
    place.write_text("{% for m in messages %}{{ m.content + '; ' }}{% endfor %}")
    tokenizer = byte_level()
    tree = one(Demonstration((u("q1"),), (a("a1"), u("q2"), a("a2")), AT), tokenizer, str(place))
    assert trained_text(tokenizer, tree.completions[0]) == "a1; </s>|a2; </s>"


def test_an_end_token_that_was_written_is_not_doubled() -> None:
    tokenizer = byte_level()
    completion = one(Demonstration((u("q"),), (a("x</s> </s>"),), AT), tokenizer).completions[0]
    assert tokenizer.decode(completion.tokens) == "x</s>"


def test_an_end_token_written_inside_an_answer_is_reported() -> None:
    rows = [Demonstration("q", "x</s> and y", Origin("f", 1)), Demonstration("q", "x", Origin("f", 2))]
    assert run(rows, byte_level()).stops_inside == (Origin("f", 1),)
    assert run([Demonstration("", "one</s>two", AT)], byte_level()).stops_inside == ()


@every_tokenizer
def test_plain_text_is_trained_whole_behind_a_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    tree = one(Demonstration("", "the fox", AT), tokenizer, None)
    plain = list(tokenizer("the fox", add_special_tokens=False)["input_ids"])
    assert tree.prompt.tolist() == [tokenizer.bos_token_id]
    assert tree.completions[0].tokens.tolist() == [*plain, tokenizer.eos_token_id]
    assert tree.completions[0].mask.all()


def test_plain_text_without_a_bos_stands_behind_an_end_token() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer, eos_token="</s>")
    assert one(Demonstration("", "fox", AT), tokenizer, None).prompt.tolist() == [tokenizer.eos_token_id]


def test_text_is_wrapped_in_a_template_that_was_named() -> None:
    tokenizer = byte_level()
    tree = one(Demonstration("q", "x", AT), tokenizer, "alpaca")
    assert tokenizer.decode(tree.prompt) == "### Instruction:\nq\n\n### Response:\n"
    assert tokenizer.decode(tree.completions[0].tokens) == "x</s>"
    raw = one(Demonstration("q", "x", AT), tokenizer, None)
    assert tokenizer.decode([*raw.prompt, *raw.completions[0].tokens]) == "qx</s>"


def test_a_comparison_is_one_prompt_with_two_answers_and_a_margin() -> None:
    tokenizer = byte_level()
    tree = one(Comparison((u("q"),), (a("yes"),), (a("no"),), 1.5, AT), tokenizer)
    assert tokenizer.decode(tree.prompt) == "q\n"
    assert [trained_text(tokenizer, c) for c in tree.completions] == ["yes</s>", "no</s>"]
    assert (tree.pairs, tree.margins, tree.origin) == (((0, 1),), (1.5,), AT)


def test_a_judgement_carries_its_label_and_a_prompt_has_no_completion() -> None:
    tree = one(Judgement("q", "x", False, AT), byte_level())
    assert [c.label for c in tree.completions] == [False]
    prompt = one(Prompt((u("q"),), {}, AT), byte_level(), "alpaca")
    assert byte_level().decode(prompt.prompt) == "### Instruction:\nq\n\n### Response:\n"
    assert prompt.completions == ()


def test_conversations_without_a_template_stop_before_any_work() -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        run(
            [Demonstration("q", "x", AT), Demonstration((u("q"),), (a("x"),), AT)],
            byte_level(),
            None,
            on_bad_row="drop",
        )


def test_rows_that_the_template_refuses_are_named_or_dropped(tmp_path: Path) -> None:
    place = tmp_path / "strict.jinja"
    place.write_text(
        "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no bad turns') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [Demonstration((u(t),), (a("x"),), Origin("f", n)) for n, t in enumerate(["good", "bad", "fine"], start=1)]
    with pytest.raises(TemplateError, match=r"f:2: template '.*strict\.jinja': no bad turns"):
        run(rows, byte_level(), str(place))
    dropped = run(rows, byte_level(), str(place), on_bad_row="drop")
    assert dropped.kept == (0, 2)
    assert dropped.refused.by_reason() == {"the template refused it": (Origin("f", 2),)}


def test_a_tokenizer_that_cannot_end_is_refused() -> None:
    with pytest.raises(ModelError, match="no end token"):
        Pieces(byte_level(), frozenset())


def test_progress_counts_the_rows_in_order() -> None:
    seen: list[tuple[int, int]] = []
    rows = [Demonstration("q", "x", AT)] * 2500
    tokenizer = byte_level()
    config = DataSettings(path="f")
    encode(rows, tokenizer, load_template(None, tokenizer), config, frozenset({1}), lambda *at: seen.append(at))
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_a_pair_that_truncation_makes_identical_is_lost_and_named() -> None:
    pair = Comparison("q", "the same beginning, then this", "the same beginning, then that", None, AT)
    encoded = run([pair], byte_level(), max_length=6)
    assert encoded.trees == ()
    with pytest.raises(DataError, match=r"f\.json:1: .*identical in the first 5 tokens; raise data\.max_length"):
        encoded.lost.stop("")


def tree_of(prompt: int, *completions: int) -> Tree:
    """Tokens count up from 100 in the prompt, from 1000 in each completion; BOS is 1, the end token 2."""
    made = [np.append(np.arange(1000, 1000 + n - 1), 2).astype(np.int32) for n in completions]
    tokens = np.append(1, np.arange(100, 100 + prompt - 1)).astype(np.int32)
    return Tree(tokens, tuple(Completion(t, np.ones(len(t), dtype=np.bool_)) for t in made), origin=AT)


@pytest.mark.parametrize(
    ("prompt", "completions", "limit", "kept_prompt", "kept"),
    [
        (4, (3, 5), 9, 4, (3, 5)),  # fits
        (8, (3, 5), 10, 5, (3, 5)),  # the prompt gives way to the longest answer
        (8, (9, 3), 10, 5, (5, 3)),  # down to half of the limit; then answers are cut
        (3, (20,), 10, 3, (7,)),  # a short prompt is never cut
        (9, (1,), 10, 9, (1,)),
        (5, (5,), 2, 1, (1,)),
    ],
)
def test_the_prompt_gives_way_first_and_to_half_at_most(
    prompt: int, completions: tuple[int, ...], limit: int, kept_prompt: int, kept: tuple[int, ...]
) -> None:
    tree, _ = truncate(tree_of(prompt, *completions), limit, bos=1)
    assert (len(tree.prompt), tuple(len(c.tokens) for c in tree.completions)) == (kept_prompt, kept)


def test_cuts_are_counted_by_row_and_in_tokens() -> None:
    rows = [Demonstration("x" * 20, "y" * 4, AT), Demonstration("x", "y" * 30, AT), Demonstration("x", "y", AT)]
    whole, cut = run(rows, byte_level()), run(rows, byte_level(), max_length=10)
    lost = sum(a.size - b.size for a, b in zip(whole.trees, cut.trees, strict=True))
    assert (cut.cuts.prompts, cut.cuts.completions, cut.cuts.tokens) == (1, 1, lost)
    assert cut.shortest == 3


def test_a_cut_conversation_ends_with_a_trained_token() -> None:
    talk: Messages = (a("one"), u("a very long question that will be cut"), a("two"))
    (completion,) = one(Demonstration((u("q"),), talk, AT), byte_level(), max_length=20).completions
    assert trained_text(byte_level(), completion) == "one</s>"
    assert completion.mask[-1]


WORDS = st.text(alphabet="abc é\n.<|🙂", min_size=1, max_size=25)
ANSWERS = WORDS.filter(lambda text: text.strip() != "")


@settings(max_examples=150)
@given(
    which=st.integers(0, 3),
    template=st.sampled_from([None, "plain", "alpaca", "transcript"]),
    prompt=WORDS,
    chosen=ANSWERS,
    rejected=ANSWERS,
    limit=st.integers(2, 40),
)
def test_encoding_keeps_its_laws_for_any_text(
    which: int, template: str | None, prompt: str, chosen: str, rejected: str, limit: int
) -> None:
    tokenizer = TOKENIZERS[which]
    pair = Comparison(prompt, chosen, rejected, None, AT)
    whole = run([pair], tokenizer, template)
    cut = run([pair], tokenizer, template, max_length=limit)
    for full in whole.trees:
        given_prompt = load_template(template, tokenizer).prompt_text(prompt)
        own_bos = which % 2 == 1 and not given_prompt.startswith("<s>")
        assert full.prompt.tolist() == list(tokenizer(given_prompt, add_special_tokens=own_bos)["input_ids"])
        assert all(c.tokens[-1] == tokenizer.eos_token_id and c.mask.all() for c in full.completions)
        assert full.prompt.tolist().count(tokenizer.bos_token_id) == which % 2
    for full, short in zip(whole.trees, cut.trees, strict=False):
        has_bos = full.prompt[0] == tokenizer.bos_token_id and len(short.prompt) > 1
        tail = len(short.prompt) - int(has_bos)
        assert short.prompt[len(short.prompt) - tail :].tolist() == full.prompt[len(full.prompt) - tail :].tolist()
        assert not has_bos or short.prompt[0] == tokenizer.bos_token_id
        for before, after in zip(full.completions, short.completions, strict=True):
            assert 2 <= len(short.prompt) + len(after.tokens) <= limit
            assert after.tokens.tolist() == before.tokens[: len(after.tokens)].tolist()
            was_cut = len(after.tokens) < len(before.tokens)
            assert (after.tokens[-1] == tokenizer.eos_token_id) != was_cut
