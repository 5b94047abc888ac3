"""Divter's text-to-image translator (Sun et al., ACL 2022, section 3.2): DALL-E's recipe.

A VQ autoencoder turns a photo into a square of codes (image tokens); a transformer reads the caption and
writes the codes, row by row. Axes: B captions, L caption positions, N codes per photo, K codes in the
codebook, S side of photos in pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from e2e_lib.bridge.alignment import vocabulary_size
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.data.photos import square, to_floats, to_pixels
from e2e_lib.models.hub import load_pretrained, load_tokenizer, loading
from e2e_lib.models.losses import left_out
from e2e_lib.repro.randomness import one_each

CAPTION_DROPOUT = 0.1  # the share of captions left empty while training, for classifier-free guidance


class ImageTranslator(nn.Module):
    """Captions to photos, code by code; takes ``ImageGenerator``'s place. The autoencoder is frozen.

    The transformer's vocabulary is the tokenizer's, then the K codes, then one token that begins a photo.
    """

    vqvae: Any
    transformer: Any
    learner = "transformer"

    def __init__(self, tokenizer: Any, vqvae: VQModel, transformer: GPT2LMHeadModel, max_length: int) -> None:
        super().__init__()
        self.tokenizer, self.max_length = tokenizer, max_length
        self.vqvae, self.transformer = vqvae.requires_grad_(False), transformer
        self.first, self.codes = vocabulary_size(tokenizer), vqvae.config.num_vq_embeddings
        self.side = vqvae.config.sample_size // 2 ** (len(vqvae.config.block_out_channels) - 1)
        size, positions = self.first + self.codes + 1, max_length + 1 + self.side**2
        if transformer.config.vocab_size != size or transformer.config.n_positions < positions:
            raise ValueError(f"the translator's transformer has {transformer.config.vocab_size} words, "
                             f"{transformer.config.n_positions} positions; {size} and at least {positions} "
                             f"are needed for {self.first} words, {self.codes} codes and {self.side}² of "
                             "them")

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions padded on the left, and the token that begins a photo: ids and mask (B, L + 1)."""
        rows = self.tokenizer(list(captions), padding="max_length", truncation=True,
                              max_length=self.max_length, padding_side="left", return_attention_mask=True,
                              return_tensors="pt")  # (B, L)
        ids = F.pad(rows.input_ids, (0, 1), value=self.first + self.codes)  # (B, L + 1)
        return ids, F.pad(rows.attention_mask, (0, 1), value=1)

    @torch.no_grad()
    def to_codes(self, photos: Tensor | Sequence[Tensor]) -> Tensor:
        """B photos, uint8 (3, H, W) of any size, to codes (B, N) from 0 to K - 1."""
        pixels = to_floats(square(photos, self.vqvae.config.sample_size)).to(self.vqvae.dtype)  # (B, 3, S, S)
        return self.vqvae.quantize(self.vqvae.encode(pixels).latents)[2][2].view(len(pixels), -1)  # (B, N)

    @torch.no_grad()
    def to_photos(self, codes: Tensor) -> Tensor:
        """Codes (B, N) to photos (B, 3, S, S), uint8."""
        latents = self.vqvae.quantize.embedding(codes)  # (B, N, C)
        latents = latents.view(len(codes), self.side, self.side, -1).permute(0, 3, 1, 2)  # (B, C, s, s)
        return to_pixels(self.vqvae.decode(latents, force_not_quantize=True).sample)  # (B, 3, S, S)

    def caption_loss(self, captions: Sequence[str], photos: Sequence[Tensor], rngs: Sequence[torch.Generator],
                     caption_dropout: float) -> Tensor:
        """Mean cross-entropy of B photos' codes given captions, a share of which (by ``rngs``, one each) is
        left empty."""
        texts = ["" if dropped else caption for caption, dropped
                 in zip(captions, left_out(rngs, caption_dropout), strict=True)]
        return self.code_loss(texts, self.to_codes(photos))

    def code_loss(self, captions: Sequence[str], codes: Tensor) -> Tensor:
        """Mean cross-entropy of codes (B, N) given captions."""
        return F.cross_entropy(self.code_logits(captions, codes[:, :-1]).flatten(0, 1), codes.flatten())

    def code_logits(self, captions: Sequence[str], codes: Tensor) -> Tensor:
        """Logits of each code given the caption and the codes before it: codes (B, n) to (B, n + 1, K).

        The last ones are of the code that would come next.
        """
        ids, mask = (x.to(codes.device) for x in self.tokenize(captions))
        mask = torch.cat([mask, torch.ones_like(codes)], 1)  # (B, L + 1 + n)
        output = self.transformer(input_ids=torch.cat([ids, codes + self.first], 1), attention_mask=mask,
                                  position_ids=_positions(mask))
        return output.logits[:, ids.shape[1] - 1:, self.first:-1].float()  # (B, n + 1, K)

    @torch.no_grad()
    def draw(self, captions: Sequence[str], rng: torch.Generator | Sequence[torch.Generator], *,
             num_inference_steps: int = 0, guidance_scale: float) -> Tensor:
        """B captions to photos (B, 3, S, S), uint8, code by code, with classifier-free guidance (none at 1).

        Each photo's noise comes from its own ``rng``, or is drawn one after another from a single one, so
        that photo i does not depend on the batch size. ``num_inference_steps`` is ignored: the steps are the
        codes.
        """
        device, guided = self.transformer.device, guidance_scale > 1
        texts = [*captions, *([""] * len(captions) if guided else [])]
        ids, mask = (x.to(device) for x in self.tokenize(texts))  # (B or 2 B, L + 1)
        rngs = one_each(rng, len(captions))
        noise = [gumbel_noise((self.side**2, self.codes), one).to(device) for one in rngs]  # B of (N, K)
        cache, codes = None, []
        for n in range(self.side**2):
            output = self.transformer(
                input_ids=ids, attention_mask=mask, position_ids=_positions(mask)[:, -ids.shape[1]:],
                past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            log_p = output.logits[:, -1, self.first:-1].log_softmax(-1)  # (B or 2 B, K)
            if guided:
                cond, uncond = log_p.chunk(2)
                log_p = uncond + guidance_scale * (cond - uncond)  # (B, K)
            code = (log_p + torch.stack([row[n] for row in noise])).argmax(-1)  # (B,)
            codes.append(code)
            ids = (code.repeat(2) if guided else code)[:, None] + self.first  # (B or 2 B, 1)
            mask = F.pad(mask, (0, 1), value=1)
        return self.to_photos(torch.stack(codes, 1)).cpu()


def drop_captions(captions: Sequence[str], rng: torch.Generator) -> list[str]:
    """The captions with a tenth of them, by ``rng``, replaced by empty ones."""
    kept = torch.rand(len(captions), generator=rng) >= CAPTION_DROPOUT
    return [caption if keep else "" for caption, keep in zip(captions, kept.tolist(), strict=True)]


def _positions(mask: Tensor) -> Tensor:
    """Positions (B, n) counted from the first real token of a mask (B, n)."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def load_translator(source: str) -> ImageTranslator:
    """The translator in float32. Raises CheckpointError."""
    with loading("translator", source) as place:
        tokenizer = load_tokenizer(place, "pad", subfolder="tokenizer")
        vqvae = load_pretrained(VQModel, place, subfolder="vqvae")
        transformer = load_pretrained(GPT2LMHeadModel, place, subfolder="transformer")
        translator = ImageTranslator(tokenizer, vqvae, transformer, tokenizer.model_max_length)
    return translator
