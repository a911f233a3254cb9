"""The page of ``ficoco show``: what its data says of every patch, that no text breaks out of it, and its size."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import io
import itertools
import re

import pytest
import torch
from helpers.pages import ASKED, GRID, LAYERS, METHODS, RATIOS, document, known, runs
from helpers.pictures import chain, picture
from PIL import Image

from ficoco_ext.reduction import Reduction
from ficoco_ext.viz import page
from ficoco_ext.viz.colours import neighbours
from ficoco_ext.viz.page import data, writer
from ficoco_ext.viz.traces import groups, holders, trace

PATCHES = GRID[0] * GRID[1]


def followed(steps, patch):
    """Shares of ``patch`` and what was dropped, from the page's moves alone."""
    mass, dropped = {patch: 1.0}, 0.0
    for step in steps:
        for source, *parts in step["moves"]:
            held = mass.pop(source, 0.0)
            pairs = [(parts[0], 1_000_000)] if len(parts) == 1 else zip(parts[::2], parts[1::2], strict=True)
            for target, weight in pairs:
                if target < 0:
                    dropped += held * weight / 1e6
                elif held:
                    mass[target] = mass.get(target, 0.0) + held * weight / 1e6
    return mass, dropped


@pytest.mark.parametrize("run", runs(), ids=lambda run: f"{run.method}-{run.keep_ratio}")
def test_moves_say_what_trace_says(run):
    found = data.record(run, {"vision": 4, "text": 3}, GRID)
    assert [step["layer"] for step in found["steps"]] == [1, 3, 4]
    for patch, upto in itertools.product(range(PATCHES), range(1, 4)):
        shares, dropped = followed(found["steps"][:upto], patch)
        wanted = trace(run.reductions[:upto], patch)
        assert set(shares) == {at for at, share in wanted.shares.items() if share > 1e-6}
        assert shares == pytest.approx({at: wanted.shares[at] for at in shares}, abs=3e-6)
        assert dropped == pytest.approx(wanted.dropped, abs=3e-6)
        assert sum(shares.values()) + dropped == pytest.approx(1, abs=1e-12)  # nothing is lost to rounding


@pytest.mark.parametrize("run", runs(), ids=lambda run: f"{run.method}-{run.keep_ratio}")
def test_first_targets_are_the_holders_and_weights_sum_to_a_million(run):
    held = list(range(PATCHES))
    for step, reduction in zip(data.record(run, {"vision": 4, "text": 3}, GRID)["steps"], run.reductions, strict=True):
        first = {source: parts[0] for source, *parts in step["moves"]}
        held = [first.get(at, at) for at in held]
        assert held == holders(reduction)
        for _, *parts in step["moves"]:
            assert len(parts) == 1 or (sum(parts[1::2]) == 1_000_000 and min(parts[1::2]) > 0)


def _one_source(holder, weights):
    """Patches 0, 1, 2 are left; 3 went to 2 and 0, in this order."""
    return Reduction(
        tokens=None,
        size=torch.ones(1, 3, 1),
        kept=torch.tensor([[0, 1, 2]]),
        sources=torch.tensor([[3]]),
        source_map=torch.tensor([[0, 1, 2, holder]]),
        targets=torch.tensor([[[2, 0]]]),
        weights=torch.tensor([[weights]]),
        class_token=False,
        grid=(2, 2),
    )


def test_a_source_whose_largest_part_was_dropped_is_dropped_first():
    assert data.moves(_one_source(-1, [0.25, 0.125])) == [[3, -1, 625_000, 2, 250_000, 0, 125_000]]


def test_of_equal_parts_the_holders_comes_first():
    assert data.moves(_one_source(2, [0.5, 0.5])) == [[3, 2, 500_000, 0, 500_000]]
    assert data.moves(_one_source(0, [0.5, 0.5])) == [[3, 0, 500_000, 2, 500_000]]


