"""Right, wrong, or not decidable: the rules of ``docs/how_answers_are_judged.md``. In doubt nothing is right."""

from __future__ import annotations

import re
import unicodedata

from .lists import (
    BEFORE,
    BEHIND,
    BEHIND_FIGURES,
    BETWEEN,
    CHOICES,
    CORRECTIONS,
    DOUBTS,
    FIGURES,
    GOES_ON,
    LEADS,
    NEGATING,
    NEGATIONS,
    PARTICLES,
    PICKS,
)
from .text import Reading, Token, nothing, read

_PAIRS = (("yes", "no"), ("true", "false"))
_LONGEST = 1000  # words of an answer
_LIST = re.compile(r"\s*[,/;|&\n]\s*")  # between things that are only named


def exact(answer: str, truth: str) -> bool:
    """The answer is the truth, character by character in Unicode's composed form.

    Example:
        >>> from ficoco_ext.judging import exact
        >>> exact("red", "red"), exact("Red", "red"), exact("?", "?")
        (True, False, False)
    """
    same = unicodedata.normalize("NFC", answer) == unicodedata.normalize("NFC", truth)
    return same and not nothing(truth)


def contained(answer: str, truth: str) -> bool | None:
    """The answer says the truth: as whole words or as the one whole number; a yes, no or option letter as such.

    Args:
        answer: what was said.
        truth: what is right. One without a letter or digit is never said.

    Returns:
        True or False; None where it cannot be decided, as with "yes and no".

    Example:
        >>> from ficoco_ext.judging import contained
        >>> contained("The circle is Red.", "red"), contained("1.5", "5"), contained("It is not red.", "red")
        (True, False, None)
    """
    said, wanted = read(answer), read(truth)
    if nothing(truth):
        return False
    if len(said.tokens) > _LONGEST:
        return None
    words = [token.text for token in wanted.tokens]
    for pair in _PAIRS:
        if len(words) == 1 and words[0] in pair:
            return _polar(said, words[0], pair)
    if len(words) == 2 and words[0] in CHOICES and _is_letter(wanted.tokens[1]):
        words = words[1:]
    if len(words) == 1 and _is_letter(wanted.tokens[-1]):
        return _letter(said, words[0])
    figures = [token for token in wanted.tokens if token.text not in ("%", "minus", "negative")]
    if len(figures) == 1 and figures[0].number is not None:
        return _number(said, wanted)
    return _words(said, wanted)


def _clear(said: Reading, first: int, last: int) -> bool:
    """Nothing in the sentence denies or doubts the tokens ``first`` to ``last``."""
    start, end = said.sentence(first, last)
    clause = last + 1
    while clause < end and not set(said.tokens[clause].gap) & set(",:"):
        clause += 1
    outside = [token.text for token in (*said.tokens[start:first], *said.tokens[last + 1 : clause])]
    rest = [token.text for token in (*said.tokens[start:first], *said.tokens[last + 1 : end])]
    joined = "".join(rest)
    later = {token.text for place, token in enumerate(said.tokens) if place >= end and said.begins(place)}
    denied = NEGATIONS & set(outside) or any(part in joined for part in NEGATING)  # "red, not blue" says red
    return not (denied or DOUBTS & set(rest) or CORRECTIONS & later)


def _asks(said: Reading, last: int) -> bool:
    """The sentence with the token ``last`` is a question."""
    _, end = said.sentence(last, last)
    return "?" in said.gap_behind(end - 1)


def _polar(said: Reading, wanted: str, pair: tuple[str, str]) -> bool | None:
    """A yes or no that stands as the answer, not as part of "no doubt"."""
    places = [place for place, token in enumerate(said.tokens) if token.text in pair]
    if len({said.tokens[place].text for place in places}) != 1 or not any(_stands(said, place) for place in places):
        return None
    for place in places:
        start, end = said.sentence(place, place)
        before = {token.text for token in said.tokens[start:place]}
        whole = {token.text for token in said.tokens[start:end]}
        denied = NEGATIONS & (before if said.tokens[place].text == pair[1] else whole)
        later = {token.text for other, token in enumerate(said.tokens) if other >= end and said.begins(other)}
        if denied - {pair[1]} or DOUBTS & whole or CORRECTIONS & later - set(pair) or _asks(said, place):
            return None
    return said.tokens[places[0]].text == wanted


def _stands(said: Reading, place: int) -> bool:
    behind = said.gap_behind(place).strip(" ")
    end = place + 1 == len(said.tokens)
    following = None if end else said.tokens[place + 1]
    if following is not None and (following.number is not None or behind[:1] in ("-", "/", "'")):
        return False  # No. 5, yes-man
    ends = end or bool(behind) or (following is not None and following.text in GOES_ON)
    led = place > 0 and (said.tokens[place - 1].text in LEADS or set(said.tokens[place].gap) & set(",:"))
    return ends and bool(said.begins(place) or led or end)


def _is_letter(token: Token) -> bool:
    return len(token.text) == 1 and token.text.isalpha() and not token.unspaced


