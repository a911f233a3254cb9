"""The study of padding in LLaVA-NeXT's crops: does it matter whether padding leaves first or after the tower?

    python benchmarks/crop_padding.py --scenes 32 --json benchmarks/results/crop_padding.json --page docs/accuracy.md

The embedded model, dressed as a LLaVA-NeXT, answers questions about grid scenes on three grounds, whose crops have
padding. Every method of the tower runs with ``padding="after"``, with ``padding="first"`` at the same number of patches
a crop, and with ``padding="first"`` at the number that gives the language model as many tokens as ``"after"`` did. The
questions are the same, so their answers are compared question by question; standard errors are over scenes, because
questions about one scene hang together. It takes under 15 minutes of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

import ficoco_ext
from ficoco_ext.apps import checkpoint, next_dress
from ficoco_ext.evaluation import provenance
from ficoco_ext.gridvqa import GridVQA, Row
from ficoco_ext.models.facts import crop_facts
from ficoco_ext.models.padding_first import PaddingFirst
from ficoco_ext.models.transformers_api import cache_name

KINDS = ("exist", "attr", "count", "text", "digit", "choice")  # where things are, the dressed model does not know
RUNS = {"ficoco-v": (72, 36, 18), "topk": (72, 36, 18), "tome": (72, 36)}  # patches a crop; ToMe halves at most
GROUNDS = {"square": (168, 168), "wide": (168, 252), "tall": (252, 168)}  # (height, width) in pixels
RULES = ("after", "first", "first, as many tokens")
BEGIN, END = "<!-- crop-padding -->", "<!-- end of crop-padding -->"
Say = Callable[[str], None]


class Asked(NamedTuple):
    """A picture and its questions."""

    scene: int
    ground: str
    image: Any
    rows: tuple[Row, ...]


def on_ground(image: Any, size: tuple[int, int]) -> Any:
    """``image`` in the middle of a ground of ``size`` (height, width), whose pixels go on as those of its edges."""
    from PIL import Image

    pixels = np.asarray(image)
    more = [(size[axis] - pixels.shape[axis]) // 2 for axis in range(2)]
    return Image.fromarray(np.pad(pixels, ((more[0],) * 2, (more[1],) * 2, (0, 0)), mode="edge"))


def pictures(scenes: int, split: str, kinds: Sequence[str]) -> list[Asked]:
    """Every scene on every ground."""
    by_scene: dict[int, list[Row]] = {}
    for row in GridVQA(split, scenes=scenes, per_scene=6, kinds=kinds):
        by_scene.setdefault(row.scene, []).append(row)
    return [
        Asked(scene, ground, on_ground(rows[0].image, size), tuple(rows))
        for scene, rows in by_scene.items()
        for ground, size in GROUNDS.items()
    ]


def answers(dressed: checkpoint.Checkpoint, asked: Asked) -> tuple[list[str], int]:
    """The answers, one word each, and the visual tokens of the language model.

    The tower runs once a picture, and so does the language model on all that stands before the questions: neither
    depends on them.
    """
    model, tokenizer = dressed.model, dressed.processor.tokenizer
    picture = model.config.image_token_id
    one = dressed.inputs(asked.image, asked.rows[0].question)
    with torch.inference_mode():
        features = model.model.get_image_features(one["pixel_values"], one["image_sizes"]).pooler_output[0]
        before, *after = _sentences(dressed, [row.question for row in asked.rows])
        ids = torch.tensor([before[:-1] + [picture] * len(features)])
        embedded = model.get_input_embeddings()(ids)
        embedded[ids == picture] = features
        decoder, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
        given = {cache_name(decoder.forward): cache, "use_cache": True}
        decoder(inputs_embeds=embedded, **given)
        cache.batch_repeat_interleave(len(after))
        longest = max(map(len, after))
        words = torch.tensor([each + [tokenizer.pad_token_id] * (longest - len(each)) for each in after])
        hidden = decoder(input_ids=words, **given).last_hidden_state
        last = torch.tensor([len(each) - 1 for each in after])  # what stands after it is seen by no word before
        said = model.lm_head(hidden[torch.arange(len(after)), last]).argmax(-1)
    return [tokenizer.decode(word, skip_special_tokens=True).strip() for word in said.tolist()], len(features)


def _sentences(dressed: checkpoint.Checkpoint, questions: Sequence[str]) -> list[list[int]]:
    """What stands before the questions, the picture's one placeholder last, and each question with what follows it."""
    found: list[list[int]] = []
    for question in questions:
        text = dressed.prompt(question)
        special = not text.startswith(dressed.processor.tokenizer.bos_token or "\0")
        ids = dressed.processor.tokenizer(text, add_special_tokens=special).input_ids
        end = ids.index(dressed.model.config.image_token_id) + 1
        found = [*(found or [ids[:end]]), ids[end:]]
    return found


