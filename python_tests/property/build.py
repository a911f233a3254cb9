"""The model and the inputs of a case."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transformers
from helpers.families import END, START, VIDEO
from helpers.models import EOS, IMAGE, PAD, VOCABULARY, sharpened
from property.cases import LLAVA, NEXT, QWEN2, Case

import ficoco_ext
from ficoco_ext.methods import Combined


class NotHereError(Exception):
    """What is installed cannot run the case, with or without reduction."""


PATCH = 4  # pixels on a side of a patch
HIDDEN = 11  # a mask with holes hides the words that are multiples of it


def text_config(case: Case) -> dict:
    """What the configurations of all language models share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": case.width,
        "intermediate_size": 2 * case.width,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.kv_heads,
        "max_position_embeddings": 2048,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "tie_word_embeddings": case.tied,
    }


def llava_config(case: Case):
    """LLaVA-1.5 or LLaVA-NeXT."""
    classes = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen2": "Qwen2Config"}
    more = {"sliding_window": None} if case.text == "mistral" else {}
    if case.text != "qwen2":
        more["head_dim"] = case.head_dim
    pixels = case.side * PATCH
    kind = transformers.CLIPVisionConfig if case.tower == "clip" else transformers.SiglipVisionConfig
    shared = {
        "tie_word_embeddings": case.tied,
        "vision_config": kind(
            hidden_size=8 * case.tower_heads,
            intermediate_size=24,
            num_hidden_layers=case.tower_layers,
            num_attention_heads=case.tower_heads,
            image_size=pixels,
            patch_size=PATCH,
        ),
        "text_config": getattr(transformers, classes[case.text])(**text_config(case), **more),
        "image_token_index": IMAGE,
        "vision_feature_layer": case.feature_layer,
        "vision_feature_select_strategy": case.strategy,
    }
    if case.family == LLAVA:
        return transformers.LlavaConfig(**shared, image_seq_length=case.side**2)
    pinpoints = [[pixels, 2 * pixels], [2 * pixels, pixels], [2 * pixels, 2 * pixels]]
    return transformers.LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)


