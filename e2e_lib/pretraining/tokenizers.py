"""Two tokenizers trained on MiniChat's words, one like Llama's and one like CLIP's (section 2.4.2 needs two that disagree)."""

import json
from collections.abc import Iterable
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from e2e_lib.models.language import add_markers


def train_llama_like(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """BPE with "▁" for a space and bytes for what it has never seen, as Llama-2's; markers included."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.Metaspace("▁", prepend_scheme="first"),
        pre_tokenizers.Split(Regex(r"[^▁\w]"), "isolated")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False))
    # The byte tokens were handed to the trainer as special so that they get their places; as special they would be matched in text.
    state = Tokenizer(models.BPE(vocab=tokenizer.get_vocab(), merges=_merges(tokenizer), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    state.pre_tokenizer, state.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    state.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=state, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False)
    add_markers(fast)
    return fast


def train_clip_like(texts: Iterable[str], merges: int, limit: int) -> CLIPTokenizer:
    """Byte-level BPE in lower case with "</w>" at the end of a word, as CLIP's; ``limit`` is the longest caption in tokens."""
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "removed", invert=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", initial_alphabet=alphabet,
                                                             show_progress=False))
    return clip_tokenizer(_merges(tokenizer)[:merges], limit)


def clip_tokenizer(merges: list[Any], limit: int) -> CLIPTokenizer:
    """CLIP's tokenizer with these merges: its vocabulary is, as in CLIP's own file, every byte, every byte ending a word, the merges in order,
    and the two marks. ``limit`` is the longest caption in tokens."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), *(a + b for a, b in merges), start, end]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=cast(Any, merges), model_max_length=limit, pad_token=end)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]
