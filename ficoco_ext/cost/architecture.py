"""Shapes of multimodal models: the numbers that decide what they cost."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields

from ..stages import Crops

MOST_TOKENS = 10**9  # of a prompt or an answer, and the most of everything that no layer is built for
_MOST = {"layers": 1000, "used": 1000, "deepstack": 1000}
_LEAST = {"deepstack": 0, "window": 0}


def _sane(thing: object) -> None:
    """Every integer is at least 1 (or 0) and far above any model's at most: layers are counted one by one."""
    for field in fields(thing):  # type: ignore[arg-type]
        value, most = getattr(thing, field.name), _MOST.get(field.name, MOST_TOKENS)
        least = _LEAST.get(field.name, 1)
        if field.type != "int":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{type(thing).__name__}: {field.name} must be in {least} ... {most}, got {value!r}")


@dataclass(frozen=True)
class Tower:
    """A vision transformer.

    Attributes:
        layers: how many run. used: how many of them the language model needs: transformers runs all.
        hidden, mlp, heads: shape of a layer.
        patch: side of a patch in pixels. image_size: side of the picture that one pass sees.
        class_token: one more token besides the patches.
        gated: the MLP is SwiGLU (three matrices), else two matrices.
        merge: patches that are joined into one visual token after the tower.
        channels: numbers in a pixel that the patch embedding reads: 3, or 6 for two frames.
        joined: layers whose outputs are set side by side for the projector.
        trained_class: its class token, if there is one, was trained to stand for the picture, so that its attention
            says what matters.
        window: side of the windows, in patches, that attention stays within; 0: none.
        full: layers whose attention sees the whole picture in spite of windows.
    """

    layers: int
    used: int
    hidden: int
    mlp: int
    heads: int
    patch: int
    image_size: int
    class_token: bool = True
    gated: bool = False
    merge: int = 1
    channels: int = 3
    joined: int = 1
    trained_class: bool = True
    window: int = 0
    full: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _sane(self)
        if self.used > self.layers:
            raise ValueError(f"Tower: used must be at most layers, got {self.used} of {self.layers}")
        if self.hidden % self.heads:
            raise ValueError(f"Tower: heads must divide hidden, got {self.heads} and {self.hidden}")

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.image_size // self.patch) ** 2

    def pairs(self, layer: int, tokens: int) -> int:
        """Pairs of query and key in a layer that ``tokens`` enter, of a square picture where there are windows."""
        if not self.window or layer in self.full:
            return tokens * tokens
        whole, rest = divmod(math.isqrt(tokens), self.window)
        return (whole * self.window**2 + rest**2) ** 2


@dataclass(frozen=True)
class Projector:
    """Two linear layers: ``inputs`` -> ``hidden`` -> ``outputs``."""

    inputs: int
    hidden: int
    outputs: int

    def __post_init__(self) -> None:
        _sane(self)


