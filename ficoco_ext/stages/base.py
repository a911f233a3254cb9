"""What a stage is: what it hands on, and what it says of itself.

A stage is a value that is called once per reduction. One that inherits from :class:`FilterStage`,
:class:`CorrelateStage` or :class:`CompressStage` also describes and prices itself; everything there has a default. A
plain callable can take its place: it runs, is called by its name, and has no known cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

from torch import Tensor

from ..ops import Attention, QueryKey
from .shape import Priced, Shape

S = TypeVar("S", bound="Stage")


class Links(NamedTuple):
    """What Correlate decided: targets (B, r, k), indices into ``kept``, and weights (B, r, k) that sum to 1 over k.

    ``neighbours`` (B, kept patches, n), if there are any: patches that each kept patch borrows from besides, whether
    they stay or leave; see :class:`ficoco_ext.stages.Neighbours`.
    """

    targets: Tensor
    weights: Tensor
    neighbours: Tensor | None = None


class Selection(NamedTuple):
    """What Filter decided: redundancy (B, P), sources (B, r) and kept (B, M), ascending token indices.

    ``links`` are there if choosing the sources has settled where they go; a method without Correlate follows them.
    ``class_attention`` (B, P) is there if the filter read it as probabilities: a Compress may weigh by it.
    ``notes``: what a select found on its way; see :meth:`ficoco_ext.stages.SelectStage.noted`.
    """

    redundancy: Tensor
    sources: Tensor
    kept: Tensor
    links: Links | None = None
    class_attention: Tensor | None = None
    notes: Any = None


class Stage:
    """What every stage says of itself. A subclass that computes in its own way inherits no price, and no settings
    of one operator.

    Attributes:
        needs: what tokens and attention must have, of :data:`ficoco_ext.stages.needs.NEEDS`.
        reads: the kind of attention that it reads, ``"logits"`` or ``"probs"``; None: any.
    """

    role: ClassVar[str] = "stage"
    plain: ClassVar[type[Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            for name in ("operations", "fused", "fused_in_sequence"):
                if name not in vars(cls):
                    setattr(cls, name, getattr(Stage, name))

    @classmethod
    def of(cls: type[S], stage: Any) -> S:
        """``stage`` as one that answers all questions: itself, or a plain callable with the defaults."""
        return stage if isinstance(stage, cls) else cls.plain(stage)

    @property
    def title(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def reads(self) -> str | None:
        """Any attention."""
        return None

    def describe(self) -> str:
        """What it does, in a few words."""
        return self.title

    def remedy(self, need: str) -> str:
        """What to do where ``need`` is not met."""
        return f"use a method that does without: {need}"

    def operations(self, shape: Shape) -> list[Priced]:
        """The operators that it calls for one reduction, each with the values of its formula's letters.

        Raises:
            ValueError: its cost is not known.
        """
        raise ValueError(
            f"cost: the cost of the {self.role} {self.title} is not known; pass include_reduction=False to leave the "
            "reduction's own cost out"
        )

    def fused(self) -> dict[str, Any] | None:
        """Its settings for :func:`ficoco_ext.ops.reduce`, or None if that cannot do what it does.

        A method whose three stages all give settings runs as one operator.
        """
        return None

    def fused_in_sequence(self) -> dict[str, Any] | None:
        """Its settings for :func:`ficoco_ext.ops.reduce_sequence`, or None if that cannot do what it does."""
        return None


class FilterStage(Stage):
    """Chooses which tokens leave.

    In the tower it is called as ``filter(attn, r, class_token=, ids=, grid=)``, where ``ids`` (B, P) are the patches'
    original positions, None for all in order; in the language model as ``filter(attn, r, layout, given=)``. It returns
    a :class:`Selection`.

    Attributes:
        reads_tokens: in the tower it is given the tokens (B, N, C) in place of the attention.
        unit: how many tokens leave together: r is a multiple of it.
        key_share: of the tokens of each picture that are its key set, which leaves last; 0: there is none.
        inheritor: who inherits each source if choosing it settles that, in words; else empty.
        limit: how much of what enters can leave at once, in words; see :meth:`largest`.
        window: side of the windows in which it compares the tokens of a grid; 1 without.
        heads: what it takes of the heads of an attention map, ``"mean"`` or ``"max"``.
    """

    role = "filter"
    window: int = 1
    heads: ClassVar[str] = "mean"
    reads_tokens: ClassVar[bool] = False

    @property
    def unit(self) -> int:
        """Each leaves by itself."""
        return 1

    @property
    def key_share(self) -> float:
        """No visual token is protected."""
        return 0.0

    @property
    def inheritor(self) -> str:
        """No inheritor is settled."""
        return ""

    @property
    def limit(self) -> str:
        """Any number but one token can leave."""
        return "all but one"

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once."""
        return max(tokens - class_token - 1, 0)

    def mark(self, embeddings: Tensor, layout: Any) -> Tensor | None:
        """(B, N) what it notes of each column of a prompt before the first layer; None: nothing.

        In the layers that reduce it finds its notes of the columns that are left in the layout's ``marks``. Where there
        is no prompt, as for :func:`ficoco_ext.reduce`, the tokens that are reduced stand for the embeddings.

        Args:
            embeddings: (B, N, C) what the first layer gets. layout: of the prompt.
        """
        return None

    @property
    def data_decides(self) -> bool:
        """Whether, in a language model, the attention decides how many tokens leave, not the caller."""
        return False

    def leaving(self, attn: Attention, layout: Any) -> Tensor:
        """(B,) int64, in [0, n - 1]: how many of the n visual tokens of each row leave, where the data decide.

        Called with these numbers for r, once for all rows that have the same, the filter then names them.
        """
        raise NotImplementedError

    def count(self, candidates: int) -> int:
        """Targets that it settles for each source when ``candidates`` tokens are kept."""
        return 0

    def places(self, grid: tuple[int, int], count: int) -> tuple[int, ...] | None:
        """The ``count`` patches that it keeps of a whole ``grid`` whatever the attention is, ascending; None: unknown.

        Only a filter that needs the whole grid is asked.
        """
        return None

    def check(self, attn: Attention, *, class_token: bool, grid: tuple[int, int] | None) -> None:
        """Raise ValueError if this attention lacks what it needs; only a stage with ``fused`` settings is asked."""


