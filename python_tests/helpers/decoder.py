"""Models whose language model can be reduced, and that language model written by hand as an oracle."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from helpers.models import EOS, IMAGE, PAD, VOCABULARY, tiny_llava

DECODER_LAYERS = 4
EXTRA = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 16},  # not the width divided by the heads
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "ministral3": {
        "head_dim": 8,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 16,  # queries grow in steps of so many positions
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    },
}


def decoder_config(kind="llama", *, layers=DECODER_LAYERS, kv_heads=2, hidden=32):
    """The configuration of a small language model."""
    import transformers

    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
    names["ministral3"] = "Ministral3"
    return getattr(transformers, f"{names[kind]}Config")(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
        **EXTRA.get(kind, {}),
    )


def tiny(kind="llama", attention="sdpa", seed=0, **options):
    """A LLaVA-1.5 with 36 patches and 4 decoder layers of the given kind."""
    dtype = options.pop("dtype", torch.float32)
    return tiny_llava(seed, attention, text=decoder_config(kind, **options), dtype=dtype)


@dataclass
class Seen:
    """What reached the language model in a prefill, and what the model said."""

    embeds: Tensor
    positions: Tensor | None
    mask: Tensor | None
    planes: Tensor | None = None  # (levels, B, L, C): what DeepStack adds after each of the first layers
    logits: list[Tensor] = field(default_factory=list)  # of the last prompt column and of every new token
    sequences: Tensor | None = None
    cache: object = None
    reductions: tuple = ()


def language_model_of(model):
    """The part of a model that has the decoder layers."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def watch(model, call):
    """``call()`` and the first arguments that reached the language model meanwhile."""
    found = []

    def hook(module, args, kwargs):
        if not found:
            found.append(kwargs)

    handle = language_model_of(model).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        result = call()
    finally:
        handle.remove()
    first = found[0]
    embeds, levels = first["inputs_embeds"], first.get("deepstack_visual_embeds")
    planes = None if levels is None else embeds.new_zeros(len(levels), *embeds.shape)
    for plane, level in zip(() if planes is None else planes, levels or (), strict=True):
        plane[first["visual_pos_masks"]] = level
    return Seen(embeds, first.get("position_ids"), first.get("attention_mask"), planes), result


def merged(hidden, reduction, mutate=False):
    """(N, C) with every target's explicit weighted mean; sources and all others as they were."""
    out = hidden.clone()
    kept, sources = reduction.kept[0], reduction.sources[0]
    matrix = torch.zeros(len(hidden), len(hidden), dtype=hidden.dtype)
    for i, source in enumerate(sources.tolist()):
        for j, weight in zip(reduction.targets[0, i].tolist(), reduction.weights[0, i].tolist(), strict=True):
            matrix[kept[j], source] += weight
    total = matrix.sum(1, keepdim=True)
    rows = total[:, 0] > 0
    out[rows] = ((hidden + matrix @ hidden) / (1 + total))[rows]
    return hidden if mutate else out


def decoder_by_hand(
    model,
    embeds,
    positions,
    real,
    reductions,
    layers,
    *,
    before=False,
    planes=(),
    dropping=True,
    merging=True,
    see=None,
    forget=None,
):
    """Logits (N, V) of one row of full length, where a column that was dropped is hidden from the layers behind.

    Args:
        model: without reduction; its layers' own modules are called, one by one.
        embeds: (1, N, C). positions: (1 or 3, 1, N) or (1, N). real: (N,) bool.
        reductions: of the row, told in its columns; layers: where each happened.
        before: they happened before the layer's attention.
        planes: (N, C) for each of the first layers, added to what it makes.
        dropping, merging: False leaves that out, to show that a test notices.
        forget: (layer, column): from that layer on the columns from that one on, new tokens, attend to none of the
            prompt that is not left in the end.
        see: function (layer, hidden, query, key) that is called where a layer reduces, with the (N, C) that is reduced
            and the (H, N, d) that its attention reads.
    """
    language_model = language_model_of(model)
    hidden, n = embeds, embeds.shape[1]
    rotary = language_model.rotary_emb(hidden, positions)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    alive = real.clone()
    steps = dict(zip(layers, reductions, strict=True))

    def reduce(hidden, reduction):
        if merging:
            hidden = merged(hidden[0], reduction)[None]
        if dropping:
            gone = torch.ones(n, dtype=torch.bool)
            gone[reduction.kept[0]] = False
            gone[int(reduction.source_map.shape[1]) :] = False  # new tokens after the prompt
            alive[gone] = False
        return hidden

    for index, layer in enumerate(language_model.layers):
        if before and index in steps:
            if see is not None:
                see(index, hidden[0], *query_key(layer, hidden, rotary, positions))
            hidden = reduce(hidden, steps[index])
        mask = (causal & alive)[None, None]
        if forget is not None and index >= forget[0] and reductions:
            gone = torch.ones(forget[1], dtype=torch.bool)
            gone[reductions[-1].kept[0]] = False
            mask = mask.clone()
            mask[..., forget[1] :, : forget[1]] &= ~gone
        mask = mask | torch.eye(n, dtype=torch.bool)  # a hidden query attends to itself: nobody reads what it says
        bias = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        given = {"attention_mask": bias, "position_embeddings": rotary}
        if scale_of_positions(layer.self_attn, positions) is not None:
            given["position_ids"] = positions
        attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **given)[0]
        entered, hidden = hidden, hidden + attended
        if not before and index in steps:
            if see is not None:
                see(index, hidden[0], *query_key(layer, entered, rotary, positions))
            hidden = reduce(hidden, steps[index])
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if index < len(planes):
            hidden = hidden + planes[index]
    return model.lm_head(language_model.norm(hidden))[0]


