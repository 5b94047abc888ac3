"""Which target tokens say what a source token says: the rule of the aligned map, written out text by text."""

from functools import cache

import torch


def without_marks(tokenizer, i):
    """What a token writes, without blanks and the marks of where words begin and end."""
    text = "" if i in tokenizer.all_special_ids else tokenizer.decode([i])
    return "" if "\ufffd" in text else text.removeprefix("##").removesuffix("</w>").strip()


def after_a_word(tokenizer, text):
    before, both = (tokenizer(words, add_special_tokens=False, return_offsets_mapping=True) for words in ("a", f"a {text}"))
    assert both["input_ids"][0] == before["input_ids"][0]
    return [i for i, (_, end) in zip(both["input_ids"], both["offset_mapping"], strict=True) if end > 2]


@cache
def spelled_by_hand(source, target):
    """Eq. 9's M of the aligned map as a matrix (V1, V2), whose rows sum to 1, or to 0 for tokens that write nothing."""
    sizes = [1 + max(tokenizer.get_vocab().values()) for tokenizer in (source, target)]
    matrix = torch.zeros(sizes, dtype=torch.float64)
    for j in range(sizes[1]):
        word = without_marks(target, j)
        if word and after_a_word(target, word) == [j]:
            for i in set(after_a_word(source, word)) - set(source.all_special_ids):
                matrix[i, j] = 1 / (j + 1)**2
    for i in range(sizes[0]):
        if not matrix[i].any():
            for j in after_a_word(target, without_marks(source, i)):
                matrix[i, j] += 1
        matrix[i] /= max(matrix[i].sum(), 1e-30)
    return matrix
