"""What counts as right: whole words and numbers in any script, options and yes or no as such, and in doubt nothing."""

from __future__ import annotations

import random
import time

import pytest

from ficoco_ext.judging import contained, exact, read
from ficoco_ext.judging.text import nothing

RIGHT = [
    # words
    ("The circle is red.", "red"),
    ("It is at the bottom left.", "bottom_left"),
    ("It is red, not blue.", "red"),
    ("The word is taxi. It's not clear who wrote it.", "taxi"),
    ("a hot-dog", "hot dog"),
    ("A hot-dog and a dog", "dog"),
    ("don't walk", "Don\u2019t walk"),
    # other scripts
    ("这是一只猫", "猫"),
    ("これは猫です", "猫"),
    ("이것은 고양이입니다", "고양이"),
    ("แมว", "แมว"),
    ("นี่คือแมว", "แมว"),
    ("图中有三只猫", "三"),
    ("图中有3只猫", "3"),
    ("它是红色的", "红色"),
    ("Is it red? It is red.", "red"),
    ("B - a dog", "B"),
    ("\\boxed{B}", "B"),
    ("<answer>B</answer>", "B"),
    ("I'd go with B.", "B"),
    ("Это Красный круг", "красный"),
    ("αβγ", "ΑΒΓ"),
    ("हिन्दी भाषा", "हिन्दी"),
    ("Straße", "STRASSE"),
    ("un café noir", "café"),
    ("un cafe\u0301 noir", "caf\u00e9"),
    ("\uff34\uff21\uff38\uff29", "taxi"),
    ("ta\u00adxi", "taxi"),
    # numbers
    ("\uff17", "7"),
    ("\u0667", "7"),
    ("7\ufe0f\u20e3", "7"),
    ("1.50", "1.5"),
    (".5", "0.5"),
    ("1,000", "1000"),
    ("1\u202f000", "1000"),
    ("1'000", "1000"),
    ("1,00,000", "100000"),
    ("1.000.000", "1000000"),
    ("1e3", "1000"),
    ("+5", "5"),
    ("\u22125", "-5"),
    ("minus 5", "-5"),
    ("$5", "5"),
    ("It is 7.", "7"),
    ("50 percent", "50%"),
    ("There are three.", "3"),
    ("five dogs", "5 dogs"),
    ("one", "1"),
    ("It is thirty.", "30"),
    ("ninety", "90"),
    ("10:30", "10:30"),
    ("\u00bd", "1/2"),
    ("007", "007"),
    # options
    *((said, "B") for said in ("B", "(B)", "B.", "b)", "[b]", "**B**", "B. a dog", "B: a dog", "B is correct")),
    *((said, "B") for said in ("Answer: B", "The answer is B", "The answer is (b).", "The correct option is B.")),
    *((said, "B") for said in ("Option B", "I choose B.", "It's B", "答案是B")),
    *(("(B)", truth) for truth in ("B", "b", "(B)", "B.", "Option B")),
    ("A", "A"),
    ("Answer: A", "A"),
    # yes and no
    *((said, "yes") for said in ("Yes", "YES.", "Yes, it is.", "Yes it is", "The answer is yes", "I would say yes")),
    *((said, "no") for said in ("No", "no.", "No, it is not.", "No there is not", "Answer: No", "The answer is no.")),
    ("yes", "Yes."),
    ("It is true.", "true"),
]
NOT_RIGHT = [
    # nothing to compare
    *(("anything", truth) for truth in ("?", "+", "", " ", "!!", "%", "\u200b")),
    ("?", "?"),
    ("", "yes"),
    ("", "7"),
    # other words, parts of words, words denied or left open
    ("dog", "猫"),
    ("blue", "Красный"),
    ("a dog", "αβγ"),
    ("reddish", "red"),
    ("cafe", "café"),
    ("ano", "año"),
    ("hot-dog", "dog"),
    ("non-red", "red"),
    ("It is not red", "red"),
    ("It isn't red", "red"),
    ("There is no dog", "dog"),
    ("red or blue", "red"),
    ("red/blue", "red"),
    ("It is red/blue.", "red"),
    ("It is red, or blue.", "red"),
    ("Is it red here?", "red"),
    ("red, green, blue", "red"),
    ("red?", "red"),
    ("It is red. No, it is blue.", "red"),
    ("It is red. Sorry, blue.", "red"),
    ("I thought it was red", "red"),
    ("neither red nor blue", "red"),
    ("not red but blue", "red"),
    ("熊猫", "猫"),
    ("这不是猫", "猫"),
    ("猫じゃない", "猫"),
    ("不是", "是"),
    ("고양이가 아니다", "고양이"),
    # parts of numbers, and other numbers
    ("17", "7"),
    ("1.5", "5"),
    ("0.5", "5"),
    ("-5", "5"),
    ("\u20135", "5"),
    ("-$5", "5"),
    ("$-5", "5"),
    ("- 5", "5"),
    ("minus 5", "5"),
    ("negative five", "5"),
    ("It is 10:30", "10"),
    ("1,000", "1"),
    ("1 000", "1"),
    ("1\u00a0000", "1"),
    ("3.5 meters", "3"),
    ("3.5 meters", "3 meters"),
    ("5-7", "5"),
    ("5\u20137", "7"),
    ("1/2", "1"),
    ("3\u00bd", "3"),
    ("2 and a half", "2"),
    ("5\u00b2", "52"),
    ("10\u2075", "105"),
    ("5\u2082", "52"),
    ("\u2460\u2461", "12"),
    ("2 million", "2"),
    ("3万", "3"),
    ("twenty-two", "2"),
    ("the red one", "1"),
    ("5th", "5"),
    ("F-16", "16"),
    ("v1.5", "5"),
    ("1.2.3.4", "4"),
    ("1e3", "1"),
    ("3x4", "3"),
    ("3\u00d74", "3"),
    ("2 + 3 = 5", "3"),
    ("3 or 4", "3"),
    ("not 5", "5"),
    *((said, "5") for said in (">5", "< 5", "\u00b15", "\u22655", "5+", "more than 5", "at least 5", "almost five")),
    ("5?", "5"),
    ("十三只猫", "三"),
    ("三十只猫", "三"),
    ("02139", "2139"),
    ("9" * 5000, "9"),
    ("1e999999999", "1"),
    # letters that are no options
    *(
        (said, "A")
        for said in ("A dog is there", "The answer is a dog", "A or B", "A and B", "neither A nor B", "a, b")
    ),
    *(
        (said, "B")
        for said in ("It isn't (B)", "The answer is not B", "not B", "I see a b", "Is it B?", "(A), not (B)")
    ),
    ("vitamin C", "C"),
    ("Category", "C"),
    ("I think so", "I"),
    # what is no yes and no no
    *(
        (said, "no")
        for said in ("Yes, there is no doubt.", "I know", "No doubt it is a dog", "No. 5", "There is no car")
    ),
    *((said, "no") for said in ("Not no", "yes or no", "no and yes", "nope", "nobody", "No?", "Is it no?")),
    *((said, "yes") for said in ("Yes and no", "not yes", "either yes or no", "I cannot say yes", "Maybe yes", "eyes")),
    *(
        (said, "yes")
        for said in ("Is it yes?", "yes/no", "Yes, it is not", "if yes", "yesterday", "There is no circle, yes")
    ),
    ("not true", "true"),
    ("untrue", "true"),
    ("false", "true"),
]
OPEN = [
    ("yes and no", "yes"),
    ("I choose b.", "B"),
    ("It costs over just the 5", "5"),
    ("Yes. No.", "yes"),
    ("Yes. No.", "no"),
    ("True. False.", "true"),
    ("not yes", "yes"),
    ("It is not red", "red"),
    ("red or blue", "red"),
    ("3 or 4", "3"),
    ("10:30", "10"),
    ("A or B", "A"),
    ("a dog", "B"),
    ("perhaps", "yes"),
    ("熊猫", "猫"),
]
WRONG = [
    ("It is the red one.", "5"),
    ("blue", "red"),
    ("No.", "yes"),
    ("yes", "no"),
    ("(A)", "B"),
    ("It is 8", "7"),
    ("-5", "5"),
    ("17", "7"),
]


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_right(answer, truth):
    assert contained(answer, truth) is True


