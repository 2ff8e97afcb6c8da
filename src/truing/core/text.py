"""Text of strangers made harmless for a terminal."""

from __future__ import annotations

import unicodedata


def harmless(text: str) -> str:
    """Show control and direction-changing characters as escapes, so that data cannot steer a terminal.

    Newlines and tabs stay.

    >>> harmless("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c if c in "\n\t" or not _steers(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and character not in "\u200c\u200d"
