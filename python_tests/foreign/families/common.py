"""What the testers of all families share."""

from __future__ import annotations

from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, ids_tensor

PAD, START, END, IMAGE, VIDEO, VISION_START, VISION_END = range(7)
VOCABULARY = 99
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": START,
    "eos_token_id": END,
}
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 2,
}


class Tester:
    """A prompt of one image between words for each row, and what the tests read of the sizes.

    Args:
        image_tokens: placeholders of the image of a row.
    """

    text_config, vision_config = TEXT, CLIP
    batch_size, words, image_size, num_channels = 7, 5, 8, 3  # 7: more would be filled up with random ids
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    is_training, pad_token_id = True, PAD
    image_tokens = 16
    first = 2  # the position of the image; the tests hide the first two and the last two tokens as padding

    @property
    def seq_length(self) -> int:
        """Tokens in a row."""
        return self.image_tokens + self.words

    def get_config(self) -> Any:
        """The configuration of the tiny model."""
        raise NotImplementedError

    def pictures(self, config: Any) -> dict[str, torch.Tensor]:
        """The inputs that are not text."""
        raise NotImplementedError

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """The configuration, and inputs that fit it."""
        config = self.get_config()
        ids = ids_tensor([self.batch_size, self.seq_length], VOCABULARY).clamp_(min=VISION_END + 1)
        ids[:, self.first : self.first + self.image_tokens] = IMAGE
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.pictures(config)}


class FamilyTest(ModelTesterMixin, GenerationTesterMixin):
    """All tests of transformers' mixins for one family; a subclass names its tester."""

    _is_composite = True
    test_all_params_have_gradient = False  # CLIP's last norm and the layers after the selected one get none
    model_tester_class: type[Tester]

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class()
