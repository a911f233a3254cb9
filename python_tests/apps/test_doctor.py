"""The doctor: every operator is checked, right kernels are right, and a wrong one is found, wherever it is wrong."""

import dataclasses
import json

import pytest
import torch
import typer.testing
from helpers.ops import needs_kernels

import ficoco_ext.ops
from ficoco_ext.apps import doctor, operator_cases
from ficoco_ext.cli.app import app
from ficoco_ext.ops import library

INDICES_ALONE = ("to_sequence", "bipartite_thin", "top_of_segments")  # no numbers that rounding could change


@pytest.fixture(scope="module")
def found():
    return doctor.run()


def test_every_operator_of_the_library_is_checked_on_every_device(found):
    names = torch._C._dispatch_get_all_op_names()
    dispatched = {name.removeprefix("ficoco::") for name in names if name.startswith("ficoco::")}
    assert set(doctor.operators()) == dispatched == set(operator_cases.OPERATORS)
    assert [(one.name, one.device) for one in found.operators] == [
        (name, device) for device in doctor.devices() for name in doctor.operators()
    ]
    assert all(one.probes >= 12 for one in found.operators)


def test_all_are_right_and_almost_every_value_is_compared(found):
    assert found.right, found.verdict
    assert found.verdict.startswith(f"All {len(doctor.operators())} operators are right on cpu (")
    for one in found.operators:
        most = 0.3 if one.name == "bipartite_thin" else 0.03  # there one near choice changes the order of all others
        assert one.undecided <= most * one.compared, one.name
        assert all(0 <= precision.error <= precision.allowed for precision in one.precisions)
        assert len(one.precisions) == (0 if one.name in INDICES_ALONE else 3)


def test_errors_are_measured_not_assumed(found):
    """Kernels that accumulate in float32 differ from float64, but not by much."""
    errors = [precision.error for one in found.operators for precision in one.precisions]
    assert max(errors) > 1e-7


def _names(result):
    return {one.name for one in result.operators if one.wrong}


def _off(results, change):
    return tuple(change(one.clone()) if one.is_floating_point() else one for one in results)


def _last_of_batch(tensor):
    tensor.view(tensor.shape[0], -1)[-1, -1] += 2e-5 * tensor.abs().max() + 1e-12
    return tensor


FAULTS = {
    "a little off in the last value of the last image": ("attention_stats", lambda got: _off(got, _last_of_batch)),
    "nan": ("compress", lambda got: (got[0].index_fill(0, torch.tensor([0]), torch.nan), *got[1:])),
    "another target": ("correlate.key", lambda got: (got[0].flip(1), got[1])),
    "one source is another token": ("filter", lambda got: (got[0], got[1].roll(1, 1), got[2])),
    "another shape": ("token_attention", lambda got: (got[0][..., :-1].contiguous(),)),
    "another dtype of indices": ("to_sequence", lambda got: (got[0].int(), *got[1:])),
}


def _break(monkeypatch, name, change):
    run = operator_cases.Probe.run
    monkeypatch.setattr(
        operator_cases.Probe,
        "run",
        lambda self, namespace: change(run(self, namespace)) if self.group == name else run(self, namespace),
    )


def test_a_result_that_is_not_finite_is_a_finding_in_tables_and_json(monkeypatch, found):
    _break(monkeypatch, "compress", FAULTS["nan"][1])
    one = doctor.check("compress", "cpu")
    assert [precision.error for precision in one.precisions] == [None] * 3
    broken = dataclasses.replace(found, right=False, operators=(one,))
    monkeypatch.setattr(doctor, "run", lambda step=None: broken)
    assert "not finite" in typer.testing.CliRunner().invoke(app, ["doctor"]).stdout
    result = typer.testing.CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["operators"][0]["precisions"][0]["error"] is None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_result_is_found(fault, monkeypatch):
    name, change = FAULTS[fault]
    _break(monkeypatch, name, change)
    one = doctor.check(name, "cpu")
    assert one.wrong, fault


def test_a_result_that_differs_between_equal_calls_is_found(monkeypatch):
    calls = []

    def change(got):
        calls.append(None)
        return (*got[:-1], got[-1] + 1e-6 * (len(calls) % 2))

    _break(monkeypatch, "match", change)
    assert any("differs between two equal calls" in text for text in doctor.check("match", "cpu").wrong)


@pytest.mark.parametrize("name", doctor.operators())
def test_the_specification_passes_where_there_are_no_kernels(name, monkeypatch):
    """In its own precision: what a machine without a compiler runs."""
    composite = library.operator(name, torch.empty(0, dtype=torch.float64))
    monkeypatch.setattr(operator_cases.Probe, "run", lambda self, _: operator_cases.results(composite(*self.args)))
    assert not doctor.check(name, "cpu").wrong


def test_a_kernel_that_raises_is_a_finding(monkeypatch):
    def change(got):
        raise RuntimeError("illegal instruction")

    _break(monkeypatch, "reduce", change)
    assert "RuntimeError: illegal instruction" in doctor.check("reduce", "cpu").wrong[0]


@needs_kernels
@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
@pytest.mark.filterwarnings("ignore:.*[Oo]verriding a previously registered kernel")
def test_a_wrong_kernel_in_the_dispatcher_turns_it_red():
    def wrong(key, r, class_token, distill_token):
        redundancy, sources, *rest = ficoco_ext.ops.reference.match(key, r, class_token, distill_token)
        return (redundancy, sources - 1, *rest)

    override = torch.library.Library("ficoco", "IMPL")
    try:
        override.impl("match", wrong, "CPU", allow_override=True)
        result = typer.testing.CliRunner().invoke(app, ["doctor", "--json"])
    finally:
        override._destroy()
    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert document["right"] is False and "match" in document["verdict"] and "WRONG on cpu" in document["verdict"]
    assert [one["name"] for one in document["operators"] if one["wrong"]] == ["match"]
    assert not doctor.check("match", "cpu").wrong


def test_an_operator_without_a_check_is_wrong(monkeypatch):
    monkeypatch.delitem(operator_cases.OPERATORS, "match")
    assert doctor.check("match", "cpu").wrong == ("no check is known for this operator",)


def test_the_command_says_its_verdict_first_and_fits_80_columns(found, monkeypatch):
    monkeypatch.setattr(doctor, "run", lambda step=None: found)
    result = typer.testing.CliRunner().invoke(app, ["doctor"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0] == found.verdict
    tables = [line for line in lines if line[:1] in "┏┃┡│└├"]
    assert tables and max(map(len, tables)) <= 80 and "…" not in result.stdout
    for name in doctor.operators():
        assert any(line.startswith(f"│ {name} ") for line in tables)


def test_the_command_names_what_is_wrong(found, monkeypatch):
    broken = dataclasses.replace(found.operators[0], wrong=tuple(f"case {i}" for i in range(6)))
    monkeypatch.setattr(
        doctor,
        "run",
        lambda step=None: dataclasses.replace(found, right=False, operators=(broken, *found.operators[1:])),
    )
    result = typer.testing.CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert f"{broken.name} on cpu: case 0" in result.stdout and "2 findings more" in result.stdout
