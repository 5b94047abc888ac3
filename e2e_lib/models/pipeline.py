"""The baselines (section 3.1.4): a captioner that looks, a language model that reads and writes, a generator that draws, trained apart.

"pipeline" has the end-to-end model's own language model and image generator. "divter" (Sun et al., ACL 2022) has a GPT-2 of DialoGPT's
kind and an autoregressive translator from words to the tokens of a picture. Nothing but text passes between the parts.
"""

from typing import Any

import torch
from torch import Tensor, nn

from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.data.collate import Batch
from e2e_lib.data.photos import to_floats
from e2e_lib.models.captioner import Captioner, CaptionLayout
from e2e_lib.models.losses import Output, response_loss, trainable_weights


class Pipeline(nn.Module):
    """Three parts with text between them; the same interface as ``EndToEndModel``. ``generator`` draws captions and has a ``caption_loss``."""

    language: Any
    generator: Any
    joint = False  # the parts are trained apart: no gradient passes between them, and each is clipped by itself

    def __init__(self, language: Any, tokenizer: Any, captioner: Captioner, generator: Any, max_context: int) -> None:
        super().__init__()
        self.language, self.tokenizer, self.captioner, self.generator = language, tokenizer, captioner, generator
        self.formatter = CaptionLayout(tokenizer, max_context, captioner)

    def read(self, batch: Batch) -> Tensor:
        """The context as embeddings (B, T, D): words only."""
        return self.language.get_input_embeddings()(batch.input_ids)

    def forget(self) -> None:
        """Captions every photo anew from now on."""
        self.formatter.said.clear()

    def forward(self, batch: Batch, *, temperature: float, rng: torch.Generator) -> Output:
        """Both parts' losses on the same batch: Eq. 2 for the responses' words, the generator's own for drawing the gold captions.
        ``temperature`` is the bridge's, and there is none."""
        logits = self.language(inputs_embeds=self.read(batch), attention_mask=batch.attention_mask).logits
        text_loss = response_loss(logits, batch.labels)
        if not len(batch.target_rows):
            return Output(text_loss, text_loss, text_loss.new_zeros(()), [], 0)
        image_loss = self.generator.caption_loss(batch.captions, to_floats(batch.target_photos), rng)
        _, truncated = encode_with_offsets(self.generator.tokenizer, batch.captions, special=True, length=self.generator.limit)
        return Output(text_loss + image_loss, text_loss, image_loss, batch.captions, truncated)

    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that training changes, by name."""
        return {"language": self.language, self.generator.learner: getattr(self.generator, self.generator.learner)}

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights that training changes."""
        return trainable_weights(self)
