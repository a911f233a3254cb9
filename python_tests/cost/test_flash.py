"""Table 10 with and without flash attention: what that changes, and what it does not."""

from helpers.cli import document, run

from ficoco_ext import cost
from ficoco_ext.cost import flash
from ficoco_ext.cost.reproduce import reproduce

ROWS = flash.memory()


def test_every_row_of_the_table_is_there_both_ways():
    printed = {(cell.method, cell.flash_attention) for cell in reproduce("10")}
    assert {(one.method, one.flash_attention) for one in ROWS if one.printed} == printed
    assert [one.flash_attention for one in ROWS] == [True, False] * 4
    assert [one.basis for one in ROWS[::2]] == ["post_hoc", "post_hoc", "fitted", "fitted"]


def test_flash_attention_saves_the_maps_and_no_operation():
    """By hand: each layer writes and reads two maps of 32 x n x n in 16 bits, those of the tower as well."""
    for with_it, without in zip(ROWS[::2], ROWS[1::2], strict=True):
        assert (with_it.tflops, with_it.kv_mb, with_it.visual_tokens) == (
            without.tflops,
            without.kv_mb,
            without.visual_tokens,
        )
        n = with_it.visual_tokens + flash.TEXT
        maps = 4 * 2 * (32 * 32 * n * n + 24 * 5 * 16 * 577 * 577) / 1e9
        assert abs(without.moved_gb - with_it.moved_gb - maps) < 1e-9 * maps
        assert abs(without.held_gb - with_it.held_gb - 2 * 2 * 32 * n * n / 1e9) < 1e-9


def test_what_is_saved_without_flash_attention_is_more_than_with_it():
    """The maps grow with the square of the tokens."""
    (full, few), (full_maps, few_maps) = (ROWS[0], ROWS[2]), (ROWS[1], ROWS[3])
    assert full_maps.moved_gb / few_maps.moved_gb > 2.1 > 1.5 > full.moved_gb / few.moved_gb
    whole = cost.prefill("llava-next-7b")
    assert (full.tflops, full.held_gb) == (whole.tflops, whole.resident_gb)


def test_the_command_prints_them():
    said = run("cost", "--reproduce").stdout
    assert "Table 10 with and without flash attention" in said and "yes *" in said
    assert "operations do not depend on flash attention" in said
    found = document("cost", "--reproduce")["flash_attention"]
    assert [one["moved_gb"] for one in found] == [one.moved_gb for one in ROWS]
