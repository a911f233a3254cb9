"""What every method says of itself, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..ops import Attention
from ..reduction import Reduction
from ..stages import Crops, Layout, Priced, Shape, VisualFeatures
from ..stages.needs import TEXT

CACHES = ("staircase", "output-aware")  # what layers of a language model keep of a prompt, see attach


class Words(NamedTuple):
    """What the three stages of a method do, in words."""

    filter: str
    correlate: str
    compress: str


class AnyMethod:
    """What every method is, whatever it is made of: ask this, not which class it is.

    Attributes:
        name: what it is called in messages.
        source: where it comes from.
        amount: what attach and cost take for ``r``, ``keep_ratio`` or ``tokens`` where they are given none of them, as
            pairs of name and value; empty: an amount has to be given.
        tower, projector, language_model: its three parts, of which one at least is not None.
        needs: what tokens and attention must have.
        data_decides: of a part: what the tokens hold decides how many of them leave, not the caller.
        reads_question: what stays depends on the words of the prompt.
    """

    name: str

    @property
    def source(self) -> str:
        """Where it comes from."""
        return ""

    @property
    def amount(self) -> tuple[tuple[str, Any], ...]:
        """What is removed where no amount is given."""
        return ()

    @property
    def tower(self) -> TowerMethod | None:
        """The part that acts in the vision tower, or None."""
        return None

    @property
    def projector(self) -> FeatureMethod | None:
        """The part that acts between the projector and the language model, or None."""
        return None

    @property
    def language_model(self) -> LanguageMethod | None:
        """The part that acts in the language model, or None."""
        return None

    @property
    def members(self) -> tuple[AnyMethod, ...]:
        """The methods of one filter, correlate and compress each that it is made of, in the order in which they act."""
        return (self,)

    @property
    def reads_question(self) -> bool:
        """Whether what stays of a picture depends on the words of the prompt, so that it fits one question alone."""
        return any(member.reads_question for member in self.members if member is not self)

    @property
    def data_decides(self) -> bool:
        """False: how many tokens leave is known before they are."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """What tokens and attention must have, of :data:`ficoco_ext.stages.needs.NEEDS`."""
        return tuple(dict.fromkeys(need for member in self.members if member is not self for need in member.needs))

    def describe(self) -> Words:
        """What it does, in words."""
        said = [member.describe() for member in self.members if member is not self] or [Words(*[self.name] * 3)]
        return Words(*("; then ".join(dict.fromkeys(column)) for column in zip(*said, strict=True)))

    def operations(self, shape: Shape) -> list[Priced]:
        """The operators of one reduction, each with the values of its formula's letters.

        Raises:
            ValueError: its cost, or that of a stage, is not known.
        """
        raise ValueError(
            f"cost: the cost of the method {self.name} is not known; pass include_reduction=False to leave the "
            "reduction's own cost out"
        )


class TowerMethod(AnyMethod):
    """A method of the vision tower.

    Attributes:
        layers: function (number of a tower's layers that are used) -> the layers that reduce, where attach is given
            none; None: the second half of the tower.
        unit: how many tokens leave together.
        varies: it does not do the same in each layer, so it cannot be one of a sequence with one method a layer.
    """

    varies: ClassVar[bool] = False

    @property
    def layers(self) -> Callable[[int], tuple[int, ...]] | None:
        """None."""
        return None

    @property
    def unit(self) -> int:
        """How many tokens leave together: r is a multiple of it."""
        return 1

    @property
    def tower(self) -> TowerMethod:
        """This method."""
        return self

    def of_layers(self, count: int) -> tuple[LayerMethod, ...]:
        """One method for each of ``count`` reducing layers."""
        raise NotImplementedError


class LayerMethod(TowerMethod):
    """A method of the vision tower that does the same in each layer, and so can be applied to one."""

    @property
    def proportional_attention(self) -> bool:
        """Whether later layers count each token as many times as the original ones it stands for."""
        return False

    def of_layers(self, count: int) -> tuple[LayerMethod, ...]:
        """One method for each of ``count`` reducing layers: this one."""
        return (self,) * count

    def parts(self, tokens: int, r: int, *, class_token: bool) -> tuple[tuple[LayerMethod, int], ...]:
        """Who removes how many of the ``r`` that are to leave ``tokens`` tokens."""
        raise NotImplementedError

    @property
    def after_mlp(self) -> bool:
        """Whether a layer reduces after its MLP instead of between its attention and its MLP."""
        return False

    @property
    def limit(self) -> str:
        """How much of what enters can leave at once, in words; see :meth:`largest`."""
        return "all but one"

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once."""
        return max(tokens - class_token - 1, 0)

    def targets(self, candidates: int) -> int | None:
        """Targets of each source when ``candidates`` patches are kept; None: not known before it runs."""
        return None

    def places(self, grid: tuple[int, int], count: int) -> tuple[int, ...] | None:
        """The ``count`` patches that stay of a whole ``grid``, ascending, for a method that needs the whole grid.

        None: it works on any patches that are left, or the data decide.
        """
        return None

    def __call__(
        self,
        tokens: Tensor,
        attn: Attention,
        r: int,
        *,
        class_token: bool = True,
        grid: tuple[int, int] | None = None,
        size: Tensor | None = None,
        previous: Reduction | None = None,
    ) -> Reduction:
        """Remove ``r`` tokens; see :func:`ficoco_ext.reduce`, which checks the arguments first."""
        raise NotImplementedError


class Projected(NamedTuple):
    """What a method between the projector and the language model returns.

    Attributes:
        kept: (B, T) int64, indices of the tokens that stay, ascending.
        features: (B, T, D), those of the tokens that stay, copied bit for bit or merged with what left.
        planes: the other features of the same tokens, each (B, T, E), cut or merged by the same indices and weights.
        reduction: where every token went, without tokens.
    """

    kept: Tensor
    features: Tensor
    planes: tuple[Tensor, ...]
    reduction: Reduction


class FeatureMethod(AnyMethod):
    """A method between the projector and the language model; see :class:`ficoco_ext.methods.ProjectorMethod`.

    Attributes:
        saliency: which kind of it is measured in the vision tower, where the method needs saliency.
        resizes: it chooses among no features: pictures go through the vision tower in :meth:`encoded_grid`.
        early_layer: where early saliency is measured there, where the method needs it: a layer, counted from 0, or a
            share of the layers, above 0 and at most 1, of which it is the last; None: as published for such a tower.
        data_decides: what the tokens hold decides how many of them stay; :meth:`counts` says it.
    """

    saliency: str = "auto"
    resizes: ClassVar[bool] = False
    early_layer: int | float | None = None

    @property
    def projector(self) -> FeatureMethod:
        """This method."""
        return self

    @property
    def reads_question(self) -> bool:
        """It does if it needs words."""
        return TEXT in self.needs

    @property
    def drops(self) -> bool:
        """Whether what leaves goes into no other token."""
        return False

    def number(self, before: int, crops: Crops | None, share: float) -> int | None:
        """Of a picture's ``before`` tokens how many stay at ``share`` of them, by a rule of its own; None: rounded.

        ``crops``: of the picture, if it is one of several crops.
        """
        return None

    def asked(self, share: float) -> FeatureMethod:
        """This method, for the ``share`` of the tokens that is asked for, if it needs more than their number."""
        return self

    def counts(self, visual: VisualFeatures) -> Tensor:
        """(B,) int64: how many tokens of each picture stay, where :attr:`data_decides`."""
        raise NotImplementedError

    def scores(self, visual: VisualFeatures) -> Tensor | None:
        """(B, N) by which it ranks the tokens of each crop, the best highest; None: it has no such scores."""
        return None

    def encoded_grid(self, grid: tuple[int, int], count: int) -> tuple[int, int]:
        """(rows, columns) in which a picture of ``grid`` is encoded for at most ``count`` tokens: its own."""
        return grid

    @property
    def needs_to_keep(self) -> tuple[str, ...]:
        """What :meth:`keep` needs of all that the method needs; merging may need more."""
        return self.needs

    def keep(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        raise NotImplementedError

    def __call__(self, visual: VisualFeatures, count: int, planes: Sequence[Tensor] = ()) -> Projected:
        """Keep ``count`` tokens of each picture, and merge what leaves if the method does."""
        raise NotImplementedError


class LanguageMethod(AnyMethod):
    """A method of the language model; its attributes are those of :class:`ficoco_ext.methods.DecoderMethod`."""

    layers: Callable[[int], tuple[int, ...]]

    @property
    def language_model(self) -> LanguageMethod:
        """This method."""
        return self

    @property
    def reads_question(self) -> bool:
        """It does: attention in the language model is that of the words too."""
        return True

    @property
    def rounding(self) -> str:
        """How survivors of a ratio are rounded."""
        return "half_up"

    @property
    def before_attention(self) -> bool:
        """Whether a layer reduces before its attention."""
        return False

    @property
    def cache(self) -> str:
        """What layers keep of a prompt that is read, where ``attach`` is given nothing: one of :data:`CACHES`."""
        return CACHES[0]

    @property
    def drops(self) -> bool:
        """Whether what leaves goes into no other token."""
        return False

    def leaving(self, tokens: Tensor, attn: Attention, layout: Layout) -> Tensor:
        """(B,) int64, in [0, n - 1]: how many of the n visual tokens of each row leave, where the data decide.

        It gets what the method is then called with, for rows that lose equally many. The numbers are read from the
        device once a layer.
        """
        raise NotImplementedError

    @property
    def window(self) -> int:
        """Side of the windows in which it compares the tokens of a picture's grid; 1 without."""
        return 1

    @property
    def key_share(self) -> float:
        """The share of the tokens of each picture that is its key set; 0: it has none."""
        return 0.0

    def mark(self, embeddings: Tensor, layout: Layout) -> Tensor | None:
        """What it notes of the columns of a prompt; see :meth:`ficoco_ext.stages.FilterStage.mark`."""
        return None

    def remedy(self, need: str) -> str:
        """What to do where ``need`` is not met."""
        return f"use a method that does without: {need}"

    def instead_of(self, layers: tuple[int, ...]) -> str | None:
        """What to do instead of naming the layers that reduce; None: any may be named."""
        return None

    def __call__(
        self,
        tokens: Tensor,
        attn: Attention,
        r: int,
        layout: Layout,
        *,
        size: Tensor | None = None,
        size_weighted: bool = False,
    ) -> tuple[Reduction, Tensor]:
        """Remove ``r`` >= 1 visual tokens; see :class:`ficoco_ext.methods.DecoderMethod`."""
        raise NotImplementedError
