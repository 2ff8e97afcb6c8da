"""Turns sound files into unsound ones, step by step, as a source of choices decides.

The choices come from hypothesis in the tests, which shrinks them; from a seed in long runs; from atheris' fuzzer where
coverage guides them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Choose = Callable[[int], int]
"""Draws a number from 0 to below its argument."""

DEEP, LONG, TWICE = "@deep@", "@long@", "@twice@"
"""Stand for what json.dumps cannot write: lists nested by the thousand, a number of 5,000 digits, a key given twice."""
WRITTEN = {DEEP: "[" * 10_000 + "]" * 10_000, LONG: "9" * 5_000}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -1e-320, float("nan"), float("inf"), "", " ", "\0",
    "\ud800", "\u202e", "\x1b]8;;x\x07", "../../../etc/passwd", "/etc/passwd", "a" * 5_000, "NaN", "1e400",
    "<script>alert(1)</script>", "=1+1", "{{ 1 }}", "(a+)+$", "[", [], {}, [[]], [None], {"": None}, {"a": {"b": []}},
    DEEP, LONG,
)  # fmt: skip
PIECES = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",",
    b"\n", b"\r", b"-", b"&a ", b"*a", b"!!int ", b"!!timestamp ", b"2001-99-99", b"0x_", b"NaN", b"1e400",
    b"9" * 5_000, b"[" * 10_000, b'\\ud800', b"\\u0000", b"{%", b"%}", b"{{", b"}}", b"\xe2\x80\xa8",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-32", "latin-1", "utf-8-sig")


def mutated_value(value: Any, choose: Choose, times: int = 3) -> Any:
    """A copy of a JSON value in which some values, keys or lists are no longer what they were."""
    for _ in range(choose(times + 1)):
        value = _mutate(value, choose)
    return value


def as_json(value: Any) -> bytes:
    """JSON text of a mutated value."""
    text = json.dumps(value)
    for mark, written in WRITTEN.items():
        text = text.replace(f'"{mark}"', written)
    return text.replace(TWICE, "").encode()


def mutated_bytes(content: bytes, choose: Choose, times: int = 3) -> bytes:
    """A copy of a file with flipped bits, cuts, repeats, pieces put in, or in another encoding."""
    for _ in range(choose(times + 1)):
        content = _harm(content, choose)
    return content


def _mutate(value: Any, choose: Choose) -> Any:
    """Go down to one place, the same chance on every level, and change it."""
    if isinstance(value, dict) and value and choose(4):
        key = list(value)[choose(len(value))]
        how = choose(8)
        rest = {k: v for k, v in value.items() if k != key}
        if how == 0:
            return rest
        if how == 1:
            return {**value, str(ODD[choose(len(ODD))]): value[key]}
        if how == 2:
            return {**value, f"{key}{TWICE}": ODD[choose(len(ODD))]}  # the same key again
        return {**value, key: _mutate(value[key], choose)}
    if isinstance(value, list) and value and choose(4):
        place = choose(len(value))
        how = choose(6)
        if how == 0:
            return value[:place] + value[place + 1 :]
        if how == 1:
            return value + [value[place]] * (1 + choose(60))
        return [*value[:place], _mutate(value[place], choose), *value[place + 1 :]]
    return [value] if choose(12) == 0 else ODD[choose(len(ODD))]


def _harm(content: bytes, choose: Choose) -> bytes:
    at = choose(len(content) + 1)
    how = choose(8)
    if how == 0:
        return content[:at]
    if how == 1:
        end = at + choose(64)
        return content[:at] + content[end:]
    if how == 2:
        return content[:at] + content[at : at + choose(200)] * (1 + choose(5)) + content[at:]
    if how == 3 and choose(4) == 0:
        return content.decode("utf-8", "replace").encode(ENCODINGS[choose(len(ENCODINGS))], "replace")
    if how in (4, 5):
        return content[:at] + PIECES[choose(len(PIECES))] + content[at:]
    if at == len(content):
        return content
    return content[:at] + bytes([content[at] ^ (1 << choose(8))]) + content[at + 1 :]
