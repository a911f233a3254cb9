"""Run settings over questions, one cell after the other, and continue where a run stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from ..apps.checkpoint import Checkpoint
from ..gridvqa import GridVQA
from ..io import files
from ..version import __version__
from . import first_token as first_token_times
from . import provenance
from .asking import JUDGES, RULES, Asking, Judge, Prompts, answers, warm_up, with_embedded_rules
from .data import Questions
from .plans import Plans, Tables
from .results import UNDECIDED, Results, new_document
from .settings import Setting

Progress = Callable[[int, int, str], None]  # questions answered, of how many, what is being done
Say = Callable[[str], None]


def evaluate(
    checkpoint: Checkpoint,
    dataset: Iterable[Any] | Questions | Path | str,
    settings: Sequence[Setting],
    *,
    seeds: Sequence[int] | None = None,
    judge: str | Judge | None = None,
    max_new_tokens: int | None = None,
    batch: int = 32,
    bad_rows: str = "fail",
    mean_of: Sequence[str] = (),
    first_token: Sequence[int] = (),
    first_token_seconds: float = 10.0,
    results: Path | str | None = None,
    progress: Progress = lambda done, total, text: None,
    notice: Say = lambda text: None,
) -> Results:
    """Ask a model the same questions without reduction and with every setting.

    Answers are those of asking one by one with :meth:`ficoco_ext.apps.checkpoint.Checkpoint.answer`; only the order of
    floating-point sums may differ. A setting that ``attach`` refuses with a ValueError or NotImplementedError is kept
    with the reason, and the others run.

    Args:
        checkpoint: of :func:`ficoco_ext.apps.checkpoint.load`, without reduction.
        dataset: a :class:`ficoco_ext.gridvqa.GridVQA`, rows or a file; see :func:`ficoco_ext.evaluation.questions`.
        settings: what is compared; the unreduced model comes first by itself. One with a goal gets the amount that
            reaches it, and is refused like the others where none does.
        seeds: each is another draw of grid scenes, and goes to methods with a hyperparameter ``seed`` that is not set.
            Of rows or a file, other methods run once. None: the seed of a :class:`ficoco_ext.gridvqa.GridVQA`, else 0.
        judge: ``"exact"``, ``"contained"`` or a function (answer, truth) -> bool, or None for what it cannot decide;
            None: exact for models of grid scenes, else contained; see ``docs/how_answers_are_judged.md``. With
            ``results`` a function must have a name, by which a run is known again.
        max_new_tokens: longest answer; None: 1 for models of grid scenes, whose answers are one word, else 48.
        batch: questions that are answered together.
        bad_rows: ``"fail"`` or ``"count"``, see :func:`ficoco_ext.evaluation.questions`.
        mean_of: kinds in the summary's mean; none: all, but of grid scenes without "count".
        first_token: batch sizes at which the time to the first token is measured too, the method's own part in it,
            after all answers and apart from them; see :mod:`ficoco_ext.evaluation.first_token`.
        first_token_seconds: for each of them; every setting runs 5 times at least.
        results: file that is written after every setting and seed. If it is there, the run continues where it stopped.
        progress: gets questions answered, of how many, and a few words.
        notice: gets a sentence for what should be known beside the result.

    Returns:
        :class:`Results`; its ``summary()`` has the numbers.

    Raises:
        ValueError, TypeError: an argument that does not fit, a bad row, a file of another run, or no setting that can
            be done; nothing was run then. FileNotFoundError: no folder for ``results``.

    Cost: for each setting and seed one pass of the tower a picture, one prefill and up to ``max_new_tokens`` - 1 steps
    a question.

    Example:
        >>> from ficoco_ext.apps.checkpoint import load
        >>> from ficoco_ext.evaluation import evaluate, settings_of
        >>> from ficoco_ext.gridvqa import GridVQA
        >>> checkpoint = load(None, torch.float32, torch.device("cpu"))  # doctest: +SKIP
        >>> settings = settings_of(["ficoco-v", "fastv"], keep_ratios=[0.5, 0.25])
        >>> found = evaluate(checkpoint, GridVQA("test"), settings, results="out.json")  # doctest: +SKIP
        >>> [line.mean.value for line in found.summary().lines]  # doctest: +SKIP
    """
    if hasattr(checkpoint.model, "ficoco_handle"):
        raise ValueError(f"checkpoint must have a model without reduction, got {checkpoint.model.ficoco_handle}")
    checkpoint = with_embedded_rules(checkpoint)
    asking = Asking.of(checkpoint, judge, max_new_tokens, batch)
    if seeds is None:
        seeds = (dataset.seed,) if isinstance(dataset, GridVQA) else (0,)
    seeds = _checked(seeds)
    _different([Setting(None), *settings])
    batches = first_token_times.checked(first_token)
    path = None if results is None else _writable(Path(results))
    if path is not None and not _has_name(asking.judge):
        raise ValueError(
            f"judge must be a function with a name of its own if results are written, got {asking.judge!r}: a run that "
            "continues could not distinguish it from another; write it with def in a module"
        )
    if not isinstance(dataset, (GridVQA, Questions, str, Path)):
        dataset = list(dataset)
    tables = Tables(checkpoint, dataset, seeds, bad_rows)
    asked = tables.prompts(seeds[0]).asked
    read = [dataset, *asked.pictures]
    files.require_apart([one for one in read if isinstance(one, (str, Path))], results=path)
    if unknown := [kind for kind in mean_of if kind not in tables.prompts(seeds[0]).asked.kinds]:
        there = ", ".join(tables.prompts(seeds[0]).asked.kinds)
        raise ValueError(f"mean_of must be among {there}, got {', '.join(unknown)}")
    plans = Plans(tables, settings, seeds)
    _different(plans.settings)
    run = _identity(checkpoint, tables, asking, seeds, plans.settings)
    held = _continued(path, run) if path is not None and path.exists() else None
    if held is None:
        held = Results(new_document(run, provenance.platform_of(checkpoint.model), checkpoint.name, plans.described()))
    for text in _remarks(checkpoint, tables.prompts(seeds[0]).asked):
        notice(text)
    _Run(checkpoint, tables, asking, plans.settings, held, path, progress).go()
    for batch_size in batches:
        if first_token_times.add(
            held.document, tables.prompts(seeds[0]), plans.settings, seeds[0], batch_size, first_token_seconds, progress
        ):
            _save(held, path)
    held.document["summary"] = held.summary(mean_of).to_dict()
    _save(held, path)
    return held


def _save(held: Results, path: Path | None) -> None:
    if path is not None:
        held.save(path)


def _checked(seeds: Sequence[int]) -> tuple[int, ...]:
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seeds must be integers >= 0, got {seed!r}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different, at least one, got {tuple(seeds)}")
    return tuple(seeds)


def _different(settings: Sequence[Setting]) -> None:
    met = set()
    for setting in settings:
        key = setting.name, setting.budget
        if key in met:
            raise ValueError(f"settings must differ in name or amount, got {' at '.join(key)} twice; give labels")
        met.add(key)


def _writable(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} for the results {path.name}")
    return path


def _identity(
    checkpoint: Checkpoint, tables: Tables, asking: Asking, seeds: tuple[int, ...], settings: Sequence[Setting]
) -> dict[str, Any]:
    """What two runs must have in common to be one."""
    data: dict[str, Any] = {"questions": tables.prompts(seeds[0]).asked.digest}
    if isinstance(tables.dataset, GridVQA):
        grid = tables.dataset
        kinds = list(grid.kinds)
        data["gridvqa"] = {"split": grid.split, "scenes": grid.scenes, "per_scene": grid.per_scene, "kinds": kinds}
    return {
        "version": __version__,
        "weights": weights_digest(checkpoint.model),
        "precision": f"{str(checkpoint.model.dtype).removeprefix('torch.')} on {checkpoint.model.device.type}",
        "attention": getattr(checkpoint.model.config, "_attn_implementation", None),
        "seeds": list(seeds),
        "settings": [setting.describe() for setting in settings],
        "asking": {
            "prompt": checkpoint.prompt("QUESTION"),
            **_judged_by(asking.judge),
            "max_new_tokens": asking.max_new_tokens,
        },
        "data": data,
    }


def _has_name(judge: Judge) -> bool:
    """:func:`_judge_name` identifies it: no lambda, partial or object that is called."""
    return getattr(judge, "__qualname__", "<lambda>").rpartition(".")[2] != "<lambda>"


def _judged_by(judge: Judge) -> dict[str, Any]:
    name = _judge_name(judge)
    return {"judge": name} | ({"rules": RULES[name]} if name in RULES else {})


def _judge_name(judge: Judge) -> str:
    for name, one in JUDGES.items():
        if judge is one:
            return name
    of = judge if hasattr(judge, "__qualname__") else type(judge)
    return f"{of.__module__}.{of.__qualname__}"


def weights_digest(model: Any) -> str:
    """SHA-256 of names, types and bytes of all weights."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _continued(path: Path, run: dict[str, Any]) -> Results:
    held = Results.load(path)
    wanted = json.loads(json.dumps(run))
    for name, value in wanted.items():
        if held.document["run"].get(name) != value:
            raise ValueError(
                f"results file {path} is of another run: {name!r} in it differs from what is asked for now; "
                "give another file, or remove this one"
            )
    return held