def test_thirds_sum_to_one():
    assert data._millionths([(4, 1 / 3), (5, 1 / 3), (6, 1 / 3), (-1, 0.0)]) == [
        (4, 333_334),
        (5, 333_333),
        (6, 333_333),
    ]


@pytest.mark.parametrize("run", runs(), ids=lambda run: f"{run.method}-{run.keep_ratio}")
def test_every_group_has_a_colour_and_touching_groups_differ(run):
    colours = data.record(run, {"vision": 4, "text": 3}, GRID)["colours"]
    assert len(colours) == PATCHES
    for reduction in run.reductions:
        holding = groups(reduction).keys()
        assert all(int(colours[holder], 36) < data.GROUP_COLOURS for holder in holding)
        near = neighbours(holders(reduction), GRID)
        for holder in holding:
            assert all(colours[holder] != colours[other] for other in near[holder] & holding)
    assert (set(colours) == {"."}) == (run.method == "topk")


def test_a_page_knows_everything_in_the_order_of_its_sliders():
    found = known(document(runs(ratios=RATIOS[::-1]), selected=7))
    assert found["methods"] == list(METHODS)
    assert found["ratios"] == [0.5, 0.2]
    assert [found["grid"], found["sides"], found["selected"]] == [[6, 8], [["vision", 4], ["text", 3]], 7]
    assert [found["question"], found["truth"], found["answer"]] == [ASKED.question, "3", {"text": "3", "right": True}]
    assert found["runs"][1][1]["answer"] == {"text": "mixed at 0.2", "right": False}
    kind, _, text = found["image"]["uri"].partition(";base64,")
    assert kind == "data:image/png"
    with Image.open(io.BytesIO(base64.b64decode(text))) as shown:
        assert shown.size == (found["image"]["width"], found["image"]["height"])
        assert shown.tobytes() == picture(GRID).tobytes()


def test_large_pictures_are_bounded():
    noise = Image.effect_noise((3000, 2000), 90).convert("RGB")
    found = known(page.document(noise, runs(asked=False), sides={"vision": 4, "text": 3}))["image"]
    assert found["uri"].startswith("data:image/jpeg;base64,")
    assert (found["width"], found["height"]) == (1024, 683)


def test_the_same_arguments_give_the_same_page():
    assert document(runs()) == document(runs())