def right(
    dressed: checkpoint.Checkpoint, part: Sequence[Asked], attach: Callable[[Asked], Any]
) -> tuple[str, list[int]]:
    """One character a question, ``1`` for a right answer, and the tokens of each picture."""
    found, tokens = "", []
    for asked in part:
        with attach(asked):
            said, count = answers(dressed, asked)
        found += "".join(str(int(a == row.answer)) for a, row in zip(said, asked.rows, strict=True))
        tokens.append(count)
    return found, tokens


def as_many(dressed: checkpoint.Checkpoint, method: str, ground: str, tokens: float) -> int:
    """The patches a crop with which padding first leaves a picture of ``ground`` nearest to ``tokens`` tokens."""
    crops = crop_facts(dressed.model).of(*GROUNDS[ground])
    nearest: dict[int, float] = {}
    for patches in range(4, crops.patches):
        with contextlib.suppress(ValueError), ficoco_ext.attach(dressed.model, method, tokens=patches) as handle:
            rule = handle.attach_plan.padding_first
            assert isinstance(rule, PaddingFirst)
            nearest[patches] = abs(rule.after(crops) - tokens)
    return min(nearest, key=lambda patches: nearest[patches])


def study(scenes: int, split: str, say: Say = print) -> dict[str, Any]:
    """Everything that is measured, as plain values."""
    start = time.process_time()
    dressed = next_dress.load_family(None, "llava-next", torch.float32, torch.device("cpu"))
    asked = pictures(scenes, split, KINDS)
    _require_same(dressed, asked[0])
    settings: list[dict[str, Any]] = []

    def run(method: str | None, patches: int | None, rule: str, chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """``chosen``: for each ground what attach is given."""

        def attach(one: Asked) -> Any:
            return ficoco_ext.attach(dressed.model, method, **chosen[one.ground]) if method else _nothing()

        found, tokens = right(dressed, asked, attach)
        by_ground = {
            ground: sum(n for n, one in zip(tokens, asked, strict=True) if one.ground == ground) / scenes_of(asked)
            for ground in GROUNDS
        }
        of_crop = {ground: given.get("tokens") for ground, given in chosen.items()}
        settings.append(
            {"method": method, "patches": patches, "rule": rule, "of_crop": of_crop, "tokens": by_ground}
            | {"right": found}
        )
        say(f"{time.process_time() - start:.0f} s: {method} {patches} {rule}: {found.count('1') / len(found):.3f}")
        return settings[-1]

    run(None, None, "all tokens", {ground: {} for ground in GROUNDS})
    for method, budgets in RUNS.items():
        for patches in budgets:
            given = {"tokens": patches}
            after = run(method, patches, "after", {ground: given | {"padding": "after"} for ground in GROUNDS})
            run(method, patches, "first", {ground: given | {"padding": "first"} for ground in GROUNDS})
            equal = {ground: as_many(dressed, method, ground, after["tokens"][ground]) for ground in GROUNDS}
            run(method, patches, RULES[2], {g: {"tokens": n, "padding": "first"} for g, n in equal.items()})
    places = pictures(scenes, split, ("position",))
    found, _ = right(dressed, places, lambda one: _nothing())
    return {
        "scenes": [one.scene for one in asked for _ in one.rows],
        "grounds": [one.ground for one in asked for _ in one.rows],
        "kinds": [row.kind for one in asked for row in one.rows],
        "split": split,
        "settings": settings,
        "position": {"right": found.count("1"), "asked": len(found)},
        "cpu_seconds": time.process_time() - start,
        "run": provenance.platform_of(dressed.model) | {"threads": torch.get_num_threads()},
    }


def scenes_of(asked: Sequence[Asked]) -> int:
    """How many scenes there are."""
    return len({one.scene for one in asked})


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


def _require_same(dressed: checkpoint.Checkpoint, asked: Asked) -> None:
    """Raise unless the batch of questions is answered as ``generate`` answers each alone, cut and not."""
    for attach in (_nothing, lambda: ficoco_ext.attach(dressed.model, "ficoco-v", tokens=36)):
        with attach():
            said, _ = answers(dressed, asked)
            alone = [dressed.answer(asked.image, row.question, 1) for row in asked.rows]
        if said != alone:
            raise RuntimeError(f"the batch says {said}, generate says {alone}")


class Difference(NamedTuple):
    """A mean of paired differences and its standard error, both in percent of the questions."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.error:.1f}"


def difference(document: dict[str, Any], one: dict[str, Any], other: dict[str, Any]) -> Difference:
    """``one`` less ``other``, question by question; the standard error is over scenes."""
    pairs = zip(one["right"], other["right"], document["scenes"], strict=True)
    by_scene: dict[int, list[int]] = {}
    for a, b, scene in pairs:
        by_scene.setdefault(scene, []).append(int(a) - int(b))
    asked, scenes = len(one["right"]), len(by_scene)
    mean = sum(map(sum, by_scene.values())) / asked
    squares = sum((sum(values) - mean * len(values)) ** 2 for values in by_scene.values())
    return Difference(100 * mean, 100 * math.sqrt(squares * scenes / max(scenes - 1, 1)) / asked)


def setting(document: dict[str, Any], method: str | None, patches: int | None, rule: str) -> dict[str, Any]:
    """The one of these names."""
    wanted = (method, patches, rule)
    return next(one for one in document["settings"] if (one["method"], one["patches"], one["rule"]) == wanted)


def table(document: dict[str, Any]) -> str:
    """A row a method and number of patches."""
    head = ["method", "patches a crop", "tokens after", "right", "tokens first", "right", "first - after"]
    lines = [[*head, "first - after, as many tokens"], ["---"] * 8]
    for method, budgets in RUNS.items():
        for patches in budgets:
            after, first, equal = (setting(document, method, patches, rule) for rule in RULES)
            cells = [cell for one in (after, first) for cell in (f"{_tokens(one):.0f}", _share(one))]
            differences = [str(difference(document, first, after))]
            differences.append(str(difference(document, equal, after)) if reached(equal, after) else "-")
            lines.append([f"`{method}`", str(patches), *cells, *differences])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reached(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two settings leave as many tokens on every ground, up to 3: one patch of the thumbnail and two crops."""
    return all(abs(one["tokens"][ground] - other["tokens"][ground]) <= 3 for ground in GROUNDS)


def _tokens(one: dict[str, Any]) -> float:
    return sum(one["tokens"].values()) / len(one["tokens"])


def _share(one: dict[str, Any]) -> str:
    return f"{100 * one['right'].count('1') / len(one['right']):.1f}"


def part_of_page(document: dict[str, Any]) -> str:
    """What stands between the marks of the page."""
    scenes, asked = len(set(document["scenes"])), len(document["scenes"])
    full, position = setting(document, None, None, "all tokens"), document["position"]
    caption = (
        f"{asked} questions about {scenes} scenes of the split `{document['split']}` on {len(GROUNDS)} grounds. With "
        f"all {_tokens(full):.0f} tokens {_share(full)} % are right. Of {position['asked']} questions where something "
        f"is, which are not in the table, {100 * position['right'] / position['asked']:.0f} % are."
    )
    return f"{caption}\n\n{table(document)}"


def write_part(page: Path, document: dict[str, Any]) -> None:
    """Put :func:`part_of_page` between the marks of the file ``page``.

    Raises:
        ValueError: a page without them.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"page must have the marks {BEGIN} and {END} once each")
    before, _, after = text.partition(BEGIN)[0], None, text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{part_of_page(document)}\n\n{END}{after}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--page", type=Path, help="a page whose part is written")
    parser.add_argument("--from", dest="results", type=Path, help="results to read instead of measuring")
    given = parser.parse_args()
    torch.set_num_threads(1)
    document = json.loads(given.results.read_text()) if given.results else study(given.scenes, given.split)
    if given.json is not None:
        given.json.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    if given.page is not None:
        write_part(given.page, document)
    print(part_of_page(document))


if __name__ == "__main__":
    main()
