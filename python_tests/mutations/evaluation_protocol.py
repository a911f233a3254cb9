"""Faults of the comparison at equal tokens and equal FLOPs, of its groups, and of the time to the first token."""

from __future__ import annotations

from mutations import Mutation

_ANSWERS = "python_tests/evaluation/test_text_aware.py::"
_CLI = "python_tests/cli/test_eval.py::"
_CLOCK = "python_tests/apps/test_selection_time.py::"
_DOCUMENT = "python_tests/evaluation/test_document.py::"
_FIRST = "python_tests/evaluation/test_first_token.py::"
_IDENTITY = "python_tests/evaluation/test_identity.py"
_PROTOCOL = "python_tests/evaluation/test_protocol.py::"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/evaluation/asking.py",
        old="run = _each if reads_text(model) or needs_pixels(model) else _shared",
        new="run = _each if needs_pixels(model) else _shared",
        tests=(_ANSWERS + "test_every_question_gets_what_was_chosen_for_it",),
        why="What was chosen for one question is asked about by another.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/asking.py",
        old="pixels = prompts.pixels([items[number].picture for number in part])",
        new="pixels = prompts.pixels([items[part[0]].picture for number in part])",
        tests=(_ANSWERS + "test_every_question_gets_what_was_chosen_for_it",),
        why="All questions of a batch are asked about its first picture.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/sharing.py",
        old="        if reads_text(self._model):\n",
        new="        if False:\n",
        tests=(_ANSWERS + "test_reduced_pictures_are_not_shared",),
        why="Whoever shares pictures shares what one question left of them.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/plans.py",
        old="reads_text=chooses_by_text(plan)",
        new="reads_text=False",
        tests=(_ANSWERS + "test_results_say_that_it_reads_the_question",),
        why="Results do not say that a method's pictures serve one question.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/plans.py",
        old="self._refused[len(self.settings)] = str(error)",
        new="pass",
        tests=(_PROTOCOL + "test_a_goal_out_of_reach_is_refused_with_what_is_possible",),
        why="A method that cannot reach a goal runs with an amount of its own.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/equal.py",
        old="return found.tokens.average if goal.equal",
        new="return found.tokens.final if goal.equal",
        tests=(_PROTOCOL + "test_all_methods_have_the_same_mean_of_tokens_in_the_language_model",),
        why="Methods in the language model are compared with more tokens than the others.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/equal.py",
        old="wanted = costs.chosen_free(prompts, goal.tokens).total.operations",
        new="wanted = costs.prefill(prompts, None, None).total.operations * goal.tokens / prompts.visual",
        tests=(_PROTOCOL + "test_all_methods_cost_the_same_flops",),
        why="FLOPs of T tokens leave out the tower and the text.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/equal.py",
        old="if reached > wanted + allowed or",
        new="if False and",
        tests=(_PROTOCOL + "test_a_goal_out_of_reach_is_refused_with_what_is_possible",),
        why="A method far from the goal stands in a table of equal ones.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/equal.py",
        old="for tokens in (low - 1, low)",
        new="for tokens in (low - 1,)",
        tests=(_PROTOCOL + "test_the_closest_whole_number_of_tokens_is_taken",),
        why="An amount next to the closest is taken.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/equal.py",
        old="tokens = _no_more(value, tokens, wanted + allowed)",
        new="pass",
        tests=(_PROTOCOL + "test_a_smaller_picture_never_has_more_than_the_others",),
        why="A smaller picture that is not small enough is refused, though a smaller one would do.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/goal.py",
        old="if count >= visual:",
        new="if count > visual:",
        tests=(_PROTOCOL + "test_goals_are_refused_where_they_say_nothing",),
        why="All tokens are called a reduction.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/goal.py",
        old="math.floor(self.keep_ratio * visual + 0.5)",
        new="math.floor(self.keep_ratio * visual)",
        tests=(_CLI + "test_parts_of_the_protocol_can_be_changed",),
        why="A third of 576 tokens is 191 and not the 192 of the papers.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/groups.py",
        old="draw.mean(tally, chosen).at_least(each.error),",
        new="draw.mean(tally, chosen),",
        tests=(_PROTOCOL + "test_random_is_shown_as_one_row_with_its_spread",),
        why="The mean of three draws is called more certain than they agree.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/groups.py",
        old="np.mean([one.right for one in tallies], axis=0)",
        new="tallies[0].right",
        tests=(_PROTOCOL + "test_random_is_shown_as_one_row_with_its_spread",),
        why="The row of all draws has the first one's accuracy.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/groups.py",
        old="if missing := [line for line in lines if line.mean is None]:",
        new="if missing := []:",
        tests=(_PROTOCOL + "test_random_is_shown_as_one_row_with_its_spread",),
        why="The mean of draws that were not all run is shown, or fails.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/settings.py",
        old="if label not in named and name in METHODS:",
        new="if label not in named:",
        tests=(_PROTOCOL + "test_a_smaller_picture_is_a_baseline_where_the_method_is_there",),
        why="A baseline that is not installed ends the run.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/markdown.py",
        old='goals = {one.get("goal", {}).get("equal") for one in document["settings"]}',
        new="goals = set(WHERE)",
        tests=(_PROTOCOL + "test_goals_are_explained_and_said_to_be_so",),
        why="A plain table is said to compare at equal means and equal FLOPs.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/hard_kinds.py",
        old="missing = [what for what, of in there.items() if not of]",
        new="missing = [what for what, of in there.items() if of]",
        tests=(_PROTOCOL + "test_kinds_that_reduction_hurts_are_pointed_at_or_missed",),
        why="Kinds that were asked are said to be missing.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/first_token.py",
        old='if any(one["batch"] == batch for one in entries):',
        new="if False:",
        tests=(_FIRST + "test_what_is_measured_already_is_not_measured_again",),
        why="A run that goes on measures again, and a batch size stands twice.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/first_token.py",
        old="inputs = prompts.checkpoint.model, prompts.processed([0] * batch)",
        new="inputs = prompts.checkpoint.model, prompts.processed([0])",
        tests=(_FIRST + "test_the_selection_is_inside_the_clock",),
        why="Batch 8 has the times of one prompt.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/first_token.py",
        old='if not one["impossible"]]',
        new="]",
        tests=(_FIRST + "test_the_selection_is_inside_the_clock",),
        why="A setting that cannot be done ends the run after all answers.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/price.py",
        old='noise = " (noise)" if found["judged"] == "noise" else ""',
        new='noise = ""',
        tests=(_FIRST + "test_times_that_prove_nothing_are_called_noise",),
        why="A difference that was not proven reads as one.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/price.py",
        old="_percent(parts[name] / whole if parts and whole else None, 2)",
        new='_percent(parts[name] / cost["flops"] if parts and whole else None, 2)',
        tests=(_FIRST + "test_parts_of_flops_are_of_the_unreduced_ones",),
        why="Parts of FLOPs are those of another whole than the column beside them.",
    ),
    Mutation(
        file="ficoco_ext/apps/selection_time.py",
        old="        if self._running:\n            return call(*args, **kwargs)\n",
        new="",
        tests=(_CLOCK + "test_a_call_within_a_call_counts_once",),
        why="A method that calls another is timed twice.",
    ),
    Mutation(
        file="ficoco_ext/apps/selection_time.py",
        old='own["of_layers"] = lambda self, count: clocked(kind.of_layers(method, count), clock)',
        new="pass",
        tests=(_CLOCK + "test_layers_and_sequences_are_on_the_clock",),
        why="What differs from layer to layer takes no time.",
    ),
    Mutation(
        file="ficoco_ext/apps/selection_time.py",
        old="return statistics.median(found[1:])",
        new="return statistics.median(found[:1])",
        tests=(_CLOCK + "test_the_run_that_warms_up_does_not_count",),
        why="The run that warms up is reported.",
    ),
    Mutation(
        file="ficoco_ext/apps/bench.py",
        old="Timed.of(name, amount, full, prefill, selection) for",
        new="Timed.of(name, amount, full, prefill) for",
        tests=("python_tests/apps/test_bench.py::test_what_the_method_itself_takes_stands_beside_the_time",),
        why="bench does not show what selection takes.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/document.py",
        old='        cell.integer("setting", 0, settings - 1)\n        for name in ("seconds"',
        new='        for name in ("seconds"',
        tests=(_DOCUMENT + "test_a_fault_is_named",),
        why="Times of a setting that is not there are read.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/summary.py",
        old="if line[name] is None or line[name] is False or line[name] == []:",
        new="if line[name] is None:",
        tests=(_ANSWERS + "test_results_say_that_it_reads_the_question",),
        why="JSON of every line says what concerns one, and differs from that of older runs.",
    ),
    Mutation(
        file="ficoco_ext/cli/evaluate_tables.py",
        old='held["where_reduction_hurts"] = hard_kinds.found(summary.kinds)',
        new='held["where_reduction_hurts"] = hard_kinds.found(summary.mean_of)',
        tests=(_CLI + "test_json_points_at_kinds_outside_of_the_mean",),
        why="Kinds that are not in the mean are said not to have been asked.",
    ),
    Mutation(
        file="ficoco_ext/cli/evaluate_settings.py",
        old="baselines = baselines or protocol",
        new="pass",
        tests=(_CLI + "test_parts_of_the_protocol_can_be_changed",),
        why="The protocol compares with nothing that has to be beaten.",
    ),
    Mutation(
        file="ficoco_ext/cli/evaluate_settings.py",
        old="given = FIRST_TOKEN if protocol else None",
        new="given = None",
        tests=(_CLI + "test_parts_of_the_protocol_can_be_changed",),
        why="The protocol has no times.",
    ),
    Mutation(
        file="ficoco_ext/evaluation/markdown.py",
        old='r"([\\\\`*<>|\\[\\]])"',
        new='r"([\\\\`*])"',
        tests=(_PROTOCOL + "test_names_and_remarks_have_no_meaning_in_the_page",),
        why="A picture's name is HTML in the page, and ends a cell.",
    ),
]