@pytest.mark.parametrize(("answer", "truth"), NOT_RIGHT, ids=lambda text: text[:24])
def test_never_right(answer, truth):
    assert contained(answer, truth) is not True


@pytest.mark.parametrize(("answer", "truth"), OPEN)
def test_undecidable(answer, truth):
    assert contained(answer, truth) is None


@pytest.mark.parametrize(("answer", "truth"), WRONG)
def test_wrong(answer, truth):
    assert contained(answer, truth) is False


@pytest.mark.parametrize("truth", ["no", "No", "NO", "No.", "(no)", "\uff4e\uff4f"])
def test_case_and_marks_of_the_truth_do_not_matter(truth):
    assert contained("No.", truth) is True
    assert contained("Yes.", truth) is False
    assert contained("Yes, there is no doubt.", truth) is None


def test_exact_is_exact():
    assert exact("caf\u00e9", "cafe\u0301") and not exact("Red", "red") and not exact("red.", "red")
    assert not exact("", "") and not exact("?", "?")


def test_nothing_to_compare():
    assert all(map(nothing, ("", " ?!", "+", "\u200b", "🐱", "%")))
    assert not any(map(nothing, ("0", "猫", "²", "a", "ㄅ", "٣")))


def test_every_answer_is_read_whole():
    text = "\uff34\uff48\uff45 red, café: -1.50 (10:30) 猫!"
    found = read(text)
    assert [token.text for token in found.tokens] == ["the", "red", "café", "-1.50", "10:30", "猫"]
    assert found.tail == "!" and [token.unread for token in found.tokens].index(True) == 4


