"""The helpers of notebook 03 against loops over tokens and characters, autograd, closed forms, and the bridge."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from model_helpers import SENTENCES, pairs_of

from e2e_lib.bridge.reference import DenseMap
from e2e_lib.bridge.vocabulary import DYNAMIC, STATIC
from e2e_lib.data.collate import Collator
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import dense_maps, gradient_alignment
from e2e_lib.lessons import nb03_vocabulary as lesson
from e2e_lib.models.systems import build
from e2e_lib.report.plots import Html, Markdown
from e2e_lib.repro.randomness import generator

CHOICES = ("in", "at", "of")  # words that even the tests' small vocabulary has as one token each
MAPS = [*STATIC, *DYNAMIC]


@pytest.fixture(scope="module")
def model(config):
    return build(config).eval()


@pytest.fixture(scope="module")
def maps(sides):
    return dense_maps.maps_of(sides[0], sides[1], caption_words())


# ------------------------------------------------------------------------------------------------------------------- pairs

def test_what_the_text_encoder_cuts_off_is_no_part_of_the_caption(sides):
    text = SENTENCES[1]
    whole, cut = (dense_maps.pair(*sides[:2], text, length) for length in (sides[2], 10))
    assert lesson.words_drawn(whole) == set(re.findall(r"\S+", text)) and whole.source.token_mask.all()
    end = max(last for first, last in cut.target.spans.tolist())
    assert 0 < end < len(text)
    assert [keep for keep, (first, _) in zip(cut.source.token_mask.tolist(), cut.source.spans.tolist(), strict=True)] == [
        first < end for first, _ in cut.source.spans.tolist()]
    assert lesson.words_drawn(cut) == {text[m.start():m.end()] for m in re.finditer(r"\S+", text) if m.start() < end}


def test_the_strips_show_every_token_and_every_character(sides):
    pair = pairs_of(sides)[0]
    page = lesson.strips(pair, "n")
    rows = page.split("<tr>")[1:4]
    assert [row.count("border:") for row in (rows[0], rows[2].split("</table>")[0])] == [
        len(pair.source_tokens), int(pair.target.token_mask.sum())]
    assert rows[1].count("<td ") == len(pair.text) and "solid: looks like" in page
    for row in (rows[0], rows[2].split("</table>")[0]):
        assert sum(map(int, re.findall(r"colspan=\"?(\d+)", row))) <= len(pair.text)
        assert "".join(re.findall(r">([^<>]+)</td>", row)).replace(" ", "") == pair.text.replace(" ", "")


def test_real_tokenizers_that_cannot_be_loaded_are_named(tmp_path, sides):
    answer = lesson.real_strips([str(tmp_path / "none"), "pip:openai-clip"], "a cat", ("a", "b"), "n")
    assert isinstance(answer, Markdown) and str(tmp_path / "none") in answer and "pip install" in answer
    sides[0].save_pretrained(tmp_path / "one")
    assert isinstance(lesson.real_strips([str(tmp_path / "one")] * 2, "a cat", ("a", "b"), "n"), Html)


# ---------------------------------------------------------------------------------------------------------------- matrices

def words_of(pair, side, n):
    """The numbers of the words that token ``n`` of one side occurs in."""
    spans = [span for i, span in zip(side.input_ids.tolist(), side.spans.tolist(), strict=True) if i == side.input_ids[n]]
    return {pair.text[:last].rstrip().count(" ") for first, last in spans if pair.text[first:last].strip()}


def test_links_are_what_each_map_promises(sides, maps):
    for pair in pairs_of(sides)[1:]:
        links, mask = {name: lesson.linked(of(pair), pair) for name, of in maps.items()}, pair.target.token_mask
        assert torch.equal(links["span"], pair.shared) and torch.equal(links["static_piece"], pair.same_text)
        assert links["sentence"][:, mask].all() and not links["sentence"][:, ~mask].any()
        for t, j in itertools.product(range(len(pair.source_tokens)), range(len(pair.target_tokens))):
            # A token may occur in several words; it belongs to each.
            mine, theirs = words_of(pair, pair.source, t), words_of(pair, pair.target, j)
            assert links["word"][t, j] == (bool(mine & theirs) and bool(mask[j]))
        shared, count = int(pair.shared.sum()), len(pair.source_tokens) * int(mask.sum())
        assert lesson.count_links(links["sentence"], pair) == (shared, count - shared, 0)
        right, wrong, missing = lesson.count_links(links["static_piece"], pair)
        assert right + missing == shared and right + wrong == int(pair.same_text.sum())


# ------------------------------------------------------------------------------------------------------ corrupted captions

@pytest.fixture(scope="module")
def corrupted(model, examples):
    rows, store = examples
    collate = Collator(model.formatter, store)
    for example in rows:
        if example.response.photos and not example.response.text:
            batch = collate([example])
            if caption := lesson.corrupted(model, batch, CHOICES, 2, generator("slip")):
                return batch, caption
    raise AssertionError("no caption with such a word")


def test_a_corrupted_caption_has_one_other_word_and_the_same_noise(model, corrupted):
    batch, caption = corrupted
    right, wrong = (side.text.replace(",", " ").split() for side in caption.pairs)
    changed = [(x, y) for x, y in zip(right, wrong, strict=True) if x != y]
    assert caption.pairs[0].text == batch.captions[0] and len(changed) == 1 and set(changed[0]) <= set(CHOICES)
    assert [side.source_tokens[caption.position].lstrip("▁") for side in caption.pairs] == list(changed[0])
    rng = generator("slip")
    torch.randint(len(CHOICES) - 1, (), generator=rng)  # the choice of the wrong word
    losses, gradients = gradient_alignment.image_losses(model, batch, [side.text for side in caption.pairs], 2, rng)
    torch.testing.assert_close(caption.losses, losses)
    torch.testing.assert_close(caption.gradients, gradients.double())


def test_a_caption_without_such_a_word_is_not_corrupted(model, corrupted):
    batch, _ = corrupted
    assert lesson.corrupted(model, batch, ["zebra", "lion"], 2, generator(0)) is None
    assert lesson.corrupted(model, batch, [batch.captions[0].split()[-1], "hippopotamus"], 2, generator(0)) is None


def test_word_substitutions_are_the_losses_of_the_other_captions(model, corrupted, monkeypatch):
    batch, caption = corrupted

    def losses_of(model, batch, texts, noises, rng):  # any number that depends on the text
        return torch.tensor([sum(map(ord, text)) / 1000 for text in texts]), None
    monkeypatch.setattr(lesson, "image_losses", losses_of)
    wrong, logits = caption.pairs[1], gradient_alignment.caption_of(model, batch)[0]
    ids, special = wrong.source.input_ids, model.tokenizer.all_special_ids
    expected = []
    for position in range(len(ids)):
        ranked = [i for i in logits[position].argsort(descending=True).tolist() if i not in special and i != ids[position]][:2]
        texts = [model.tokenizer.decode([*ids[:position], i, *ids[position + 1:]]).strip() for i in ranked]
        p = logits[position, ranked].softmax(0)
        expected.append(losses_of(0, 0, [wrong.text], 2, 0)[0][0] - p @ losses_of(0, 0, texts, 2, 0)[0])
    lower = lesson.word_substitutions(model, batch, wrong, logits, 2, 2, generator("swaps"))
    torch.testing.assert_close(lower, torch.stack(expected))


def test_the_two_parts_of_eq_10s_number_add_up_to_it(corrupted, maps, table):
    _, caption = corrupted
    parts = lesson.parts_of_eq_10(caption, table)
    for row, side, gradient in zip(parts, caption.pairs, caption.gradients, strict=True):
        own = lesson.at_own_tokens(dense_maps.gradient_to_h(maps["sentence"](side), gradient, table), side)
        torch.testing.assert_close(own, (row.sum() / len(own)).expand(len(own)))


def corrupted_by_hand(right, wrong, position):
    """A corrupted caption whose embedding gradients (C, V1) are passed on unchanged by ``identity``."""
    pairs = tuple(SimpleNamespace(source=SimpleNamespace(input_ids=torch.tensor(ids))) for ids in ([0, 1, 2], [0, 3, 2]))
    return lesson.CorruptedCaption(pairs, position, torch.zeros(2), torch.tensor([right, wrong], dtype=torch.float64))


def identity(_):
    return [DenseMap(torch.eye(5, dtype=torch.float64), here, here) for here in torch.eye(3, dtype=torch.float64)]


def test_scores_of_gradients_made_by_hand():
    """Word 1 is right and 3 is wrong, at position 1; 1, 3 and 4 are what it could be."""
    none = [[0.0] * 5] * 3
    clear = [[0.0] * 5, [0, -2.0, 0, 1.0, 0], [0.0] * 5]  # the wrong word: less; the right one: more
    choices, table = torch.tensor([1, 3, 4]), torch.eye(5, dtype=torch.float64)

    def score(*wrong):
        return lesson.score([corrupted_by_hand(none, each, 1) for each in wrong], identity, table, choices)
    assert score(clear) == {"points": 1, "notices": 1, "names": 1}
    assert score([[1.0] * 5] * 3) == pytest.approx({"points": 1 / 3, "notices": 1, "names": 1 / 3})  # like Eq. 10
    assert score((-torch.tensor(clear)).tolist(), clear) == {"points": 0.5, "notices": 0.5, "names": 0.5}


def test_ties_are_shared():
    values = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert [lesson.share_of_best(values, i) for i in range(4)] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
