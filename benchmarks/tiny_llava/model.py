"""The tiny LLaVA: its configuration, how it starts, its processor, and how it is saved."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ficoco_ext.gridvqa.drawing import PATCH, SIDE
from ficoco_ext.gridvqa.vocabulary import BOS, EOS, IMAGE, PAD, UNKNOWN, vocabulary

WIDTH, HEADS, VISION_LAYERS, TEXT_LAYERS = 128, 4, 8, 6
GRID = SIDE // PATCH
PATCHES = GRID * GRID
IDS = {word: index for index, word in enumerate(vocabulary())}
PREFIX = (BOS, "user", ":")  # then the picture, the question, and:
SUFFIX = ("assistant", ":")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['role'] }} :"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)


def config() -> LlavaConfig:
    """Geometry: what LLaVA-1.5 has, small."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
    )
    text = LlamaConfig(
        vocab_size=128,
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        pad_token_id=IDS[PAD],
        bos_token_id=IDS[BOS],
        eos_token_id=IDS[EOS],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IDS[IMAGE],
        image_token_index=IDS[IMAGE],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=PATCHES,
        projector_hidden_act="gelu",
    )


def build(seed: int) -> LlavaForConditionalGeneration:
    """A new model, with patch positions that can be seen from the start.

    The usual start of the position embedding is fifteen times smaller than what the patches bring, and the tower then
    hardly learns where anything is; a table of sines and cosines at half the patches' RMS is added.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(config(), attn_implementation="sdpa")
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        noise = torch.randn(8, 3, SIDE, SIDE)
        rms = embeddings.patch_embedding(noise).pow(2).mean().sqrt()
        frequency = 30.0 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4))
        angle = torch.arange(float(GRID))[:, None] * frequency
        line = torch.cat([angle.sin(), angle.cos()], 1)
        rows, columns = line[:, None].expand(GRID, GRID, -1), line[None].expand(GRID, GRID, -1)
        embeddings.position_embedding.weight[1:] += 0.5 * rms * torch.cat([rows, columns], -1).flatten(0, 1)
    return model


def pixels(pictures: Tensor) -> Tensor:
    """(B, SIDE, SIDE, 3) uint8 -> (B, 3, SIDE, SIDE) on the same device, as the processor makes them."""
    mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def features(model: LlavaForConditionalGeneration, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the projector gets of each patch (B, P, C), and the tower's pooled class token (B, C)."""
    output = model.model.vision_tower(pixel_values=values, output_hidden_states=True)
    return output.hidden_states[-2][:, 1:], output.pooler_output


def processor() -> LlavaProcessor:
    """Pictures to pixels, words to ids."""
    words = Tokenizer(WordLevel(vocab=dict(IDS), unk_token=UNKNOWN))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
    )
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(
        size=side, crop_size=side, do_resize=True, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Weights in half precision, configuration, processor: all that ``from_pretrained`` asks for."""
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id, generation.bos_token_id = IDS[EOS], IDS[PAD], IDS[BOS]
    model.half().save_pretrained(folder)
    model.float()
    processor().save_pretrained(folder)
    for path in folder.glob("*.json"):  # one spelling, so that a diff shows only what changed
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2) + "\n")