def qwen_config(case: Case):
    """Qwen2-VL or Qwen2.5-VL, with patches merged 2 x 2 into one visual token."""
    half = case.head_dim // 2
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    text = text_config(case) | {
        "rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if case.family == QWEN2:
        vision |= {"embed_dim": 16, "hidden_size": case.width, "mlp_ratio": 2}
        kind = transformers.Qwen2VLConfig
    else:
        vision |= {"hidden_size": 16, "out_hidden_size": case.width, "intermediate_size": 24, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
        kind = transformers.Qwen2_5_VLConfig
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    return kind(text_config=text, vision_config=vision, tie_word_embeddings=case.tied, **ids)


def model_of(case: Case):
    """The model, with random weights so wide that attention is far from flat, whatever the width."""
    config = llava_config(case) if case.family in (LLAVA, NEXT) else qwen_config(case)
    config._attn_implementation = case.attention
    name = type(config).__name__.removesuffix("Config") + "ForConditionalGeneration"
    dtype = getattr(torch, case.dtype)
    return sharpened(lambda: getattr(transformers, name)(config), case.number, dtype, spread=1.7)


def placeholders(case: Case, model) -> list[int]:
    """How many placeholders each picture has, as its processor counts them."""
    if case.family == LLAVA:
        return [case.side**2 + (case.strategy == "full" and case.tower == "clip")] * len(case.pictures)
    if case.family != NEXT:
        return [frames(case) * height * width // 4 for height, width in case.pictures]
    if not case.pictures:
        return []
    features = model.model.get_image_features(**images_of_case(case, model), return_dict=True).pooler_output
    return [len(one) for one in features]


def images_of_case(case: Case, model, pictures: slice = slice(None)) -> dict:
    """The pixels of some of the case's pictures, each with a seed of its own, and what the model wants beside them."""
    sizes, dtype = case.pictures[pictures], getattr(torch, case.dtype)
    if not sizes:
        return {}
    numbers = range(len(case.pictures))[pictures]
    side = case.side * PATCH
    if case.family == LLAVA:
        return {"pixel_values": torch.stack([noise(case, at, 3, side, side) for at in numbers]).to(dtype)}
    if case.family == NEXT:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        crops = [image_size_to_num_patches(one, model.config.image_grid_pinpoints, side) for one in case.pictures]
        pixels = torch.stack([noise(case, at, max(crops), 3, side, side) for at in numbers]).to(dtype)
        return {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    deep = frames(case)
    values = [noise(case, at, deep * h * w, 3 * 2 * PATCH * PATCH) for at, (h, w) in zip(numbers, sizes, strict=True)]
    grids = torch.tensor([(deep, height, width) for height, width in sizes])
    names = ("pixel_values_videos", "video_grid_thw") if case.video else ("pixel_values", "image_grid_thw")
    return dict(zip(names, (torch.cat(values).to(dtype), grids), strict=True))


def frames(case: Case) -> int:
    """Pairs of frames of a picture."""
    return 2 if case.video else 1


def noise(case: Case, picture: int, *shape: int) -> torch.Tensor:
    """A random picture."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * case.number + picture))


def spell(case: Case, lengths: list[int]) -> list[list[int]]:
    """The ids of every row, each picture as placeholders; without padding shorter rows begin with more words."""
    left, spelled = list(lengths), []
    for row in case.rows:
        ids: list[int] = []
        for one in row:
            if not isinstance(one, tuple):
                ids.append(one)
            elif case.family in (LLAVA, NEXT):
                ids += [IMAGE] * left.pop(0)
            else:
                ids += [START, *[VIDEO if case.video else IMAGE] * left.pop(0), END]
        spelled.append(ids)
    longest = max(map(len, spelled)) if case.padding == "none" else 0
    return [[10] * (longest - len(row)) + row for row in spelled]


def inputs_of(case: Case, model) -> dict:
    """What the processor would give for the case's rows."""
    return batched(case, model, spell(case, placeholders(case, model)), slice(None))


def inputs_of_row(case: Case, model, number: int) -> dict:
    """What it would give for one of the rows alone."""
    counts = [sum(isinstance(one, tuple) for one in row) for row in case.rows]
    first = sum(counts[:number])
    row = spell(case, placeholders(case, model))[number]
    return batched(case, model, [row], slice(first, first + counts[number]))


def batched(case: Case, model, spelled: list[list[int]], pictures: slice) -> dict:
    """Ids of rows with some of the case's pictures, and their mask."""
    longest = max(map(len, spelled))
    padded = []
    for row in spelled:
        gap = [PAD] * (longest - len(row))
        padded.append(row + gap if case.padding == "right" else gap + row)
    ids = torch.tensor(padded)
    inputs = {"input_ids": ids} | images_of_case(case, model, pictures)
    if case.padding != "none":
        inputs["attention_mask"] = ((ids != PAD) & ~(case.holes & (ids % HIDDEN == 0))).long()
    if case.family not in (LLAVA, NEXT):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return inputs


def part_of(case: Case) -> str:
    """Where the case's method acts: "tower", "decoder" or "both"."""
    if not isinstance(case.method, str) and not case.each:
        return "both"
    method = ficoco_ext.get_method(case.method if isinstance(case.method, str) else case.method[0])
    if method.tower is not None and method.language_model is not None:
        return "both"
    return "decoder" if method.tower is None else "tower"


def method_of(case: Case):
    """What ``attach`` takes as its method, and the hyperparameters beside it."""
    if isinstance(case.method, str):
        return case.method, dict(case.hyperparameters)
    if case.each:
        return list(case.method), {}
    vision, decoder = map(ficoco_ext.get_method, case.method)
    return Combined.of(vision, decoder), {}


def attached(case: Case, model, **instead):
    """``attach`` as the case says, or with another amount."""
    method, hyperparameters = method_of(case)
    return ficoco_ext.attach(model, method, **(instead or dict(case.amount)), **hyperparameters)


def is_aware(case: Case) -> bool:
    """Whether the cache keeps what is left in the end, because the case or its method says so."""
    asked = case.amount.get("cache")
    if asked is not None:
        return asked == "output-aware"
    name = case.method if isinstance(case.method, str) else case.method[-1]
    inside = ficoco_ext.get_method(name).language_model
    return inside is not None and inside.cache == "output-aware"


def limits(case: Case) -> str:
    """How much of what enters a layer of the tower its methods can remove at once."""
    names = (case.method,) if isinstance(case.method, str) else case.method
    towers = [ficoco_ext.get_method(name).tower for name in names]
    return ", ".join(one.limit for tower in towers if tower is not None for one in tower.of_layers(1))


def nothing(case: Case) -> dict:
    """An amount with which nothing leaves; in the language model hooks are in all the same."""
    if part_of(case) == "both":
        parts = {"vision": {"r": 0}, "decoder": {"tokens": 10**6}}
        cache = {"cache": case.amount["cache"]} if "cache" in case.amount else {}
        return {name: amount | where(case.amount.get(name, {})) for name, amount in parts.items()} | cache
    return ({"r": 0} if part_of(case) == "tower" else {"tokens": 10**6}) | where(case.amount)


def where(amount: Mapping) -> dict:
    """The layers that an amount names, if it names any."""
    return {"layers": amount["layers"]} if "layers" in amount else {}
