"""Scored, ranked and compared answers: a row holds several answers to a prompt, or several rows hold one each.

What they say of a prompt is drawn from them by a rule: pairs whose scores differ enough, or a threshold.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from truing.core.errors import DataError
from truing.core.trees import ExampleKind, Origin
from truing.data import rows
from truing.data.examples import Comparison, Demonstration, Example, Judgement, Message, Messages, Words, words_key
from truing.data.faults import RowError, counted
from truing.data.records import Record

ANSWER_NAMES = ("response", "completion", "answer", "text")
SCORE_NAMES = ("score", "overall_score", "rating", "helpfulness")
"""What an answer and its score are called, inside a list (UltraFeedback) or as columns (HelpSteer)."""

_WINNERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("model_a", "a", "response_a"), (1.0, 0.0)),
    **dict.fromkeys(("model_b", "b", "response_b"), (0.0, 1.0)),
    **dict.fromkeys(("tie", "tie (bothbad)", "bothbad", "both_bad", "both bad"), (0.0, 0.0)),
}
WINNER_COLUMNS = ("winner_model_a", "winner_model_b", "winner_tie")
"""Columns of 0 and 1, one of which is 1 (Kaggle's)."""
STRENGTH_NAMES = ("overall_preference", "preference_strength")
"""How much better the second answer is than the first; below 0, how much better the first is (HelpSteer)."""
FIRST_NAMES, SECOND_NAMES = ("response1", "response_1"), ("response2", "response_2")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, and how good it was found."""

    words: Words
    score: float


Tells = Literal["order", "difference", "quality"]
"""Which answer of a row is better (ranks, winners), by how much as well, or how good each is beside any other."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt and scored answers to it."""

    prompt: Words
    answers: tuple[Answer, ...]
    tells: Tells
    """What its scores say."""
    origin: Origin


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """What is made of scores."""

    margin: float = 0.0
    """Two answers are a comparison where their scores differ by at least this; a tie never is one."""
    threshold: float | None = None
    """An answer is desirable where its score is at least this."""


def scores(record: Record) -> Scored:
    """Answers with scores: a list of objects, two lists side by side, or one answer a row."""
    if rows.has(record, "completions"):
        answers = _listed(record, "completions", SCORE_NAMES)
    elif rows.has(record, "responses"):
        answers = _side_by_side(record, "scores")
    else:
        answers = (_object(record.values, "the row", record.origin, SCORE_NAMES),)
    return _scored(record, _asked(record), answers, "quality")


def ranks(record: Record) -> Scored:
    """Answers with ranks, of which 1 is the best: a list of objects (Nectar), or two lists side by side."""
    answers = _listed(record, "answers", ("rank",)) if rows.has(record, "answers") else _side_by_side(record, "ranks")
    return _scored(record, _asked(record), tuple(Answer(a.words, -a.score) for a in answers), "order")


def arena(record: Record) -> Scored:
    """Two models' answers and the winner of them; a tie gives both the same score."""
    figures = _WINNERS[_winner(record)]
    both = _conversations(record)
    if both is not None:
        one, other = both
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        asked: Words = one[:-1] if one == other else tuple(turn for turn, _ in alike)
        words: tuple[Words, Words] = (one[len(asked) :], other[len(asked) :])
    else:
        asked = _asked(record)
        words = (rows.words(record, "response_a"), rows.words(record, "response_b"))
    answers = tuple(Answer(answer, score) for answer, score in zip(words, figures, strict=True))
    return _scored(record, asked, answers, "order")


def preference(record: Record) -> Scored:
    """Two answers and how much better one is, as a number with a sign; 0 prefers nothing."""
    name = next(name for name in STRENGTH_NAMES if rows.has(record, name))
    strength = rows.finite(record.values[name])
    if math.isnan(strength):
        found = rows.short(repr(record.values[name]))
        raise RowError(
            record.origin, "no score", f"'{name}' is {found}; expected a finite number, below 0 for the first"
        )
    words = [
        rows.text(record, next((name for name in names if rows.has(record, name)), names[0]))
        for names in (FIRST_NAMES, SECOND_NAMES)
    ]
    answers = tuple(Answer(text, max(0.0, score)) for text, score in zip(words, (-strength, strength), strict=True))
    asked = rows.words(record, "context") if rows.has(record, "context") else _asked(record)
    return _scored(record, asked, answers, "difference")


def _winner(record: Record) -> str:
    if rows.has(record, "winner"):
        winner = rows.text(record, "winner").strip().lower()
        if winner not in _WINNERS:
            raise RowError(
                record.origin, "unknown winner", f"'winner' is {rows.short(winner)!r}; expected model_a, model_b or tie"
            )
        return winner
    marks = [rows.finite(record.values.get(name)) if rows.has(record, name) else 0.0 for name in WINNER_COLUMNS]
    if sorted(marks) != [0.0, 0.0, 1.0]:
        raise RowError(
            record.origin,
            "unknown winner",
            f"of {', '.join(WINNER_COLUMNS)} one has to be 1 and the others 0",
        )
    return ("model_a", "model_b", "tie")[marks.index(1.0)]


def _conversations(record: Record) -> tuple[Messages, Messages] | None:
    """Both models' conversations, where a row holds them as messages, or as lists of turns in JSON (Kaggle's)."""
    if rows.has(record, "conversation_a"):
        return rows.messages(record, "conversation_a"), rows.messages(record, "conversation_b")
    asked, one, other = (_turns(record.values.get(name)) for name in ("prompt", "response_a", "response_b"))
    if asked is None or one is None or other is None:
        return None
    if not len(asked) == len(one) == len(other):
        raise RowError(
            record.origin,
            "wrong type",
            f"'prompt' holds {len(asked)} turns, 'response_a' {len(one)} and 'response_b' {len(other)}",
        )
    return _talk(asked, one), _talk(asked, other)


def _turns(value: object) -> list[str] | None:
    """The texts of a list of turns, or of one written as JSON; null, a turn that was lost, is an empty one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not all(turn is None or isinstance(turn, str) for turn in value):
        return None
    return [turn or "" for turn in value]


def _talk(asked: Sequence[str], answered: Sequence[str]) -> Messages:
    pairs = zip(asked, answered, strict=True)
    return tuple(turn for user, reply in pairs for turn in (Message("user", user), Message("assistant", reply)))


def from_scores(
    scored: Sequence[Scored], kind: ExampleKind, rule: ScoreRule, name: str
) -> tuple[tuple[Example, ...], str]:
    """Draw examples of a kind from the scored answers of a file called `name`, with a sentence on how."""
    ties = sum(row.tells != "quality" and len({answer.score for answer in row.answers}) == 1 for row in scored)
    left = f"; {counted(ties, 'tie')} left out" if ties else ""
    if kind == "comparison":
        least = f"by at least {rule.margin:g}" if rule.margin > 0 else "at all"
        note = f"{name}: answers to one prompt are compared where their scores differ {least}{left}"
        return pairs(scored, rule.margin), note
    if kind == "demonstration":
        return best(scored), f"{name}: of each prompt the answer with the highest score is used{left}"
    if not all(row.tells == "quality" for row in scored):
        raise DataError(
            f"{name}: ranks and winners say which answer is better, not which is good; "
            "make comparisons of them first: truing data convert --to comparison"
        )
    if rule.threshold is None:
        raise DataError(
            f"{name}: scores are judgements only with a threshold; "
            "give one: truing data convert --to judgement --threshold SCORE"
        )
    note = f"{name}: an answer is desirable where its score is at least {rule.threshold:g}"
    return judged(scored, rule.threshold), note


def pairs(scored: Iterable[Scored], margin: float) -> tuple[Comparison, ...]:
    """Every two answers to a prompt whose scores differ, and by at least `margin`; equal answers are passed over.

    Answers of two rows are compared by their quality alone: who won in one row says nothing of another's answers.
    """
    found = []
    for group in _comparable(scored):
        everyone = [(row, answer) for row in group for answer in row.answers]
        for (one, a), (other, b) in itertools.combinations(everyone, 2):
            if a.score == b.score or abs(a.score - b.score) < margin or a.words == b.words:
                continue
            better, worse = (a, b) if a.score > b.score else (b, a)
            difference = None if "order" in (one.tells, other.tells) else better.score - worse.score
            found.append(Comparison(one.prompt, better.words, worse.words, difference, other.origin))
    return tuple(found)


def judged(scored: Iterable[Scored], threshold: float) -> tuple[Judgement, ...]:
    """Every answer, desirable from the threshold on."""
    return tuple(Judgement(s.prompt, a.words, a.score >= threshold, s.origin) for s in scored for a in s.answers)


def best(scored: Iterable[Scored]) -> tuple[Demonstration, ...]:
    """The best answer to each prompt, the first of several; none where answers were compared and tied."""
    found = []
    for group in _comparable(scored):
        everyone = [(answer, row.origin) for row in group for answer in row.answers]
        top, origin = max(everyone, key=lambda one: one[0].score)
        if group[0].tells == "quality" or any(answer.score < top.score for answer, _ in everyone):
            found.append(Demonstration(group[0].prompt, top.words, origin))
    return tuple(found)


def _comparable(scored: Iterable[Scored]) -> Iterable[list[Scored]]:
    """Rows whose scores have one scale: those of a prompt where they say how good answers are, else each by itself."""
    groups: dict[str | int, list[Scored]] = {}
    for number, row in enumerate(scored):
        groups.setdefault(words_key(row.prompt) if row.tells == "quality" else number, []).append(row)
    return groups.values()


def _scored(record: Record, asked: Words, answers: tuple[Answer, ...], tells: Tells) -> Scored:
    """Check what every row of answers has to hold, and give prompt and answers one form: text, or messages."""
    if not isinstance(asked, str) or not all(isinstance(answer.words, str) for answer in answers):
        asked = rows.as_messages(asked, "user")
        answers = tuple(Answer(rows.as_messages(a.words, "assistant"), a.score) for a in answers)
        rows.check_prompt(asked, record.origin)
    for answer in answers:
        rows.check_one_answer(answer.words, "an answer", record.origin)
    return Scored(asked, answers, tells, record.origin)


def _asked(record: Record) -> Words:
    if rows.has(record, "prompt"):
        return rows.words(record, "prompt")
    return (Message("user", rows.text(record, "instruction")),)


def _listed(record: Record, column: str, names: Sequence[str]) -> tuple[Answer, ...]:
    found = []
    for n, item in enumerate(_list(record, column), start=1):
        where = f"'{column}' answer {n}"
        if not isinstance(item, dict):
            raise RowError(record.origin, "wrong type", f"{where} is not an object with an answer and a {names[0]}")
        found.append(_object(item, where, record.origin, names))
    return tuple(found)


def _side_by_side(record: Record, column: str) -> tuple[Answer, ...]:
    answers, figures = _list(record, "responses"), _list(record, column)
    if len(answers) != len(figures):
        raise RowError(
            record.origin, "wrong type", f"'responses' holds {len(answers)} answers, '{column}' {len(figures)} numbers"
        )
    items = [{"response": answer, column: figure} for answer, figure in zip(answers, figures, strict=True)]
    return tuple(_object(item, f"answer {n}", record.origin, (column,)) for n, item in enumerate(items, start=1))


def _list(record: Record, column: str) -> Sequence[object]:
    value = record.values.get(column)
    if not isinstance(value, (list, tuple)) or not value:
        raise RowError(record.origin, "wrong type", f"'{column}' has to be a list with an entry for each answer")
    return value


def _object(item: Mapping[str, object], where: str, origin: Origin, names: Sequence[str]) -> Answer:
    answer = next((item[name] for name in ANSWER_NAMES if item.get(name) is not None), None)
    figure = next((item[name] for name in names if item.get(name) is not None), None)
    if not isinstance(answer, str):
        raise RowError(origin, "wrong type", f"{where} has no text under {', '.join(ANSWER_NAMES)}")
    number = rows.finite(figure)
    if math.isnan(number):
        raise RowError(origin, "no score", f"{where} has no finite number under {', '.join(names)}")
    return Answer(answer, number)
