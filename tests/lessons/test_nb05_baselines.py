"""The helpers of notebook 05 against loops over tokens, closed forms, and the systems' own losses."""

import copy
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from e2e_lib.bridge.gumbel import gumbel_noise
from e2e_lib.config import PAPER_SYSTEMS
from e2e_lib.config import replace as changed
from e2e_lib.data.collate import Collator
from e2e_lib.data.dialogue import Turn
from e2e_lib.data.examples import Example, examples_of
from e2e_lib.data.minichat.chats import make_chat, sample_scene
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.questions import Question, detail_question
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.lessons import nb05_drawing as drawing
from e2e_lib.lessons import nb05_questions as questions
from e2e_lib.lessons import nb05_reading as reading
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.systems import build
from e2e_lib.repro import randomness


@pytest.fixture(scope="module")
def systems(config):
    """All three systems, with weights so large that answers depend on contexts. Not to be changed."""
    models = {name: build(changed(config, "model.system", name)).eval() for name in PAPER_SYSTEMS}
    for model in models.values():
        for part in (model.language, getattr(model.generator, "transformer", torch.nn.Identity())):
            for parameter in (p for p in part.parameters() if p.ndim > 1):
                parameter.data.mul_(6)
    return models


@pytest.fixture(scope="module")
def scenes(corpus):
    return read_scenes(corpus / "scenes.jsonl")


@pytest.fixture(scope="module")
def case(examples, scenes):
    """An example whose last turn asks for the time of day in its last photo, and the question."""
    example = next(e for e in examples[0] if e.context[-1].photos)
    speaker, photo_id = example.response.speaker, example.context[-1].photos[0].photo_id
    context = (*example.context[-3:], Turn(speaker, "How nice!"), Turn(1 - speaker, "When was that?"))
    question = Question(photo_id, "time", scenes[photo_id].time)
    return Example("d", 5, context, Turn(speaker, "At night.")), question


@pytest.fixture(scope="module")
def photos(examples, scenes):
    return torch.stack([examples[1].tensor(i) for i in list(scenes)[:6]])


def captioner(generate):
    return SimpleNamespace(key="test", generate_captions=generate)


def contexts(model, examples, store):  # as the model reads them
    return with_captions(examples, model.captioner, store) if model.captioner else examples


def test_components_hold_every_weight_once_and_count_those_trained(systems):
    table = " ".join(reading.components_table(systems).split())
    for model in systems.values():
        weights = [p for part in reading.components(model).values() for p in part.parameters()]
        assert len({id(p) for p in weights}) == len(weights)
        assert {id(p) for p in weights} == {id(p) for p in model.parameters()}
        for part in model.trained_parts().values():
            assert f"| {sum(p.numel() for p in part.parameters()):,} |" in table


@pytest.mark.parametrize("name", PAPER_SYSTEMS)
def test_context_tokens_are_those_of_the_batch(systems, examples, name):
    model, store = systems[name], examples[1]
    for example in [e for e in examples[0] if sum(bool(turn.photos) for turn in e.context) > 1][:2]:
        tokens, of_photo = zip(*reading.context_tokens(model, example, store), strict=True)
        read, = contexts(model, [example], store)
        ids = Collator(model.formatter, store, answering=True)([read]).input_ids[0].tolist()
        assert model.tokenizer.convert_ids_to_tokens(ids) == [token.replace("⏎", "\n") for token in tokens]
        turns = model.formatter.context(read.context, read.response.speaker)[1]
        expected = [i for turn in turns for photo in turn.photos for i in model.formatter.photo_ids(photo)[1:-1]]
        assert [i for i, flag in zip(ids, of_photo, strict=True) if flag] == expected
        assert ("<image>" in tokens) == (name == "end_to_end")


