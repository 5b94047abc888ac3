"""The helpers of notebook 05 against loops over tokens and photos, closed forms, and what the systems themselves do."""

import copy
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.config import SYSTEMS
from e2e_lib.config import replace as changed
from e2e_lib.data.collate import Collator
from e2e_lib.data.dialogue import Turn
from e2e_lib.data.examples import Example, examples_of, subsample
from e2e_lib.data.minichat import questions as questions
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.minichat.smalltalk import QUESTIONS
from e2e_lib.data.photos import to_floats
from e2e_lib.lessons import nb05_drawing as drawing
from e2e_lib.lessons import nb05_questions as asking
from e2e_lib.lessons import nb05_reading as reading
from e2e_lib.models.systems import build
from e2e_lib.pretraining import image as pretrained
from e2e_lib.report import comparison_figures as compared
from e2e_lib.report import plots as show
from e2e_lib.report.plots import Figure
from e2e_lib.repro import run_files
from e2e_lib.repro.randomness import generator


@pytest.fixture(scope="module")
def systems(config):
    """All three of the saved tiny parts, with weights large enough that what they say depends on what they read. Not to be changed."""
    made = {}
    for name in show.STYLES:
        made[name] = build(changed(config, "model.system", name)).eval()
        with torch.no_grad():
            for part in (made[name].language, getattr(made[name].generator, "transformer", None)):
                for parameter in part.parameters() if part is not None else ():
                    if parameter.ndim > 1:
                        parameter.mul_(6)
    return made


@pytest.fixture(scope="module")
def scenes(corpus):
    return read_scenes(corpus / "scenes.jsonl")


@pytest.fixture(scope="module")
def asked(corpus, scenes, examples):
    """A training example of the tiny corpus in which a photo is in the context, as if its time of day were asked for."""
    rows, _ = examples
    example = next(e for e in rows if e.context[-1].photo)
    photo_id = example.context[-1].photo.photo_id
    context = (*example.context, Turn(example.response.speaker, "How nice!"), Turn(1 - example.response.speaker, "When was that?"))
    question = questions.Question(photo_id, "time", scenes[photo_id].time)
    return Example(example.dialogue_id, len(context), context, Turn(example.response.speaker, "At night.")), question


@pytest.fixture
def photos(examples, scenes):
    return torch.stack([examples[1].tensor(i, 64) for i in list(scenes)[:6]])


@pytest.fixture
def translator(systems):
    return systems["divter"].generator


def texts(figure):
    """All that is written in a figure."""
    return [t.get_text() for t in figure.texts] + [t.get_text() for ax in figure.axes for t in (ax.title, *ax.texts, ax.xaxis.label, ax.yaxis.label)]


@pytest.mark.parametrize(("count", "found"), [(3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, list(range(10))), (99, list(range(10)))])
def test_evenly_takes_every_kth(count, found):
    assert subsample(range(10), count) == found and subsample([], count) == []


def test_every_system_has_a_name_and_a_colour_of_its_own():
    assert tuple(show.STYLES) == SYSTEMS and len(set(show.STYLES.values())) == 3
    assert {name: set(values) for name, values in asking.DETAILS.items()} == {name: set(values) for name, values in questions._SAID.items()}


# ------------------------------------------------------------------------------------------------------------------ parts

def test_jobs_hold_every_weight_once(systems):
    for model in systems.values():
        found = [p for part in reading.jobs(model).values() for p in part.parameters()]
        assert len({id(p) for p in found}) == len(found) and {id(p) for p in found} == {id(p) for p in model.parameters()}


def test_the_table_of_parts_counts_what_learns(systems):
    table = reading.parts_table(systems)
    for model in systems.values():
        for part in model.trained_parts().values():
            count = sum(p.numel() for p in part.parameters())
            assert f"{count:,} learn" in table or f"{count:,} weights, all learn" in table
    assert table.count("all frozen") == 2 and table.count("`Blip2ForConditionalGeneration`") == 2 and "`VQModel` + `GPT2LMHeadModel`" in table


