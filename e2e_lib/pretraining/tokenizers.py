"""Two tokenizers trained on MiniChat's words, one like Llama's, one like CLIP's (section 2.4.2)."""

import json
from collections.abc import Iterable
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from e2e_lib.models.language import add_markers

CLIP_START, CLIP_END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_llama_like(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """BPE of ``vocabulary`` tokens as Llama-2's, "▁" for a space and bytes for unknown characters."""
    settings: dict[str, Any] = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    trained = Tokenizer(models.BPE(**settings))
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.Metaspace("▁", prepend_scheme="first"),
        pre_tokenizers.Split(Regex(r"[^▁\w]"), "isolated")])
    trained.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    reserved = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=reserved,
                                                           show_progress=False))
    # The trainer got the bytes as special tokens to reserve their ids; as such they would be matched in text.
    tokenizer = Tokenizer(models.BPE(vocab=trained.get_vocab(), merges=_merges(trained), **settings))
    tokenizer.pre_tokenizer, tokenizer.decoder = trained.pre_tokenizer, trained.decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>",
                                   eos_token="</s>", clean_up_tokenization_spaces=False)
    add_markers(fast)
    return fast


def train_clip_like(texts: Iterable[str], merges: int, limit: int) -> CLIPTokenizer:
    """Byte-level BPE in lower case with "</w>" at the end of a word, as CLIP's: see ``clip_tokenizer``."""
    tokenizer = Tokenizer(models.BPE(unk_token=CLIP_END, continuing_subword_prefix="",
                                     end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=10_000, end_of_word_suffix=WORD_END, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return clip_tokenizer(_merges(tokenizer)[:merges], limit)


def clip_tokenizer(merges: list[Any], limit: int) -> CLIPTokenizer:
    """CLIP's tokenizer with these merges; ``limit`` is the longest caption in tokens.

    The vocabulary is, as in CLIP's own file, every byte, every byte that ends a word, the merges in order,
    and the start and end tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (byte + WORD_END for byte in alphabet)
    tokens = [*alphabet, *words, *map("".join, merges), CLIP_START, CLIP_END]
    ids = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=ids, merges=cast(Any, merges), model_max_length=limit, pad_token=CLIP_END)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
