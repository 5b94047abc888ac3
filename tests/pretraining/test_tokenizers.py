"""Two tokenizers that disagree, of the hub's own classes."""

import pytest

from e2e_lib.data.collate import IMAGE_END, IMAGE_START, IMAGE_TOKEN
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.pretraining.tokenizers import clip_tokenizer, train_clip_like, train_llama_like

TURNS = [turn for i in range(100) for turn in make_chat("train", i, 3).dialogue.turns]
TEXTS = [turn.text + "\n" for turn in TURNS if turn.text]


@pytest.fixture(scope="module")
def llama():
    return train_llama_like(TEXTS, vocabulary=400)


def test_llama_like_tokenizer_restores_any_text(llama):
    for text in ("Here you go! A red kite.", "two\nlines", "naïve 🎈 çà", "<0x41> is no byte token here"):
        ids = llama(text, add_special_tokens=False)["input_ids"]
        assert llama.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(llama) == 400 + 4  # padding and three image markers
    assert all(llama.convert_tokens_to_ids(marker) >= 400 for marker in (IMAGE_START, IMAGE_END, IMAGE_TOKEN))


def test_clip_like_tokenizer_lowers_case_and_limits_length():
    clip = train_clip_like(TEXTS, merges=80, limit=8)
    assert clip.decode(clip("A Red KITE")["input_ids"], skip_special_tokens=True).strip() == "a red kite"
    ids = clip("a red kite " * 9, truncation=True)["input_ids"]
    assert len(ids) == 8 and (ids[0], ids[-1]) == (clip.bos_token_id, clip.eos_token_id)


def test_clip_vocabulary_is_laid_out_as_in_clips_own_file():
    clip = clip_tokenizer([("k", "i"), ("t", "e</w>"), ("ki", "te</w>")], limit=8)
    vocabulary = sorted(clip.get_vocab(), key=clip.get_vocab().get)
    assert vocabulary[:3] == ["!", '"', "#"] and vocabulary[256] == "!</w>"
    assert vocabulary[512:] == ["ki", "te</w>", "kite</w>", "<|startoftext|>", "<|endoftext|>"]


def test_the_two_tokenizers_split_words_differently(llama):
    clip = train_clip_like(TEXTS, merges=80, limit=32)
    words = {word for text in TEXTS for word in text.lower().split() if word.isalpha()}
    splits = [[[token.strip("▁").removesuffix("</w>") for token in tokenizer.tokenize(word)]
               for tokenizer in (llama, clip)] for word in words]
    assert sum(one != other for one, other in splits) > len(words) / 4