def test_source_is_shown_without_its_indentation(systems):
    shown = reading.source_of(type(systems["pipeline"]).read, subsample)
    assert shown.startswith("def read(self") and "\ndef subsample(" in shown and not shown.endswith("\n")


# ---------------------------------------------------------------------------------------------------------------- reading

def test_the_tokens_shown_are_those_that_are_read(systems, examples):
    rows, store = examples
    seeing = [e for e in rows if sum(bool(turn.photo) for turn in e.context) > 1][:2] + [e for e in rows if not any(t.photo for t in e.context)][:1]
    for name, model in systems.items():
        for example in seeing:
            pieces, flags = reading.tokens_read(model, example, store, 64)
            ids = Collator(model.formatter, store, 64, answering=True)([example]).input_ids[0].tolist()
            assert len(pieces) == len(ids) and "⏎" in pieces
            assert all(model.tokenizer.decode([i]) == "\n" if piece == "⏎" else model.tokenizer.convert_tokens_to_ids(piece) == i
                       for piece, i in zip(pieces, ids, strict=True))
            _, kept = model.formatter.context(example.context, example.response.speaker)
            shared = [turn.photo for turn in kept if turn.photo]
            marked = [piece for piece, flag in zip(pieces, flags, strict=True) if flag]
            if name == "end_to_end":
                assert marked == ["<image>"] * model.formatter.queries * len(shared)
            else:
                said = reading.retold(model, [photo.photo_id for photo in shared], store, 64)
                assert marked == [model.tokenizer.convert_ids_to_tokens(i) for photo in shared for i in model.formatter.text(said[photo.photo_id])]
            assert "[IMG]" not in marked and "[/IMG]" not in marked


def test_systems_that_read_the_same_are_shown_once(systems, examples):
    rows, store = examples
    html = reading.reads_html(systems, next(e for e in rows if e.context[-1].photo), store, 64)
    assert html.count("<p ") == 2 and "Pipeline and Divter: " in html and "End-to-end: 4 of them for photos" in html and "&lt;image&gt;" in html


def test_gold_captions_come_by_photo_in_order(examples):
    rows, _ = examples
    found = reading.captions_of(rows[:20])
    shown = [turn.photo for e in rows[:20] for turn in (*e.context, e.response) if turn.photo]
    assert list(found) == list(dict.fromkeys(photo.photo_id for photo in shown)) and all(found[p.photo_id] == p.caption for p in shown)


def test_photos_are_retold_one_by_one(systems, examples, scenes):
    ids, store = list(scenes)[:3], examples[1]
    found = reading.retold(systems["pipeline"], [*ids, ids[0]], store, 64)
    assert list(found) == ids and reading.retold(systems["pipeline"], [], store, 64) == {}
    assert [found[i] for i in ids] == [systems["pipeline"].captioner.generate_captions(store.tensor(i, 64)[None])[0] for i in ids]


def test_another_captioner_changes_only_what_is_read_of_photos(systems, asked, examples):
    example, store = replace(asked[0], context=asked[0].context[-3:]), examples[1]  # short enough that no turn is dropped
    other = reading.with_captioner(systems["pipeline"], lambda photos: ["a blue hat at the beach"] * len(photos))
    pieces, flags = reading.tokens_read(other, example, store, 64)
    before, old = reading.tokens_read(systems["pipeline"], example, store, 64)
    assert other.tokenizer.convert_tokens_to_string([p for p, flag in zip(pieces, flags, strict=True) if flag]) == "a blue hat at the beach"
    assert [p for p, flag in zip(pieces, flags, strict=True) if not flag] == [p for p, flag in zip(before, old, strict=True) if not flag]
    assert other.language is systems["pipeline"].language and other.generator is systems["pipeline"].generator


def test_what_captions_tell_is_counted():
    scenes = {"a": Scene("car", "red", "beach", 1, "big", "night"), "b": Scene("hat", "blue", "city", 3), "c": Scene("mug", "pink", "snow", 1, "small")}
    captions = {"a": "a big red car at the beach", "b": "three blue hats, in the forest", "c": "a green mug in the snow in the sunshine"}
    assert reading.told_shares(scenes, captions) == {
        "thing": (3, 3), "colour": (2, 3), "place": (2, 3), "number": (1, 1), "size": (1, 2), "time": (1, 3)}
    table = reading.told_table(scenes, captions, dict.fromkeys(captions, "nothing"))
    assert "| size | 2 | 50% | 0% |" in table and "| number | 1 | 100% | 0% |" in table
    assert "| number | 0 | – | – |" in reading.told_table(scenes, {"a": "x"}, {"a": "x"})


