"""Models that take pictures and are not served on purpose: by the name of their class, why."""

from __future__ import annotations

_QUERIES = "a small number of learnt queries stands for the picture already, so there is nothing to leave out"
_CROSS = "its language model reads pictures by cross attention, so they take no tokens of the prompt"
_CODES = "its pictures are codes of a vocabulary, which a decoder needs all"

REFUSED = {
    "AriaForConditionalGeneration": _QUERIES,
    "Blip2ForConditionalGeneration": _QUERIES,
    "ChameleonForConditionalGeneration": _CODES,
    "Emu3ForConditionalGeneration": _CODES,
    "Florence2ForConditionalGeneration": "it is an encoder and a decoder, whose encoder reads the picture",
    "FuyuForCausalLM": "it has no vision tower: patches of pixels go into its language model",
    "GitForCausalLM": "it describes pictures and reads no placeholders",
    "Granite4VisionForConditionalGeneration": _QUERIES,
    "Idefics2ForConditionalGeneration": _QUERIES,
    "IdeficsForVisionText2Text": _CROSS,
    "InstructBlipForConditionalGeneration": _QUERIES,
    "InstructBlipVideoForConditionalGeneration": _QUERIES,
    "Kosmos2ForConditionalGeneration": _QUERIES,
    "Kosmos2_5ForConditionalGeneration": _QUERIES,
    "MllamaForConditionalGeneration": _CROSS,
    "Pix2StructForConditionalGeneration": "it is an encoder and a decoder, whose encoder reads the picture",
    "T5Gemma2ForConditionalGeneration": "it is an encoder and a decoder, whose encoder reads the picture",
    "UdopForConditionalGeneration": "it is an encoder and a decoder, whose encoder reads the picture",
}
