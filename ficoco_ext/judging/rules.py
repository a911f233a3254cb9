"""Right, wrong, or not decidable: the rules of ``docs/how_answers_are_judged.md``. In doubt nothing is right."""

from __future__ import annotations

import re
import unicodedata

from .lists import (
    ABOUT,
    AFTER,
    AFTER_FIGURES,
    BEFORE,
    BETWEEN,
    CHOICES,
    CORRECTIONS,
    DENYING,
    DOUBTS,
    ENDORSING,
    FIGURES,
    GOES_ON,
    IGNORANCE,
    LEADING,
    LEADS,
    NEGATING,
    NEGATIONS,
    PARTICLES,
    PARTS,
    PICKS,
    REFUSALS,
    RETRACTIONS,
)
from .text import Reading, Token, nothing, read

_PAIRS = (("yes", "no"), ("true", "false"))
_LONGEST = 1000  # words of an answer
_REASONS = ("because", "since", "which", "as")
_SET_OFF = tuple('.,:;)]}!?*<\n"”」|$\\。')  # after an option
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
    denied = NEGATIONS & set(outside) or any(part in joined for part in NEGATING)  # "red, not blue" says red
    phrased = DENYING.search(" ".join(outside))
    return not (denied or phrased or DOUBTS & set(rest) or _taken_back(said, end) or _ignorant(said, first, last))


def _taken_back(said: Reading, end: int, but: frozenset[str] = frozenset()) -> bool:
    """What is said from the token ``end`` on, where a sentence begins, is about its being wrong."""
    begin = {token.text for position, token in enumerate(said.tokens) if position >= end and said.begins(position)}
    wrong, refuses = set[str](), False
    for position, token in enumerate(said.tokens[end:], end):
        if said.begins(position):
            refuses = bool(ABOUT & {one.text for one in said.tokens[position : position + 2]})
        if token.text in RETRACTIONS or (refuses and token.text in REFUSALS):
            wrong.add(token.text)
    return bool((CORRECTIONS & begin | wrong) - but)


def _ignorant(said: Reading, first: int, last: int) -> bool:
    """Beside the tokens ``first`` to ``last`` it is said that the answer is not known."""
    others = " ".join(token.text for token in (*said.tokens[:first], *said.tokens[last + 1 :]))
    return IGNORANCE.search(others) is not None


def _changed(said: Reading, wanted: Reading, position: int) -> bool:
    """Signs beside what is found at ``position`` make something else of it: ``!= 4``, ``5%``."""
    last = position + len(wanted.tokens) - 1
    after = said.tokens[last + 1].text if last + 1 < len(said.tokens) else ""
    signs = said.sign_before(position), said.sign_after(last)
    return signs != (wanted.sign_before(0), wanted.sign_after(len(wanted.tokens) - 1)) or (
        after == "%" and said.tokens[last].figures
    )


def _asks(said: Reading, last: int) -> bool:
    """The sentence with the token ``last`` is a question."""
    _, end = said.sentence(last, last)
    return "?" in said.gap_after(end - 1)


def _polar(said: Reading, wanted: str, pair: tuple[str, str]) -> bool | None:
    """A yes or no that stands as the answer, not as part of "no doubt"."""
    positions = [position for position, token in enumerate(said.tokens) if token.text in pair]
    if len({said.tokens[position].text for position in positions}) != 1 or not any(
        _stands(said, position) for position in positions
    ):
        return None
    for position in positions:
        start, end = said.sentence(position, position)
        before, after = (
            {token.text for token in said.tokens[a:b]} for a, b in ((start, position), (position + 1, end))
        )
        denied = NEGATIONS & (before if said.tokens[position].text == pair[1] else before | after)
        doubted = DOUBTS & (before | after) or (RETRACTIONS | PARTS) & after or _ignorant(said, position, position)
        if denied - {pair[1]} or doubted or _taken_back(said, end, frozenset(pair)) or _asks(said, position):
            return None
        if _stands(said, position) and not _led(said, start, position):
            return None
    return said.tokens[positions[0]].text == wanted


def _led(said: Reading, start: int, position: int) -> bool:
    """Nothing stands before it in its clause but what leads to an answer; "almost true" and "hard to say no" do not."""
    first = position
    while first > start and not set(said.tokens[first].gap) & set(",:"):
        first -= 1
    lead = {token.text for token in said.tokens[first:position]}
    return lead <= LEADING and not said.sign_before(position)


def _stands(said: Reading, position: int) -> bool:
    after = said.gap_after(position).strip(" ")
    end = position + 1 == len(said.tokens)
    following = None if end else said.tokens[position + 1]
    if following is not None and (following.number is not None or after[:1] in ("-", "/", "'")):
        return False  # No. 5, yes-man
    ends = end or bool(after) or (following is not None and following.text in GOES_ON)
    led = position > 0 and (said.tokens[position - 1].text in LEADS or set(said.tokens[position].gap) & set(",:"))
    return ends and bool(said.begins(position) or led or end)


def _is_letter(token: Token) -> bool:
    return len(token.text) == 1 and token.text.isalpha() and not token.unspaced


