"""Text as words and whole numbers, in any script: what is compared when answers are judged."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from .lists import ALTERING, BESIDE, BOUNDING, COMPARING, FIGURES, FOLLOWING, LARGE, RANKS, SPELLED

_LONGEST = 400  # characters of a number that is worked out
_UNSPACED = (  # scripts that leave no blanks between words: Thai, Lao, Myanmar, Khmer, kana, bopomofo, Han
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3021, 0x312F),
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_SAME = str.maketrans(
    {
        **dict.fromkeys(map(chr, (0x2018, 0x2019, 0x201B, 0x2BC, 0x60, 0xB4)), "'"),
        **dict.fromkeys(map(chr, (0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE58, 0xFE63)), "-"),
        **dict.fromkeys(map(chr, (0x2014, 0x2015)), ","),
        **dict.fromkeys(map(chr, (0xD7, 0xB7, 0x22C5, 0x2217)), "\u00d7"),
        chr(0x2044): "/",
        chr(0x66B): ".",  # the Arabic decimal separator
        chr(0x66C): ",",
    }
)
_JOINERS = ".,:/'*\u00d7^-+%"
# Over the classes of characters: d digit, a other letter, u letter of a script without blanks, m mark after one.
_TOKEN = re.compile(
    r"(?:(?<![adm%)\]])[+-](?=\$?\.?d)\$?)?(?:(?<![adm.])\.(?=d))?"
    r"[ad](?:[ad]|(?<=d)[.,:/'*\u00d7](?=d)|-(?=d)|(?<=d)-(?=a)|\^-?(?=[ad]))*|um*|%"
)
_NUMBER = re.compile(
    r"[+-]?(?=\.?\d)(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?:,\d{2})+,\d{3}|[1-9]\d{0,2}(?:'\d{3})+)?"
    r"(?:\.\d+)?(?:e[+-]?\d{1,3})?"
)
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:\.\d{3}){2,}|(?:\.\d{3})+,\d+)")  # 1.000.000 and 1.000,5
# Beside a number: nothing but these leaves it the number that it is. Fewer stand directly before it, see sign_before.
_HARMLESS = frozenset(" \t\n\r()[]{}\"'“”„‟«»「」『』【】〈〉《》.,:;!?、。।؟،*_|\\#°")
_CALL = re.compile(r"[(\[{]+")  # directly after a word: sqrt(4)
_FRAMES = ("boxed", "text", "textbf", "mathbf", "mathrm")  # of a formula, whose braces are no call's
_GRADE = re.compile(r"(?:[+#♯]+|-)(?=[\s.,;:!?)\]*\"'<])")  # after a letter: C++, C#, A-
_BREAK = re.compile(r"[!?;\n。।؟]|\.(?:\W|$)")


@dataclass(frozen=True)
class Token:
    """A word, a number, or one letter of a script that leaves no blanks between words.

    Attributes:
        text: folded: Unicode's compatible form, without case.
        raw: with case.
        number: the value of a whole number as it stands, with its sign, its decimals and without its separators.
        unread: it holds digits, or spells a number, whose value is not worked out: ``10:30``, ``5-7``, ``F-16``.
        gap: what stands between the token before and this one.
    """

    text: str
    raw: str
    number: Fraction | None
    unread: bool
    gap: str

    @property
    def unspaced(self) -> bool:
        """Of a script that leaves no blanks between words."""
        return _unspaced(self.text[0])

    @property
    def figures(self) -> bool:
        """It is a number, or holds digits, or may be a number of a script that leaves no blanks between words."""
        return self.number is not None or self.unread or self.text in FIGURES

    def same(self, other: Token) -> bool:
        """The same number, or the same word."""
        if self.number is not None or other.number is not None:
            return self.number == other.number
        return self.text == other.text


@dataclass(frozen=True)
class Reading:
    """A text's tokens, and what follows the last one."""

    tokens: tuple[Token, ...]
    tail: str

    def gap_after(self, position: int) -> str:
        """What stands between the token at ``position`` and the next one."""
        return self.tokens[position + 1].gap if position + 1 < len(self.tokens) else self.tail

    def sign_before(self, position: int) -> str:
        """What stands before the token at ``position`` and changes its meaning, as in ``≠ 4``; empty if nothing."""
        gap, token = self.tokens[position].gap, self.tokens[position]
        sign = gap.strip()
        if not token.figures:
            kept = [one for one in sign if unicodedata.category(one) == "Sm" and one not in "+=|<>→⇒⟹"]
            return sign if kept or gap[-1:] in ("!", "~") or sign.endswith(("!=", "/=")) else ""
        called = position > 0 and _CALL.fullmatch(gap) and self.tokens[position - 1].text not in _FRAMES
        tag = sign == ">" and position > 0 and self.tokens[position - 1].gap.endswith("<")
        product = "*" in sign and position > 0 and "\n" not in gap and "*" not in self.gap_after(position)
        if called or product or gap[-1:] == "!" or (gap == "_" and position > 0):
            return sign
        return "" if tag or sign in ("=", "==") or all(_harmless(one) for one in sign) else sign

    def sign_after(self, position: int) -> str:
        """Likewise after it, as in ``5 +``."""
        gap, last = self.gap_after(position), position + 1 == len(self.tokens)
        sign = re.sub(r"^\s+-+\s+", "", gap).strip()
        if not self.tokens[position].figures or sign == "</":
            return ""
        product = sign and not sign.strip("*") and not last and (gap[-1] == "*" or gap[0] == " ")
        return sign if product or not all(_harmless(one) for one in sign) else ""

    def begins(self, position: int) -> bool:
        """The token at ``position`` is the first of a sentence."""
        return position == 0 or _BREAK.search(self.tokens[position].gap) is not None

    def sentence(self, first: int, last: int) -> tuple[int, int]:
        """Bounds of the sentence, or sentences, that hold the tokens ``first`` to ``last``; the end is not in it."""
        while not self.begins(first):
            first -= 1
        end = last + 1
        while end < len(self.tokens) and not self.begins(end):
            end += 1
        return first, end