def test_cards_stand_beside_their_photos(scenes, examples):
    ids, store = list(scenes)[:3], examples[1]
    said = dict.fromkeys(ids, "a thing")
    cards = reading.caption_cards(ids, scenes, said, said, store)
    assert all(f"time ({scenes[i].time})" in card.lines[2][0] for i, card in zip(ids, cards, strict=True))
    figure = reading.cards_figure(cards, "note")
    assert len(figure.axes) == 3 and "gold: a thing" in texts(figure)
    everything = questions.omitted_attributes(scenes[ids[0]], "")
    told = {ids[0]: " ".join(["night in the sunshine at sunset three two", *(str(getattr(scenes[ids[0]], name)) for name in everything)])}
    assert reading.caption_cards(ids[:1], scenes, told, told, store)[0].lines[2][0].endswith("nothing, it tells all")
    assert "nothing to show" in texts(reading.cards_figure([], "note"))


# -------------------------------------------------------------------------------------------------------------- read-outs

def test_a_linear_read_out_finds_what_is_linear_and_nothing_else():
    rng = generator("probe")
    truth, other = torch.randint(3, (600,), generator=rng), torch.randint(3, (600,), generator=rng)
    centres = torch.tensor([[0.0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 5.0, 0]])  # the last feature never changes
    seen = centres[truth] + 0.1 * torch.randn((600, 4), generator=rng) * torch.tensor([1.0, 1, 1, 0])
    assert (reading.probe(seen[:400], truth[:400], seen[400:]) == truth[400:]).all()
    assert (reading.probe(1000 * seen[:400] + 7, truth[:400], 1000 * seen[400:] + 7) == truth[400:]).all()  # whatever the scale
    assert 0.2 < (reading.probe(seen[:400], other[:400], seen[400:]) == other[400:]).float().mean() < 0.47


def test_what_can_be_read_is_measured_attribute_by_attribute():
    rng = np.random.default_rng(0)
    scenes = [Scene(*(rng.choice(ATTRIBUTES[name]) for name in ("thing", "colour", "place")), number := int(rng.integers(1, 4)),
                    str(rng.choice(["big", "small"])) if number == 1 else "small", str(rng.choice(["day", "night"]))) for _ in range(500)]
    known = torch.tensor([[float(label == k) for label, values in zip(s.labels, ATTRIBUTES.values(), strict=True) for k in range(len(values))]
                          for s in scenes])
    nothing = torch.zeros(500, 2)
    found = reading.readable({"all": (known[:300], known[300:]), "none": (nothing[:300], nothing[300:])}, scenes[:300], scenes[300:])
    several, single = ([s for s in scenes[300:] if (s.number > 1) == more] for more in (True, False))
    assert list(found) == list(ATTRIBUTES) and all(row["all"] == 1 for row in found.values())
    assert found["number"]["n"] == len(several) and found["size"]["n"] == len(single) and found["time"]["n"] == 200
    for name, of in (("number", several), ("size", single), ("time", scenes[300:])):
        usual = Counter(getattr(s, name) for s in scenes[:300] if s in scenes and (name == "time" or (s.number > 1) == (name == "number"))).most_common(1)
        assert found[name]["none"] == found[name]["most frequent"] == sum(getattr(s, name) == usual[0][0] for s in of) / len(of)
    assert "| number |" in reading.readable_table(found) and "read from all" in reading.readable_table(found)
    assert reading.readable({}, scenes[:1], scenes[:2]) == {} and reading.readable_table({})  # too little to learn from


