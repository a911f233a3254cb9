"""Faults of files, pictures, configs and text of others."""

from __future__ import annotations

from mutations import Mutation

_FILES = "python_tests/io/test_files.py::"
_CONFIGS = "python_tests/io/test_configs.py::"
_IMAGES = "python_tests/io/test_images.py::"
_PRINTABLE = "python_tests/io/test_printable.py::"
_NOTEBOOK = "python_tests/reduce/test_notebook.py::"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="ficoco_ext/io/config_facts.py",
        old='"num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),',
        new='"num_key_value_heads": ("num_attention_heads",),',
        tests=("python_tests/apps/test_loading.py::test_key_heads_are_a_fact",),
        why="A missing number of key heads is taken for that of the heads, and the cache for larger than it is.",
    ),
    Mutation(
        file="ficoco_ext/io/config_facts.py",
        old='if found[name] and not part.get("model_type"):',
        new='if found[name] and not config.get("model_type"):',
        tests=("python_tests/apps/test_loading.py::test_no_default_stands_in_for_a_config",),
        why="Defaults of another model stand in for what a config lacks.",
    ),
    Mutation(
        file="ficoco_ext/io/configs.py",
        old='if (name == "auto_map" and path != name) or name == "attribute_map":',
        new='if name == "auto_map" and path != name:',
        tests=(_CONFIGS + "test_code_of_a_part_never_runs",),
        why="Code of a part of a model runs by way of another name.",
    ),
    Mutation(
        file="ficoco_ext/io/configs.py",
        old="for one in value.values() if isinstance(value, Mapping) else (value,):",
        new="for one in () if isinstance(value, Mapping) else (value,):",
        tests=(_CONFIGS + "test_attention_is_one_of_transformers",),
        why="Attention of a hub is fetched where a config names it for a part.",
    ),
    Mutation(
        file="ficoco_ext/io/configs.py",
        old='pending += ((f"{before}[{index}]", one) for index, one in enumerate(found) if _holds(one))',
        new="pass",
        tests=(_CONFIGS + "test_code_of_a_part_never_runs",),
        why="What stands inside of a list is not looked at.",
    ),
    Mutation(
        file="ficoco_ext/io/configs.py",
        old="if isinstance(value, bool) or not isinstance(value, (int, float) if fraction else int):",
        new="if not isinstance(value, (int, float) if fraction else int):",
        tests=(_CONFIGS + "test_absurd_numbers_are_refused_by_name_at_once",),
        why="true is taken for one layer.",
    ),
    Mutation(
        file="ficoco_ext/io/configs.py",
        old="if path.stat().st_size > _BYTES:",
        new="if path.stat().st_size > 2 * _BYTES:",
        tests=(_CONFIGS + "test_what_is_no_config_is_said_to_be_none",),
        why="A huge file is read as a config.",
    ),
    Mutation(
        file="ficoco_ext/io/files.py",
        old="        part.unlink(missing_ok=True)\n",
        new="        pass\n",
        tests=(_FILES + "test_a_file_gets_its_name_when_it_is_whole",),
        why="Parts of files stay where writing failed.",
    ),
    Mutation(
        file="ficoco_ext/io/files.py",
        old="target = Path(os.path.realpath(path))",
        new="target = Path(path)",
        tests=(_FILES + "test_a_link_stays_a_link_and_a_pipe_a_pipe",),
        why="A link is replaced by a file.",
    ),
    Mutation(
        file="ficoco_ext/io/files.py",
        old="os.fchmod(descriptor, stat.S_IMODE(there.st_mode))",
        new="pass",
        tests=(_FILES + "test_neighbours_and_permissions_stay",),
        why="A private file becomes readable by all.",
    ),
    Mutation(
        file="ficoco_ext/io/files.py",
        old="return os.path.samefile(a, b)",
        new="return os.path.abspath(a) == os.path.abspath(b)",
        tests=(_FILES + "test_an_input_is_known_by_what_it_is",),
        why="An input is overwritten by way of a link.",
    ),
    Mutation(
        file="ficoco_ext/io/files.py",
        old="        met[name] = path\n",
        new="        met = {name: path}\n",
        tests=(_FILES + "test_of_three_outputs_each_is_a_file_of_its_own",),
        why="The third output overwrites the first.",
    ),
    Mutation(
        file="ficoco_ext/io/files.py",
        old='"utf-8", "backslashreplace"',
        new='"utf-8", "replace"',
        tests=(_FILES + "test_what_cannot_be_written_is_named",),
        why="A name that is no text is written as a question mark.",
    ),
    Mutation(
        file="ficoco_ext/io/images.py",
        old="6: Image.Transpose.ROTATE_270,",
        new="6: Image.Transpose.ROTATE_90,",
        tests=(_IMAGES + "test_orientation",),
        why="Photographs of a phone stand on their heads.",
    ),
    Mutation(
        file="ficoco_ext/io/images.py",
        old="turned.info.pop(key, None)",
        new="pass",
        tests=(_IMAGES + "test_an_upright_picture_is_not_turned_again",),
        why="An upright picture is turned a second time.",
    ),
    Mutation(
        file="ficoco_ext/io/images.py",
        old="if width < 1 or height < 1 or width * height > LARGEST:",
        new="if width < 1 or height < 1 or max(width, height) > LARGEST:",
        tests=(_IMAGES + "test_absurdly_large_files_are_named",),
        why="A picture of a few bytes fills the memory.",
    ),
    Mutation(
        file="ficoco_ext/io/images.py",
        old="if levels.ndim == 3 and levels.shape[2] not in _CHANNELS and levels.shape[0] in _CHANNELS:",
        new="if levels.ndim == 3 and levels.shape[0] in _CHANNELS:",
        tests=(_IMAGES + "test_channels_are_last_where_both_could_be",),
        why="An array of three rows is read with its rows as channels.",
    ),
    Mutation(
        file="ficoco_ext/io/images.py",
        old='or (levels.dtype.kind in "iu" and low >= 0 and 255 < high < 2**16):',
        new='or (levels.dtype.kind in "iu" and low >= 0 and 256 < high < 2**16):',
        tests=(_IMAGES + "test_integers_above_a_byte_are_of_16_bits",),
        why="A picture of 16 bits whose brightest level is 256 is stretched.",
    ),
    Mutation(
        file="ficoco_ext/io/images.py",
        old='if frames > 1 and image.format != "MPO":',
        new="if frames > 1:",
        tests=(_IMAGES + "test_what_a_camera_adds_to_its_photograph_is_no_frame",),
        why="Every photograph of a phone draws a note about frames.",
    ),
    Mutation(
        file="ficoco_ext/io/notebook.py",
        old='"dropped" if holder < 0 else "left" if kept[holder] == token else "merged"',
        new='"dropped" if holder < 0 else "merged" if kept[holder] == token else "left"',
        tests=(_NOTEBOOK + "test_reduction_counts_and_draws_every_patch_once",),
        why="A notebook shows merged patches as left.",
    ),
    Mutation(
        file="ficoco_ext/io/notebook.py",
        old="            column += count\n",
        new="            column += 1\n",
        tests=(_NOTEBOOK + "test_cells_stand_in_their_columns",),
        why="Patches are drawn in the wrong columns.",
    ),
    Mutation(
        file="ficoco_ext/io/notebook.py",
        old="if len(given) > _MOST_ROWS:",
        new="if len(given) > 10 * _MOST_ROWS:",
        tests=(_NOTEBOOK + "test_the_size_is_bounded",),
        why="A table ends after 40 rows without saying so.",
    ),
    Mutation(
        file="ficoco_ext/io/printable.py",
        old='_STEERS = ("Cc", "Cs", "Zl", "Zp")',
        new='_STEERS = ("Cc", "Cs", "Zl")',
        tests=(_PRINTABLE + "test_what_steers_is_shown_instead",),
        why="A separator of paragraphs begins a line.",
    ),
    Mutation(
        file="ficoco_ext/io/printable.py",
        old="return unicodedata.category(one) in _STEERS or one in _TURNS",
        new="return unicodedata.category(one) in _STEERS",
        tests=(_PRINTABLE + "test_what_steers_is_shown_instead",),
        why="Text of others turns the rest of a line around.",
    ),
    Mutation(
        file="ficoco_ext/io/printable.py",
        old='frozenset("\\u202a\\u202b\\u202c\\u202d\\u202e\\u2066\\u2067\\u2068\\u2069")',
        new='frozenset("\\u202a\\u202b\\u202c\\u202d\\u202e\\u2067\\u2068\\u2069")',
        tests=(_PRINTABLE + "test_every_sign_that_turns_text_is_shown",),
        why="One of the signs that turn text reaches the terminal.",
    ),
    Mutation(
        file="ficoco_ext/io/printable.py",
        old="one if one in keep or not _steers(one) else _escaped(one)",
        new="one if keep or not _steers(one) else _escaped(one)",
        tests=(_PRINTABLE + "test_what_may_stay_is_all_that_stays",),
        why="Where line ends may stay, everything may.",
    ),
    Mutation(
        file="ficoco_ext/io/ratios.py",
        old='return f"{ratio:.2f}x {better}" if ratio > 1 else f"{1 / ratio:.2f}x {worse}"',
        new='return f"{ratio:.2f}x {better}" if ratio > 1 else f"{ratio:.2f}x {worse}"',
        tests=("python_tests/cli/test_conventions.py::test_times",),
        why="1.5 times more is printed as 0.67 times more.",
    ),
    Mutation(
        file="ficoco_ext/io/suggest.py",
        old="by_lower = {name.lower(): name for name in known}",
        new="by_lower = {name: name for name in known}",
        tests=("python_tests/cli/test_conventions.py::test_what_is_like_nothing_gets_no_suggestion",),
        why="Names with capitals are not suggested.",
    ),
]
