"""Faults of setup.py and what it uses: what is built, for what, and what the metadata and the site say."""

from __future__ import annotations

from mutations import Mutation

_BACKEND = "python_tests/packaging/test_backend.py::"
_CUDA = "python_tests/packaging/test_cuda_build.py::"
_README = "python_tests/packaging/test_build_readme.py::"
_PAGES = "python_tests/docs/test_pages.py::"
_KNOBS = "python_tests/packaging/test_setup.py::"

MUTATIONS: list[Mutation] = [
    Mutation(
        file="setup.py",
        old="if value not in values:",
        new="if value in values and False:",
        tests=(_KNOBS + "test_a_knob_with_a_wrong_value_is_named",),
        why="A misspelt FICOCO_CUDA builds something else.",
    ),
    Mutation(
        file="setup.py",
        old='if path.name != "device_cuda.cpp"]',
        new="]",
        tests=(_KNOBS + "test_sources_are_those_of_the_cpu",),
        why="A build without CUDA compiles the part that needs it.",
    ),
    Mutation(
        file="setup.py",
        old='f"torch>={MAJOR}.{MINOR},<{MAJOR}.{MINOR + 1}"',
        new='f"torch>={MAJOR}.{MINOR}"',
        tests=(_KNOBS + "test_a_build_needs_the_torch_it_was_built_for",),
        why="A wheel is installed beside a torch of another ABI.",
    ),
    Mutation(
        file="_build/backend.py",
        old="return paths if tuple(version) == sys.version_info[:2] else []",
        new="return paths",
        tests=(_BACKEND + "test_another_python_and_a_broken_one_are_no_help",),
        why="torch of another Python is imported.",
    ),
    Mutation(
        file="_build/backend.py",
        old="environment |= {name: caller[name] for name in hidden if name in caller}",
        new="environment |= {}",
        tests=(_BACKEND + "test_what_pip_hides_comes_from_the_environment_of_pip",),
        why="torch on the PYTHONPATH is not found.",
    ),
    Mutation(
        file="_build/cuda_toolkit.py",
        old="if major < 12:",
        new="if major < 11:",
        tests=(_CUDA + "test_an_old_toolkit_is_refused_and_an_older_torch_warned_of",),
        why="CUDA 11 is tried and fails with pages of errors.",
    ),
    Mutation(
        file="_build/cuda_toolkit.py",
        old="if self.release() >= (13, 0) else [])]",
        new="if self.release() >= (12, 0) else [])]",
        tests=(_CUDA + "test_kernels_are_compressed_and_carry_source_lines_only_if_asked",),
        why="Kernels need a newer driver than they are said to.",
    ),
    Mutation(
        file="_build/cuda_toolkit.py",
        old='homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]',
        new='homes = [os.environ.get("CUDA_PATH")]',
        tests=(_CUDA + "test_cuda_home_comes_first",),
        why="CUDA_HOME is ignored.",
    ),
    Mutation(
        file="_build/index_readme.py",
        old='kind = "raw" if normal.lower().endswith(PICTURES)',
        new='kind = "raw" if normal.endswith(PICTURES)',
        tests=(_README + "test_a_relative_link_becomes_one_of_the_tag",),
        why="A picture is not shown on the index.",
    ),
    Mutation(
        file="_build/index_readme.py",
        old='if normal == ".." or normal.startswith("../"):',
        new='if normal.startswith("../"):',
        tests=(_README + "test_a_link_out_of_the_repository_is_an_error",),
        why="A link leads out of the repository.",
    ),
    Mutation(
        file="_build/prerequisites.py",
        old='if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS:',
        new="if setuptools.__version__ < str(SETUPTOOLS):",
        tests=(_BACKEND + "test_a_newer_setuptools_is_fine",),
        why="A setuptools of three digits is refused as too old.",
    ),
    Mutation(
        file="_build/pages/markup.py",
        old='return f"`{text}`".replace("|", "\\\\|")',
        new='return f"`{text}`"',
        tests=(_KNOBS + "test_cells_of_a_page_are_text",),
        why="A value with a bar breaks a table.",
    ),
    Mutation(
        file="_build/pages/method_pages.py",
        old='return name.replace("+", "-plus")',
        new="return name",
        tests=(_PAGES + "test_a_new_method_gets_its_page",),
        why="The page of a method with a plus cannot be reached.",
    ),
    Mutation(
        file="_build/pages/repository.py",
        old="return link[1] if path is None else os.path.relpath(uri(path), PurePosixPath(page).parent)",
        new="return link[1] if path is None else uri(path)",
        tests=(_PAGES + "test_links_out_of_docs_lead_to_copies",),
        why="Links of pages in folders lead nowhere.",
    ),
    Mutation(
        file="_build/pages/command_pages.py",
        old='if one.param_type_name == "option" and not one.hidden:',
        new='if one.param_type_name == "option" and not one.hidden and one.is_flag:',
        tests=(_PAGES + "test_every_command_and_option_has_its_line",),
        why="Options are left out of the page of a command.",
    ),
    Mutation(
        file="_build/pages/model_table.py",
        old="for key, one in LANGUAGE_MODELS.items()]",
        new="for key, one in list(LANGUAGE_MODELS.items())[1:]]",
        tests=(_PAGES + "test_the_table_of_models_is_complete",),
        why="A language model is left out of the table.",
    ),
    Mutation(
        file="_build/pages/api_lists.py",
        old="if inspect.isclass(getattr(found, name)) or inspect.isroutine(getattr(found, name))",
        new="if inspect.isroutine(getattr(found, name))",
        tests=(_KNOBS + "test_a_page_of_the_api_names_functions_and_classes_alone",),
        why="Classes are left out of the pages of the API.",
    ),
]
