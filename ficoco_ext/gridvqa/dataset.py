"""Grid scenes with questions, as a sequence of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from ..io.suggest import did_you_mean
from . import questions as asking
from .scene import SPLITS, Scene, draw, generator
from .vocabulary import KINDS


@dataclass(frozen=True)
class Row:
    """One question about one picture.

    Attributes:
        image: PIL image, RGB. Rows of one scene share it.
        question, answer: words of the embedded model's vocabulary, separated by blanks.
        kind: one of :data:`KINDS`.
        scene: number of the scene; rows of one scene are not independent of each other.
    """

    image: Any
    question: str
    answer: str
    kind: str
    scene: int


class GridVQA(Sequence[Row]):
    """Procedural scenes with questions: deterministic by seed, made when asked for, nothing is downloaded.

    Args:
        split: ``"train"``, ``"dev"`` or ``"test"``. Training shares no digit, font or background with the others; dev
            and test are different scenes made of the same held-out material: choose on dev, judge on test.
        scenes: how many pictures.
        per_scene: questions about each, fewer where a scene does not allow as many different ones.
        seed: scene i of a seed and split does not depend on the other arguments.
        kinds: kinds of questions.

    Raises:
        ValueError: an unknown split or kind, or a number below 1. ImportError: scikit-learn, matplotlib or Pillow is
            missing.

    Example:
        >>> from ficoco_ext.gridvqa import GridVQA
        >>> row = GridVQA("test", scenes=2)[0]  # doctest: +SKIP
        >>> row.kind, row.question, row.answer  # doctest: +SKIP
        ('exist', 'is there a blue star ?', 'yes')
    """

    def __init__(
        self,
        split: str = "test",
        *,
        scenes: int = 200,
        per_scene: int = 12,
        seed: int = 0,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        if split not in SPLITS:
            near = did_you_mean(split, SPLITS)
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{near}")
        for name, value, least in (("scenes", scenes, 1), ("per_scene", per_scene, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if unknown := [kind for kind in kinds if kind not in KINDS] or ([] if kinds else ["none"]):
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {', '.join(map(str, unknown))}")
        self.split, self.scenes, self.per_scene, self.seed, self.kinds = split, scenes, per_scene, seed, tuple(kinds)
        self._rows: list[Row] | None = None

    def scene(self, index: int) -> tuple[Scene, list[tuple[str, str, str]]]:
        """Scene ``index`` and its (kind, question, answer)."""
        rng = generator(self.seed, self.split, index)
        scene = draw(rng, self.split)
        return scene, asking.questions(rng, scene, self.per_scene, self.kinds)

    def __iter__(self) -> Iterator[Row]:
        """Scene by scene, without keeping them."""
        from PIL import Image

        for index in range(self.scenes):
            scene, asked = self.scene(index)
            image = Image.fromarray(scene.pixels)
            yield from (Row(image, question, answer, kind, index) for kind, question, answer in asked)

    def _all(self) -> list[Row]:
        if self._rows is None:
            self._rows = list(iter(self))
        return self._rows

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """By number; this makes all scenes and keeps them."""
        return self._all()[index]

    def __repr__(self) -> str:
        return f"GridVQA({self.split!r}, scenes={self.scenes}, per_scene={self.per_scene}, seed={self.seed})"
