"""Text → token ids, in pieces: each piece becomes the tokens that it has where it stands in the whole text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from truing.core.errors import ModelError
from truing.data.templates import Part, adds_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", ".", "a")
"""Texts to stand in for what precedes a piece; the first that does not merge with it is taken."""

Piece = tuple[str, str]
"""(anchor, text): the text as it is tokenised right after the anchor."""


class Pieces:
    """Tokenises prompts and completions apart, as they come apart at inference, many at a time.

    SentencePiece-like tokenizers put a space before a text. A piece that continues a text must not get one, so it is
    tokenised behind an anchor whose tokens are then dropped; other tokenizers need no anchor and pay nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]) -> None:
        if not end_tokens:
            raise ModelError("the tokenizer has no end token, so no answer can be taught to end; give it an eos_token")
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens
        self.bos: int | None = tokenizer.bos_token_id
        self.adds_bos = adds_bos(tokenizer)
        eos = tokenizer.eos_token_id
        self.eos: int = eos if eos in end_tokens else min(end_tokens)
        self._end_texts = tuple(text for text in (self._own_text(token) for token in sorted(end_tokens)) if text)
        joined = self._ids("\na") == self._ids("\n") + self._ids("a")
        self.continuing = "" if joined else _ANCHORS[0]
        self.after_end = "" if joined else (self._own_text(self.eos) or _ANCHORS[0])

    def cut_after_end(self, text: str) -> tuple[str, str]:
        """Split a turn behind its end token where only space (and more end tokens) follows it."""
        stop, cut = len(text), len(text)
        while True:
            while stop and text[stop - 1].isspace():
                stop -= 1
            end = next((end for end in self._end_texts if text.endswith(end, 0, stop)), None)
            if end is None:
                return text[:cut], text[cut:]
            cut, stop = stop, stop - len(end)

    def has_end(self, text: str) -> bool:
        """True where a text ends with an end token."""
        return text.endswith(self._end_texts)

    def of_parts(self, parts: Sequence[Part], first_anchor: str) -> list[Piece]:
        """The pieces of a completion; `first_anchor` is empty where it begins the text."""
        pieces: list[Piece] = []
        before: Part | None = None
        for part in parts:
            if before is None:
                anchor = first_anchor
            elif before.supervised and not part.supervised and self.has_end(before.text):
                anchor = self.after_end  # as when the conversation is read again at inference
            else:
                anchor = self.continuing
            pieces.append((anchor, part.text))
            before = part
        return pieces

    def tokenise(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Token ids of many pieces, one call of the tokenizer for each anchor."""
        out: list[list[int]] = [[] for _ in pieces]
        groups: dict[str, list[int]] = {}
        for index, (anchor, text) in enumerate(pieces):
            if text:
                groups.setdefault(anchor, []).append(index)
        for anchor, indices in groups.items():
            texts = [pieces[index][1] for index in indices]
            for index, ids in zip(indices, self._behind(anchor, texts), strict=True):
                out[index] = ids
        return out

    def _behind(self, anchor: str, texts: list[str]) -> Iterable[list[int]]:
        prefix = self._ids(anchor) if anchor else []
        rows: list[list[int]] = self._call([anchor + text for text in texts])
        for text, ids in zip(texts, rows, strict=True):
            yield ids[len(prefix) :] if ids[: len(prefix)] == prefix else self._behind_another(text)

    def _behind_another(self, text: str) -> list[int]:
        for anchor in _ANCHORS:
            prefix, ids = self._ids(anchor), self._ids(anchor + text)
            if ids[: len(prefix)] == prefix:
                return ids[len(prefix) :]
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return self._call([text])[0]

    def _call(self, texts: list[str]) -> list[list[int]]:
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(found["input_ids"])

    def _own_text(self, token: int) -> str | None:
        """The text that is tokenised as this one token, if there is one."""
        text = self.tokenizer.convert_ids_to_tokens(token)
        return text if isinstance(text, str) and self._ids(text) == [token] else None
