"""The baselines (section 3.1.4): a captioner, a language model and an image generator, trained apart.

"pipeline" has the end-to-end model's own language model and image generator. "divter" (Sun et al., ACL 2022)
has a GPT-2 of DialoGPT's kind and an autoregressive translator from words to image tokens. Nothing but text
passes between the parts.
"""

from typing import Any

from torch import Tensor, nn

from e2e_lib.data.collate import Batch, PromptFormatter, photo_rngs
from e2e_lib.models.captioner import Captioner
from e2e_lib.models.language import response_logits
from e2e_lib.models.losses import Output, response_loss


class Pipeline(nn.Module):
    """Three parts with text between them. ``generator`` draws captions and has a ``caption_loss``."""

    language: Any
    generator: Any
    joint = False  # no gradient passes between the parts

    def __init__(self, language: Any, tokenizer: Any, captioner: Captioner, generator: Any, max_context: int,
                 caption_dropout: float) -> None:
        super().__init__()
        self.language, self.tokenizer, self.caption_dropout = language, tokenizer, caption_dropout
        self.captioner, self.generator = captioner, generator
        self.formatter = PromptFormatter(tokenizer, 1, max_context, photos_as_captions=True,
                                         max_response=language.config.max_position_embeddings - max_context)

    def embed_context(self, batch: Batch) -> Tensor:
        """The context as embeddings (B, T, D): words only."""
        return self.language.get_input_embeddings()(batch.input_ids)  # (B, T, D)

    def forward(self, batch: Batch, *, temperature: float, seed: int) -> Output:
        """Both parts' losses on one batch: Eq. 2 for responses, the generator's own for the gold captions.

        The noise is that of the end-to-end model. ``temperature`` is unused; it keeps the interface.
        """
        logits = response_logits(self.language, self.embed_context(batch), batch)  # (N, V1)
        text_loss = response_loss(logits, batch)
        if not batch.captions:
            return Output(text_loss, text_loss.new_zeros(()), [], 0, len(logits))
        image_loss = self.generator.caption_loss(batch.captions, batch.target_photos,
                                                 photo_rngs(batch, seed, "photo"), self.caption_dropout)
        lengths = map(len, self.generator.tokenizer(batch.captions, verbose=False)["input_ids"])
        truncated = sum(length > self.generator.max_length for length in lengths)
        return Output(text_loss, image_loss, batch.captions, truncated, len(logits))

    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that training changes, by name."""
        return {"language": self.language,
                self.generator.learner: getattr(self.generator, self.generator.learner)}