def test_numbers_are_right_exactly_where_their_values_agree():
    draw = random.Random(0)
    for _ in range(2000):
        a = draw.choice([draw.randrange(-2000, 2000), round(draw.uniform(-50, 50), draw.randrange(1, 4))])
        b = draw.choice([a, a + 1, -a, abs(a) * 10, draw.randrange(100)])
        for said in (str(a), f"{a:,}", f"It is {a}.", f"{a:.3f}", f"({a})", str(a).replace("-", "\u2212")):
            assert (contained(said, str(b)) is True) == (float(a) == float(b)), (said, b)


def test_anything_is_judged_and_in_time():
    draw = random.Random(0)
    characters = [*map(chr, range(0x20, 0x3100)), *"0123456789.,-+/:'()e%\n猫不是\U0001f431\u200b\ufeff" * 20]
    for _ in range(3000):
        answer, truth = ("".join(draw.choices(characters, k=draw.randrange(12))) for _ in range(2))
        assert contained(answer, truth) in (True, False, None)
        assert contained(truth, truth) is not False or nothing(truth)
    start = time.process_time()  # other processes may hold up this one
    for text in ("7 ", "a b ", "猫", "(", "1,", "- ", "no ", "1"):
        assert contained(text * 20000, "7") is not True
    assert time.process_time() - start < 20


def test_long_answers_are_judged_up_to_a_thousand_words():
    assert contained("It is a very nice picture. " * 100 + "It is red.", "red") is True
    assert contained("a " * 999 + "red", "red") is True
    assert contained("a " * 1000 + "red", "red") is None


def test_a_truth_of_two_words_is_no_option():
    assert contained("It is vitamin C.", "vitamin C") is True
    assert contained("C", "vitamin C") is False


def test_two_options_are_no_answer():
    assert contained("(A) (B)", "B") is None
    assert contained("(A) (B)", "C") is None


def test_measure_words_follow_numbers_alone():
    assert contained("三匹", "三") is True
    assert contained("猫人", "猫") is None  # a catwoman
    assert contained("三人", "三") is True


def test_korean_words_take_particles_alone():
    assert contained("고양이가 있다", "고양이") is True
    assert contained("고양이들이 있다", "고양이") is None


def test_groups_of_digits_are_those_that_people_write():
    assert contained("1,000,5", "10005") is not True
    assert contained("1.000,5", "1000.5") is True and contained("1.000,5", "10005") is not True
    assert contained("12,34,567", "1234567") is True and contained("12,3", "123") is not True


def test_a_bound_stands_in_the_same_sentence():
    assert contained("There are 5. Below it is a dog.", "5") is True
    assert contained("There are 5 below.", "5") is not True
