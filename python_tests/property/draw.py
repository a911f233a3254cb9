"""The draw: an integer to a case. Plain ``random``, so that a number is the same case on every machine."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from property.cases import FAMILIES, LLAVA, NEXT, QWEN2, QWEN25, TEXTS, Case

from ficoco_ext import METHODS, get_method
from ficoco_ext.methods import hyperparameters
from ficoco_ext.stages.needs import CLASS_TOKEN, KEY_SET

# Values to draw for hyperparameters of these names. Others, and methods that are unknown here, keep their defaults.
VALUES: dict[str, tuple[Any, ...]] = {
    "variant": ("paper", "released"),
    "targets": ("adaptive", 0, 1, 2),
    "eps": (0.7, 0.9),
    "beta": (0.2, 1.0),
    "gamma": (0.0, 0.3, 1.0),
    "lam": (0.0, 0.5, 1.0),
    "penalty": (1.0, 3.0),
    "window": (2, 3),
    "normalize": (True, False),
    "alpha": ("softmax", "average"),
    "redundancy": ("row", "column"),
    "correlation": ("attention", "key", "convergent"),
    "correlation_attention": ("probs", "logits"),
    "before_attention": (True,),
    "direct": (False,),
    "indirect": (False,),
    "text_relevance": (False,),
    "visual_redundancy": (False,),
    "visual_reduce": ("sum",),
    "text_reduce": ("sum",),
    "indirect_reduce": ("mean",),
    "class_attention": (False,),
    "local_redundancy": (False,),
    "fuse": ("mean",),
    "neighbours": (0, 2),
    "spatial": (0.0, 0.5, 1.0),
    "proportional_attention": (True, False),
    "distill_token": (True,),
    "merge_layers": (0.0, 0.5, 1.0),
    "split": (0.0, 1.0),
    "prune": ("topk", "ficoco"),
    "weigh": (0.5,),
    "seed": (1, 7),
    "layer": (1, 2),
    "version": ("1.5", "2.0"),
    "average_tokens": (128, 96, 64),
}


# Of methods whose hyperparameters have values of their own.
OWN_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "mustdrop": {
        "variant": ("paper",),
        "window": (2, 4),
        "keys": (0.0, 0.3, 1.0),
        "receiver": ("centre",),
        "average_tokens": (128, 64),
        "gamma": (0.0, 0.5),
        "alpha": (0.5,),
    }
}


def ours(part: str) -> tuple[str, ...]:
    """The package's own methods that act in one part alone, or in both."""
    names = [name for name, factory in METHODS.items() if factory.__module__.startswith("ficoco_ext.")]
    parts = {name: (get_method(name).tower is not None, get_method(name).language_model is not None) for name in names}
    wanted = {"tower": (True, False), "decoder": (False, True), "both": (True, True)}[part]
    return tuple(name for name in names if parts[name] == wanted)


def draw(number: int) -> Case:
    """The case of that number."""
    chance = Random(f"ficoco_ext property {number}")
    part = chance.choices(("tower", "decoder", "both"), (4, 5, 2))[0]
    family = chance.choice(FAMILIES) if part == "decoder" else LLAVA
    if part != "decoder" and chance.random() < 0.01:
        family = chance.choice(FAMILIES[1:])  # refused
    shape = drawn_shape(chance, family)
    method = drawn_method(chance, part)
    rows = drawn_rows(chance, family, shape)
    use = drawn_use(chance, part)
    amount = drawn_amount(chance, part, shape, method, rows, family)
    case = Case(number, family, **shape, **method, amount=amount, rows=rows, **use)
    return varied(chance, with_promise(chance, case, part), part)


def may_have_siglip(case: Case) -> bool:
    """Whether the method does without a class token."""
    names = [case.method] if isinstance(case.method, str) else case.method
    needed = {need for name in names for need in get_method(name).needs}
    return case.family == LLAVA and not needed & {CLASS_TOKEN, KEY_SET}


def varied(chance: Random, case: Case, part: str) -> Case:
    """The case with what is rare."""
    if may_have_siglip(case) and not case.amount.get("static_counts") and chance.random() < 0.2:
        case = replace(case, tower="siglip", strategy="full")
    if case.family in (QWEN2, QWEN25) and chance.random() < 0.25:
        case = replace(case, video=True)
    if case.use == "forward" and case.padding != "none" and chance.random() < 0.2:
        rows = tuple((12, *row, 12) for row in case.rows)  # a hidden word at an end would be padding
        case = replace(case, holes=True, rows=rows)
    case = replace(case, tied=chance.random() < 0.15, chunk=chance.choice((1, 1, 2)) if case.use == "steps" else 1)
    if part != "tower" and first_layer(case) > 0 and chance.random() < 0.3:
        case = replace(case, amount=dict(case.amount) | {"cache": "output-aware"})
    elif case.method == "mustdrop":  # what it says itself is refused in layer 0
        case = replace(case, amount=dict(case.amount) | {"cache": "staircase"})
    return case