class _Seen(html.parser.HTMLParser):
    """Elements of a page as a browser would see them, and the text of its scripts."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.scripts, self.tags, self.comments = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, text):
        if self.cdata_elem == "script":
            self.scripts.append(text)

    def handle_comment(self, text):
        self.comments.append(text)


HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<!-- <script>",
    "]]> & &lt; &#60; \u2028 \u2029 \x00 \x1b[31m",
    "\" ' \\ {{data}} {{script}} \\u003c",
    "\ud800 lone \udcff",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_out_of_the_data(text):
    given = [dataclasses.replace(run, method=text, answer=page.Answer(text)) for run in runs() if run.method == "topk"]
    given.append(page.Run(text, 0.1, refused=text))
    made = document(given, about=text, asked=page.Asked(text, page.Answer(text), text), sides={"vision": 4, "text": 3})
    found = known(made)
    assert [found["question"], found["truth"], found["answer"]["text"], found["methods"]] == [text, text, text, [text]]
    assert found["runs"][0][0]["answer"]["text"] == found["runs"][0][2]["refused"] == text
    (block,) = re.findall(r'id="data">(.*?)</script>', made, re.DOTALL)
    assert block.isascii() and not set(block) & set("<>&")
    seen, wanted = _Seen(made), _Seen(document(runs()))
    assert seen.tags == wanted.tags
    assert (seen.comments, len(seen.scripts)) == ([], 2)
    assert seen.scripts[1] == wanted.scripts[1]
    made.encode("utf-8")  # nothing that is no text is left outside the data


def test_the_policy_lets_only_this_style_and_this_script_act():
    made = document(runs())
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (style,) = re.findall(r"<style>(.*?)</style>", made, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert not re.findall(r"(?:https?:)?//[a-z]", made.replace("http://www.w3.org/2000/svg", "").replace(script, ""))
    assert re.findall(r"https?://\S+", script) == ['http://www.w3.org/2000/svg";']


@pytest.mark.parametrize(("side", "targets", "most"), [(12, 1, 100_000), (24, 1, 200_000), (24, 3, 500_000)])
def test_size_is_bounded(side, targets, most):
    """Three methods at four ratios in three layers each; one target a source is what methods have by themselves."""
    grid = (side, side)
    methods = {
        "ficoco-v": (("ficoco-v",) * 3, {"ficoco_v": {"targets": targets}}),
        "topk": (("topk",) * 3, {}),
        "mixed": (("topk", "tome", "ficoco-v"), {"ficoco_v": {"targets": targets}}),
    }
    given = runs(grid, (0.6, 0.5, 0.35, 0.25), methods)
    whole = document(given, grid)
    assert len(whole) - len(known(whole)["image"]["uri"]) < most


def test_a_page_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(writer, "LARGEST", 10_000)
    with pytest.raises(ValueError, match=r"at most 10000 bytes, got .* fewer methods or keep ratios"):
        document(runs())


def test_a_refused_pair_says_why():
    given = [run for run in runs() if (run.method, run.keep_ratio) != ("mixed", 0.2)]
    given.append(page.Run("mixed", 0.2, refused="r must be at most 3 in layer 2"))
    assert known(document(given))["runs"][1][1] == {"refused": "r must be at most 3 in layer 2"}


def test_without_question_there_are_no_answers():
    found = known(document(runs(asked=False), asked=None))
    assert (found["question"], found["truth"], found["answer"]) == ("", None, None)
    assert found["runs"][0][0]["answer"] is None


def _refused(given=None, **options):
    return document(runs() if given is None else given, **options)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: _refused([]), "runs must hold at least one that is not refused"),
        (lambda: _refused([page.Run("topk", 0.5, refused="no")]), "at least one that is not refused"),
        (lambda: _refused(runs() + runs()[:1]), "each method must be given once for each keep ratio"),
        (lambda: _refused(runs()[1:]), "every keep ratio, ficoco-v is not at 0.5"),
        (lambda: _refused(asked=None), "all runs or none, ficoco-v lacks the question"),
        (lambda: _refused(runs(asked=False)), "all runs or none, ficoco-v lacks its answer"),
        (lambda: _refused(selected=48), "selected must be in [0, 47], got 48"),
        (lambda: _refused(sides={"vision": 4}), "text layer 0 is none of the layers"),
        (lambda: _refused(sides={"vision": 3, "text": 3}), "vision layer 3 is none of the layers"),
        (lambda: _refused(runs(layers=LAYERS[::-1])), "layers must be ascending, one a reduction"),
        (lambda: _refused([dataclasses.replace(run, reductions=()) for run in runs()]), "reductions is empty"),
        (lambda: _refused([*runs(), page.Run("x", 0.5, chain(("topk",), (4, 4)))]), "one grid of patches"),
        (lambda: page.save("", "x.png"), "page must end in one of .html, .htm, got 'x.png'"),
    ],
)
def test_mistakes_are_named(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_a_page_needs_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .* for the page x.html"):
        page.save("", tmp_path / "nowhere" / "x.html")
    page.save("<p>\u00e4", tmp_path / "x.HTM")
    assert (tmp_path / "x.HTM").read_text("utf-8") == "<p>\u00e4"


def test_a_page_is_json_without_nan():
    with pytest.raises(ValueError, match="JSON"):
        writer.embedded(float("nan"))


def test_the_largest_remainders_are_rounded_up():
    assert data._millionths([(4, 0.3000004), (5, 0.6999996)]) == [(4, 300_000), (5, 700_000)]