def read(text: str) -> Reading:
    """Split a text into what is compared.

    Args:
        text: any.

    Example:
        >>> from ficoco_ext.judging import read
        >>> [token.text for token in read("Ｔｈｅ café, 1,000 猫").tokens]
        ['the', 'café', '1,000', '猫']
        >>> [str(token.number) for token in read("-1.50 and 1,000 at 10:30").tokens if token.number is not None]
        ['-3/2', '1000']
    """
    plain = _plain(text)
    classes, found, end = _classes(plain), list[Token](), 0
    for match in _TOKEN.finditer(classes):
        raw = plain[match.start() : match.end()]
        folded = unicodedata.normalize("NFKC", raw.casefold()).replace("\u00d7", "*")
        number = _value(folded)
        digits = any(one.isdecimal() for one in raw)
        found.append(Token(folded, raw, number, digits and number is None, plain[end : match.start()]))
        end = match.end()
    tail = plain[end:]
    return Reading(tuple(_signed(_spelled(_graded(found, tail)), tail)), tail)


def nothing(text: str) -> bool:
    """No letter and no digit is in it: nothing by which an answer could be judged.

    Example:
        >>> from ficoco_ext.judging.text import nothing
        >>> nothing(" ?!"), nothing("猫"), nothing("0")
        (True, False, False)
    """
    return all(token.text == "%" for token in read(text).tokens)


def _harmless(character: str) -> bool:
    return character in _HARMLESS or unicodedata.category(character) == "Sc"


def _unspaced(character: str) -> bool:
    code = ord(character)
    return any(low <= code <= high for low, high in _UNSPACED)


def _plain(text: str) -> str:
    """The compatible form of every character, but never digits that run together which do not belong together."""
    text = re.sub("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", ",", text)  # thousands set apart by narrow blanks
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+", lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)  # 5² is not 52
    text = re.sub("(?<=\\d)[₀-₉]+", lambda run: " " + unicodedata.normalize("NFKC", run[0]), text)
    out: list[str] = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Nd":
            out.append(str(unicodedata.decimal(character)))
        elif category == "No":  # circled or broken: ①, ½
            plain = unicodedata.normalize("NFKC", character)
            out.append(plain if character in "₀₁₂₃₄₅₆₇₈₉" else f" {plain} ")
        elif category == "Cf":
            out.append(" " if character == "\u200b" else "")
        elif category != "Me" and not 0xFE00 <= ord(character) <= 0xFE0F:  # keycaps and variation selectors
            out.append(character)
    plain = unicodedata.normalize("NFKC", "".join(out)).translate(_SAME)
    return re.sub(r"(?<=\w)n't\b", " not", plain, flags=re.IGNORECASE)


def _classes(text: str) -> str:
    found: list[str] = []
    for character in text:
        category = unicodedata.category(character)
        if category == "Nd":
            found.append("d")
        elif category[0] == "M":
            before = found[-1] if found else " "
            found.append("m" if before in "um" else "a" if before == "a" else " ")
        elif category[0] in "LN":
            found.append("u" if _unspaced(character) else "a")
        elif category == "Sc":
            found.append("$")
        else:
            found.append(character if character in _JOINERS or character in ")]" else " ")
    return "".join(found)