class CorrelateStage(Stage):
    """Finds who inherits each source.

    In the tower it is called as ``correlate(attn, selection, class_token=)``, in the language model as
    ``correlate(attn, selection, layout, given=)``. It returns :class:`Links`.
    """

    role = "correlate"

    @property
    def drops(self) -> bool:
        """Whether sources go into no other token."""
        return False

    def in_words(self, keys: str) -> str:
        """Who inherits a source, with a word for what it compares as keys."""
        return self.describe()

    def count(self, candidates: int) -> int | None:
        """Targets of each source when ``candidates`` tokens are kept; None: not known before it runs."""
        return None

    def neighbours(self, visual: int) -> int:
        """How many of ``visual`` tokens each kept one borrows from."""
        return 0

    def check(self, attn: Attention) -> None:
        """Raise ValueError if this attention lacks what it needs; only a stage with ``fused`` settings is asked."""

    def of_features(self, visual: Any, selection: Selection) -> Links:
        """Links after the projector, where the features of ``visual`` stand for keys.

        Args:
            visual: :class:`ficoco_ext.stages.VisualFeatures`, with features that are 0 where nothing is.
        """
        keys = visual.features.unsqueeze(1)
        call = cast(Callable[..., Links], self)
        return call(QueryKey(keys, keys), selection, class_token=False)


class CompressStage(Stage):
    """Merges sources into targets.

    It is called as ``compress(tokens, selection, links, size=, size_weighted=)`` and returns tokens (B, M, C), size
    (B, M, 1) and source_map (B, N).
    """

    role = "compress"


class _Plain(Stage):
    """A callable that says nothing of itself."""

    def __init__(self, stage: Callable[..., Any]) -> None:
        self.stage = stage

    @property
    def title(self) -> str:
        """The name of its type."""
        return type(self.stage).__name__

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.stage(*args, **named)


class _PlainFilter(_Plain, FilterStage):
    pass


class _PlainCorrelate(_Plain, CorrelateStage):
    pass


class _PlainCompress(_Plain, CompressStage):
    pass


FilterStage.plain, CorrelateStage.plain, CompressStage.plain = _PlainFilter, _PlainCorrelate, _PlainCompress
