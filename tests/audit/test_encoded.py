from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, PreTrainedTokenizerBase

from tests.audit.made import audited, complaints, conversations, demonstrations, finding, judgements, pairs, places
from tests.data.tiny import byte_level, sentencepiece
from truing.audit.audit import Audit
from truing.core.errors import InputError, ModelError

ROOMY = 4096


def model(folder: Path, tokenizer: PreTrainedTokenizerBase, positions: int = ROOMY) -> str:
    """A folder that says all of a model but its weights."""
    LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, eos_token_id=None).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model(tmp_path_factory.mktemp("model"), byte_level())


def checked(folder: Path, rows: list[dict[str, object]], name: str, **settings: object) -> Audit:
    return audited(folder, rows, model=name, **{"template": "plain", "max_length": ROOMY, **settings})


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_sound_rows_of_every_kind_are_sound_as_tokens_too(make: type, bos: bool, tmp_path: Path) -> None:
    name = model(tmp_path / "model", make(bos))
    for rows in (pairs(1000), conversations(1000)) if bos else (demonstrations(1000), judgements(1000)):
        found = checked(tmp_path, rows, name)
        assert complaints(found) == []
        assert finding(found, "no_target").level == finding(found, "end_token").level == "ok"
        assert found.facts.length_unit == "tokens"


def test_rows_that_the_limit_cuts_are_counted_apart_and_the_remedy_cuts_none(plain_model: str, tmp_path: Path) -> None:
    rows = demonstrations(1000)
    whole = checked(tmp_path, rows, plain_model).facts.longest
    for row in rows[:60]:
        row["prompt"], row["completion"] = "short", "a " * (2 * whole)  # no more than half the limit: it is kept
    for row in rows[500:503]:
        row["prompt"], row["completion"] = "b " * (2 * whole), "short"
    found = checked(tmp_path, rows, plain_model, max_length=whole)
    cut = finding(found, "cut")
    assert cut.level == "strong"
    assert places(cut) == [*range(1, 61), 501, 502, 503]
    assert (cut.figures["completions"], cut.figures["prompts"]) == (0.06, 0.003)
    assert f"data.max_length: {found.facts.longest} cuts none" in cut.remedy
    assert finding(checked(tmp_path, rows, plain_model, max_length=found.facts.longest), "cut").level == "ok"


def test_pairs_that_differ_only_behind_the_limit_stop(plain_model: str, tmp_path: Path) -> None:
    rows = pairs(1000)
    for row in rows[7:9]:
        row["chosen"], row["rejected"] = "x " * 600 + "yes", "x " * 600 + "no"
    found = checked(tmp_path, rows, plain_model, max_length=500)
    same = finding(found, "identical_after_cut")
    assert (same.level, places(same)) == ("stop", [8, 9])
    assert finding(found, "identical_pair").level == "ok"
    assert finding(checked(tmp_path, rows, plain_model), "identical_after_cut").level == "ok"


def test_a_bos_in_the_text_is_one_too_many(tmp_path: Path) -> None:
    name = model(tmp_path / "model", byte_level(bos=True))
    rows = demonstrations(1000)
    rows[3]["prompt"] += "<s>"
    rows[4]["prompt"] = "<s>" + str(rows[4]["prompt"])  # the one that it gets anyway
    found = finding(checked(tmp_path, rows, name), "bos")
    assert (found.level, places(found)) == ("stop", [4])


def test_an_end_token_inside_an_answer_teaches_to_stop_there(plain_model: str, tmp_path: Path) -> None:
    rows = demonstrations(1000)
    rows[3]["completion"] = "so</s> and on"
    rows[4]["completion"] = "the end</s>"
    found = finding(checked(tmp_path, rows, plain_model), "end_token")
    assert (found.level, places(found)) == ("warn", [4])


def test_a_template_that_ends_no_answer_is_told(plain_model: str, tmp_path: Path) -> None:
    source = tmp_path / "endless.jinja"
    source.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", encoding="utf-8")
    found = finding(checked(tmp_path, conversations(1000), plain_model, template=str(source)), "end_token")
    assert found.level == "warn"
    assert "</s>" in found.sentence


def test_conversations_without_a_template_stop_and_all_other_checks_are_made(plain_model: str, tmp_path: Path) -> None:
    found = checked(tmp_path, conversations(1000), plain_model, template=None)
    assert complaints(found) == [("template", "stop")]
    assert found.facts.length_unit == "words"
    assert finding(found, "duplicates").level == "ok"


def test_rows_that_the_template_refuses_are_named(plain_model: str, tmp_path: Path) -> None:
    source = tmp_path / "strict.jinja"
    source.write_text(
        "{% for m in messages %}{% if m['content'] == 'no' %}{{ raise_exception('never no') }}{% endif %}"
        "{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}",
        encoding="utf-8",
    )
    rows = conversations(1000)
    rows[5]["messages"] = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "yes"}]
    found = finding(checked(tmp_path, rows, plain_model, template=str(source)), "template")
    assert (found.level, places(found)) == ("stop", [6])
    assert "never no" in found.examples[0]


def test_the_limit_is_never_above_the_models_positions(tmp_path: Path) -> None:
    name = model(tmp_path / "model", byte_level(), positions=64)
    found = finding(checked(tmp_path, demonstrations(1000), name), "cut")
    assert found.level == "strong"
    assert "64 positions" in found.sentence


def test_shown_rows_tell_trained_tokens_apart(plain_model: str, tmp_path: Path) -> None:
    turns = [{"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "yes"))]
    rows = [{"messages": [*turns, {"role": "user", "content": "so"}, {"role": "assistant", "content": "no"}]}]
    (row,) = checked(tmp_path, rows, plain_model, show=2).shown
    assert row.lines == (
        ("prompt", (("hi\n", False),)),
        ("completion", (("yes</s>", True), ("so\n", False), ("no</s>", True))),
    )


def test_a_template_needs_a_model_and_a_model_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--model"):
        audited(tmp_path, demonstrations(10), template="plain")
    with pytest.raises(ModelError):
        audited(tmp_path, demonstrations(10), model=str(tmp_path / "nowhere"))
