"""Sound files with one fault planted in each, and which check has to find it at which level."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.audit.sound import (
    FEW,
    MANY,
    Row,
    conversations,
    demonstrations,
    judgements,
    pairs,
    prompts,
    put,
    question,
    sentence,
    turns,
)

ANY_WARNING = frozenset({"warn", "strong"})
STOP = frozenset({"stop"})
WARN = frozenset({"warn"})
STRONG = frozenset({"strong"})


@dataclass(frozen=True, slots=True)
class Files:
    """What is checked: files, and how the check is asked."""

    paths: tuple[str, ...]
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broken:
    """One fault."""

    name: str
    make: Callable[[Path], Files]
    check: str
    levels: frozenset[str]
    rows: tuple[int, ...] | None = None
    """The rows that the finding has to name, where the fault is in rows."""
    beside: frozenset[str] = frozenset()
    """Checks that may warn of the same fault too."""


FAULTS: list[Broken] = []


def planted(
    check: str, levels: frozenset[str], *, rows: Sequence[int] | None = None, beside: Sequence[str] = ()
) -> Callable[[Callable[[Path], Files]], Callable[[Path], Files]]:
    """Register a maker under its own name."""

    def register(make: Callable[[Path], Files]) -> Callable[[Path], Files]:
        named = None if rows is None else tuple(rows)
        FAULTS.append(Broken(make.__name__, make, check, levels, named, frozenset(beside)))
        return make

    return register


def files(folder: Path, rows: Sequence[Row], name: str = "rows.jsonl", **asked: Any) -> Files:
    return Files((put(folder, rows, name),), asked)


def raw(folder: Path, name: str, content: bytes) -> Files:
    (folder / name).write_bytes(content)
    return Files((str(folder / name),))


def changed(rows: list[Row], **changes: Row) -> list[Row]:
    """Rows with some of them changed: `at7={...}` changes the seventh, counted from 1."""
    for place, change in changes.items():
        row = rows[int(place.removeprefix("at")) - 1]
        row.update(change)
        for name in [name for name, value in change.items() if value is ...]:
            del row[name]
    return rows


def lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def every(rows: list[Row], step: int, change: Callable[[Row], None], start: int = 0) -> list[Row]:
    """Change every so many rows."""
    for row in rows[start::step]:
        change(row)
    return rows


def swap(row: Row) -> None:
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


# Files that cannot be read.


@planted("readable", STOP)
def no_such_file(folder: Path) -> Files:
    return Files((str(folder / "absent.jsonl"),))


@planted("readable", STOP)
def tested_on_a_file_that_is_not_there(folder: Path) -> Files:
    return files(folder, pairs(FEW), test=(str(folder / "absent.jsonl"),))


@planted("readable", STOP)
def an_empty_file(folder: Path) -> Files:
    return raw(folder, "rows.jsonl", b"")


@planted("readable", STOP)
def a_list_without_rows(folder: Path) -> Files:
    return raw(folder, "rows.json", b"[]\n")


@planted("readable", STOP)
def a_header_without_rows(folder: Path) -> Files:
    return raw(folder, "rows.csv", b"prompt,chosen,rejected\n")


@planted("readable", STOP)
def a_gzip_cut_short(folder: Path) -> Files:
    return raw(folder, "rows.jsonl.gz", gzip.compress(lines(pairs(FEW)))[:-2000])


@planted("readable", STOP)
def a_broken_line(folder: Path) -> Files:
    whole = lines(pairs(FEW)).splitlines(keepends=True)
    whole[41] = whole[41][:-20] + b"\n"
    return raw(folder, "rows.jsonl", b"".join(whole))


@planted("readable", STOP)
def a_literal_that_is_not_a_number(folder: Path) -> Files:
    rows = lines(pairs(FEW)).replace(b"}\n", b', "margin": NaN}\n', 1)
    return raw(folder, "rows.jsonl", rows)


@planted("readable", STOP)
def a_line_nested_very_deep(folder: Path) -> Files:
    deep = b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"
    return raw(folder, "rows.jsonl", lines(pairs(FEW)) + deep)


@planted("readable", STOP)
def half_a_character(folder: Path) -> Files:
    return raw(folder, "rows.jsonl", lines(pairs(FEW)) + b'{"prompt": "a \\ud800 b", "chosen": "x", "rejected": "y"}\n')


@planted("readable", STOP)
def another_encoding(folder: Path) -> Files:
    rows = [{**row, "prompt": row["prompt"] + " Grüße"} for row in pairs(FEW)]
    return raw(
        folder, "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("latin-1")
    )


@planted("readable", STOP)
def a_row_with_too_many_cells(folder: Path) -> Files:
    path = Path(put(folder, pairs(FEW), "rows.csv"))
    return raw(folder, "rows.csv", path.read_bytes() + b"a,b,c,d\n")


@planted("readable", STOP)
def bytes_that_are_no_parquet(folder: Path) -> Files:
    return raw(folder, "rows.parquet", b"PAR1" + random.Random(0).randbytes(2000) + b"PAR1")


@planted("readable", STOP)
def rows_that_are_not_objects(folder: Path) -> Files:
    return raw(folder, "rows.jsonl", lines(pairs(FEW)) + b'["a", "b"]\n')


# Files in no known format.


@planted("format", STOP)
def columns_of_another_name(folder: Path) -> Files:
    return files(folder, [{"frage": row["prompt"], "antwort": row["completion"]} for row in demonstrations(FEW)])


@planted("format", STOP)
def semicolons_for_commas(folder: Path) -> Files:
    path = Path(put(folder, pairs(FEW), "rows.csv"))
    return raw(folder, "rows.csv", path.read_bytes().replace(b",", b";"))


@planted("format", STOP)
def demonstrations_for_dpo(folder: Path) -> Files:
    return files(folder, demonstrations(FEW), purpose="dpo")


@planted("format", STOP)
def chosen_without_rejected_everywhere(folder: Path) -> Files:
    return files(folder, [{"prompt": row["prompt"], "chosen": row["chosen"]} for row in pairs(FEW)])


# Rows that cannot be used.


@planted("rows", STOP, rows=[7])
def a_label_that_says_maybe(folder: Path) -> Files:
    return files(folder, changed(judgements(FEW), at7={"label": "maybe"}))


@planted("rows", STOP, rows=[3, 8])
def a_blank_answer(folder: Path) -> Files:
    return files(folder, changed(pairs(FEW), at3={"chosen": " \n"}, at8={"rejected": ""}))


@planted("rows", STOP, rows=[5])
def a_row_without_rejected(folder: Path) -> Files:
    return files(folder, changed(pairs(FEW), at5={"rejected": ...}))


@planted("rows", STOP, rows=[9])
def a_null_answer(folder: Path) -> Files:
    return files(folder, changed(demonstrations(FEW), at9={"completion": None}))


@planted("rows", STOP, rows=[4])
def a_null_prompt(folder: Path) -> Files:
    return files(folder, changed(pairs(FEW), at4={"prompt": None}))


@planted("rows", STOP, rows=[4])
def ids_for_text(folder: Path) -> Files:
    return files(folder, changed(pairs(FEW), at4={"chosen": 17}))


@planted("rows", STOP, rows=range(1, FEW + 1))
def token_ids_for_every_text(folder: Path) -> Files:
    return files(folder, [{"text": [5, 17, 4]} for _ in range(FEW)])


@planted("rows", STOP, rows=[6])
def a_margin_in_words(folder: Path) -> Files:
    rows = [{**row, "margin": 1.5} for row in pairs(FEW)]
    return files(folder, changed(rows, at6={"margin": "wide"}))


@planted("rows", STOP, rows=[2])
def text_for_messages(folder: Path) -> Files:
    return files(folder, changed(conversations(FEW), at2={"messages": "User: hello"}))


@planted("mixed", ANY_WARNING | STOP, rows=range(FEW - 9, FEW + 1), beside=["rows", "format"])
def rows_of_several_kinds(folder: Path) -> Files:
    return files(folder, pairs(FEW - 10) + [{**row, "label": True} for row in demonstrations(10, seed=1)])


# Conversations whose turns do not fit.


@planted("roles", STOP, rows=[12])
def a_last_turn_of_the_user(folder: Path) -> Files:
    rows = conversations(FEW)
    rows[11]["messages"].append({"role": "user", "content": "And then?"})
    return files(folder, rows)


@planted("roles", STOP, rows=[13])
def an_answer_before_any_question(folder: Path) -> Files:
    rows = conversations(FEW)
    rows[12]["messages"] = turns("Who am I?", "An answer.")[::-1]
    return files(folder, rows)


@planted("roles", STOP, rows=[14])
def a_system_message_alone(folder: Path) -> Files:
    rows = conversations(FEW)
    rows[13]["messages"] = [{"role": "system", "content": "Be brief."}]
    return files(folder, rows)


@planted("roles", STOP, rows=[15])
def a_role_that_nobody_knows(folder: Path) -> Files:
    rows = conversations(FEW)
    rows[14]["messages"][0]["role"] = "wizard"
    return files(folder, rows)


# Pairs that prefer nothing, or contradict each other.


@planted("identical_pair", STOP, rows=[21])
def a_pair_of_one_answer(folder: Path) -> Files:
    rows = pairs(FEW)
    return files(folder, changed(rows, at21={"rejected": rows[20]["chosen"]}))


@planted("contradictions", WARN)
def two_percent_contradicted(folder: Path) -> Files:
    rows = pairs(FEW - 3)
    return files(folder, rows + [dict(row, chosen=row["rejected"], rejected=row["chosen"]) for row in rows[:3]])


@planted("contradictions", STRONG)
def ten_percent_contradicted(folder: Path) -> Files:
    rows = pairs(FEW - 15)
    return files(folder, rows + [dict(row, chosen=row["rejected"], rejected=row["chosen"]) for row in rows[:15]])


@planted("contradictions", WARN, rows=[*range(1, 7)])
def preferences_in_a_circle_of_three(folder: Path) -> Files:
    rng = random.Random(5)
    circles = []
    for _ in range(2):
        asked, three = question(rng), [sentence(rng, 25) for _ in range(3)]
        circles += [{"prompt": asked, "chosen": three[n], "rejected": three[(n + 1) % 3]} for n in range(3)]
    return files(folder, circles + pairs(FEW))


@planted("contradictions", WARN)
def answers_judged_both_ways(folder: Path) -> Files:
    rows = judgements(FEW - 3)
    return files(folder, rows + [{**row, "label": not row["label"]} for row in rows[:3]])


@planted("margin", ANY_WARNING)
def ties_among_scored_pairs(folder: Path) -> Files:
    rng = random.Random(3)
    rows = [{**row, "margin": rng.uniform(0.5, 4)} for row in pairs(FEW)]
    return files(folder, every(rows, 15, lambda row: row.update(margin=0)))


@planted("margin", ANY_WARNING)
def scores_against_the_choice(folder: Path) -> Files:
    rng = random.Random(4)
    scored = [{**row, "score_chosen": 5 + rng.random(), "score_rejected": 4 * rng.random()} for row in pairs(FEW)]
    return files(folder, every(scored, 15, lambda row: row.update(score_chosen=1.0, score_rejected=4.5)))


@planted("noise", ANY_WARNING)
def twenty_percent_of_labels_flipped(folder: Path) -> Files:
    return files(folder, every(pairs(2 * MANY), 5, swap))


# Rows that are there twice, and prompts on both sides.


@planted("duplicates", WARN)
def six_percent_twice(folder: Path) -> Files:
    rows = pairs(FEW - 18)
    return files(folder, rows + rows[:18])


@planted("duplicates", STRONG)
def a_quarter_twice(folder: Path) -> Files:
    rows = demonstrations(FEW - 75)
    return files(folder, rows + rows[:75])


@planted("duplicates", STRONG)
def the_same_rows_in_two_files(folder: Path) -> Files:
    return Files((put(folder, pairs(FEW), "one.jsonl"), put(folder, pairs(FEW), "two.csv")))


@planted("near_duplicates", WARN)
def eight_percent_nearly_twice(folder: Path) -> Files:
    rows = demonstrations(FEW - 24)
    return files(folder, rows + [{**row, "completion": row["completion"] + " Indeed."} for row in rows[:24]])


@planted("near_duplicates", STRONG)
def a_quarter_nearly_twice(folder: Path) -> Files:
    rows = pairs(FEW - 75)
    return files(folder, rows + [{**row, "chosen": row["chosen"] + " Indeed."} for row in rows[:75]])


@planted("leakage", STOP)
def a_prompt_trained_and_tested(folder: Path) -> Files:
    rows = pairs(FEW)
    other = pairs(20, seed=9)
    test = put(folder, [*other, {**other[0], "prompt": rows[6]["prompt"]}], "test.jsonl")
    return files(folder, rows, test=(test,))


@planted("leakage", WARN)
def a_prompt_nearly_trained_and_tested(folder: Path) -> Files:
    rows = pairs(FEW)
    other = pairs(20, seed=9)
    test = put(folder, [*other, {**other[0], "prompt": rows[6]["prompt"] + " Please"}], "test.jsonl")
    return files(folder, rows, test=(test,))


# Labels that follow something else than quality.


def _longer(share: float) -> list[Row]:
    """Pairs of which the longer answer wins in about this share, whatever their words."""
    rng = random.Random(6)
    rows = pairs(MANY, seed=6)
    for row in rows:
        cut = row["chosen" if rng.random() >= share else "rejected"]
        name = "chosen" if cut is row["chosen"] else "rejected"
        other = "rejected" if name == "chosen" else "chosen"
        excess = len(row[name].split()) - len(row[other].split()) + 1
        if excess > 0:
            row[other] += " " + sentence(rng, excess + 1)
    return rows


@planted("length_bias", WARN)
def the_longer_wins_two_thirds(folder: Path) -> Files:
    return files(folder, _longer(0.66))


@planted("length_bias", STRONG)
def the_longer_wins_three_quarters(folder: Path) -> Files:
    return files(folder, _longer(0.77))


@planted("length_bias", ANY_WARNING)
def the_shorter_wins(folder: Path) -> Files:
    return files(folder, _longer(0.31))


@planted("shortcut", ANY_WARNING)
def a_word_that_every_chosen_answer_begins_with(folder: Path) -> Files:
    return files(folder, [{**row, "chosen": "Certainly! " + row["chosen"]} for row in pairs(MANY)])


@planted("shortcut", ANY_WARNING, beside=["length_bias"])
def questions_for_chosen_answers(folder: Path) -> Files:
    rows = pairs(MANY)
    for row, other in zip(rows, pairs(MANY, seed=2), strict=True):
        row["chosen"] = f"What would you say of this: {other['chosen'][:-1].lower()}?"
    return files(folder, rows)


# Amounts and balance.


@planted("balance", WARN)
def twelve_good_for_each_bad(folder: Path) -> Files:
    rows = judgements(FEW)
    return files(
        folder, every(every(rows, 1, lambda row: row.update(label=True)), 13, lambda row: row.update(label=False))
    )


@planted("balance", STOP)
def one_label_alone(folder: Path) -> Files:
    return files(folder, [{**row, "label": True} for row in judgements(FEW)])


@planted("amount", STRONG)
def a_hundred_and_fifty_rows(folder: Path) -> Files:
    return files(folder, pairs(150))


@planted("amount", WARN)
def seven_hundred_rows(folder: Path) -> Files:
    return files(folder, demonstrations(700))


@planted("amount", WARN)
def too_few_pairs_for_a_reward_model(folder: Path) -> Files:
    return files(folder, pairs(1500), purpose="reward")


# Text that is not what somebody wrote.


@planted("text", ANY_WARNING)
def escapes_that_steer_a_terminal(folder: Path) -> Files:
    rows = demonstrations(FEW)
    return files(folder, every(rows, 15, lambda row: row.update(completion=f"\x1b[31m{row['completion']}\x1b[0m")))


@planted("text", ANY_WARNING)
def characters_lost_in_decoding(folder: Path) -> Files:
    rows = demonstrations(FEW)
    return files(folder, every(rows, 15, lambda row: row.update(completion="Gr\ufffd\ufffde: " + row["completion"])))


@planted("text", ANY_WARNING)
def umlauts_decoded_wrongly(folder: Path) -> Files:
    wrong = "Grüße aus München, schöne Straße — “ja”. ".encode().decode("cp1252", errors="replace")
    rows = demonstrations(FEW)
    return files(folder, every(rows, 15, lambda row: row.update(completion=wrong + row["completion"])))


@planted("text", ANY_WARNING)
def pages_for_answers(folder: Path) -> Files:
    rows = demonstrations(FEW)
    page = "<div class='answer'><p>{}</p><br/><a href='x'>more</a></div>"
    return files(folder, every(rows, 4, lambda row: row.update(completion=page.format(row["completion"]))))


@planted("text", ANY_WARNING)
def refusals_for_answers(folder: Path) -> Files:
    rows = demonstrations(FEW)
    refusal = "I'm sorry, but as an AI language model I cannot {}"
    return files(folder, every(rows, 4, lambda row: row.update(completion=refusal.format(row["completion"].lower()))))


# What only a tokenizer and a template show. The model's folder is put into `asked` by the test.

LIMIT = 768
"""Tokens, two to three times what a row of `sound` needs."""


def with_model(folder: Path, rows: Sequence[Row], *, template: str | None = "plain", limit: int = LIMIT) -> Files:
    return files(folder, rows, model=..., template=template, max_length=limit)


def _lengthened(share_step: int, name: str) -> list[Row]:
    rng = random.Random(8)
    return every(demonstrations(FEW), share_step, lambda row: row.update({name: sentence(rng, 700)}))


@planted("cut", WARN)
def three_percent_of_answers_cut(folder: Path) -> Files:
    return with_model(folder, _lengthened(33, "completion"))


@planted("cut", STRONG)
def eight_percent_of_answers_cut(folder: Path) -> Files:
    return with_model(folder, _lengthened(12, "completion"))


@planted("cut", WARN)
def three_percent_of_prompts_cut(folder: Path) -> Files:
    return with_model(folder, _lengthened(33, "prompt"))


@planted("identical_after_cut", STOP, rows=[31], beside=["cut"])
def a_pair_that_differs_behind_the_limit(folder: Path) -> Files:
    long = sentence(random.Random(9), 700)
    rows = pairs(FEW)
    return with_model(folder, changed(rows, at31={"chosen": long + " Yes.", "rejected": long + " No."}))


@planted("end_token", ANY_WARNING | STOP, beside=["text"])
def end_tokens_inside_answers(folder: Path) -> Files:
    rows = demonstrations(FEW)
    return with_model(folder, every(rows, 10, lambda row: row.update(completion="Yes.</s> " + row["completion"])))


@planted("end_token", ANY_WARNING | STOP)
def a_template_without_an_end_token(folder: Path) -> Files:
    template = folder / "endless.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return with_model(folder, conversations(FEW), template=str(template))


@planted("bos", ANY_WARNING | STOP, rows=range(1, FEW + 1, 10))
def a_bos_written_into_answers(folder: Path) -> Files:
    rows = demonstrations(FEW)
    return with_model(folder, every(rows, 10, lambda row: row.update(completion="<s> " + row["completion"])))


@planted("bos", ANY_WARNING | STOP)
def a_template_with_a_bos_before_every_turn(folder: Path) -> Files:
    template = folder / "twice.jinja"
    template.write_text(
        "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
    )
    return with_model(folder, conversations(FEW), template=str(template))


def _rendering(folder: Path, turn: str) -> Files:
    template = folder / "silent.jinja"
    template.write_text(
        f"{{% for m in messages %}}{turn}{{{{ eos_token }}}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return with_model(folder, conversations(FEW), template=str(template), limit=2048)


@planted("template", ANY_WARNING | STOP)
def a_template_that_leaves_the_system_message_out(folder: Path) -> Files:
    return _rendering(folder, "{{ m.role }}: {% if m.role != 'system' %}{{ m.content }}{% endif %}")


@planted("template", ANY_WARNING | STOP)
def a_template_that_leaves_questions_out(folder: Path) -> Files:
    return _rendering(folder, "{{ m.role }}: {% if m.role != 'user' %}{{ m.content }}{% endif %}")


@planted("template", ANY_WARNING | STOP, beside=["rows", "format", "no_target"])
def a_template_that_prompts_otherwise_than_it_renders(folder: Path) -> Files:
    template = folder / "other.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}Bot> {% endif %}"
    )
    return with_model(folder, conversations(FEW), template=str(template))


def clean() -> Iterator[tuple[str, Callable[[Path], Files]]]:
    """Sound files of every kind and most formats."""
    yield "comparisons", lambda folder: files(folder, pairs(MANY))
    yield "comparisons for a reward model", lambda folder: files(folder, pairs(2 * MANY), purpose="reward")
    yield "comparisons in CSV", lambda folder: files(folder, pairs(MANY), "rows.csv")
    yield "comparisons for sft", lambda folder: files(folder, pairs(MANY), purpose="sft")
    yield (
        "scored comparisons",
        lambda folder: files(folder, [{**row, "margin": 1 + n % 3} for n, row in enumerate(pairs(MANY))]),
    )
    yield "judgements", lambda folder: files(folder, judgements(MANY))
    yield "comparisons for kto", lambda folder: files(folder, pairs(MANY), purpose="kto")
    yield "demonstrations", lambda folder: files(folder, demonstrations(MANY))
    yield "conversations, packed", lambda folder: files(folder, conversations(MANY), "rows.jsonl.gz")
    yield "prompts", lambda folder: files(folder, prompts(MANY), purpose="ppo")
    yield "text", lambda folder: files(folder, [{"text": row["completion"]} for row in demonstrations(MANY)])
    yield "a byte order mark", lambda folder: raw(folder, "rows.jsonl", b"\xef\xbb\xbf" + lines(pairs(MANY)))
    yield (
        "train and test",
        lambda folder: files(folder, pairs(MANY), test=(put(folder, pairs(200, seed=5), "test.jsonl"),)),
    )
    yield "conversations with a model", lambda folder: with_model(folder, conversations(MANY), limit=2048)
    yield "comparisons with a model", lambda folder: with_model(folder, pairs(MANY), limit=2048)
