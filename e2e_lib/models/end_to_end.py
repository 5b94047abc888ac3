"""The end-to-end model: reads and writes text and photos, trained with one loss (sections 2.2-2.5).

Axes used throughout: B batch, T text positions, N tokens of the batch that have a loss, C caption positions,
L text-encoder positions, V1 the language model's vocabulary, V2 the text encoder's, D the language model's
width, D2 the text encoder's, P context photos, Q query embeddings per photo, R photos of responses.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from e2e_lib.bridge import CaptionBridge
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.bridge.weighting import weighted_gradient
from e2e_lib.config import Bridge
from e2e_lib.data.collate import Batch, PromptFormatter, photo_rngs
from e2e_lib.models.captioner import Captioner
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.language import response_logits
from e2e_lib.models.losses import Output, response_loss
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.repro import randomness


class EndToEndModel(nn.Module):
    """Llama, BLIP-2's perceptron and a latent diffusion model, joined by the bridge.

    Without a ``perceptron``, context photos are read as the captions of a ``captioner``. ``settings`` are the
    bridge's, ``image_loss_weight`` is λ of Eq. 13, ``caption_dropout`` the share of captions left out in
    Eq. 12.
    """

    language: Any
    joint = True  # one loss trains all of it

    def __init__(self, *, language: Any, tokenizer: Any, perceptron: ImagePerceptron | None,
                 captioner: Captioner | None, generator: ImageGenerator, bridge: CaptionBridge,
                 max_context: int, settings: Bridge, image_loss_weight: float,
                 caption_dropout: float) -> None:
        super().__init__()
        # The gradient norm sums their weights in this order, which decides the last digits of every result.
        self.language, self.perceptron, self.generator = language, perceptron, generator
        self.tokenizer, self.captioner, self.bridge = tokenizer, captioner, bridge
        self.caption_source, self.noise = settings.caption_source, settings.noise
        self.gradient_weight, self.gradient_ratio = settings.gradient_weight, settings.gradient_ratio
        self.image_loss_weight, self.caption_dropout = image_loss_weight, caption_dropout
        self.formatter = PromptFormatter(tokenizer, perceptron.queries if perceptron else 1, max_context,
                                         photos_as_captions=perceptron is None,
                                         max_response=language.config.max_position_embeddings - max_context)

    def embed_context(self, batch: Batch) -> Tensor:
        """The context as embeddings (B, T, D): words from the table, photos by the perceptron (Eq. 3)."""
        words = self.language.get_input_embeddings()(batch.input_ids)  # (B, T, D)
        if not batch.photos or self.perceptron is None:
            return words
        queries = self.perceptron(batch.photos)  # (P, Q, D)
        return merge_image_embeddings(words, batch.input_ids == self.formatter.image_token_id, queries)

    def forward(self, batch: Batch, *, temperature: float, seed: int) -> Output:
        """One joint training pass. ``seed`` and the place of a response photo in the corpus decide its noise
        of Eq. 4 and of Eq. 12, whatever batch it is in."""
        embeddings = self.embed_context(batch)  # (B, T, D)
        logits = response_logits(self.language, embeddings, batch)  # (N, V1)
        if not batch.captions:
            text_loss = response_loss(logits, batch)  # Eq. 2
            return Output(text_loss, text_loss.new_zeros(()), [], 0, len(logits), self.image_loss_weight)
        logits, for_photos = weighted_gradient(logits, batch.is_caption, self.gradient_weight,
                                               self.gradient_ratio)
        text_loss = response_loss(logits, batch)  # Eq. 2
        # Eq. 4-11: text (R, L, D2)
        text, captions, truncated = self.encode_captions(for_photos, batch, temperature, seed)
        image_loss = self.generator.photo_loss(batch.target_photos, text, photo_rngs(batch, seed, "photo"),
                                               self.caption_dropout)  # Eq. 12
        return Output(text_loss, image_loss, captions, truncated, len(logits), self.image_loss_weight)

    def encode_captions(self, logits: Tensor, batch: Batch, temperature: float,
                        seed: int) -> tuple[Tensor, list[str], int]:
        """The text encoder's hidden states (R, L, D2) for the response captions, with the bridge's gradient
        to ``logits`` (N, V1); the captions; and how many of them were truncated.
        """
        caption_logits, gold_ids, mask = caption_positions(logits, batch)  # (R, C, V1), (R, C), (R, C)
        noise, own_rng = None, randomness.generator(seed, "bridge")
        if self.noise:  # Eq. 4
            rngs, lengths = photo_rngs(batch, seed, "words"), mask.sum(1).tolist()
            noise = pad_sequence([gumbel_noise((length, logits.shape[1]), rng) for length, rng
                                  in zip(lengths, rngs, strict=True)], batch_first=True).to(caption_logits)
        if self.caption_source == "gold":
            source_ids, captions = gold_ids, batch.captions
        else:  # Eq. 6: one token per position under teacher forcing
            noisy = caption_logits if noise is None else caption_logits + noise
            source_ids = noisy.detach().argmax(-1)  # (R, C)
            mask = mask & ~torch.isin(source_ids, source_ids.new_tensor(self.formatter.no_words))  # (R, C)
            captions = [self.tokenizer.decode(ids[words]).strip()
                        for ids, words in zip(source_ids, mask, strict=True)]
        embedding = self.generator.text_encoder.get_input_embeddings()
        out = self.bridge(captions, caption_logits, embedding, temperature, noise, own_rng,
                          source_ids=source_ids, source_mask=mask)
        return self.generator.encode(out.input_ids, out.embeddings), captions, out.truncated

    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that joint training changes, by name."""
        parts = {"language": self.language, "perceptron": self.perceptron, "unet": self.generator.unet}
        return {name: part for name, part in parts.items() if part is not None}


def merge_image_embeddings(embeddings: Tensor, is_image: Tensor, queries: Tensor) -> Tensor:
    """Puts query embeddings (P, Q, D), in reading order, at the positions ``is_image`` (B, T) of text
    embeddings (B, T, D).

    Raises ValueError if there are not P · Q such positions.
    """
    if int(is_image.sum()) != queries.shape[0] * queries.shape[1]:
        raise ValueError(f"{int(is_image.sum())} image tokens in the text, but {queries.shape[0]} photos of "
                         f"{queries.shape[1]} query embeddings")
    return embeddings.masked_scatter(is_image.unsqueeze(2), queries.to(embeddings.dtype))  # (B, T, D)


def caption_positions(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Each response caption's logits (R, C, V1), gold tokens (R, C) and mask of real positions (R, C).

    Padded on the right. ``logits`` are those of the batch's tokens that have a loss, (N, V1).
    """
    rows = [(batch.caption_index[row] == number).nonzero().squeeze(1)
            for number, row in enumerate(batch.target_rows.tolist())]
    at = pad_sequence(rows, batch_first=True, padding_value=0)  # (R, C)
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True,
                        padding_value=False)  # (R, C)
    row = batch.target_rows.unsqueeze(1)  # (R, 1)
    number = (batch.is_learnt.flatten().cumsum(0) - 1).view_as(batch.labels)  # (B, T): which of the N it is
    # Padding points at a row's first token, which has no logits: those of any other will do.
    return logits[number[row, at].clamp_min(0)].float(), batch.input_ids[row, at], mask
