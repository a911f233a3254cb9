"""How setup.py finds nvcc and what it says when it cannot use it. Nothing is compiled."""

import importlib.util
import sys

import pytest
from helpers.paths import ROOT

BACKEND = ROOT / "_build" / "cuda_toolkit.py"


@pytest.fixture
def cuda_toolkit(monkeypatch):
    spec = importlib.util.spec_from_file_location("cuda_toolkit", BACKEND)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cuda_toolkit", module)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return module


def toolkit_at(folder, release="12.4", top=None):
    """A toolkit that consists of a script and an empty header."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    (folder / "include" / "cuda_runtime.h").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V{release}.1";;\n'
        f'--dryrun) echo "#$ TOP={top or folder}" >&2;;\n'
        '*) echo "nvcc fatal: no such thing" >&2; exit 1;; esac\n'
    )
    nvcc.chmod(0o755)
    return nvcc


def test_without_nvcc_it_says_where_it_looked(cuda_toolkit, monkeypatch):
    monkeypatch.setattr(cuda_toolkit.shutil, "which", lambda name: None)
    monkeypatch.setattr(cuda_toolkit.os, "access", lambda path, mode: False)
    with pytest.raises(cuda_toolkit.Unavailable, match=r"nvcc was not found.*CUDA_HOME.*PATH"):
        cuda_toolkit.find()


def test_cuda_home_comes_first(cuda_toolkit, monkeypatch, tmp_path):
    nvcc = toolkit_at(tmp_path / "own")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "own"))
    found = cuda_toolkit.find()
    assert (found.nvcc, found.root, found.release()) == (str(nvcc), tmp_path / "own", (12, 4))


def test_a_wrapper_of_nvcc_is_followed(cuda_toolkit, monkeypatch, tmp_path):
    toolkit_at(tmp_path / "real")
    wrapper = toolkit_at(tmp_path / "wrapper", top=tmp_path / "real")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "wrapper"))
    assert cuda_toolkit.find().root == tmp_path / "real"
    assert cuda_toolkit.find().nvcc == str(wrapper)


def test_a_toolkit_without_headers_is_named(cuda_toolkit, monkeypatch, tmp_path):
    toolkit_at(tmp_path / "own")
    (tmp_path / "own" / "include" / "cuda_runtime.h").unlink()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "own"))
    with pytest.raises(cuda_toolkit.Unavailable, match=r"cuda_runtime\.h"):
        cuda_toolkit.find()


def test_an_old_toolkit_is_refused_and_an_older_torch_warned_of(cuda_toolkit, tmp_path):
    said = []
    old = cuda_toolkit.Toolkit(tmp_path / "old", str(toolkit_at(tmp_path / "old", "11.8")))
    with pytest.raises(cuda_toolkit.Unavailable, match=r"11\.8.*CUDA 12\.0 or newer"):
        old.check_torch("11.8", said.append)
    new = cuda_toolkit.Toolkit(tmp_path / "new", str(toolkit_at(tmp_path / "new", "13.0")))
    new.check_torch("13.0", said.append)
    new.check_torch(None, said.append)
    assert not said
    new.check_torch("12.8", said.append)
    assert "12.8" in said[0]
    assert "driver" in said[0]


def test_what_nvcc_says_is_passed_on(cuda_toolkit, monkeypatch, tmp_path):
    toolkit = cuda_toolkit.Toolkit(tmp_path / "own", str(toolkit_at(tmp_path / "own")))
    with pytest.raises(cuda_toolkit.Unavailable, match=r"(?s)nvcc failed on .*no such thing"):
        toolkit.compile(ROOT, tmp_path / "out", "80;90")


@pytest.mark.parametrize("archs", ["", "sm_90", "80;x"])
def test_bad_architectures_are_refused(cuda_toolkit, tmp_path, archs):
    toolkit = cuda_toolkit.Toolkit(tmp_path / "own", str(toolkit_at(tmp_path / "own")))
    with pytest.raises(SystemExit, match=r"FICOCO_CUDA_ARCHS must be such as 80;90"):
        toolkit.compile(ROOT, tmp_path / "out", archs)


def test_a_toolkit_without_the_static_runtime_is_named(cuda_toolkit, tmp_path):
    toolkit = cuda_toolkit.Toolkit(tmp_path / "own", str(toolkit_at(tmp_path / "own")))
    with pytest.raises(cuda_toolkit.Unavailable, match=r"libcudart_static\.a"):
        toolkit.link_arguments()
    (tmp_path / "own" / "lib64" / "libcudart_static.a").touch()
    assert f"-L{tmp_path / 'own' / 'lib64'}" in toolkit.link_arguments()


@pytest.mark.parametrize(("release", "smaller"), [("12.4", False), ("13.0", True)])
@pytest.mark.parametrize("lineinfo", [False, True])
def test_kernels_are_compressed_and_carry_source_lines_only_if_asked(
    cuda_toolkit, tmp_path, monkeypatch, release, smaller, lineinfo
):
    nvcc = toolkit_at(tmp_path / "own", release)
    script = nvcc.read_text().replace("*) echo", f'*) echo "$@" >>{tmp_path}/calls; exit 0; echo')
    nvcc.write_text(script)
    monkeypatch.setenv("MAX_JOBS", "1")
    toolkit = cuda_toolkit.Toolkit(tmp_path / "own", str(nvcc))
    assert toolkit.compile(ROOT, tmp_path / "out", "80;90", lineinfo=lineinfo)
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert len(calls) == len(list(ROOT.glob("csrc/cuda/*.cu")))
    for call in calls:
        assert "-Xfatbin=-compress-all" in call
        assert ("--compress-mode=size" in call) == smaller  # its format needs a driver of CUDA 12.4
        assert ("-lineinfo" in call) == lineinfo
