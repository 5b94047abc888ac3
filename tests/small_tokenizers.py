"""Small tokenizers of the four families people use, trained on a few sentences."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from e2e_lib.pretraining.tokenizers import train_clip_like, train_llama_like

TEXTS = ["a red car on the beach", "two small umbrellas in the snowy city at night", "three tents, a lantern and 42 birds", "the cat and the dog",
         "A Big Orange Balloon!", "it's a haha moment", "café déjà vu"] * 3


@cache
def tokenizer(family: str, length: int = 77):
    if family == "sentencepiece":
        return train_llama_like(TEXTS, vocabulary=330)
    if family == "clip":
        return train_clip_like(TEXTS, merges=60, limit=length)
    if family == "byte_level":  # GPT-2's and RoBERTa's
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
        backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False,
                                                               initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", model_max_length=length)
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # BERT's
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
                                   model_max_length=length)


FAMILIES = ("sentencepiece", "clip", "byte_level", "wordpiece")
