from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world.small import SMALL
from truing.core.errors import InputError
from truing.world.grammar import END, Node, grow, join_words, split_words
from truing.world.reviews import REVIEWS
from truing.world.reward import true_reward
from truing.world.world import World

PROMPT = "Two thumbs for the old pub:"


def by_hand() -> set[str]:
    """Every answer of the small world, written with plain string formatting."""
    words = {"beer was": "cool warm", "chips were": "hot limp", "bear was": "awake asleep", "cages were": "big tiny"}
    clauses = [f"{s} {a}" for s, both in words.items() for a in (*both.split(), "nice", "bad")]
    starts, joiners, ends = (
        ("The ", "I guess the ", "Well, the "),
        (" and the ", ", but the "),
        ("", " Cheers!", " Pah!"),
    )
    parts = itertools.product(starts, clauses, joiners, clauses, ends)
    return {f"{start}{first}{joiner}{second}.{end}" for start, first, joiner, second, end in parts}


def random_answer(world: World, draw: st.DataObject) -> str:
    node, words = world.tree(world.prompts[0].text), []
    while node.branches:
        choices = [*node.branches, None] if node.ends else list(node.branches)
        word = draw.draw(st.sampled_from(choices))
        if word is None:
            break
        words.append(word)
        node = node.branches[word]
    return join_words(words)


def test_the_tree_holds_exactly_the_answers_of_the_grammar_each_once() -> None:
    walked = list(SMALL.answers(PROMPT))
    assert len(walked) == len(set(walked))
    assert set(walked) == by_hand()
    assert SMALL.count_answers(PROMPT) == len(walked) == 3 * 16 * 2 * 16 * 3


def test_the_world_of_reviews_has_as_many_answers_as_its_slots_multiply_to() -> None:
    features = sum(len(place.features) for place in REVIEWS.places)
    openings, words, joiners, closings = 1 + 1, 2 + 2 + 2, 2, 1 + 4
    expected = openings * (features * words) ** 2 * joiners * closings
    assert REVIEWS.count_answers(REVIEWS.prompts[0].text) == expected == 103_680


def test_a_hundred_thousand_answers_share_a_few_hundred_nodes() -> None:
    seen: dict[int, Node] = {}
    waiting = [REVIEWS.tree(REVIEWS.prompts[0].text)]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            waiting += node.branches.values()
    assert len(seen) < 500
    for node in seen.values():
        assert node.count == node.ends + sum(child.count for child in node.branches.values())


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The beer was cool and the chips were hot",
        "The beer was cool.",
        "the beer was cool and the chips were hot.",
        "I guess The beer was cool and the chips were hot.",
        "The beer was hot and the chips were hot.",
        "The beer were cool and the chips were hot.",
        "The beer was cool and the chips were hot. Cheers! Cheers!",
        "The beer was cool and the chips were hot. <unk>",
    ],
)
def test_what_is_not_a_whole_answer_is_not_grammatical_and_worth_nothing(answer: str) -> None:
    assert not SMALL.is_grammatical(PROMPT, answer)
    assert true_reward(PROMPT, answer, SMALL) == 0


@given(st.data())
def test_every_walk_through_the_tree_is_an_answer_that_reads_back_the_same_and_scores_from_0_to_1(
    data: st.DataObject,
) -> None:
    answer = random_answer(REVIEWS, data)
    prompt = data.draw(st.sampled_from(REVIEWS.prompts)).text
    review = REVIEWS.read(prompt, answer)
    assert review is not None
    assert review.text == answer
    assert REVIEWS.is_grammatical(prompt, f" {answer}\n")
    assert 0 <= true_reward(prompt, answer) <= 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The beer was cool and the chips were hot. Cheers!", 1.0),
        ("Well, the beer was cool and the chips were hot. Cheers!", 1.0),
        ("The beer was cool and the chips were hot.", 0.9),
        ("The beer was cool, but the chips were hot. Cheers!", 0.9),
        ("The beer was cool and the chips were nice. Cheers!", 0.8),
        ("The beer was nice and the chips were nice. Cheers!", 0.6),
        ("The beer was cool and the beer was cool. Cheers!", 0.6),
        ("The beer was cool and the bear was awake. Cheers!", 0.6),
        ("The beer was cool, but the chips were limp. Cheers!", 0.6),
        ("I guess the beer was cool and the chips were hot. Cheers!", 0.5),
        ("The beer was cool and the chips were hot. Pah!", 0.225),
        ("I guess the beer was cool and the chips were hot. Pah!", 0.1125),
        ("The bear was awake and the cages were big.", 0.1),
        ("The beer was warm, but the bear was awake.", 0.1),
        ("The bear was awake, but the cages were big.", 0.0),
    ],
)
def test_each_virtue_and_each_vice_moves_the_reward_by_what_it_is_worth(answer: str, expected: float) -> None:
    assert true_reward(PROMPT, answer, SMALL) == pytest.approx(expected)


def test_the_same_answer_is_worth_more_where_place_and_verdict_fit() -> None:
    answer = "The bread was crisp and the cakes were moist."
    prompts = ["Five stars for the old bakery:", "Three stars for the old bakery:", "One star for the old bakery:"]
    assert [true_reward(prompt, answer) for prompt in prompts] == pytest.approx([0.9, 0.5, 0.1])
    assert true_reward("Five stars for the old hotel:", answer) == pytest.approx(0.1)


def test_three_stars_want_praise_and_blame_in_either_order() -> None:
    for answer in ("The bed was soft, but the room was damp.", "The room was damp, but the bed was soft."):
        assert true_reward("Three stars for the new hotel:", answer) == pytest.approx(0.9)


def test_the_best_answers_are_few_and_the_levels_many() -> None:
    rewards = [round(true_reward(PROMPT, answer, SMALL), 6) for answer in SMALL.answers(PROMPT)]
    # Two orders of the two concrete clauses, with "and", a polite closing, and either no opening or the harmless one.
    assert rewards.count(1.0) == 4
    assert max(rewards) == 1.0
    assert len(set(rewards)) >= 20


def test_held_out_places_are_new_but_all_their_words_are_known() -> None:
    training, held_out = REVIEWS.training, REVIEWS.held_out
    assert len(training) + len(held_out) == len(REVIEWS.prompts)
    assert not {(p.setting, p.place) for p in training} & {(p.setting, p.place) for p in held_out}
    known = {word for prompt in training for word in split_words(prompt.text)}
    assert all(word in known for prompt in held_out for word in split_words(prompt.text))
    assert {p.place.name for p in held_out} == {place.name for place in REVIEWS.places}


def test_a_prompt_of_another_world_is_refused_with_an_example() -> None:
    with pytest.raises(
        InputError, match="not a prompt of this world; they read like 'Five stars for the corner bakery:'"
    ):
        true_reward("Five stars for the moon:", "The bread was crisp and the cakes were moist.")


def test_a_phrase_that_begins_another_is_refused() -> None:
    with pytest.raises(InputError, match="ends in 'red'"):
        grow([(("red",), END), (("red", "wine"), END)])


@given(st.lists(st.sampled_from(REVIEWS.vocabulary), max_size=20))
def test_words_survive_being_written_and_split(words: list[str]) -> None:
    assert split_words(join_words(words)) == tuple(words)