def test_attribute_coverage_counts_the_captions_that_name_the_value():
    scenes = {"a": Scene("car", "red", "beach", 1, "big", "night"), "b": Scene("hat", "blue", "city", 3)}
    captions = {"a": "a small red car at the beach", "b": "three blue hats, in the forest in the sunshine"}
    assert reading.attribute_coverage(scenes, captions) == {
        "thing": (2, 2), "colour": (2, 2), "place": (1, 2), "number": (1, 1), "size": (0, 1), "time": (1, 2)}


def test_a_linear_probe_finds_what_is_linear_and_nothing_else():
    rng = randomness.generator("probe")
    rows, unrelated = (torch.randint(3, (600,), generator=rng) for _ in range(2))
    centres = torch.tensor([[0.0, 1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 5.0, 0]])  # the last feature is constant
    features = centres[rows] + 0.1 * torch.randn((600, 4), generator=rng) * torch.tensor([1.0, 1, 1, 0])
    classes = torch.tensor([1, 4, 5])[rows]
    for scaled in (features, 1000 * features + 7):
        assert torch.equal(reading.linear_probe(scaled[:400], classes[:400], scaled[400:]), classes[400:])
    predicted = reading.linear_probe(features[:400], unrelated[:400], features[400:])
    assert 0.2 < (predicted == unrelated[400:]).float().mean() < 0.47


def test_probe_accuracy_counts_each_attribute_where_it_applies():
    scenes = [sample_scene(random.Random(seed), "train") for seed in range(900)]
    known = torch.tensor([[float(label == k) for label in s.labels for k in range(14)] for s in scenes])
    features = {"all": (known[:600], known[600:]), "none": (torch.zeros(600, 2), torch.zeros(300, 2))}
    accuracy = reading.probe_accuracy(features, scenes[:600], scenes[600:])
    assert list(accuracy) == list(ATTRIBUTES) and all(row["all"] == 1 for row in accuracy.values())
    train, test = ([s.number for s in side if s.number > 1] for side in (scenes[:600], scenes[600:]))
    frequent = test.count(max((2, 3), key=train.count)) / len(test)
    assert accuracy["number"]["N"] == len(test) and accuracy["size"]["N"] == 300 - len(test)
    assert accuracy["number"]["none"] == pytest.approx(frequent) == accuracy["number"]["most frequent"]
    assert reading.probe_accuracy(features, scenes[:1], scenes[1:]) == {}  # a single value cannot be learnt


def test_photo_features_are_query_embeddings_or_counts_of_words(systems, photos):
    model = systems["end_to_end"]
    train, test = reading.photo_features(model, photos[:4], photos[4:])
    assert len(train) == 4 and torch.allclose(test[1], model.perceptron(photos[5:]).flatten(), atol=1e-5)
    texts = ["a red car, a red hat", "some hats"]
    model = SimpleNamespace(captioner=captioner(lambda some: texts[:len(some)]))
    train, test = reading.photo_features(model, photos[:2], photos[:1])
    assert train.tolist() == [*test.tolist(), [0, 0, 0, 1, 0, 1]]  # a, car, hat, hats, red, some
    assert test.tolist() == [[2, 1, 1, 0, 2, 0]]


@pytest.mark.parametrize("name", PAPER_SYSTEMS)
@pytest.mark.parametrize("with_photo", [True, False])
def test_gradient_norms_are_those_of_each_loss_alone(systems, examples, name, with_photo):
    model, (rows, store) = copy.deepcopy(systems[name]), examples
    some = [e for e in rows if bool(e.response.photos) == with_photo and any(turn.photos for turn in e.context)]
    batch = Collator(model.formatter, store)(contexts(model, some[:2], store))
    norms = reading.gradient_norms(model, batch, 3)
    assert all(p.grad is None for p in model.parameters())
    for loss in ("text", "image"):
        model.zero_grad()
        value = getattr(model(batch, temperature=1.0, seed=3), f"{loss}_loss")
        if value.requires_grad:
            value.backward()
        for role, part in reading.components(model).items():
            gradients = [p.grad.flatten() for p in part.parameters() if p.grad is not None]
            expected = pytest.approx(torch.cat(gradients).norm().item(), rel=1e-4) if gradients else None
            assert norms.get(role, {}).get(loss) == expected
    paths = [norms["writes text"]["image"], norms["draws photos"]["text"]]
    assert (paths[0] or 0) > 0 if name == "end_to_end" and with_photo else paths == [None, None]