def first_layer(case: Case) -> int:
    """The first layer of the language model that reduces."""
    amount = case.amount.get("decoder", case.amount)
    several = isinstance(case.method, tuple)
    method = get_method(case.method[1]) if several else get_method(case.method, **case.hyperparameters)
    layers = amount.get("layers") if "vision" in case.amount or not several else None
    return min(layers or method.language_model.layers(case.layers))


def drawn_shape(chance: Random, family: str) -> dict[str, Any]:
    """The model."""
    heads = chance.choice((1, 2, 2, 3, 4, 4))
    kv_heads = chance.choice([k for k in (1, 2, 3, 4) if heads % k == 0])
    text = chance.choice(TEXTS)
    head_dim = chance.choice((8, 16) if family not in (LLAVA, NEXT) else (4, 8, 8, 16))
    free = family in (LLAVA, NEXT) and text != "qwen2" and chance.random() < 0.3
    tower_layers = chance.randint(2, 6)
    last = chance.choice([-2, -2, -2, -1, chance.randint(1, tower_layers)])
    return {
        "text": text,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "width": -(-chance.choice((12, 20, 24)) // heads) * heads if free else heads * head_dim,  # a multiple of heads
        "layers": chance.randint(2, 5),
        "side": chance.choice((2, 3, 4, 4, 5, 6)) if family != NEXT else chance.choice((2, 3)),
        "tower_heads": chance.randint(1, 3),
        "tower_layers": tower_layers,
        "feature_layer": last,
        "strategy": "full" if family == LLAVA and chance.random() < 0.25 else "default",
        "attention": chance.choice(("sdpa", "sdpa", "eager")),
        "dtype": chance.choices(("float32", "float16", "bfloat16"), (17, 1, 2))[0],
    }


def drawn_method(chance: Random, part: str) -> dict[str, Any]:
    """One name with hyperparameters, or two for two parts, or one for each layer."""
    if part == "both" and chance.random() < 0.6:
        return {"method": (chance.choice(ours("tower")), chance.choice(ours("decoder")))}
    if part == "tower" and chance.random() < 0.08:
        names = [name for name in ours("tower") if not get_method(name).tower.varies]
        names = [name for name in names if get_method(name).tower.layers is None]
        return {"method": tuple(chance.choice(names) for _ in range(chance.randint(1, 3))), "each": True}
    name = chance.choice(ours(part))
    given = {}
    values = OWN_VALUES.get(name, VALUES)
    known = [key for key in hyperparameters(name) if key in values]
    if known and chance.random() < 0.5:
        key = chance.choice(known)
        given[key] = chance.choice(values[key])
    return {"method": name, "hyperparameters": given}


def drawn_rows(chance: Random, family: str, shape: dict[str, Any]) -> tuple:
    """One to four rows of words and pictures."""

    def picture() -> tuple[int, int]:
        if family == LLAVA:
            return shape["side"], shape["side"]
        if family == NEXT:
            return chance.choice((10, 12, 16, 24)), chance.choice((10, 14, 20, 24))
        return 2 * chance.randint(1, 4), 2 * chance.randint(1, 4)

    def words(least: int = 0) -> list[int]:
        return [chance.randint(10, 59) for _ in range(chance.randint(least, 4))]

    rows = []
    count = chance.choice((1, 1, 2, 2, 3, 4))
    most = 2 if count > 2 or family == NEXT else 3
    for _ in range(count):
        row: list = words(int(chance.random() < 0.8))
        for _ in range(chance.choice((0, 1, 1, 1, 1, 2, most))):
            row += [picture(), *words()]
        rows.append(tuple(row + words(int(not row or chance.random() < 0.85))) or (11,))
    if not any(isinstance(one, tuple) for row in rows for one in row) and chance.random() < 0.9:
        rows[0] = (*rows[0], picture(), 12, 13)
    return tuple(rows)


def drawn_use(chance: Random, part: str) -> dict[str, Any]:
    """What is done with the model, and with which cache."""
    use = chance.choices(("forward", "generate", "beams", "steps", "turns"), (5, 3, 2, 3, 2))[0]
    caches = {"dynamic": 6.0, "static": 4.0, "none": 1.0, "quantized": 0.2, "offloaded": 0.2}
    if use != "forward" and part != "tower":
        caches["none"] = 0.3  # refused
    if use in ("steps", "turns"):
        caches["none"] = 0.0
    cache = chance.choices(list(caches), list(caches.values()))[0]
    sides = ("left", "left", "right", "none") if use == "forward" else ("left", "left", "none")
    return {"use": use, "cache": cache, "padding": chance.choice(sides), "steps": chance.randint(2, 5)}


def drawn_amount(chance: Random, part: str, shape: dict, method: dict, rows: tuple, family: str) -> dict[str, Any]:
    """What ``attach`` is told of how much leaves, and where."""
    patches = shape["side"] ** 2
    last = shape["feature_layer"]
    used = last if last >= 0 else shape["tower_layers"] + 1 + last
    if part == "tower":
        return tower_amount(chance, method, patches, used, shape["tower_layers"])
    if part == "decoder":
        return decoder_amount(chance, method["method"], method["hyperparameters"], shape["layers"])
    if chance.random() < 0.5 and shape["tower_layers"] // 2 < used:
        if chance.random() < 0.5:
            return {"keep_ratio": round(chance.uniform(0.3, 0.9), 2)}
        return {"tokens": chance.randint(max(1, patches // 3), patches)}
    if method["method"] == "mustdrop":
        decoder = decoder_amount(chance, "mustdrop", method["hyperparameters"], shape["layers"])
        return {"vision": {"keep_ratio": round(chance.uniform(0.5, 1.0), 2)}, "decoder": decoder}
    names = method["method"] if isinstance(method["method"], tuple) else ("ficoco-v", "ficoco-l")
    vision = tower_amount(chance, {"method": names[0], "hyperparameters": {}}, patches, used, shape["tower_layers"])
    return {"vision": vision, "decoder": decoder_amount(chance, names[1], {}, shape["layers"])}


def tower_amount(chance: Random, method: dict, patches: int, used: int, layers: int) -> dict[str, Any]:
    """For a method of the tower; amounts that it can nearly always remove."""
    if method.get("each"):
        count = min(len(method["method"]), used)
        where = tuple(sorted(chance.sample(range(used), count)))
        if count < len(method["method"]):
            where = tuple(range(len(method["method"])))  # refused: more methods than layers
        return {"r": chance.randint(0, max(0, (patches - 1) // (4 * len(where)))), "layers": where}
    one = get_method(method["method"], **method["hyperparameters"]).tower
    half = one.of_layers(1)[0].limit != "all but one"
    given: dict[str, Any] = {}
    own = one.layers is not None
    count = 1 if own else chance.randint(1, used)
    if chance.random() < 0.5 or (not own and layers // 2 >= used):
        given["layers"] = tuple(sorted(chance.sample(range(used), count)))
    elif not own:
        count = used - layers // 2
    return given | drawn_numbers(chance, patches, count, half)


def decoder_amount(chance: Random, name: str, hyper: dict, layers: int) -> dict[str, Any]:
    """For a method of the language model."""
    one = get_method(name, **hyper).language_model
    given: dict[str, Any] = {}
    first = int(one.before_attention)
    free = one.instead_of((0,)) is None
    count = len(one.layers(layers))
    if free and chance.random() < 0.5:
        count = chance.randint(1, layers - first)
        given["layers"] = tuple(sorted(chance.sample(range(first, layers), count)))
    if one.amount and not given and chance.random() < 0.3:
        ratios = dict(one.amount).get("keep_ratio")
        if not isinstance(ratios, tuple) or len(ratios) == count:
            return given
    return given | drawn_numbers(chance, chance.choice((4, 9, 16, 25)), count, half=False)


def drawn_numbers(chance: Random, tokens: int, count: int, half: bool) -> dict[str, Any]:
    """``r``, ``keep_ratio`` or ``tokens``, for about ``tokens`` tokens in ``count`` layers."""
    most = (tokens - 1) // 2 if half else tokens - 1
    kind = chance.choice(("r", "each r", "keep_ratio", "ratios", "tokens"))
    if kind == "r":
        return {"r": chance.randint(0 if chance.random() < 0.1 else min(1, most // count), most // count)}
    if kind == "each r":
        left, each = most, []
        for _ in range(count):
            each.append(chance.randint(0, left))
            left = (left - each[-1]) // 2
        chance.shuffle(each)
        return {"r": tuple(each) if not half else tuple(sorted(each, reverse=True))}
    least = 0.55 if half else 0.05
    if kind == "keep_ratio":
        return {"keep_ratio": round(chance.uniform(least, 1.0), 2)}
    if kind == "ratios":
        return {"keep_ratio": tuple(sorted((round(chance.uniform(least, 1.0), 2) for _ in range(count)), reverse=True))}
    return {"tokens": chance.randint(tokens - most, tokens)}


def with_promise(chance: Random, case: Case, part: str) -> Case:
    """The case with static counts, where its rows keep that promise."""
    counts = {sum(isinstance(one, tuple) for one in row) for row in case.rows}
    ends = any(isinstance(row[-1], tuple) for row in case.rows)
    keeps = part != "tower" and case.family == LLAVA and len(counts) == 1 and 0 not in counts and not ends
    if not keeps or chance.random() < 0.5:
        return case
    return replace(case, amount=dict(case.amount) | {"static_counts": True})
