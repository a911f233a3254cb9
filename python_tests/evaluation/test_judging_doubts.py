"""What says something else than it seems to hold is never right: signs, fractions, bounds, doubts, denials."""

from __future__ import annotations

import itertools
import json

import pytest
from helpers.paths import RESULTS

from ficoco_ext.judging import contained

COMMITTED = sorted(RESULTS.glob("accuracy_*.json"))
NEVER = {
    "4": [
        "!=4",
        "!= 4",
        "<= 4",
        "<=4",
        "≈4",
        "≈ 4",
        "→4",
        "∓4",
        "¬4",
        "sqrt(4)",
        "4 plus one",
        "!4",
        "√4",
        "√ 4",
        "2*4",
        "x \u00d7 4",
        "== !4",
        "square root of 4",
        "f(4)",
        "\\sqrt{4}",
        "|x| > 4",
        "4 \u00d7 x",
        "4^x",
        "4 and one more",
    ],
    "20": ["twenty first", "twenty-first", "twenty second"],
    "2": ["two thirds", "two-thirds", "2 thirds"],
    "3": ["three quarters", "hundred and three meters", "a hundred and three", "three hundred", "3 pairs"],
    "3 meters": ["hundred and three meters"],
    "5": [
        "5 tenths",
        "5 lakh",
        "5 crore",
        "5 score",
        "five lakh",
        "half of 5",
        "double 5",
        "twice 5",
        "a third of 5",
        "√5",
        "5 squared",
        "5 at most",
        "5 at least",
        "5 minimum",
        "maximum 5",
        "up to 5",
        "5 less",
        "5 plus",
        "5 below",
        "at most 5",
        "a minimum of 5",
        "5 or more",
        "5, at most",
        "5 (at most)",
        "5%",
        "5 %",
        "5 percent",
        "5‰",
        "5 maximum",
        "max. 5",
        "about 5",
        "5 more",
        "no more than 5",
        "5 dogs at least",
        "It is 5% of them",
        "5-fold",
        "5\u00d7",
        "5²",
        "times 5",
    ],
    "1": ["There is one dog", "one of them"],
    "yes": [
        "I doubt that the answer is yes",
        "It is false that the answer is yes",
        "Impossible to say yes",
        "Far from yes",
        "unlikely yes",
        "Yes. That is incorrect.",
        "It would be wrong to say yes",
        "Yes. No, wait.",
        "Nobody would say yes",
        "I don't know. Yes.",
        "Almost yes",
        "Yes, unlikely",
        "Yes? Hard to tell",
        "¬yes",
        "!yes",
        "Yes. Just kidding",
    ],
    "no": [
        "Hard to say no",
        "No, wait",
        "No. That is incorrect.",
        "I'd doubt that it is no",
        "Far from no",
        "no, actually yes",
    ],
    "true": [
        "Partly true",
        "Half true",
        "Almost true",
        "It is partly true",
        "That is hardly true",
        "It is false that it is true",
        "barely true",
    ],
    "B": [
        "B is false",
        "B is excluded",
        "B is unlikely",
        "B is the worst answer",
        "B is not it",
        "B is eliminated",
        "Option B is wrong",
        "The worst answer is B",
        "The least likely option is B",
        "≠B",
        "!B",
        "¬ B",
        "B can be excluded",
        "B. That is wrong.",
        "B-",
        "Answer B is impossible",
        "I don't know. B.",
    ],
    "C": ["C++", "C#", "C♯", "The answer is C++", "C+"],
    "A": ["A+", "A-", "A+.", "(A+)", "**A+**"],
    "C++": ["C", "C#", "c"],
    "A+": ["A", "B"],
    "red": [
        "They couldnt be red",
        "wont be red",
        "aint red",
        "It aint be red",
        "I doubt it is red",
        "far from red",
        "anything but red",
        "fails to be red",
        "zero red",
        "I don't know. Red",
        "≠ red",
        "¬red",
        "!= red",
        "Red. That is wrong.",
        "0 red",
        "I am not sure. Red.",
        "I have no idea. Red",
        "It shouldnt be red",
    ],
    "猫": ["猫ではなく犬", "猫ではない", "猫じゃなかった"],
    "고양이": ["고양이는 모르겠다", "고양이는 아닙니다"],
}
DENIALS = [
    *("nor", "neither", "without", "hardly", "instead", "except"),
    *("nicht", "keinen", "keinem", "keiner", "weder", "niemals", "ningún", "nenhum", "nessun", "jamais", "não", "niet"),
    *("inte", "ikke", "nem", "není", "değil", "không", "tidak", "δεν", "όχι", "не", "нет", "لم", "لن", "ليست", "مش"),
    *("אינו", "לא", "না", "নেই", "இல்லை", "नहीं"),
]
MORE = [
    *((one, "5") for one in ("5 and up", "5 and change", "log 5", "5 mil", "5 pourcent")),
    *((one, "yes") for one in ("Yes, partly", "Yes. I doubt it", "Yes. This is wrong", "Yes. But that's wrong")),
    ("no, I am joking", "no"),
    *(
        (f"{one} red", "red")
        for one in ("besides", "the opposite of", "less", "refused to be", "used to be", "could be")
    ),
    *((f"{one} red", "red") for one in ("almost", "excluding", "other than", "apart from", "devoid of", "free of")),
    *((f"{one} red", "red") for one in ("too far to be", "It's hard to call it")),
    ("可能是猫", "猫"),
    ("B'", "B"),
]
RIGHT = [
    ("B. It is on the left. A is incorrect.", "B"),
    ("There are 5 dogs.", "5"),
    ("x = 4", "4"),
    ("= 4", "4"),
    ("**4**", "4"),
    ("\\boxed{4}", "4"),
    ("\\(4\\)", "4"),
    ("The answer is: 4", "4"),
    ("<answer>4</answer>", "4"),
    ("(4)", "4"),
    ('"4"', "4"),
    ("#4", "4"),
    ("4!", "4"),
    ("$4", "4"),
    ("4$", "4"),
    ("4°", "4"),
    ("**Answer: 4**", "4"),
    ("Answer: **4**.", "4"),
    ("「4」", "4"),
    ("4。", "4"),
    ("Count: 4 - dogs", "4"),
    ("5 (five)", "5"),
    ("4\n", "4"),
    ("`4`", "4"),
    ("“4”", "4"),
    ("€4", "4"),
    ("5%", "5%"),
    (">5", ">5"),
    ("at least 5", "at least 5"),
    ("C++", "C++"),
    ("A+", "A+"),
    ("The best is C#.", "C#"),
    ("Yes, definitely.", "yes"),
    ("So the answer is yes.", "yes"),
    ("The correct answer is no.", "no"),
    ("I'd say yes.", "yes"),
    ("Therefore, yes.", "yes"),
    ("The statement is true.", "true"),
    ("That is false.", "false"),
    ("No. There is no dog.", "no"),
    ("Looking at the picture, the answer is yes", "yes"),
    ("B is the correct answer", "B"),
    ("B is correct because it is red", "B"),
    ("B is right", "B"),
    ("The answer is B, since A is wrong", "B"),
    ("B.", "B"),
    ("The answer is: B", "B"),
    ("C is the best answer.", "C"),
    ("B since it is red", "B"),
    ("The answer is B which is red.", "B"),
    ("(B) y basta", "B"),
    ("red: not blue", "red"),
    ("Option C.", "C"),
    ("B!", "B"),
    ("→ red", "red"),
    ("It does not matter; well, red. ", "red"),
    ("I see a dog on the left.", "left"),
    ("It isn't blue. It is red.", "red"),
    ("- red", "red"),
    ("far left", "far left"),
    ("I do not see a cat. It is a dog", "dog"),
    ("这是三只猫", "三"),
    ("3只猫", "3"),
    ("图中有3只猫。", "3"),
    ("4 times", "4"),
    ("5 seconds", "5"),
    ("five", "5"),
    ("It is twenty.", "20"),
    ("minus 5", "-5"),
    ("half", "half"),
    ("≠4", "≠4"),
    ("two thirds", "two thirds"),
    ("yes.", "yes"),
    ("**Yes**", "yes"),
    ("**Yes**, it is.", "yes"),
    ("Final answer: Yes", "yes"),
]