def _letter(said: Reading, wanted: str) -> bool | None:
    """The one letter that stands as an option."""
    singles = {place for place, token in enumerate(said.tokens) if _is_letter(token) and not token.gap.endswith("'")}
    options = {place for place in singles if _is_option(said, place)}
    stray = {place for place in singles - options if not _may_be_word(said, place)}
    found = {said.tokens[place].text for place in options | stray}
    if not options or len(found) != 1:
        return None
    if not all(_clear(said, place, place) and not _asks(said, place) for place in options):
        return None
    return found == {wanted}


def _may_be_word(said: Reading, place: int) -> bool:
    """An article or a pronoun, or the first part of something like T-shirt."""
    return said.tokens[place].text in tuple("aeiouy") or said.gap_behind(place)[:1] == "-"


def _is_option(said: Reading, place: int) -> bool:
    token, behind = said.tokens[place], said.gap_behind(place)
    if token.gap[-1:] in ("(", "[", "*", "{") and behind[:1] in (")", "]", "*", "}"):
        return True
    end = place + 1 == len(said.tokens)
    following = None if end else said.tokens[place + 1].text
    set_off = (
        end
        or behind.startswith(" - ")
        or behind.lstrip(" ")[:1] in tuple(".,:;)]!*<\n")
        or following in ("because", "since", "which")
    )
    upright = token.raw.isupper() and following in ("is", "because", "since")
    if place == 0:
        return set_off or upright
    before = [one.text for one in said.tokens[:place]]
    while before and before[-1] in BETWEEN and before[-1] not in CHOICES:
        before.pop()
    if before and before[-1] in CHOICES and (set_off or upright):
        return True
    return end and token.raw.isupper() and said.tokens[place - 1].text in PICKS


def _number(said: Reading, wanted: Reading) -> bool | None:
    """The only number that is said, compared whole."""
    width = len(wanted.tokens)
    places = [place for place in _matches(said, wanted) if not _asks(said, place + width - 1)]
    value = next(token.number for token in wanted.tokens if token.number is not None)
    others = any(token.number is not None and token.number != value for token in said.tokens)
    unread = any(token.unread for token in said.tokens)
    if not places:
        return None if unread or _matches(said, wanted) else False
    fine = all(_clear(said, place, place + width - 1) and not _joined(said, place, width) for place in places)
    return None if others or unread or not fine else True


def _matches(said: Reading, wanted: Reading) -> list[int]:
    """Where the tokens of ``wanted`` stand one after the other."""
    width = len(wanted.tokens)
    return [
        start
        for start in range(len(said.tokens) - width + 1)
        if all(a.same(b) for a, b in zip(said.tokens[start : start + width], wanted.tokens, strict=True))
    ]


def _joined(said: Reading, start: int, width: int) -> bool:
    """It may be a part of a longer word: beside a hyphen, or where no blanks stand between words."""
    figures = all(token.text in FIGURES for token in said.tokens[start : start + width])
    behind = BEHIND_FIGURES if figures else BEHIND
    for place, neighbour, allowed in ((start, start - 1, BEFORE), (start + width, start + width, behind)):
        if not 0 < place < len(said.tokens):
            continue
        left, right = said.tokens[place - 1], said.tokens[place]
        if right.gap in ("-", "/"):
            return True
        if not right.gap and left.unspaced and right.unspaced and not _ends_there(said, neighbour, allowed):
            return True
    return False


def _ends_there(said: Reading, place: int, allowed: tuple[str, ...]) -> bool:
    """Where no blanks stand: the text up to the token at ``place``, or from it on, is one of ``allowed``."""
    first = last = place
    while first and not said.tokens[first].gap and said.tokens[first - 1].unspaced:
        first -= 1
    while last + 1 < len(said.tokens) and not said.tokens[last + 1].gap and said.tokens[last + 1].unspaced:
        last += 1
    if allowed is BEFORE:
        return "".join(token.text for token in said.tokens[first : place + 1]).endswith(allowed)
    return "".join(token.text for token in said.tokens[place : last + 1]).startswith(allowed)


def _words(said: Reading, wanted: Reading) -> bool | None:
    """The words of ``wanted`` in their order, in a sentence that does not deny them."""
    matches, width = _matches(said, wanted), len(wanted.tokens)
    places = [place for place in matches if not _asks(said, place + width - 1)]  # a question that is said again
    if matches:
        listed = width < len(said.tokens) and all(_LIST.fullmatch(token.gap) for token in said.tokens[1:])
        if listed or not places:
            return None
        fine = all(_clear(said, place, place + width - 1) for place in places)
        whole = any(not _joined(said, place, width) for place in places)
        return True if fine and whole else None
    return _with_particle(said, wanted) if width == 1 and _hangul(wanted.tokens[0].text) else False


def _hangul(text: str) -> bool:
    return all(0xAC00 <= ord(one) <= 0xD7A3 for one in text)


def _with_particle(said: Reading, wanted: Reading) -> bool | None:
    """A Korean word with its particle."""
    word = wanted.tokens[0].text
    holding = [place for place, token in enumerate(said.tokens) if word in token.text]
    if not holding:
        return False
    fine = all(
        said.tokens[place].text.startswith(word)
        and said.tokens[place].text.removeprefix(word) in PARTICLES
        and _clear(said, place, place)
        for place in holding
    )
    return True if fine else None