def test_every_question_of_the_test_split_has_phrasings_of_every_answer():
    chats = [make_chat("test", index, 0) for index in range(250)]
    pairs = [(example, question) for chat in chats for example in examples_of(chat.dialogue)
             if (question := detail_question(example, chat.scenes))]
    for example, question in pairs:
        answers = questions.answer_phrasings(example.context[-1].text)
        assert set(answers) == set(questions.DETAILS[question.attribute])
        assert any(text in example.response.text for text in answers[question.truth])
    assert len(pairs) > 60 and questions.answer_phrasings("And where is that again?") == {}


@torch.no_grad()
@pytest.mark.parametrize("name", PAPER_SYSTEMS)
def test_answer_probabilities_are_those_of_the_tokens_one_by_one(systems, case, examples, name):
    model, store, expected = systems[name], examples[1], {"day": 0.0, "night": 0.0}
    example, = contexts(model, [case[0]], store)
    answers = {"day": ("In the middle of the day.",), "night": ("At night.", "Late at night, I think.")}
    for value, text in ((value, text) for value, texts in answers.items() for text in texts):
        batch, log_p = Collator(model.formatter, store, answering=True)([example]), 0.0
        embeddings = model.embed_context(batch)
        for token in [*model.formatter.tokenize(text), model.tokenizer.eos_token_id]:
            logits = model.language(inputs_embeds=embeddings).logits[0, -1].double()
            log_p += F.log_softmax(logits, -1)[token].item()
            word = model.language.get_input_embeddings()(torch.tensor([[token]]))
            embeddings = torch.cat([embeddings, word], 1)
        expected[value] += math.exp(log_p)
    probabilities = questions.answer_probabilities(model, example, store, answers)
    assert probabilities["day"] == pytest.approx(expected["day"] / sum(expected.values()), rel=1e-3)


def test_a_change_that_no_caption_names_changes_no_baseline(systems, case, scenes, examples, config):
    example, question = case
    given = (systems, example, question, scenes[question.photo_id], examples[1])
    results = questions.ask(*given, captioner(lambda photos: ["a red car"] * len(photos)), config.data.seed)
    changed_in = [name for name in PAPER_SYSTEMS if questions.max_change(results, name) > 0]
    assert changed_in == ["end_to_end"]
    assert questions.correct_answers([results], "pipeline") == (1, 3)  # one answer is always the likeliest
    assert len({photo.tobytes() for photo in results.photos.values()}) == 3
    assert np.array_equal(results.photos[question.truth], examples[1].load(question.photo_id))
    exact = captioner(lambda photos: ["dark" if p.float().mean() < 110 else "bright" for p in photos])
    results = questions.ask(*given, exact, config.data.seed)
    assert len(set(results.captions.values())) == 2 and questions.max_change(results, "divter") > 0


def test_only_photos_with_the_same_caption_are_compared():
    answers = {value: {"a": share, "b": 1 - share} for value, share in ((1, 0.9), (2, 0.5), (3, 0.4))}
    results = questions.Counterfactuals("?", {}, {1: "x", 2: "y", 3: "y"}, {"pipeline": answers})
    assert questions.change_of_same_captions(results, "pipeline") == pytest.approx(0.1)
    assert questions.max_change(results, "pipeline") == pytest.approx(0.5)
    alone = questions.Counterfactuals("?", {}, {1: "x", 2: "y", 3: "z"}, {"pipeline": answers})
    assert questions.change_of_same_captions(alone, "pipeline") is None


