"""Faults of what the commands say and draw of methods after the projector."""

from mutations import Mutation

APPS, CLI, SHOW = "python_tests/apps", "python_tests/cli", "python_tests/apps/test_show.py::"

MUTATIONS = [
    Mutation(
        file="ficoco_ext/apps/layer_tokens.py",
        old="visual = given if per_image is None else per_image",
        new="visual = given",
        tests=(SHOW + "test_what_stays_after_the_projector",),
        why="A method after the projector is refused, as one that removes nothing.",
    ),
    Mutation(
        file="ficoco_ext/apps/layer_tokens.py",
        old="return (*vision, *projector, *(",
        new="return (*projector, *vision, *(",
        tests=(f"{APPS}/test_parts.py::test_a_staircase_with_tokens_that_leave_after_the_projector",),
        why="What the tower did is drawn under the name of the projector.",
    ),
    Mutation(
        file="ficoco_ext/apps/layer_tokens.py",
        old="else min(self.vision[-1].left, self.visual)",
        new="else self.vision[-1].left",
        tests=(f"{APPS}/test_demo_decoder.py::test_what_is_left_after_the_projector",),
        why="All patches are said to reach the language model.",
    ),
    Mutation(
        file="ficoco_ext/apps/show_request.py",
        old='request.layers.get("") if _in_layers(name) else None',
        new='request.layers.get("")',
        tests=(f"{APPS}/test_parts.py::test_layers_for_all_go_to_methods_that_act_in_layers",),
        why="A comparison with --layers refuses methods after the projector.",
    ),
    Mutation(
        file="ficoco_ext/apps/show.py",
        old='        del sides["projector"]',
        new="        pass",
        tests=(SHOW + "test_a_page_has_the_projector_where_a_method_acts_there",),
        why="A page has a slider's step at which no method does anything.",
    ),
    Mutation(
        file="ficoco_ext/cli/demo.py",
        old='"projector": projector_keep_ratio',
        new='"projector": vision_keep_ratio',
        tests=(f"{CLI}/test_cli.py::test_demo_takes_a_share_for_each_part",),
        why="The share for the projector is ignored.",
    ),
    Mutation(
        file="ficoco_ext/cli/env.py",
        old='"language_model_why_not": family.why_no_language_model',
        new='"language_model_why_not": family.why_no_tower',
        tests=(f"{CLI}/test_cli.py::test_env_says_what_is_served_and_how_far",),
        why="A user looks for the wrong remedy.",
    ),
    Mutation(
        file="ficoco_ext/cli/env.py",
        old="*([tower_saliency.CLASS] if class_token else [])",
        new="tower_saliency.CLASS",
        tests=(f"{CLI}/test_cli.py::test_env_says_which_saliency_a_tower_gives",),
        why="A kind of saliency is offered that is then refused.",
    ),
    Mutation(
        file="ficoco_ext/cli/evaluate_settings.py",
        old="if method.projector is not method:",
        new="if True:",
        tests=(f"{CLI}/test_eval.py::test_baselines_at_the_same_amounts",),
        why="With --layers for all, methods after the projector are refused.",
    ),
]
