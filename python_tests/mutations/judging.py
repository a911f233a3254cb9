"""Faults of the judging: wrong answers called right, or right ones called wrong."""

from __future__ import annotations

from mutations import Mutation

_JUDGING = "python_tests/evaluation/test_judging.py::"
_DOUBTS = "python_tests/evaluation/test_judging_doubts.py::"
_RIGHT = (_JUDGING + "test_right", _DOUBTS + "test_plain_answers_stay_right")
_NEVER = (_JUDGING + "test_never_right", _DOUBTS + "test_never_right")
_OPEN = (_JUDGING + "test_undecidable", _DOUBTS + "test_left_open", _DOUBTS + "test_open_and_not_wrong")
_LISTS, _RULES, _TEXT = (f"ficoco_ext/judging/{name}.py" for name in ("lists", "rules", "text"))

MUTATIONS: list[Mutation] = [
    Mutation(
        file=_LISTS,
        old="10 * value for value, word in enumerate(_TENS.split(), 3)",
        new="10 * value for value, word in enumerate(_TENS.split(), 2)",
        tests=_RIGHT,
        why="Thirty is read as 20.",
    ),
    Mutation(
        file=_LISTS,
        old='"not no non never neither nor none nothing',
        new='"not no non never neither none nothing',
        tests=(_DOUBTS + "test_denials_of_many_languages",),
        why="What stands after nor is taken for what is said.",
    ),
    Mutation(
        file=_RULES,
        old="return same and not nothing(truth)",
        new="return same",
        tests=(_JUDGING + "test_exact_is_exact",),
        why="An empty answer is right where the truth is empty.",
    ),
    Mutation(
        file=_RULES,
        old='unicodedata.normalize("NFC", answer) == unicodedata.normalize("NFC", truth)',
        new="answer == truth",
        tests=(_JUDGING + "test_exact_is_exact",),
        why="An accent that is typed in another way makes an answer wrong.",
    ),
    Mutation(
        file=_RULES,
        old="if len(said.tokens) > _LONGEST:",
        new="if len(answer) > _LONGEST:",
        tests=(_JUDGING + "test_long_answers_are_judged_up_to_a_thousand_words",),
        why="Answers of some sentences are left open.",
    ),
    Mutation(
        file=_RULES,
        old="if len(words) == 2 and words[0] in CHOICES and _is_letter(wanted.tokens[1]):",
        new="if len(words) == 2 and _is_letter(wanted.tokens[1]):",
        tests=(_JUDGING + "test_a_truth_of_two_words_is_no_option",),
        why="A truth such as vitamin C is looked for as the option C.",
    ),
    Mutation(
        file=_RULES,
        old="DOUBTS & set(rest) or _taken_back",
        new="DOUBTS & set(outside) or _taken_back",
        tests=_NEVER,
        why="An alternative after a comma is not seen.",
    ),
    Mutation(
        file=_RULES,
        old="return bool((CORRECTIONS & begin | wrong) - but)",
        new="return bool(wrong - but)",
        tests=_NEVER,
        why="An answer that is taken back in the next sentence is right.",
    ),
    Mutation(
        file=_RULES,
        old='return "?" in said.gap_after(end - 1)',
        new='return "?" in said.gap_after(last)',
        tests=_NEVER,
        why="A question that repeats the truth before its last word answers itself.",
    ),
    Mutation(
        file=_RULES,
        old="if not options or len(found) != 1:",
        new="if not options:",
        tests=(_JUDGING + "test_two_options_are_no_answer",),
        why="Two options are judged wrong instead of left open.",
    ),
    Mutation(
        file=_RULES,
        old="return lead <= LEADING and not said.sign_before(position)",
        new="return lead <= LEADING",
        tests=_NEVER,
        why="A sign that denies a yes is not seen.",
    ),
    Mutation(
        file=_RULES,
        old="return None if others or unread or not fine else True",
        new="return None if others or not fine else True",
        tests=_NEVER,
        why="A number beside one that is not read is right.",
    ),
    Mutation(
        file=_RULES,
        old='if right.gap in ("-", "/"):',
        new='if right.gap == "-":',
        tests=_NEVER,
        why="One of two words with a slash between is right.",
    ),
    Mutation(
        file=_RULES,
        old="after = AFTER_FIGURES if figures else AFTER",
        new="after = AFTER_FIGURES",
        tests=(_JUDGING + "test_measure_words_follow_numbers_alone",),
        why="A part of a longer Chinese word is right.",
    ),
    Mutation(
        file=_RULES,
        old="said.tokens[position].text.removeprefix(word) in PARTICLES",
        new="said.tokens[position].text.startswith(word)",
        tests=(_JUDGING + "test_korean_words_take_particles_alone",),
        why="A longer Korean word that begins alike is right.",
    ),
    Mutation(
        file=_RULES,
        old="whole = any(not _joined",
        new="whole = all(not _joined",
        tests=_RIGHT,
        why="A word that is said twice, once inside of a longer one, is left open.",
    ),
    Mutation(
        file=_RULES,
        old="if len({said.tokens[position].text for position in positions}) != 1 or not any(",
        new="if not positions or not any(",
        tests=_OPEN,
        why="An answer of a yes and a no is what it says first.",
    ),
    Mutation(
        file=_RULES,
        old="return end and set_off and token.raw.isupper() and said.tokens[position - 1].text in PICKS",
        new="return end and set_off and said.tokens[position - 1].text in PICKS",
        tests=_OPEN,
        why="A small letter at the end of a sentence is an option.",
    ),
    Mutation(
        file=_RULES,
        old="pronoun = value == 1 and any(",
        new="pronoun = any(",
        tests=(_JUDGING + "test_wrong",),
        why="A wrong number of things is left open because of a pronoun.",
    ),
    Mutation(
        file=_RULES,
        old="or following in _REASONS[:3]",
        new="or following in _REASONS[:1]",
        tests=_RIGHT,
        why="An option that is followed by its reason is no answer.",
    ),
    Mutation(
        file=_RULES,
        old='while clause < end and not set(said.tokens[clause].gap) & set(",:"):',
        new='while clause < end and not set(said.tokens[clause].gap) & set(","):',
        tests=_RIGHT,
        why="What is denied after a colon denies what stands before it.",
    ),
    Mutation(
        file=_TEXT,
        old="|[1-9]\\d{0,2}(?:,\\d{3})+|",
        new="|[1-9]\\d{0,2}(?:,\\d+)+|",
        tests=(_JUDGING + "test_groups_of_digits_are_those_that_people_write",),
        why="A list of digits is read as one number.",
    ),
    Mutation(
        file=_TEXT,
        old="(?:0|[1-9]\\d*|",
        new="(?:\\d+|",
        tests=_NEVER,
        why="A postcode with a leading zero is read as a number.",
    ),
    Mutation(
        file=_TEXT,
        old='return Fraction(text.replace(".", "").replace(",", "."))',
        new='return Fraction(text.replace(".", "").replace(",", ""))',
        tests=(_JUDGING + "test_groups_of_digits_are_those_that_people_write",),
        why="1.000,5 is read as 10005.",
    ),
    Mutation(
        file=_TEXT,
        old='text = re.sub("(?<=\\\\d)[₀-₉]+", lambda run: " " + unicodedata.normalize("NFKC", run[0]), text)',
        new='text = re.sub("(?<=\\\\d)[₀-₉]+", lambda run: unicodedata.normalize("NFKC", run[0]), text)',
        tests=_NEVER,
        why="An index below a number becomes a part of it.",
    ),
    Mutation(
        file=_TEXT,
        old="out.append(str(unicodedata.decimal(character)))",
        new="out.append(character)",
        tests=_RIGHT,
        why="Arabic digits are no numbers.",
    ),
    Mutation(
        file=_TEXT,
        old='and run[0].text in SPELLED and (run[0].text != "one" or len(tokens) == 1):',
        new="and run[0].text in SPELLED:",
        tests=_NEVER,
        why="The pronoun one is the number 1.",
    ),
    Mutation(
        file=_TEXT,
        old="ranked = end > start and token.text in RANKS",
        new="ranked = False",
        tests=_NEVER,
        why="Twenty first is read as 20.",
    ),
    Mutation(
        file=_TEXT,
        old="found[position] = replace(token, number=-token.number)",
        new="found[position] = replace(token, number=token.number)",
        tests=_NEVER,
        why="Minus 5 in words is 5.",
    ),
    Mutation(
        file=_TEXT,
        old="and position - before < 3:",
        new="and position - before < 1:",
        tests=_OPEN,
        why="A bound with two words between is not seen.",
    ),
    Mutation(
        file=_TEXT,
        old="return compared or not (last or whole.begins(position + 1) or",
        new="return compared or not (last or",
        tests=(_JUDGING + "test_a_bound_stands_in_the_same_sentence",),
        why="A number at the end of a sentence is a bound because of the next sentence.",
    ),
    Mutation(
        file=_TEXT,
        old="grade = _GRADE.match(after)",
        new='grade = _GRADE.match(after.strip(" "))',
        tests=_RIGHT,
        why="A letter before a dash that is set apart is a grade.",
    ),
]