@pytest.mark.parametrize(("truth", "answer"), [(truth, one) for truth, said in NEVER.items() for one in said])
def test_never_right(truth, answer):
    assert contained(answer, truth) is not True


@pytest.mark.parametrize(("answer", "truth"), MORE)
def test_left_open(answer, truth):
    assert contained(answer, truth) is None


@pytest.mark.parametrize("word", DENIALS)
def test_denials_of_many_languages(word):
    for answer, truth in (
        (f"{word} hund", "hund"),
        (f"hund {word}", "hund"),
        (f"yes {word}", "yes"),
        (f"5 {word}", "5"),
    ):
        assert contained(answer, truth) is None


@pytest.mark.parametrize(("answer", "truth"), RIGHT)
def test_plain_answers_stay_right(answer, truth):
    assert contained(answer, truth) is True


@pytest.mark.parametrize("answer", ["There is one dog", "one of them", "5%", "!= 1", "at most 1"])
def test_open_and_not_wrong(answer):
    assert contained(answer, "5" if "5" in answer else "1") is None


@pytest.mark.parametrize(
    "truth", ["C++", "5+", "> 5", "at least 5", "half of 5", "two thirds", "x = !4", "sqrt(4)", "5%"]
)
def test_a_truth_that_is_said_as_it_stands(truth):
    assert contained(truth, truth) is True
    assert contained("5", truth) is not True and contained("C", truth) is not True


def test_short_answers_of_the_embedded_model_are_decided():
    words = {word for path in COMMITTED for word in json.loads(path.read_text())["words"]} - {""}
    assert len(words) > 40
    for answer, truth in itertools.product(words, words):
        verdict = contained(answer, truth)
        assert (verdict is True) == (answer == truth)
        options = all(len(one) == 1 and one.isalpha() for one in (answer, truth))
        polar = {answer, truth} <= {"yes", "no"}
        if (
            answer == truth
            or options
            or polar
            or not ({truth} & {"yes", "no"} or (len(truth) == 1 and truth.isalpha()))
        ):
            assert verdict is not None, (answer, truth)