def _remarks(checkpoint: Checkpoint, asked: Questions) -> list[str]:
    spelled = (checkpoint.spelled(item.question) for item in asked.items)
    words = dict.fromkeys(word for question in spelled for word in question.split())
    unknown = checkpoint.unknown(" ".join(words))
    found = checkpoint.remarks
    if unknown:
        named = ", ".join(map(repr, unknown[:8])) + (" ..." if len(unknown) > 8 else "")
        found.append(f"the model's tokenizer has no token for {named}: it reads <unk> there")
    found += asked.remarks
    if asked.bad:
        found.append(f"{len(asked.bad)} rows cannot be asked and are in no score; the first: {asked.bad[0]}")
    return found


class _Run:
    """The cells that are still to be done."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tables: Tables,
        asking: Asking,
        settings: Sequence[Setting],
        held: Results,
        path: Path | None,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.tables, self.asking = checkpoint, tables, asking
        self.settings, self.held, self.path, self.progress = settings, held, path, progress
        document = held.document
        finished = {(cell["setting"], cell["seed"]) for cell in document["cells"]}
        seeds = document["run"]["seeds"]
        self.todo = [
            (seed, number)
            for seed in seeds
            for number, one in enumerate(document["settings"])
            if seed in one["seeds"] and not one["impossible"] and (number, seed) not in finished
        ]
        self.words = {word: index for index, word in enumerate(document["words"])}

    def go(self) -> None:
        """Run them, writing after each."""
        total = len(self.todo) * len(self.tables.prompts(self.todo[0][0]).asked.items) if self.todo else 0
        done = 0
        if self.todo:
            warm_up(self.tables.prompts(self.todo[0][0]), self.asking)
        for seed, number in self.todo:
            prompts = self.tables.prompts(seed)
            self._table(seed, prompts)
            prompts.warm()
            setting = self.settings[number]
            text = f"{setting.name}, {setting.budget}" + (f", seed {seed}" if self.tables.grid else "")

            def tick(count: int, text: str = text) -> None:
                nonlocal done
                done += count
                self.progress(done, total, text)

            self.progress(done, total, text)
            start = time.perf_counter()
            with nullcontext() if setting.method is None else setting.attach(self.checkpoint, seed):
                said = answers(prompts, self.asking, tick)
            self._put(number, seed, prompts, said, time.perf_counter() - start)

    def _index(self, word: str) -> int:
        index = self.words.setdefault(word, len(self.words))
        if index == len(self.held.document["words"]):
            self.held.document["words"].append(word)
        return index

    def _table(self, seed: int, prompts: Prompts) -> None:
        """The questions as the document has them, once a seed."""
        tables, key, asked = self.held.document["tables"], self.tables.key(seed), prompts.asked
        for table in tables:
            if table["seed"] == key:
                if table["questions"] != asked.digest:
                    raise ValueError(f"results file {self.path} is of another run: its questions of seed {seed} differ")
                return
        tables.append(
            {
                "seed": key,
                "questions": asked.digest,
                "kinds": list(asked.kinds),
                "kind": [asked.kinds.index(item.kind) for item in asked.items],
                "scene": [item.scene for item in asked.items],
                "truth": [self._index(item.answer) for item in asked.items],
                "bad": [[one.row, one.field, one.reason] for one in asked.bad],
            }
        )

    def _put(self, number: int, seed: int, prompts: Prompts, said: list[str], seconds: float) -> None:
        verdicts = (self.asking.judge(a, item.answer) for a, item in zip(said, prompts.asked.items, strict=True))
        self.held.document["cells"].append(
            {
                "setting": number,
                "seed": seed,
                "seconds": round(seconds, 3),
                "threads": torch.get_num_threads(),
                "answers": [self._index(text) for text in said],
                "right": "".join(UNDECIDED if one is None else "1" if one else "0" for one in verdicts),
            }
        )
        _save(self.held, self.path)
