"""The end-to-end model: reads text and photos, writes text and draws photos, trained with one loss (sections 2.2-2.5, Eq. 13).

Axes used throughout: B batch, T text positions, C caption positions, L text-encoder positions, V1 the language model's vocabulary,
V2 the text encoder's, D the language model's width, P context photos, Q query embeddings a photo, R responses with a photo.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.config import Bridge, ConfigError
from e2e_lib.data.collate import Batch, PromptFormatter
from e2e_lib.data.photos import to_floats
from e2e_lib.models import hub
from e2e_lib.models.captioner import Captioner, CaptionLayout
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.losses import Output, response_loss, trainable_weights
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.repro.randomness import generator

REMEMBERED = 256  # photos


def merge_image_embeddings(embeddings: Tensor, slots: Tensor, queries: Tensor) -> Tensor:
    """Puts query embeddings (P, Q, D), in reading order, into the slots (B, T) of text embeddings (B, T, D)."""
    if int(slots.sum()) != queries.shape[0] * queries.shape[1]:
        raise ValueError(f"{int(slots.sum())} photo slots in the text, but {queries.shape[0]} photos of {queries.shape[1]} query embeddings")
    return embeddings.masked_scatter(slots.unsqueeze(2), queries.to(embeddings.dtype))


class EndToEndModel(nn.Module):
    """Llama, BLIP-2's perceptron and a latent diffusion model, joined by the bridge. A captioner in the perceptron's place puts
    words where photos were."""

    language: Any
    generator: ImageGenerator
    seen: dict[bytes, Tensor]  # query embeddings (Q, D), by what the photo shows
    joint = True  # one loss trains all of it

    def __init__(self, language: Any, tokenizer: Any, perceptron: ImagePerceptron | Captioner, generator: ImageGenerator, bridge: Bridge,
                 image_loss_weight: float, max_context: int) -> None:
        super().__init__()
        self.language, self.perceptron, self.generator = language, perceptron, generator
        self.tokenizer, self.bridge_settings, self.image_loss_weight = tokenizer, bridge, image_loss_weight
        self.bridge = CaptionBridge(tokenizer, generator.tokenizer, bridge.mapping, pooling=bridge.pooling, estimator=bridge.estimator,
                                    words=word_list(bridge.word_list) if bridge.mapping == "static_word" else (),
                                    length=generator.limit)
        self.seen = {}
        self.register_load_state_dict_post_hook(lambda model, _: model.forget())
        self.formatter = (CaptionLayout(tokenizer, max_context, perceptron) if isinstance(perceptron, Captioner)
                       else PromptFormatter(tokenizer, perceptron.queries, max_context))

    def read(self, batch: Batch) -> Tensor:
        """The context as embeddings (B, T, D): words from the language model's table, photos through the perceptron (Eq. 3)."""
        words = self.language.get_input_embeddings()(batch.input_ids)  # (B, T, D)
        if not len(batch.photos):
            return words
        return merge_image_embeddings(words, batch.input_ids == self.formatter.slot, self.see(batch.photos))

    def see(self, photos: Tensor) -> Tensor:
        """The query embeddings (P, Q, D) of photos (P, 3, S, S), uint8. While answering, a photo that a chat comes back to is not looked
        at again; training forgets what was seen, since the perceptron learns."""
        if self.training or torch.is_grad_enabled():
            return self.perceptron(to_floats(photos))
        keys = [hashlib.sha256(photo.cpu().numpy().tobytes()).digest() for photo in photos]
        if new := {key: photo for key, photo in zip(keys, photos, strict=True) if key not in self.seen}:
            self.seen |= dict(zip(new, self.perceptron(to_floats(torch.stack(list(new.values())))), strict=True))
        queries = torch.stack([self.seen[key] for key in keys])
        while len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]
        return queries

    def forget(self) -> None:
        """Looks at every photo anew from now on; what a captioner said stays, since it is frozen."""
        self.seen.clear()

    def train(self, mode: bool = True) -> "EndToEndModel":
        if mode:
            self.forget()
        return super().train(mode)

    def forward(self, batch: Batch, *, temperature: float, rng: torch.Generator) -> Output:
        """One joint training pass. ``rng`` gives the noise of Eq. 4 and of Eq. 12."""
        logits = self.language(inputs_embeds=self.read(batch), attention_mask=batch.attention_mask).logits  # (B, T, V1)
        text_loss = response_loss(logits, batch.labels)  # Eq. 2
        if not len(batch.target_rows):
            return Output(text_loss, text_loss, text_loss.new_zeros(()), [], 0)
        text, drawn, truncated = self.write_captions(logits, batch, temperature, rng)  # (R, L, D2), Eq. 4-11
        latents = self.generator.to_latents(to_floats(batch.target_photos))
        image_loss = self.generator.denoising_loss(latents, text, rng)  # Eq. 12
        loss = text_loss + self.image_loss_weight * image_loss  # Eq. 13
        return Output(loss, text_loss, image_loss, drawn, truncated)

    def write_captions(self, logits: Tensor, batch: Batch, temperature: float, rng: torch.Generator) -> tuple[Tensor, list[str], int]:
        """The text encoder's hidden states for the response captions, with the gradient to ``logits`` that the bridge lets through."""
        caption_logits, gold_ids, positions = caption_positions(logits, batch)  # (R, C, V1), (R, C), (R, C)
        # The noise is drawn even where it is not used, and what an estimator draws besides comes from a stream of its own: so all of them
        # meet the same noise of Eq. 12, and only what they do differently makes a difference.
        drawn = gumbel_noise(caption_logits.shape, rng).to(caption_logits)
        noise, own_rng = drawn if self.bridge_settings.noise else None, generator("bridge", rng.initial_seed())  # Eq. 4
        if self.bridge_settings.caption_source == "gold":
            source_ids, captions = gold_ids, batch.captions
        else:
            chosen = caption_logits if noise is None else caption_logits + noise
            source_ids = chosen.detach().argmax(-1)  # Eq. 6: the words h stands for, one for each position under teacher forcing
            captions = [self.tokenizer.decode(ids[keep], skip_special_tokens=True).strip() for ids, keep in zip(source_ids, positions, strict=True)]
        out = self.bridge(captions, caption_logits, self.generator.text_encoder.get_input_embeddings(), temperature, noise, own_rng,
                          source_ids=source_ids, source_mask=positions)
        return self.generator.encode(out.input_ids, out.embeddings), captions, out.truncated

    def trained_parts(self) -> dict[str, nn.Module]:
        """The parts that joint training changes, by name: what gradient norms and checkpoints are about."""
        return {"language": self.language, "perceptron": self.perceptron, "unet": self.generator.unet}

    def trained_weights(self) -> dict[str, Tensor]:
        """The weights that joint training changes; the frozen rest comes from the sources named in the configuration."""
        return trainable_weights(self)


def caption_positions(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Each response caption's logits (R, C, V1), gold tokens (R, C) and which positions are real (R, C), padded on the right."""
    rows = [batch.is_caption[row].nonzero().squeeze(1) for row in batch.target_rows.tolist()]
    at = pad_sequence(rows, batch_first=True, padding_value=0)  # (R, C)
    real = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True, padding_value=False)
    row = batch.target_rows.unsqueeze(1)
    # The logits for the token at t are those of t - 1; position 0 is never a caption's, so padding may point at it.
    return logits[row, (at - 1).clamp_min(0)].float(), batch.input_ids[row, at], real


def word_list(source: str) -> list[str]:
    """The words of the static word-level map. Raises ConfigError for a file that cannot be read."""
    path = hub.WEIGHTS / source.removeprefix("shipped:") if source.startswith("shipped:") else Path(source)
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"bridge.word_list = {source!r} is neither a list that ships with the package nor a text file "
                          f"of one word per line: {error}") from None