def test_details_in_words_are_means_over_seeds():
    asked = [Question("x", "time", truth) for truth in ("day", "day", "day", "night")]
    runs = [{"system": "pipeline", "metrics": {"details": share}} for share in (0.5, 0.7)]
    runs.append({"system": "divter", "metrics": {"details": None}})
    assert questions.details_in_words(runs, asked) == (
        "Without any photo, always giving the most frequent answer is right in 75%, a guess in 33%. The systems: Pipeline 60%.")


def test_details_table_has_scores_and_the_accuracy_without_a_photo():
    pairs = [("time", "day"), ("time", "day"), ("time", "night"), ("number", 2)]
    some = [Question(str(i), attribute, truth) for i, (attribute, truth) in enumerate(pairs)]
    baselines = questions.accuracy_without_photo(some)
    assert baselines["details"] == pytest.approx(((3 / 3 + 1 / 2) / 4, (2 + 1) / 4))
    assert list(baselines) == ["details", "details_number", "details_time"]
    runs = [{"system": system, "metrics": {"details": score}}
            for system, score in (("end_to_end", 0.5), ("end_to_end", 0.75), ("divter", None), ("span", 1))]
    cells = [cell.strip() for cell in questions.details_table(runs, some).splitlines()[2].split("|")]
    assert cells[1:-1] == ["details", "4", "0.625 ± 0.177", "–", "–", "0.375", "0.750"]


@torch.no_grad()
def test_reconstructed_photos_went_through_the_autoencoder(systems, photos):
    for name in ("pipeline", "divter"):
        generator = systems[name].generator
        autoencoder = generator.vae if name == "pipeline" else generator.vqvae
        pixels = (autoencoder(photos.float() / 127.5 - 1).sample.clamp(-1, 1) + 1) * 127.5
        assert (drawing.reconstruct(generator, photos).float() - pixels).abs().max() <= 0.51


@torch.no_grad()
def test_bits_are_the_translators_own_loss_and_look_at_no_later_code(systems, photos):
    translator, captions = systems["divter"].generator, ["a red car", "", "two hats at the beach"]
    codes = translator.to_codes(photos[:3])
    bits, loss = drawing.code_bits(translator, captions, codes), translator.code_loss(captions, codes).item()
    assert bits.shape == codes.shape and bits.mean().item() * math.log(2) == pytest.approx(loss, rel=1e-5)
    log_p = drawing.code_log_probs(translator, captions, codes)
    for n in (0, 5, 16):
        last = drawing.code_log_probs(translator, captions, codes[:, :n])[:, -1]
        assert torch.allclose(last, log_p[:, n], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_notebooks_loop_draws_what_the_translator_draws(systems, guidance):
    translator, codes = systems["divter"].generator, torch.zeros((1, 0), dtype=torch.long)
    noise = gumbel_noise((16, translator.codes), randomness.generator("codes"))
    for step in range(16):
        cond, uncond = drawing.code_log_probs(translator, ["a red car", ""], codes.expand(2, -1))[:, -1]
        code = (uncond + guidance * (cond - uncond) + noise[step]).argmax()
        codes = torch.cat([codes, code.view(1, 1)], 1)
    library = translator.draw(["a red car"], randomness.generator("codes"), guidance_scale=guidance)[0]
    partial = drawing.partial_photos(translator, codes, (6, 16))  # 4 × 4 codes, 16 pixels each way
    assert len(codes.unique()) > 3 and torch.equal(partial[1], library)
    known = translator.to_photos(torch.cat([codes[:, :6], codes[:, 5:6].expand(-1, 10)], 1))[0]
    assert torch.equal(partial[0][:, :16], known[:, :16]) and (partial[0][:, 32:] == 225).all()
    assert torch.equal(partial[0][:, 16:32, :32], known[:, 16:32, :32])
    assert (partial[0][:, 16:32, 32:] == 225).all()