def scale_of_positions(attention, positions):
    """(N,) what Ministral's queries are multiplied by; None for other attention."""
    parameters = getattr(attention.config, "rope_parameters", None) or {}
    beta = parameters.get("llama_4_scaling_beta")
    if beta is None:
        return None
    return 1 + beta * torch.log1p((positions[0] // parameters["original_max_position_embeddings"]).float())


def query_key(layer, hidden, rotary, positions):
    """(H, N, d) and (Hk, N, d) of one row in one layer, at the positions of ``rotary``."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    cos, sin = (one.unsqueeze(1) if one.dim() == 3 else one for one in rotary)
    if cos.shape[0] == 3:  # each part of a head has the angle of one of three positions
        sections = 2 * list(attention.config.rope_parameters["mrope_section"])
        cos, sin = (
            torch.cat([part[i % 3] for i, part in enumerate(one.split(sections, -1))], -1).unsqueeze(1)
            for one in (cos, sin)
        )

    def turned(x, norm):
        x = x.unflatten(-1, (-1, attention.head_dim))
        x = (x if norm is None else norm(x)).transpose(1, 2)
        left, right = x.chunk(2, -1)
        return (x * cos + torch.cat([-right, left], -1) * sin)[0]

    norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    query, key = map(turned, (attention.q_proj(normed), attention.k_proj(normed)), norms)
    scale = scale_of_positions(attention, positions)
    return query if scale is None else query * scale[:, None], key


def generated(model, inputs, steps=8, **options):
    """A generation of ``steps`` tokens: what the language model got, and all logits."""
    details = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "suppress_tokens": [IMAGE]}
    seen, out = watch(model, lambda: model.generate(**inputs, max_new_tokens=steps, **details, **options))
    seen.logits, seen.sequences, seen.cache = list(out.logits), out.sequences, out.past_key_values
    return seen


def real_columns(seen):
    """(B, L) bool of the prompt that reached the language model."""
    b, n = seen.embeds.shape[:2]
    return torch.ones(b, n, dtype=torch.bool) if seen.mask is None else seen.mask[:, -n:].bool()


def row_positions(seen, row, total):
    """Position ids of a row with new tokens behind: (1, total), or (3, 1, total) as Qwen2-VL has them."""
    positions = seen.positions
    n = seen.embeds.shape[1]
    if positions is None:
        return torch.arange(total)[None]
    if positions.dim() == 3:
        held = positions[-3:, row : row + 1]
    else:
        held = positions[row : row + 1] if positions.shape[0] > 1 else positions
    new = held[..., -1:] + torch.arange(1, total - n + 1)
    return torch.cat([held, new], -1)


def row_planes(seen, row, total):
    """For each DeepStack level (total, C) of a row; nothing is added to new tokens after the prompt."""
    if seen.planes is None:
        return ()
    return torch.nn.functional.pad(seen.planes[:, row], (0, 0, 0, total - seen.planes.shape[2]))


def reducing_layers(reductions, plan):
    """The plan's layers that removed something from a row."""
    assert len(reductions) <= len(plan.layers)
    return plan.layers[: len(reductions)]


def worst_error(model, seen, reductions, plan, steps, *, new_ids, aware=False, **oracle):
    """The largest difference of any logit between a generation and the language model by hand, over all rows.

    Args:
        model: without reduction. seen: the generation with it. reductions: of every row.
        new_ids: (B, steps) generated tokens. aware: the cache is output-aware.
    """
    worst, b = 0.0, seen.embeds.shape[0]
    n, real = seen.embeds.shape[1], real_columns(seen)
    for row in range(b):
        new = model.get_input_embeddings()(new_ids[row, :-1])[None]
        embeds = torch.cat([seen.embeds[row : row + 1], new], 1)
        there = torch.cat([real[row], torch.ones(new.shape[1], dtype=torch.bool)])
        positions = row_positions(seen, row, embeds.shape[1])
        layers = reducing_layers(reductions[row], plan)
        oracle |= {"before": plan.before_attention, "planes": row_planes(seen, row, embeds.shape[1])}
        if aware:
            oracle["forget"] = (plan.layers[0], n)
        logits = decoder_by_hand(model, embeds, positions, there, reductions[row], layers, **oracle)
        for step in range(steps):
            worst = max(worst, float((logits[n - 1 + step] - seen.logits[step][row]).abs().max()))
    return worst
