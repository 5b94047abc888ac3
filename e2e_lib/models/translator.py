"""Divter's text-to-image translator (Sun et al., ACL 2022, section 3.2): DALL-E's recipe, words in and the tokens of a picture out.

A VQ autoencoder turns a photo into a square of codes; a transformer reads the caption and writes the codes, row by row. Axes: B batch,
L caption positions, N codes a photo, K codes in the book.
"""

from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2LMHeadModel

from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.data.photos import to_pixels
from e2e_lib.models.hub import LOADING, locate, unreachable

CAPTION_DROPOUT = 0.1  # the share of captions left out while training, for guidance


class ImageTranslator(nn.Module):
    """Captions to photos, one code after another; takes ``ImageGenerator``'s place. The transformer learns, the autoencoder is frozen.

    The transformer's words are the tokenizer's, then the K codes, then one mark that begins a picture.
    """

    vqvae: Any
    transformer: Any
    learner = "transformer"

    def __init__(self, tokenizer: Any, vqvae: VQModel, transformer: GPT2LMHeadModel, limit: int) -> None:
        super().__init__()
        self.tokenizer, self.limit = tokenizer, limit
        self.vqvae, self.transformer = vqvae.requires_grad_(False), transformer
        self.first, self.codes = len(tokenizer), vqvae.config.num_vq_embeddings
        self.side = vqvae.config.sample_size // 2 ** (len(vqvae.config.block_out_channels) - 1)
        expected, positions = self.first + self.codes + 1, limit + 1 + self.side**2
        if transformer.config.vocab_size != expected or transformer.config.n_positions < positions:
            raise ValueError(f"the translator's transformer has {transformer.config.vocab_size} words, {transformer.config.n_positions} positions; "
                             f"{expected} and at least {positions} are needed for {self.first} words, {self.codes} codes and {self.side}² of them")

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions, padded on the left so that the picture follows at once, and the mark: ids and attention mask (B, limit + 1)."""
        pieces, _ = encode_with_offsets(self.tokenizer, captions, special=True, length=self.limit)
        order = pieces.attention_mask.argsort(dim=1, stable=True)  # padding first
        ids, mask = pieces.input_ids.gather(1, order), pieces.attention_mask.gather(1, order)
        return F.pad(ids, (0, 1), value=self.first + self.codes), F.pad(mask, (0, 1), value=1)

    @torch.no_grad()
    def to_codes(self, photos: Tensor) -> Tensor:
        """Photos (B, 3, S, S), floats from -1 to 1, to codes (B, N) from 0 to K - 1. Raises ValueError for another S than the autoencoder's."""
        if photos.shape[-1] != self.vqvae.config.sample_size:
            raise ValueError(f"the translator's autoencoder takes photos of {self.vqvae.config.sample_size} pixels, not {photos.shape[-1]}: "
                             "set data.photo_size, or model.translator to another")
        return self.vqvae.quantize(self.vqvae.encode(photos).latents)[2][2].view(len(photos), -1)

    @torch.no_grad()
    def to_photos(self, codes: Tensor) -> Tensor:
        """Codes (B, N) to photos (B, 3, S, S), uint8."""
        latents = self.vqvae.quantize.embedding(codes).view(len(codes), self.side, self.side, -1).permute(0, 3, 1, 2)
        return to_pixels(self.vqvae.decode(latents, force_not_quantize=True).sample)

    def caption_loss(self, captions: list[str], photos: Tensor, rng: torch.Generator) -> Tensor:
        """Mean cross-entropy of the photos' codes given their captions; a tenth of the captions, by ``rng``, is left out."""
        return self.code_loss(drop_captions(captions, rng), self.to_codes(photos))

    def code_loss(self, captions: list[str], codes: Tensor) -> Tensor:
        """Mean cross-entropy of codes (B, N) given captions."""
        return F.cross_entropy(self.code_logits(captions, codes[:, :-1]).flatten(0, 1), codes.flatten())

    def code_logits(self, captions: list[str], codes: Tensor) -> Tensor:
        """Logits of each code given the caption and the codes before it: codes (B, n) to (B, n + 1, K), of which the last are for the next code."""
        ids, mask = (x.to(codes.device) for x in self.tokenize(captions))
        mask = torch.cat([mask, torch.ones_like(codes)], 1)
        out = self.transformer(input_ids=torch.cat([ids, codes + self.first], 1), attention_mask=mask, position_ids=_positions(mask))
        return out.logits[:, ids.shape[1] - 1:, self.first:-1].float()

    @torch.no_grad()
    def draw(self, captions: list[str], rng: torch.Generator, *, num_inference_steps: int = 0, guidance_scale: float = 2.0) -> Tensor:
        """Captions to photos (B, 3, S, S), uint8, code by code, with classifier-free guidance (none at 1). ``steps`` are a diffusion model's.

        Each photo's noise is drawn one after another from ``rng``, so photo i does not depend on the batch size.
        """
        device = self.transformer.device
        guided = guidance_scale > 1
        ids, mask = (x.to(device) for x in self.tokenize([*captions, *([""] * len(captions) if guided else [])]))
        noise = torch.stack([gumbel_noise((self.side**2, self.codes), rng) for _ in captions]).to(device)
        cache, chosen = None, []
        for n in range(self.side**2):
            out = self.transformer(input_ids=ids, attention_mask=mask, position_ids=_positions(mask)[:, -ids.shape[1]:], past_key_values=cache,
                                   use_cache=True, logits_to_keep=1)
            cache, log_p = out.past_key_values, out.logits[:, -1, self.first:-1].log_softmax(-1)
            if guided:
                heard, unheard = log_p.chunk(2)
                log_p = unheard + guidance_scale * (heard - unheard)
            code = (log_p + noise[:, n]).argmax(-1)
            chosen.append(code)
            ids = (code.repeat(2) if guided else code)[:, None] + self.first
            mask = F.pad(mask, (0, 1), value=1)
        return self.to_photos(torch.stack(chosen, 1)).cpu()


def drop_captions(captions: list[str], rng: torch.Generator) -> list[str]:
    """The captions with a tenth of them, by ``rng``, left empty."""
    heard = torch.rand(len(captions), generator=rng) >= CAPTION_DROPOUT
    return [caption if kept else "" for caption, kept in zip(captions, heard.tolist(), strict=True)]


def _positions(mask: Tensor) -> Tensor:
    """Positions counted from the first real token."""
    return (mask.cumsum(1) - 1).clamp_min(0)


def load_translator(source: str) -> ImageTranslator:
    """The translator in float32. Raises CheckpointError."""
    place = locate(source, "translator")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, subfolder="tokenizer")
        vqvae = VQModel.from_pretrained(place, subfolder="vqvae", torch_dtype=torch.float32)
        transformer = GPT2LMHeadModel.from_pretrained(place, subfolder="transformer", dtype=torch.float32)
        return ImageTranslator(tokenizer, vqvae, transformer, tokenizer.model_max_length)
    except LOADING as error:
        raise unreachable("translator", source, error) from None