def test_features_are_vectors_or_counts_of_words(systems, photos):
    sees = systems["end_to_end"].perceptron
    first, second = reading.reading_features(systems["end_to_end"], photos[:4], photos[4:])
    assert torch.allclose(second[1], sees(to_floats(photos[5:])).flatten(), atol=1e-5) and len(first) == 4
    told = ["a red car, a red hat", "some hats"]
    words = reading.with_captioner(systems["pipeline"], lambda some: told[:len(some)])
    first, second = reading.reading_features(words, photos[:2], photos[:1])
    assert first.tolist() == [[2, 1, 1, 0, 2, 0], [0, 0, 0, 1, 0, 1]] and second.tolist() == [[2, 1, 1, 0, 2, 0]]  # a, car, hat, hats, red, some


# ---------------------------------------------------------------------------------------------- questions, and twins of photos

def test_every_question_of_the_test_split_has_its_answers():
    asked = 0
    for index in range(250):
        chat = make_chat("test", index, 0)
        for example, question in asking.questions_in(examples_of(chat.dialogue), chat.scenes):
            found = asking.phrasings(example.context[-1].text)
            assert set(found) == set(asking.DETAILS[question.attribute])
            assert any(example.response.text.startswith(text) or text in example.response.text for text in found[question.truth])
            asked += 1
    assert asked > 60 and asking.phrasings("And where is that again?") == {} == asking.phrasings("")
    for pairs in QUESTIONS.values():
        for question, answers in pairs:
            assert sorted(map(len, asking.phrasings(f"Oh! {question.format(noun='cats')}").values())) == sorted(map(len, answers.values()))


@torch.no_grad()
def test_beliefs_are_the_likelihoods_of_the_answers_word_by_word(systems, asked, examples):
    (example, _), store = asked, examples[1]
    answers = {"day": ("In the middle of the day.",), "night": ("At night.", "Late at night, I think.")}
    for model in systems.values():
        weights = {}
        for value, said in answers.items():
            weights[value] = 0.0
            for text in said:
                batch = Collator(model.formatter, store, 64, answering=True)([example])
                seen, words = model.read(batch), [*model.formatter.text(text), model.tokenizer.eos_token_id]
                log_p = 0.0
                for word in words:
                    log_p += F.log_softmax(model.language(inputs_embeds=seen).logits[0, -1].double(), -1)[word].item()
                    seen = torch.cat([seen, model.language.get_input_embeddings()(torch.tensor([[word]]))], 1)
                weights[value] += math.exp(log_p)
        found = asking.beliefs(model, example, store, answers, 64)
        assert sum(found.values()) == pytest.approx(1) and list(found) == ["day", "night"]
        assert found["day"] == pytest.approx(weights["day"] / sum(weights.values()), rel=1e-3)


def test_twins_differ_in_what_is_asked_alone(asked, scenes, examples, config):
    question, store = asked[1], examples[1]
    found = asking.twins(question, scenes[question.photo_id], config.data.seed, 64)
    assert list(found) == ["day", "evening", "night"]
    assert np.array_equal(np.asarray(found[question.truth]), np.asarray(store.load(question.photo_id)))
    assert len({image.tobytes() for image in found.values()}) == 3
    swapped = asking.Swapped(store, question.photo_id, found["night"])
    other = next(photo_id for photo_id in scenes if photo_id != question.photo_id)
    assert np.array_equal(swapped.tensor(question.photo_id, 64).permute(1, 2, 0).numpy(), np.asarray(found["night"]))
    assert torch.equal(swapped.tensor(other, 64), store.tensor(other, 64))


def test_a_swap_that_no_word_tells_changes_nothing(systems, asked, scenes, examples, config):
    store, tell = examples[1], lambda photos: ["a red car at the beach"] * len(photos)
    models = {**systems, **{name: reading.with_captioner(systems[name], tell) for name in ("pipeline", "divter")}}
    found = asking.swap(models, asked, scenes, store, config.data.seed, 64)
    assert set(found.captions.values()) == {"a red car at the beach"} and found.asked == "When was that?" and found.attribute == "time"
    assert asking.moved(found, "pipeline") == asking.moved(found, "divter") == 0 < asking.moved(found, "end_to_end")
    true = asked[1].truth
    assert found.found["end_to_end"][true] == asking.beliefs(systems["end_to_end"], asked[0], store, asking.phrasings("When was that?"), 64)
    for name in ("pipeline", "divter"):
        assert asking.followed([found], name) == (1, 3)  # one answer is the likeliest whatever is shown
    figure = asking.swap_figure(found, "note")
    assert len(figure.axes) == 12 and "“a red car at the beach”" in [text.replace("\n", " ") for text in texts(figure)]
    told = reading.with_captioner(systems["pipeline"], lambda photos: ["dark" if photo.float().mean() < 110 else "bright" for photo in photos])
    assert asking.moved(asking.swap({"pipeline": told}, asked, scenes, store, config.data.seed, 64), "pipeline") > 0