@dataclass(frozen=True)
class LanguageModel:
    """A decoder. ``gated``: SwiGLU MLP with three matrices, else two; ``kv_heads`` < ``heads``: grouped queries."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool = True

    def __post_init__(self) -> None:
        _sane(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"LanguageModel: kv_heads must divide heads, got {self.kv_heads} and {self.heads}")

    @property
    def kv_width(self) -> int:
        """Numbers that one token puts into the cache of one layer."""
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Architecture:
    """A multimodal model.

    Attributes:
        name: what it is called.
        tower, projector, language_model: its parts.
        visual_tokens: of one image (or video) when nothing is reduced.
        crops: passes through the tower that one image takes: crops of a large one, frames of a video.
        source: where the numbers are from.
        apart: a method after the projector reduces every crop on its own, else an image as a whole.
        deepstack: levels of the tower whose features, each by a projector of its own, are added to the visual tokens
            after as many first layers of the language model; these cannot reduce.
        pinpoints: the (height, width) in pixels that the crops of an image can have together, by its size, as in
            LLaVA-NeXT; (): the size of an image does not decide how many crops it takes.
        picture: where the patches of such an image are, if its size is known, see :meth:`of_picture`. Without it all
            ``crops`` are counted as full, and no line ends: so papers count.
    """

    name: str
    tower: Tower
    projector: Projector
    language_model: LanguageModel
    visual_tokens: int
    crops: int = 1
    source: str = ""
    apart: bool = False
    deepstack: int = 0
    pinpoints: tuple[tuple[int, int], ...] = ()
    picture: Crops | None = None

    def __post_init__(self) -> None:
        _sane(self)
        if self.picture is not None:
            self._require(self.picture)
        if self.visual_tokens % self.pictures:
            raise ValueError(
                f"Architecture: visual_tokens must be a multiple of the {self.crops} crops, which are apart, got "
                f"{self.visual_tokens}"
            )
        if self.extra < 0:
            raise ValueError(
                f"Architecture: visual_tokens must be at least {self.crops * self.tower.patches // self.tower.merge}, "
                f"what {self.crops} crops of {self.tower.patches} patches give, got {self.visual_tokens}"
            )

    @property
    def extra(self) -> int:
        """Visual tokens of an image besides those of its patches, such as line ends or class tokens."""
        if self.picture is not None:
            return self.picture.lines
        return self.visual_tokens - self.crops * self.tower.patches // self.tower.merge

    @property
    def seen(self) -> str:
        """What is counted of an image that the tower sees as several crops, in words; of others "".

        Example:
            >>> from ficoco_ext import cost
            >>> cost.architecture("llava-next-7b", picture=(480, 640)).seen
            '2 x 2 crops and the whole: 1,728 of 2,304 patches of the crops are no padding; 36 line ends'
        """
        if self.picture is not None:
            rows, columns = self.picture.grid
            valid, all_of_them = sum(self.picture.valid), self.picture.count * self.picture.patches
            crops = f"{rows} x {columns} crops and the whole"
            patches = f"{valid:,} of {all_of_them:,} patches of the crops are no padding"
            return f"{crops}: {patches}; {self.picture.lines} line ends"
        if self.pinpoints:
            return f"{self.crops} full crops and no line ends, as papers count; picture says the size of a real image"
        return ""

    @property
    def pictures(self) -> int:
        """What a method after the projector reduces of an image, each on its own: 1, or all crops."""
        return self.crops if self.apart else 1

    def tokens_with(self, patches: int) -> int:
        """Visual tokens of an image if the tower leaves ``patches`` of every crop, of which padding leaves first."""
        if self.picture is not None:
            return self.picture.after(patches)
        return self.crops * patches // self.tower.merge + self.extra

    @property
    def line_ends(self) -> int:
        """Visual tokens of an image that never leave before the language model: one after each row of its canvas."""
        return 0 if self.picture is None else self.picture.lines

    def projected_with(self, patches: int) -> int:
        """Tokens of an image that the projector gets if the tower leaves ``patches`` of every crop, padding too."""
        return self.tokens_with(patches) if self.picture is None else self.crops * patches

    def leaves_first(self, before: int, r: int) -> dict[int, int]:
        """How many crops of an image lose how much padding first, in a layer of the tower that removes ``r`` patches.

        Args:
            before: patches of a crop that enter the layer. r: that leave each crop there.

        Returns:
            Numbers of crops by the padding that they lose; a method removes the rest of ``r``.

        Example:
            >>> from ficoco_ext import cost
            >>> cost.architecture("llava-next-7b", picture=(480, 640)).leaves_first(576, 100)
            {0: 1, 100: 4}
        """
        valid = () if self.picture is None else self.picture.valid
        found = {0: self.crops - len(valid)}
        for one in valid:
            lost = min(max(before - one, 0), r)
            found[lost] = found.get(lost, 0) + 1
        return found

    def of_picture(self, picture: tuple[int, int]) -> Architecture:
        """The same model with images of one size: crops, padding and line ends are those of that size.

        Args:
            picture: (height, width) of every image, in pixels.

        Raises:
            ValueError: a size that is none, or a model whose crops do not depend on it.

        Example:
            >>> from ficoco_ext import cost
            >>> shape = cost.PRESETS["llava-next-7b"].of_picture((480, 640))
            >>> shape.crops, shape.visual_tokens, shape.line_ends, shape.tokens_with(144)
            (5, 2340, 36, 756)
        """
        if not self.pinpoints:
            raise ValueError(f"picture must be None for {self.name}: no crops follow from its size; {self._instead()}")
        if not isinstance(picture, (tuple, list)) or len(picture) != 2 or not all(map(_pixels, picture)):
            wanted = f"(height, width) in pixels, integers in 1 ... {MOST_TOKENS}"
            raise ValueError(f"picture must be {wanted}, got {picture!r}")
        if self.picture is None and self.extra:
            raise ValueError(
                f"picture must be None for {self.name}: crops with a class token each are no grids that can be put "
                "together; its config must say vision_feature_select_strategy 'default'"
            )
        side = self.tower.image_size // self.tower.patch
        found = Crops.of((picture[0], picture[1]), self.pinpoints, side, self.tower.image_size)
        return dataclasses.replace(self, crops=1 + found.count, visual_tokens=found.before, picture=found)

    def _instead(self) -> str:
        """What says how large an image is where crops do not follow from its size."""
        if self.tower.merge > 1 or self.crops > 1:
            return "in Python architecture(..., image_size=, crops=) says how large it is"
        return f"every image is seen as {self.tower.image_size} x {self.tower.image_size} pixels"

    def _require(self, picture: Crops) -> None:
        """Raise unless crops and visual tokens are those of ``picture``."""
        given = picture.patches, 1 + picture.count, picture.before
        wanted = self.tower.patches, self.crops, self.visual_tokens
        if given != wanted:
            raise ValueError(
                f"Architecture: picture must have {wanted[0]} patches a crop, {wanted[1]} crops and {wanted[2]} visual "
                f"tokens, got {given[0]}, {given[1]} and {given[2]}; use of_picture"
            )


def _pixels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_TOKENS