def _value(text: str) -> Fraction | None:
    """The number that ``text`` is, if there is no doubt which; a leading zero makes a name of it, as in 007."""
    text = "".join(one for one in text if unicodedata.category(one) != "Sc")
    if len(text) > _LONGEST or not any(one.isdecimal() for one in text):
        return None
    if _POINTS.fullmatch(text):
        return Fraction(text.replace(".", "").replace(",", "."))
    return Fraction(text.replace(",", "").replace("'", "")) if _NUMBER.fullmatch(text) else None


def _graded(tokens: list[Token], tail: str) -> list[Token]:
    """Letters with what belongs to them: C++ is not C, and A- is not A."""
    found = list(tokens)
    for position, token in enumerate(tokens):
        after = tokens[position + 1].gap if position + 1 < len(tokens) else f"{tail} "
        grade = _GRADE.match(after)
        if grade and len(token.text) == 1 and token.text.isalpha():
            found[position] = replace(token, text=token.text + grade[0])
    return found


def _spelled(tokens: list[Token]) -> list[Token]:
    """English number words as numbers where one stands alone; with others, or after digits, they are not worked out.

    "one" is as often a pronoun, so it is a number only where nothing else is said.
    """
    found, position = list(tokens), 0
    while position < len(tokens):
        end = _run(tokens, position)
        run = tokens[position:end]
        words = [token for token in run if token.number is None]
        if len(run) == 1 and words and run[0].text in SPELLED and (run[0].text != "one" or len(tokens) == 1):
            found[position] = replace(run[0], number=Fraction(SPELLED[run[0].text]))
        elif len(run) > 1 and words:
            found[position:end] = [replace(token, number=None, unread=True) for token in run]
        position = max(end, position + 1)
    for position, token in enumerate(found):
        after = [one.text for one in found[position + 1 : position + 4]]
        if token.number is not None and after[:2] == ["and", "a"] and after[2:] in (["half"], ["quarter"]):
            found[position] = replace(token, number=None, unread=True)
    return found


def _run(tokens: list[Token], start: int) -> int:
    """The index after the last of the number words and numbers that stand together from ``start`` on."""
    end = start
    while end < len(tokens):
        token = tokens[end]
        apart = end > start and token.gap.strip(" -")
        ranked = end > start and token.text in RANKS
        joined = end > start and token.text == "and" and tokens[end - 1].text in LARGE and _numeric(tokens, end + 1)
        if apart or not (_numeric(tokens, end) or ranked or joined):
            break
        end += 1
    return end


def _numeric(tokens: list[Token], position: int) -> bool:
    if position >= len(tokens):
        return False
    return tokens[position].number is not None or tokens[position].text in SPELLED or tokens[position].text in LARGE


def _signed(tokens: list[Token], tail: str) -> list[Token]:
    """Signs in words; a sign set apart may be a list's mark, and a number that is a bound is not that number."""
    found, whole, altered, end = list(tokens), Reading(tuple(tokens), tail), False, 0
    for position, token in enumerate(tokens):
        if position == end:  # of the sentence before
            _, end = whole.sentence(position, position)
            words = [one.text for one in tokens[position:end]]
            altered = bool(not ALTERING.isdisjoint(words) or BOUNDING.search(" ".join(words)))
        if token.number is None:
            continue
        signed = re.search(r"(?:-\s+|[±<≤≥≠~]\s*)$", token.gap) or re.match(r"\+(?!\s*\d)", whole.gap_after(position))
        if altered or signed or _bound(whole, position):
            found[position] = replace(token, number=None, unread=True)
        elif position and tokens[position - 1].text in ("minus", "negative"):
            found[position] = replace(token, number=-token.number)
    if len(found) == 2 and found[0].text in ("minus", "negative", "plus") and found[1].number is not None:
        return found[1:]
    return [
        replace(one, text="%") if one.text in ("percent", "prozent", "pct", "pourcent", "procent", "prosent") else one
        for one in found
    ]


def _bound(whole: Reading, position: int) -> bool:
    """A word beside the number at ``position`` makes another of it: "more than 5", "5 below"."""
    before = position
    while not whole.begins(before) and whole.tokens[before - 1].text in BESIDE - COMPARING and position - before < 3:
        before -= 1
    compared = before > 0 and whole.tokens[before - 1].text in COMPARING  # also after a point, as in "max. 5"
    last = position + 1 == len(whole.tokens)
    return compared or not (last or whole.begins(position + 1) or whole.tokens[position + 1].text not in FOLLOWING)