def _letter(said: Reading, wanted: str) -> bool | None:
    """The one letter that stands as an option."""
    singles = {
        position for position, token in enumerate(said.tokens) if _is_letter(token) and not token.gap.endswith("'")
    }
    options = {position for position in singles if _is_option(said, position)}
    stray = {position for position in singles - options if not _may_be_word(said, position)}
    found = {said.tokens[position].text for position in options | stray}
    if not options or len(found) != 1:
        return None
    fine = all(
        _clear(said, position, position) and not _asks(said, position) and _endorsed(said, position)
        for position in options
    )
    return found == {wanted} if fine else None


def _endorsed(said: Reading, position: int) -> bool:
    """No sign denies it, and what follows "B is" says that it is the answer."""
    _, end = said.sentence(position, position)
    last = position + 2
    if said.sign_before(position):
        return False
    if position + 1 >= end or said.gap_after(position).strip() or said.tokens[position + 1].text != "is":
        return True
    while last < end and not set(said.tokens[last].gap) & set(",:") and said.tokens[last].text not in _REASONS:
        last += 1
    return {token.text for token in said.tokens[position + 2 : last]} <= ENDORSING


def _may_be_word(said: Reading, position: int) -> bool:
    """An article or a pronoun, or the first part of something like T-shirt."""
    return said.tokens[position].text in tuple("aeiouy") or said.gap_after(position)[:1] == "-"


def _is_option(said: Reading, position: int) -> bool:
    token, after = said.tokens[position], said.gap_after(position)
    if token.gap[-1:] in ("(", "[", "*", "{") and after[:1] in (")", "]", "*", "}"):
        return True
    end = position + 1 == len(said.tokens)
    following = None if end else said.tokens[position + 1].text
    mark = after.lstrip(" ")[:1]
    set_off = mark in _SET_OFF or (end and not mark) or after.startswith(" - ") or following in _REASONS[:3]
    upright = token.raw.isupper() and following in ("is", "because", "since")
    if position == 0:
        return set_off or upright
    before = [one.text for one in said.tokens[:position]]
    while before and before[-1] in BETWEEN and before[-1] not in CHOICES:
        before.pop()
    if before and before[-1] in CHOICES and (set_off or upright):
        return True
    return end and set_off and token.raw.isupper() and said.tokens[position - 1].text in PICKS


def _number(said: Reading, wanted: Reading) -> bool | None:
    """The only number that is said, compared whole."""
    width = len(wanted.tokens)
    positions = [position for position in _matches(said, wanted) if not _asks(said, position + width - 1)]
    value = next(token.number for token in wanted.tokens if token.number is not None)
    others = any(token.number is not None and token.number != value for token in said.tokens)
    unread = any(token.unread for token in said.tokens)
    if not positions:
        pronoun = value == 1 and any(token.text == "one" for token in said.tokens)
        return None if unread or pronoun or _matches(said, wanted) else False
    fine = all(
        _clear(said, position, position + width - 1)
        and not _joined(said, position, width)
        and not _changed(said, wanted, position)
        for position in positions
    )
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
    after = AFTER_FIGURES if figures else AFTER
    for position, neighbour, allowed in ((start, start - 1, BEFORE), (start + width, start + width, after)):
        if not 0 < position < len(said.tokens):
            continue
        left, right = said.tokens[position - 1], said.tokens[position]
        if right.gap in ("-", "/"):
            return True
        if not right.gap and left.unspaced and right.unspaced and not _ends_there(said, neighbour, allowed):
            return True
    return False


def _ends_there(said: Reading, position: int, allowed: tuple[str, ...]) -> bool:
    """Where no blanks stand: the text up to the token at ``position``, or from it on, is one of ``allowed``."""
    first = last = position
    while first and not said.tokens[first].gap and said.tokens[first - 1].unspaced:
        first -= 1
    while last + 1 < len(said.tokens) and not said.tokens[last + 1].gap and said.tokens[last + 1].unspaced:
        last += 1
    if allowed is BEFORE:
        return "".join(token.text for token in said.tokens[first : position + 1]).endswith(allowed)
    return "".join(token.text for token in said.tokens[position : last + 1]).startswith(allowed)


def _words(said: Reading, wanted: Reading) -> bool | None:
    """The words of ``wanted`` in their order, in a sentence that does not deny them."""
    matches, width = _matches(said, wanted), len(wanted.tokens)
    # a match in a question only repeats the question
    positions = [position for position in matches if not _asks(said, position + width - 1)]
    if matches:
        listed = width < len(said.tokens) and all(_LIST.fullmatch(token.gap) for token in said.tokens[1:])
        if listed or not positions:
            return None
        fine = all(_clear(said, one, one + width - 1) and not _changed(said, wanted, one) for one in positions)
        whole = any(not _joined(said, position, width) for position in positions)
        return True if fine and whole else None
    return _with_particle(said, wanted) if width == 1 and _hangul(wanted.tokens[0].text) else False


def _hangul(text: str) -> bool:
    return all(0xAC00 <= ord(one) <= 0xD7A3 for one in text)


def _with_particle(said: Reading, wanted: Reading) -> bool | None:
    """A Korean word with its particle."""
    word = wanted.tokens[0].text
    holding = [position for position, token in enumerate(said.tokens) if word in token.text]
    if not holding:
        return False
    fine = all(
        said.tokens[position].text.startswith(word)
        and said.tokens[position].text.removeprefix(word) in PARTICLES
        and _clear(said, position, position)
        for position in holding
    )
    return True if fine else None