def test_following_is_counted_by_the_likeliest_answer():
    beliefs = {2: {2: 0.6, 3: 0.4}, 3: {2: 0.5 - 1e-6, 3: 0.5 + 1e-6}}
    one = asking.Swap("number", "How many?", {}, {}, {"pipeline": beliefs, "divter": {2: {2: 0.1, 3: 0.9}, 3: {2: 0.3, 3: 0.7}}})
    assert asking.followed([one, one], "pipeline") == (4, 4) and asking.followed([one], "divter") == (1, 2) and asking.followed([], "divter") == (0, 0)
    assert asking.moved(one, "pipeline") == pytest.approx(0.1, abs=1e-5) and asking.moved(one, "divter") == pytest.approx(0.2)


# ------------------------------------------------------------------------------------------------------- answers and scores

def run_of(system, seed, **metrics):
    return {"system": system, "seed": seed, "metrics": {"details_n": 4, **metrics}}


RUNS = [run_of("end_to_end", 0, details=0.5), run_of("end_to_end", 1, details=0.75), run_of("divter", 0, details=None), run_of("span", 0, details=1)]


def test_scores_come_by_system_and_seed():
    assert asking.by_system(RUNS, "details") == {"end_to_end": [0.5, 0.75]} and asking.by_system(RUNS, "unknown") == {}
    assert asking.said_spread([0.5, 0.75]) == "0.62 ± 0.18" and asking.said_spread([0.5]) == "0.50" and asking.said_spread([]) == "none"


def asked_about(*pairs):
    return [(SimpleNamespace(), questions.Question(str(i), attribute, truth)) for i, (attribute, truth) in enumerate(pairs)]


def test_guessing_without_looking_is_counted_out():
    asked = questions(("time", "day"), ("time", "day"), ("time", "night"), ("number", 2))
    found = asking.guesses(asked)
    assert found == {"details": (pytest.approx(0.375), pytest.approx(0.75)), "details_number": (0.5, 1.0),
                     "details_time": (pytest.approx(1 / 3), pytest.approx(2 / 3))}
    usual = {"time": "day", "number": 2}
    assert found["details"][1] == sum(usual[q.attribute] == q.truth for _, q in asked) / len(asked)
    assert asking.guesses([]) == {}


def test_the_figure_of_details_says_what_it_was_asked():
    guess = asking.guesses(questions(("time", "day"), ("time", "night"), ("number", 2)))
    figure = asking.details_figure(RUNS, guess, "smoke")
    ax = figure.axes[0]
    assert [label.get_text().split("\n")[0] for label in ax.get_xticklabels()] == ["all", "number", "time"]
    heights = sorted(round(patch.get_height(), 3) for patch in ax.patches)
    assert heights[-1] == 0.625 and heights[:-1] == [0] * 8 and "profile smoke · N = 4 test questions a seed · seeds 0, 1" in texts_of_note(figure)
    assert isinstance(asking.details_figure([], guess, "smoke"), Figure)


def texts_of_note(figure):
    return figure.get_supxlabel()


def test_replies_are_joined_to_their_questions_by_dialogue_and_index(asked, examples):
    example, question = asked
    key = {"dialogue_id": example.dialogue_id, "index": example.index}
    other = {"dialogue_id": example.dialogue_id, "index": 99, "text": "no", "right": False}
    replies = {"end_to_end": run_files.keyed([other, {**key, "text": "At night.", "right": True}]), "pipeline": run_files.keyed([other]),
               "divter": run_files.keyed([{**key, "text": "", "right": False}])}
    card, = asking.reply_cards([asked], {question.photo_id: "a car"}, replies, examples[1])
    assert [line for line, _ in card.lines] == ["“When was that?”", "captioner: a car", f"true time: {question.truth}", "End-to-end: ✓ At night.",
                                                "Pipeline: was not asked", "Divter: ✗ (says nothing)"]


