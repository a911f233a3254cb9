"""What is live, and why nothing faster is; what happens without compiled kernels."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.ops import needs_kernels
from helpers.paths import PACKAGE, TESTS

import ficoco_ext
from ficoco_ext.ops import backend


def test_says_what_is_live():
    info = ficoco_ext.build_info()
    assert info["version"] == ficoco_ext.__version__
    assert info["torch"] == torch.__version__
    assert info["cpu"] in ("kernels", "reference")
    assert info["cuda"] in ("kernels", "reference")
    assert {device for device in ("cpu", "cuda") if info[device] != "kernels"} == set(info["reasons"])
    assert all(info["reasons"].values())
    json.dumps(info)


@needs_kernels
def test_says_how_the_kernels_were_built():
    info = ficoco_ext.build_info()
    assert info["compiled"]
    assert info["cpu_simd"] in ("avx512vnni", "avx2", "baseline")
    assert info["compiler"].startswith(("gcc", "clang"))
    assert info["built_for_torch"].split(".")[:2] == torch.__version__.split(".")[:2]


@needs_kernels
def test_one_build_serves_every_python():
    """The module asks for nothing beyond the stable ABI: a wheel made with one Python is taken by the next."""
    assert backend.KERNELS.__file__.endswith(".abi3.so" if os.name == "posix" else ".pyd")
    assert backend.KERNELS.__name__.startswith("ficoco_ext._C_torch")


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    for known in ("", "baseline", "avx2", "avx512vnni"):
        monkeypatch.setenv("FICOCO_CPU_SIMD", known)
        backend.check_environment()
    monkeypatch.setenv("FICOCO_CPU_SIMD", "avx512")
    with pytest.raises(
        ValueError, match="FICOCO_CPU_SIMD must be one of avx512vnni, avx2, baseline, got 'avx512'; unset"
    ):
        backend.check_environment()


def test_asked_again_it_says_the_same():
    first = ficoco_ext.build_info()
    first["reasons"]["cpu"] = "changed"
    assert ficoco_ext.build_info()["reasons"].get("cpu") != "changed"


def test_a_build_for_another_torch_is_not_loaded(monkeypatch):
    here = ".".join(torch.__version__.split(".")[:2])
    monkeypatch.setattr(torch, "__version__", "1.99.0+cpu")
    kernels, reason = backend.load_kernels()
    assert kernels is None
    assert "1.99.0" in reason or "nothing was compiled" in reason or "not compiled" in reason
    if ficoco_ext.build_info()["compiled"]:
        assert f"compiled for torch {here}, but torch 1.99.0+cpu is installed" in reason
        assert "pip install" in reason


def test_a_build_that_does_not_load_is_explained(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _Z3foo")

    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(backend.importlib, "import_module", broken)
    kernels, reason = backend.load_kernels()
    assert kernels is None
    assert "undefined symbol: _Z3foo" in reason
    assert "pip install" in reason


def test_without_kernels_the_specification_answers(tmp_path):
    """The package alone, as on a machine without a compiler: same results, and it says so."""
    shutil.copytree(PACKAGE, tmp_path / "ficoco_ext", ignore=shutil.ignore_patterns("_C_*", "__pycache__", "data"))
    script = """
        import json, sys, torch
        import ficoco_ext
        torch.manual_seed(0)
        tokens, (q, k) = torch.randn(2, 65, 8), torch.randn(2, 2, 2, 65, 8)
        result = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 16, return_reduction=True)
        info = ficoco_ext.build_info()
        json.dump([info["cpu"], info["reasons"]["cpu"], info["compiled"], info["cpu_simd"], ficoco_ext.__file__,
                   result.kept.tolist(), result.tokens.tolist()], sys.stdout)
    """
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cpu, reason, compiled, simd, file, kept, tokens = json.loads(done.stdout)
    assert Path(file).parent == tmp_path / "ficoco_ext"
    assert (cpu, compiled, simd) == ("reference", False, None)
    assert "compiler" in reason
    torch.manual_seed(0)
    x, (q, k) = torch.randn(2, 65, 8), torch.randn(2, 2, 2, 65, 8)
    here = ficoco_ext.reduce(x, ficoco_ext.QueryKey(q, k), 16, return_reduction=True)
    assert kept == here.kept.tolist()
    assert torch.allclose(torch.tensor(tokens), here.tokens, atol=1e-5)


def test_import_is_light():
    """transformers, matplotlib and the command line come when they are asked for."""
    script = (
        "import sys, ficoco_ext; print([m for m in ('transformers', 'matplotlib', 'typer', 'PIL') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("allowed", [False, True])
def test_the_suite_refuses_to_test_the_specification_alone(tmp_path, allowed):
    """conftest.py against a package without kernels."""
    shutil.copytree(PACKAGE, tmp_path / "ficoco_ext", ignore=shutil.ignore_patterns("_C_*", "__pycache__", "data"))
    shutil.copy(TESTS / "conftest.py", tmp_path / "conftest.py")
    shutil.copytree(TESTS / "helpers", tmp_path / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "test_one.py").write_text("def test_one(): pass\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "FICOCO_ALLOW_REFERENCE": "1" if allowed else ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == allowed, done.stdout + done.stderr
    assert ("FICOCO_ALLOW_REFERENCE=1" in done.stdout + done.stderr) == (not allowed)


@pytest.mark.parametrize("installed", [False, True])
def test_a_source_folder_without_kernels_is_named_once(tmp_path, installed):
    """Python inside a clone imports the clone, not what was installed."""
    clone, site = tmp_path / "clone", tmp_path / "site"
    shutil.copytree(PACKAGE, clone / "ficoco_ext", ignore=shutil.ignore_patterns("_C_*", "__pycache__", "data"))
    (clone / "setup.py").write_text("")
    if installed:
        (site / "ficoco_ext").mkdir(parents=True)
        (site / "ficoco_ext" / f"{backend._module_name()}.so").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import ficoco_ext; print(ficoco_ext.build_info()['reasons']['cpu'])"],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count(f"imports ficoco_ext from the source folder {clone}") == 1
    assert "Run from another folder, or install with pip install -e ." in done.stderr
    assert (f"hides the one installed in {site / 'ficoco_ext'}" in done.stderr) == installed
    assert done.stdout.strip() in done.stderr


def test_kernels_of_another_torch_in_a_source_folder_are_said_to_be(tmp_path):
    (tmp_path / "ficoco_ext").mkdir()
    (tmp_path / "ficoco_ext" / "_C_torch1_99.so").write_text("")
    said = backend._in_source(tmp_path, "compiled for torch 1.99")
    assert "source folder" in said and "compiled for torch 1.99. Run from another folder" in said


def test_importing_the_package_registers_the_operators():
    program = "import ficoco_ext, torch; torch.ops.ficoco.filter.default; print('there')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.stdout == "there\n", done.stderr
