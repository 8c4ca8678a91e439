"""Whether a text names a person, by an e-mail address or a telephone number, and where.

A telephone number is known by how it is written: with its country code (+1 415 555 2671, 0033 6 12 34 56 78), as in
North America (415-555-2671), as in France (06 12 34 56 78), or with a leading zero in three groups (020 7946 0958).

A bare run of digits is never one, whatever its length, and so are digits tied to a word by a hyphen: ten digits may
be 4155552671, but also an order, an account or seconds since 1970, and nothing in the text tells which. Taking ids
for telephone numbers would reject honest events; what must not come in bare is kept out by a pack that does not list
the property. A sign and one decimal point make a coordinate.
"""

from __future__ import annotations

import re

_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]{1,255}\.[A-Za-z]{2,}")

_NOT_AFTER = r"(?<![\w.+/-])"
_NOT_BEFORE = r"(?![\w:]|[./-]\d)"
_BETWEEN = r"(?: ?\(|\)[ .-]?|[ ./-]| - )"
_ABROAD = re.compile(rf"(?<![\w.+-])\+\(?[1-9]\d*(?:{_BETWEEN}\d+)*(?!\w)")
_NATIONAL = re.compile(
    rf"{_NOT_AFTER}(?:"
    r"(?:1[ .-])?(?:\([2-9]\d\d\)[ .-]?|[2-9]\d\d[ .-])\d{3}[ .-]\d{4}"
    r"|0[1-9]([ .-])\d\d(?:\1\d\d){3}"
    r"|0[1-9]\d{1,2} \d{3,4} \d{4}"
    r"|00[1-9]\d{0,2}(?: \d{1,4}){3,6}"
    rf"){_NOT_BEFORE}"
)
_DOTTED = re.compile(r"\+\d+(?:\.\d+){2,}")
_GROUP = re.compile(r"\d+")
_LEAST, _MOST = 8, 15
_PLAIN = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2010": "-", "\u2011": "-", "\u2013": "-"})


def personal(text: str) -> bool:
    """Whether an e-mail address or a telephone number stands anywhere in the text."""
    if "@" in text and _EMAIL.search(text):
        return True
    return len(text) >= _LEAST and not text.isalnum() and _GROUP.search(text) is not None and _telephone(text)


def hidden(text: str) -> str:
    """The text with `…` in the place of each e-mail address and telephone number."""
    if not personal(text):
        return text
    plain = text.translate(_PLAIN)
    spans = [found.span() for pattern in (_EMAIL, _NATIONAL) for found in pattern.finditer(plain)]
    spans += [found.span() for found in _ABROAD.finditer(plain) if _reaches_someone(found[0])]
    pieces, end = [], 0
    for start, stop in sorted(spans):
        if start >= end:
            pieces += [text[end:start], "…"]
        end = max(end, stop)
    return "".join([*pieces, text[end:]])


def _telephone(text: str) -> bool:
    if not text.isascii():
        text = text.translate(_PLAIN)
    if "+" in text and any(_reaches_someone(found[0]) for found in _ABROAD.finditer(text)):
        return True
    return _NATIONAL.search(text) is not None


def _reaches_someone(number: str) -> bool:
    """Whether some of the groups, from the first, make a number: 8 to 15 digits. Source for the most: ITU-T E.164."""
    digits = 0
    for group in _GROUP.finditer(number):
        digits += len(group[0])
        if digits > _MOST:
            return False
        written = number[: group.end()]
        # points go between all groups, or the first one is decimal
        if digits >= _LEAST and ("." not in written or _DOTTED.fullmatch(written)):
            return True
    return False