# ---------------------------------------------------------------------------------------------------------------- drawing

@torch.no_grad()
def test_photos_are_rebuilt_by_each_autoencoder(systems, translator, photos):
    diffusion = systems["pipeline"].generator
    assert torch.equal(drawing.rebuilt(translator, photos), translator.to_photos(translator.to_codes(to_floats(photos))))
    expected = diffusion.vae.decode(diffusion.vae.encode(to_floats(photos)).latent).sample
    assert (drawing.rebuilt(diffusion, photos).float() - (expected.clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.51
    assert diffusion.to_latents(to_floats(photos))[:1].shape == drawing.latent_shape(diffusion)
    assert drawing.holds(translator) == "4 × 4 codes out of 24 (73 bits)" and drawing.holds(diffusion) == "4 × 16 × 16 = 1,024 real numbers"
    figure = drawing.rebuilt_figure(photos[:2], {"codes": drawing.rebuilt(translator, photos[:2]), "latents": drawing.rebuilt(diffusion, photos[:2])}, "note")
    assert [ax.get_title() for ax in figure.axes][:2] == ["photo"] * 2 and len(figure.axes) == 6 and figure.axes[2].get_title().startswith("codes: ")


def test_psnr_is_that_of_the_mean_squared_error():
    black = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert pretrained.psnr_db(black + torch.tensor([1, 5], dtype=torch.uint8).view(2, 1, 1, 1), black).tolist() == pytest.approx(
        [20 * math.log10(255), 20 * math.log10(255 / 5)], rel=1e-5)


class Eyes:
    """A reader that sees two blue hats in the snow, by night, whatever it is shown."""

    row = {"thing": "hat", "colour": "blue", "place": "snow", "number": 2, "size": "small", "time": "night"}

    def read(self, photos):
        return [self.row] * len(photos)


def test_what_a_reader_sees_is_counted_and_named(systems, translator, photos):
    scenes = [Scene("hat", "red", "snow", 2), Scene("car", "blue", "snow", 2, "small", "night")]
    shares = {"thing": 0.5, "colour": 0.5, "place": 1, "number": 1, "size": 1, "time": 0.5}
    assert drawing.read_right(Eyes(), photos[:2], scenes) == shares
    assert drawing.seen_as(Eyes.row) == "2 blue hats, snow, night" and drawing.seen_as({**Eyes.row, "number": 1}).startswith("1 blue hat,")
    table = drawing.rebuilt_table(photos[:2], {"codes": photos[1:3]}, {"codes": drawing.holds(translator)}, scenes, Eyes())
    psnr = pretrained.psnr_db(photos[1:3], photos[:2]).mean().item()
    assert "N = 2" in table and f"| codes | 4 × 4 codes out of 24 (73 bits) | {psnr:.1f} |" in table and "| 50% | 50% | 100% | 100% | 100% | 50% |" in table


@torch.no_grad()
def test_bits_are_the_translators_own_loss(translator, photos):
    captions, codes = ["a red car", "", "two hats at the beach"], translator.to_codes(to_floats(photos[:3]))
    bits = drawing.code_bits(translator, captions, codes)
    assert bits.shape == codes.shape and bits.mean().item() * math.log(2) == pytest.approx(translator.code_loss(captions, codes).item(), rel=1e-5)
    log_p = drawing.code_log_probs(translator, captions, codes)
    assert log_p.shape == (3, 17, translator.codes) and torch.allclose(log_p.exp().sum(-1), torch.ones(3, 17), atol=1e-5)
    for n in (0, 5, 16):  # what comes later does not count
        assert torch.allclose(drawing.code_log_probs(translator, captions, codes[:, :n])[:, -1], log_p[:, n], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_notebooks_loop_draws_what_the_translator_draws(translator, guidance):
    noise, written = gumbel_noise((16, translator.codes), generator("codes")), torch.zeros((1, 0), dtype=torch.long)
    for step in range(16):
        heard, unheard = drawing.code_log_probs(translator, ["a red car", ""], written.expand(2, -1))[:, -1]
        code = (unheard + guidance * (heard - unheard) + noise[step]).argmax()
        written = torch.cat([written, code.view(1, 1)], 1)
    assert len(written.unique()) > 3
    assert torch.equal(translator.to_photos(written), translator.draw(["a red car"], generator("codes"), guidance_scale=guidance))
    shown = drawing.unfinished(translator, written, (1, 6, 16))
    assert torch.equal(shown[2], translator.to_photos(written)[0])
    assert (shown[1][:, 32:] == 225).all() and (shown[1][:, 16:32, 32:] == 225).all() and (shown[0][:, :, 16:] == 225).all()
    halfway = translator.to_photos(torch.cat([written[:, :6], written[:, 5:6].expand(-1, 10)], 1))[0]
    assert torch.equal(shown[1][:, :16], halfway[:, :16]) and torch.equal(shown[1][:, 16:32, :32], halfway[:, 16:32, :32])


def test_a_code_has_the_colour_of_a_photo_of_nothing_else(translator):
    codes = torch.tensor([3, 7, 3])
    found = drawing.code_colours(translator, codes)
    alone = translator.to_photos(torch.full((1, 16), 7)).double().mean((0, 2, 3)) / 255
    assert found.shape == (3, 3) and torch.allclose(found[1].double(), alone, atol=1e-5) and torch.equal(found[0], found[2])


def test_pictures_of_codes_say_which_they_are(translator, photos):
    figure = drawing.codes_figure(translator, photos[0], "note")
    assert [int(t.get_text()) for t in figure.axes[1].texts] == translator.to_codes(to_floats(photos[:1]))[0].tolist()
    figure = drawing.surprise_figure(translator, photos[0], "a $red$ car", "note")
    bits = drawing.code_bits(translator, ["a $red$ car", ""], translator.to_codes(to_floats(photos[:1])).expand(2, -1)).sum(1)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["“a \\$red\\$ car”", f"with the caption: {bits[0]:.0f} bits in all",
                                                          f"without it: {bits[1]:.0f} bits in all"]


def test_rows_of_photos_keep_their_names_and_titles(photos):
    figure = drawing.rows_figure({"one": photos[:3], "a longer name": photos[:2]}, ["x", "y", "z"], "note", "above")
    assert len(figure.axes) == 6 and [ax.get_title() for ax in figure.axes[:3]] == ["x", "y", "z"]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 1, 0] and figure.axes[0].get_ylabel() == "one"


# ------------------------------------------------------------------------------------------------- side by side, and where it fails

GOLD = {"thing": "hat", "colour": "red", "place": "snow"}


def answer(index, drawn=None, caption="a red hat in the snow", photo_id=None, image=None, due=True):
    scene = {"gold": GOLD, "drawn": None if drawn is None else {**GOLD, **drawn}} if due else None
    return {"dialogue_id": "d", "index": index, "caption": caption, "gold_caption": f"gold {index}", "gold_photo_id": photo_id, "image": image, "scene": scene}


def test_chats_are_joined_whatever_the_order_and_failures_shown(examples, scenes, tmp_path):
    ids = list(scenes)[:5]
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    rows = [answer(i, {"colour": "red"} if i else {"colour": "blue"}, photo_id=ids[i], image=tmp_path / "0.png", due=i != 3) for i in range(5)]
    none = [{**answer(i, photo_id=ids[i], caption=None), "due": True} for i in range(5)]
    figure = compared.chats_figure({"end_to_end": rows, "pipeline": none[::-1], "divter": rows[:3]}, examples[1], 2, "smoke", 7)
    titles = [ax.get_title().replace("\n", " ") for ax in figure.axes]
    assert titles == ["gold: gold 0", "End-to-end, wrong colour: a red hat in the snow", "Pipeline, no photo: shares none",
                      "Divter, wrong colour: a red hat in the snow", "gold: gold 1", "End-to-end, right: a red hat in the snow",
                      "Pipeline, no photo: shares none", "Divter, right: a red hat in the snow"]
    assert texts_of_note(figure) == "profile smoke · N = 2 of 3 test photos, subsample spaced · seed 7"
    assert isinstance(compared.chats_figure({"end_to_end": [], "pipeline": []}, examples[1], 2, "smoke", 7), Figure)


def test_errors_are_added_up_over_seeds_and_attributes():
    seeds = {0: [answer(0, {"colour": "blue"}), answer(1, {"thing": "car"}, caption="a red car in the snow")], 1: [answer(0, {}), answer(2)]}
    answers = {"pipeline": seeds, "divter": {0: [answer(0, due=False)]}}
    assert compared.cause_totals(answers) == {"pipeline": Counter({"right": 7, "wrong drawing": 1, "wrong words": 1, "no photo": 3}), "divter": Counter()}
    assert compared.causes_of(answers)["pipeline"]["colour"] == Counter({"right": 2, "wrong drawing": 1, "no photo": 1})
    assert "| Pipeline | 12 | 7 | 1 | 1 | 3 |" in compared.causes_table(answers) and "| Divter | 0 | 0 | 0 | 0 | 0 |" in compared.causes_table(answers)
    figure = compared.causes_figure(answers, "smoke")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["Pipeline", "Divter"]
    assert "N = 4 test photos a system, all seeds together · seeds 0, 1" in texts_of_note(figure)
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == pytest.approx([2 / 4, 2 / 4, 3 / 4, 1 / 4, 0, 0, 0, 1 / 4, 0, 1 / 4, 1 / 4, 1 / 4])


# -------------------------------------------------------------------------------------------------------------- gradients

@pytest.fixture(scope="module")
def due(examples):
    rows, _ = examples
    return [e for e in rows if e.response.photo and any(turn.photo for turn in e.context)][:2]


@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_are_those_of_each_loss_alone(systems, examples, due, name):
    model = copy.deepcopy(systems[name])
    batch = Collator(model.formatter, examples[1], 64)(due)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = reading.pulls(model, batch, generator("step"))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for loss in ("text", "image"):
        model.zero_grad()
        getattr(model(batch, temperature=1.0, rng=generator("step")), f"{loss}_loss").backward()
        for job, part in reading.jobs(model).items():
            reached = [p.grad.flatten() for p in part.parameters() if p.grad is not None]
            if not any(p.requires_grad for p in part.parameters()):
                assert job not in found
            elif reached:
                assert found[job][loss] == pytest.approx(torch.cat(reached).norm().item(), rel=1e-4)
            else:
                assert found[job][loss] is None
    crossing = [found["writes"]["image"], found["draws"]["text"]]
    assert crossing == [None, None] if name != "end_to_end" else crossing[0] > 0 and crossing[1] is None


def test_a_step_with_nothing_to_draw_has_no_path_from_the_drawing(systems, examples):
    rows, store = examples
    heard = {}
    for name, model in systems.items():
        batch = Collator(model.formatter, store, 64)([e for e in rows if not e.response.photo][:2])
        heard[name] = reading.pulls(model, batch, generator("step"))
        assert heard[name]["draws"] == {"text": None, "image": None} and heard[name]["writes"]["text"] > 0 and heard[name]["writes"]["image"] is None
    table = reading.pulls_table(heard)
    assert table.count("frozen") == 4 and f"{heard['divter']['writes']['text']:.4f}" in table and len(table.splitlines()) == 8


def test_an_end_to_end_model_that_reads_captions_fits_in(config, examples, asked, photos):
    model = build(changed(config, "model.image_input", "captioner")).eval()
    assert reading.jobs(model)["sees"] is model.perceptron
    pieces, flags = reading.tokens_read(model, asked[0], examples[1], 64)
    assert "<image>" not in pieces and any(flags)
    assert reading.reading_features(model, photos[:2], photos[2:])[0].shape[0] == 2
    found = reading.pulls(model, Collator(model.formatter, examples[1], 64)([replace(asked[0])]), generator("step"))
    assert "sees" not in found
