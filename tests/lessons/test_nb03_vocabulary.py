"""The helpers of notebook 03 against naive loops over tokens and characters, autograd, closed forms, and the bridge, which has no matrices."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.bridge.gumbel import gumbel_noise, softmax_with_temperature
from e2e_lib.bridge.vocabulary import normalized_tokens, static_word
from e2e_lib.data.collate import Collator
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import gradient_alignment as gradients
from e2e_lib.experiments.vocabularies import survey
from e2e_lib.lessons import nb03_vocabulary as lesson
from e2e_lib.models.systems import build
from e2e_lib.report.plots import Figure, Markdown
from e2e_lib.repro.randomness import generator

CHOICES = ("in", "at", "of")  # words that even the tests' small vocabulary has as one token each
SENTENCES = ["an orange umbrella standing in the garden", "here is a red hat, a red hat at the beach", "two kites"]


@pytest.fixture(scope="module")
def model(config):
    return build(config).eval()


@pytest.fixture(scope="module")
def sides(model):
    return model.tokenizer, model.generator.tokenizer, model.generator.text_encoder.config.max_position_embeddings


@pytest.fixture(scope="module")
def maps(sides):
    return lesson.maps_of(sides[0], sides[1], caption_words())


@pytest.fixture(scope="module")
def table(model):
    return model.generator.text_encoder.get_input_embeddings().weight.detach().double()


def made_pairs(sides):
    return [lesson.pair(sides[0], sides[1], text, sides[2]) for text in SENTENCES]


# ------------------------------------------------------------------------------------------------------------------- pairs

@pytest.mark.parametrize("text", SENTENCES)
def test_a_pair_says_who_shares_characters_and_who_looks_alike(sides, text):
    made = lesson.pair(*sides[:2], text, sides[2])
    assert len(made.target) == sides[2] and "".join(made.source).replace("▁", " ").strip() == text
    for t, j in itertools.product(range(len(made.source)), range(len(made.target))):
        (first, last), (start, end) = made.source_spans[t].tolist(), made.target_spans[j].tolist()
        assert made.touch[t, j] == bool(set(range(first, last)) & set(range(start, end)))
        same = made.source[t].lstrip("▁") == made.target[j].removesuffix("</w>")
        assert made.alike[t, j] == (same and bool(made.valid[j]))
    # Between them, the tokens of either side cover every character but the blanks, each once.
    for spans in (made.source_spans, made.target_spans[made.valid]):
        assert sorted(c for first, last in spans.tolist() for c in range(first, last) if text[c] != " ") == [c for c, x in enumerate(text) if x != " "]


def test_the_strips_show_every_token_and_every_character(sides):
    made = made_pairs(sides)[0]
    ax = lesson.strips_figure(made, "n").axes[0]
    assert len(ax.patches) == len(made.source) + int(made.valid.sum())
    assert len(ax.texts) == len(ax.patches) + len(made.text) + 2
    widths = [patch.get_width() + 0.32 for patch in ax.patches]
    assert widths == pytest.approx([last - first for spans in (made.source_spans, made.target_spans[made.valid]) for first, last in spans.tolist()])


def test_real_tokenizers_that_cannot_be_had_are_named(tmp_path, sides):
    said = lesson.real_strips([str(tmp_path / "none"), "pip:openai-clip"], "a cat", ("a", "b"), "n")
    assert isinstance(said, Markdown) and str(tmp_path / "none") in said and "pip install" in said
    sides[0].save_pretrained(tmp_path / "one")
    assert isinstance(lesson.real_strips([str(tmp_path / "one")] * 2, "a cat", ("a", "b"), "n"), Figure)


def test_surveys_are_this_one_and_every_file(tmp_path, sides):
    live = survey(*sides[:2], SENTENCES)
    other = json.loads(json.dumps(live))
    other["static"]["lost"], other["captions"] = 0.4321, 77
    (tmp_path / "one_two.json").write_text(json.dumps(other))
    found = lesson.surveys({"here": live}, tmp_path)
    assert list(found) == ["here", "one → two"]
    shown = lesson.disagreement_table(found)
    assert f"{live['static']['lost']:.1%}" in shown and "43.2%" in shown and "| 77 |" in shown
    assert f"{live['density']['word']:.1e}" in lesson.density_table(found) and f"{len(sides[0]) * len(sides[1]):,}" in lesson.density_table(found)


# ---------------------------------------------------------------------------------------------------------------- matrices

@pytest.mark.parametrize("sentence", range(len(SENTENCES)))
@pytest.mark.parametrize("mapping", ["static_piece", "static_word", "sentence", "word", "span"])
def test_what_the_matrices_let_be_heard_is_the_bridges_gradient(sides, maps, table, mapping, sentence):
    made = made_pairs(sides)[sentence]
    z = torch.randn((1, len(made.source), len(sides[0])), generator=generator("z"), dtype=torch.float64).requires_grad_()
    noise, pull = gumbel_noise(z.shape, generator("g")), torch.randn((sides[2], table.shape[1]), generator=generator("p"), dtype=torch.float64)
    bridge = CaptionBridge(*sides[:2], mapping, words=caption_words(), length=sides[2])
    out = bridge([made.text], z, torch.nn.Embedding.from_pretrained(table), 0.7, noise)
    ours, = torch.autograd.grad((out.embeddings[0] * pull).sum(), z)
    heard = lesson.heard(maps[mapping](made), pull, table)
    written, = torch.autograd.grad((softmax_with_temperature(z, 0.7, noise)[0] * heard).sum(), z)
    torch.testing.assert_close(ours, written, rtol=1e-9, atol=1e-12)
    assert heard.shape == z.shape[1:] and heard.abs().max() > 0


@pytest.mark.parametrize("mapping", ["static_piece", "static_word", "sentence", "word", "span"])
def test_heard_is_the_slope_of_eq_9_and_11(sides, maps, table, mapping):
    made = made_pairs(sides)[1]
    found = maps[mapping](made)
    h = torch.rand((len(made.source), len(sides[0])), generator=generator("h"), dtype=torch.float64).requires_grad_()
    pull = torch.randn((sides[2], table.shape[1]), generator=generator("p"), dtype=torch.float64)
    added = sum(place[:, None] * (pool @ (h @ matrix @ table)) for matrix, pool, place in found)  # Eq. 9, 11: (L, D2)
    slope, = torch.autograd.grad((added * pull).sum(), h)
    torch.testing.assert_close(lesson.heard(found, pull, table), slope)


def test_a_static_matrix_counts_the_words_that_two_tokens_share(sides):
    listed = ["hats", "hat", "tents", "an"]
    found = lesson.static_matrix(static_word(*sides[:2], listed), len(sides[0]), len(sides[1]))
    expected = torch.zeros_like(found)
    for word in listed:
        one, other = (set(tokenizer(word, add_special_tokens=False)["input_ids"]) for tokenizer in sides[:2])
        for i, j in itertools.product(one, other):
            expected[i, j] += 1
    assert torch.equal(found, expected)


def test_links_are_what_each_map_promises(sides, maps):
    for made in made_pairs(sides)[1:]:
        links = {name: lesson.linked(of(made), made) for name, of in maps.items()}
        assert torch.equal(links["span"], made.touch) and torch.equal(links["static_piece"], made.alike)
        assert links["sentence"][:, made.valid].all() and not links["sentence"][:, ~made.valid].any()
        for t, j in itertools.product(range(len(made.source)), range(len(made.target))):
            # A token may be said in several words; it belongs to each.
            mine, theirs = ({made.text[:first].count(" ") for i, (first, last) in zip(ids.tolist(), spans.tolist(), strict=True)
                             if i == ids[at] and made.text[first:last].strip()}
                            for ids, spans, at in ((made.source_ids, made.source_spans, t), (made.target_ids, made.target_spans, j)))
            assert links["word"][t, j] == (bool(mine & theirs) and bool(made.valid[j]))
        right, wrong, absent = lesson.links(links["sentence"], made)
        assert (right, wrong, absent) == (int(made.touch.sum()), len(made.source) * int(made.valid.sum()) - int(made.touch.sum()), 0)
        right, wrong, absent = lesson.links(links["static_piece"], made)
        assert right + absent == int(made.touch.sum()) and right + wrong == int(made.alike.sum())


def test_as_many_numbers_get_through_as_there_are_terms(sides, maps, table):
    made = made_pairs(sides)[0]
    count = {name: lesson.independent(of(made), table, generator("rank"), pulls=40) for name, of in maps.items()}
    assert count["sentence"] == 1 and count["word"] == len(set(made.text.split()))
    assert count["span"] == len({tuple(column) for column in made.touch.T.tolist() if any(column)})
    assert count["static_piece"] == min(40, table.shape[1])  # all that fits


def test_the_picture_of_the_matrices_says_what_is_right_wrong_and_missing(sides, maps):
    made = made_pairs(sides)[0]
    found = {name: lesson.linked(of(made), made) for name, of in maps.items()}
    figure = lesson.matrices_figure(made, found, "n")
    for ax, (name, shown) in zip(figure.axes, found.items(), strict=False):
        drawn = ax.images[0].get_array()
        right, wrong, absent = lesson.links(shown, made)
        assert [(drawn == kind).sum() for kind in (1, 2, 3)] == [right, wrong, absent]
        assert f"{right + wrong} links, {wrong} wrong" in ax.get_title("left") and lesson.MAPS[name][0] in ax.get_title("left")


# --------------------------------------------------------------------------------------------------------- what the loss says

@pytest.fixture(scope="module")
def slip(model, config, examples):
    rows, store = examples
    sharing = [e for e in rows if e.response.photo and not e.response.text]
    collate = Collator(model.formatter, store, config.data.photo_size)
    for example in sharing:
        batch = collate([example])
        if made := lesson.slip_of(model, batch, CHOICES, 2, generator("slip")):
            return batch, made
    raise AssertionError("no caption with such a word")


def test_a_slip_changes_one_word_and_keeps_the_noise(model, slip):
    batch, made = slip
    right, wrong = (side.text.replace(",", " ").split() for side in made.pairs)
    changed = [(x, y) for x, y in zip(right, wrong, strict=True) if x != y]
    assert made.pairs[0].text == batch.captions[0] and len(changed) == 1 and set(changed[0]) <= set(CHOICES)
    assert [side.source[made.at].lstrip("▁") for side in made.pairs] == list(changed[0])
    rng = generator("slip")
    torch.randint(len(CHOICES) - 1, (), generator=rng)  # the choice of the wrong word
    losses, pulls = gradients.image_losses(model, batch, [side.text for side in made.pairs], 2, rng)
    torch.testing.assert_close(made.losses, losses)
    torch.testing.assert_close(made.pulls, pulls.double())


def test_a_caption_without_such_a_word_has_no_slip(model, slip):
    batch, _ = slip
    assert lesson.slip_of(model, batch, ["zebra", "lion"], 2, generator(0)) is None
    assert lesson.slip_of(model, batch, [batch.captions[0].split()[-1], "hippopotamus"], 2, generator(0)) is None  # not one token


def test_swaps_are_the_losses_of_the_other_captions(model, slip, monkeypatch):
    batch, made = slip

    def losses_of(model, batch, texts, draws, rng):  # any number that depends on the text
        return torch.tensor([sum(map(ord, text)) / 1000 for text in texts]), None
    monkeypatch.setattr(lesson, "image_losses", losses_of)
    said, logits = made.pairs[1], gradients.caption_of(model, batch)[0]
    assert logits.shape == (len(said.source), len(model.tokenizer))
    found = lesson.swaps(model, batch, said, logits, 2, 2, generator("swaps"))
    likely = []
    for position in range(len(said.source)):
        ranked = [i for i in logits[position].argsort(descending=True).tolist()
                  if i not in model.tokenizer.all_special_ids and i != said.source_ids[position]][:2]
        likely.append((ranked, logits[position, ranked].softmax(0)))
    expected = []
    for position, (ranked, p) in enumerate(likely):
        texts = [model.tokenizer.decode([*said.source_ids[:position], i, *said.source_ids[position + 1:]]).strip() for i in ranked]
        expected.append(losses_of(model, batch, [said.text], 2, None)[0][0] - p @ losses_of(model, batch, texts, 2, None)[0])
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_two_parts_of_eq_10s_number_add_up_to_it(slip, maps, table):
    _, made = slip
    parts = lesson.divided(made, table)
    for row, side, pull in zip(parts, made.pairs, made.pulls, strict=True):
        heard = lesson.own(lesson.heard(maps["sentence"](side), pull, table), side)
        torch.testing.assert_close(heard, (row.sum() / len(side.source)).expand(len(side.source)))


def fake_slip(right, wrong, at):
    """A slip whose "pulls" are simply what the map ``said`` is to let be heard, (C, V1) each."""
    pairs = tuple(SimpleNamespace(source_ids=torch.tensor(ids)) for ids in ([0, 1, 2], [0, 3, 2]))
    return lesson.Slip(pairs, at, torch.zeros(2), torch.tensor([right, wrong], dtype=torch.float64))


def said(_):
    return [(torch.eye(5, dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64), torch.tensor([1.0, 0, 0], dtype=torch.float64)),
            (torch.eye(5, dtype=torch.float64), torch.tensor([0, 1.0, 0], dtype=torch.float64), torch.tensor([0, 1.0, 0], dtype=torch.float64)),
            (torch.eye(5, dtype=torch.float64), torch.tensor([0, 0, 1.0], dtype=torch.float64), torch.tensor([0, 0, 1.0], dtype=torch.float64))]


def test_scores_of_gradients_made_by_hand():
    """Word 1 is right and 3 is wrong, at position 1; 1, 3 and 4 are what it could be."""
    quiet = [[0.0] * 5] * 3
    loud = [[0.0] * 5, [0, -2.0, 0, 1.0, 0], [0.0] * 5]  # the wrong word: less; the right one: more
    choices, table = torch.tensor([1, 3, 4]), torch.eye(5, dtype=torch.float64)
    assert lesson.score([fake_slip(quiet, loud, 1)], said, table, choices) == {"points": 1, "notices": 1, "names": 1}
    alike = [[1.0] * 5] * 3  # like Eq. 10: all the same
    assert lesson.score([fake_slip(quiet, alike, 1)], said, table, choices) == pytest.approx({"points": 1 / 3, "notices": 1, "names": 1 / 3})
    opposite = (-torch.tensor(loud)).tolist()
    found = lesson.score([fake_slip(quiet, opposite, 1), fake_slip(quiet, loud, 1)], said, table, choices)
    assert found == {"points": 0.5, "notices": 0.5, "names": 0.5}


def test_ties_are_shared():
    values = torch.tensor([1.0, 1.0, 0.0, 1.0])
    assert [lesson.share_of_best(values, i) for i in range(4)] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


def test_figures_of_what_is_heard(slip, maps, table):
    batch, made = slip
    side = made.pairs[1]
    heard = {name: lesson.heard(maps[name](side), made.pulls[1], table) for name in ("sentence", "word", "span")}
    figure = lesson.positions_figure(side, heard, "n")
    for ax, gradient in zip(figure.axes, heard.values(), strict=False):
        shown = gradient[:, side.source_ids]
        np.testing.assert_allclose(ax.images[0].get_array(), shown / shown.abs().max())
    rows = {name: lesson.own(gradient, side) for name, gradient in heard.items()}
    figure = lesson.heard_figure(batch.target_photos[0].permute(1, 2, 0), side, rows, "title", "n", made.at)
    drawn = np.asarray(figure.axes[1].images[0].get_array())
    assert np.abs(drawn).max(1) == pytest.approx([1, 1, 1]) and len(figure.axes[1].texts) == 3 * len(side.source)
    scores = {"span": {"points": 0.5, "notices": 1.0, "names": 0.25}, "mine": {"points": 0.0, "notices": 0.5, "names": 1.0}}
    figure = lesson.slips_figure(scores, {"points": 0.1, "notices": 0.5, "names": 0.125}, 4, "n")
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == [0.5, 1.0, 0.25, 0.0, 0.5, 1.0]
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {"span", "mine", "guessing"}


def test_look_alikes_are_the_vocabularies_own(sides):
    """``normalized_tokens`` decides what looks alike; the pair must ask each side's own."""
    made = made_pairs(sides)[0]
    looks = [normalized_tokens(tokenizer) for tokenizer in sides[:2]]
    for t, j in itertools.product(range(len(made.source)), range(len(made.target))):
        one, other = looks[0][made.source_ids[t]], looks[1][made.target_ids[j]]
        assert made.alike[t, j] == (one == other != "" and bool(made.valid[j]))
