"""Each system has the parts that the paper names, and what all of them promise to training and answering."""

import dataclasses

import pytest
import torch
from model_helpers import PARTS, gradients_of, largest, noise_photo, run
from torch.nn import functional as F
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from e2e_lib.config import SYSTEMS, ConfigError, replace
from e2e_lib.data.collate import IGNORED, Collator
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import by_dialogue
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.end_to_end import EndToEndModel
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.losses import trainable_weights
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.models.pipeline import Pipeline
from e2e_lib.models.systems import build, new_bridge, word_list
from e2e_lib.models.translator import ImageTranslator

CLASSES = {"end_to_end": (EndToEndModel, LlamaForCausalLM, ImageGenerator),
           "pipeline": (Pipeline, LlamaForCausalLM, ImageGenerator),
           "divter": (Pipeline, GPT2LMHeadModel, ImageTranslator)}
# In the order in which the gradient norm sums them: another one changes the last digits of every result.
TRAINED = {"end_to_end": ["language", "perceptron", "generator.unet"], "pipeline": ["language", "generator.unet"],
           "divter": ["language", "generator.transformer"]}


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


def collate(model, examples, store):
    return Collator(model.formatter, store)(with_captions(examples, model.captioner, store) if model.captioner else examples)


def test_a_system_has_the_parts_the_paper_names_wherever_they_come_from(shipped, config, systems, name):
    system, language, draws = CLASSES[name]
    local = systems[name]
    assert type(local) is system and type(local.language) is language and type(local.generator) is draws
    assert local.formatter.max_context == config.data.max_context
    assert local.formatter.photos_as_captions == (local.captioner is not None) == (name != "end_to_end")
    from_shipped = replace(config, "model.system", name)
    for place, parts in PARTS.items():
        for part in parts:
            from_shipped = replace(from_shipped, f"model.{part}", f"shipped:{place}")
    theirs, ours = build(from_shipped).state_dict(), local.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], tensor) for key, tensor in ours.items())


def test_the_aligned_model_is_the_end_to_end_one_with_other_settings(config, systems):
    aligned, own = replace(config, "model.system", "end_to_end_aligned"), systems["end_to_end_aligned"]
    assert type(own) is CLASSES["end_to_end"][0] and own.joint and aligned.model.joint
    assert own.bridge.mapping == "aligned" and own.gradient_ratio > 0
    assert own.state_dict().keys() == systems["end_to_end"].state_dict().keys()
    assert systems["end_to_end"].bridge.mapping == "sentence" and systems["end_to_end"].gradient_ratio == 0
    assert replace(aligned, "bridge.mapping", "span").bridge.mapping == "span"  # what comes later counts


@pytest.mark.parametrize("max_context", [400, 80])
def test_whole_dialogues_give_the_losses_and_gradients_of_their_responses(systems, examples, name, max_context, monkeypatch):
    """With the oldest turns dropped, too, where a context does not begin where the one before it does."""
    model, (rows, store) = systems[name], examples
    monkeypatch.setattr(model.formatter, "max_context", max_context)
    sharing = {e.dialogue_id for e in rows if any(turn.photos for turn in e.context) and e.response.photos}
    rows = with_captions(rows, model.captioner, store) if model.captioner else rows
    groups = by_dialogue([e for e in rows if e.dialogue_id in sorted(sharing)[:2]])
    collator = Collator(model.formatter, store)
    whole, apart = collator.dialogues(groups), collator([e for group in groups for e in group])
    assert len(whole.input_ids) <= len(apart.input_ids) == sum(map(len, groups)) and len(whole.captions) > 1
    assert (len(whole.input_ids) == len(groups)) == (max_context == 400) == (not any(apart.context_cut))
    one, other = run(model, whole), run(model, apart)
    for loss in ("text_loss", "image_loss", "loss"):
        assert getattr(one, loss).item() == pytest.approx(getattr(other, loss).item(), rel=1e-5), loss
    for part in model.trained_parts().values():
        pairs = zip(gradients_of(one.loss, part), gradients_of(other.loss, part), strict=True)
        difference, size = (sum((g**2).sum().item() for g in gradients) for gradients in zip(
            *((a - b, b) for a, b in pairs if b is not None), strict=True))
        assert difference < 1e-7 * size


@torch.no_grad()
def test_the_text_loss_is_that_of_each_chat_read_alone(systems, six, name):
    model, losses = systems[name], []
    for example in six[0]:
        alone = collate(model, [example], six[1])
        inputs = ({"input_ids": alone.input_ids} if alone.photos == [] else
                  {"inputs_embeds": model.embed_context(alone)})
        logits = model.language(**inputs).logits[0].double()
        losses += [-F.log_softmax(logits[t - 1], -1)[alone.input_ids[0, t]].item()
                   for t in (alone.labels[0] != IGNORED).nonzero().flatten().tolist()]
    output = run(model, collate(model, *six))
    assert output.text_loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_what_a_checkpoint_holds_is_all_that_training_changes(systems, new_model, name):
    weights, before = trainable_weights(systems[name]), systems[name].state_dict()
    prefixes = (".".join(key.split(".")[:1 + key.startswith("generator")]) for key in weights)
    assert list(dict.fromkeys(prefixes)) == TRAINED[name] and len(weights) < len(before)
    parts = systems[name].trained_parts()
    assert {id(p) for part in parts.values() for p in part.parameters()} == {
        id(p) for p in systems[name].parameters() if p.requires_grad}
    again = new_model(("model.system", name))
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    again.load_state_dict(weights, strict=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.state_dict().items())


def test_every_trained_weight_gets_a_gradient(new_model, six, name):
    # A weight without one would never be trained, and stops a run on several devices.
    model = new_model(("model.system", name))
    run(model, collate(model, *six)).loss.backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad == (p.grad is None)] == []


def test_a_batch_without_target_photos_has_a_text_loss_only(new_model, examples, name):
    model = new_model(("model.system", name)).eval()
    output = run(model, collate(model, [e for e in examples[0] if not e.response.photos][:3], examples[1]))
    output.loss.backward()
    assert output.image_loss == 0 and output.captions == [] and torch.equal(output.loss, output.text_loss)
    assert all(p.grad is None for p in model.generator.parameters())


def test_losses_depend_on_the_random_generator_alone(systems, six, name):
    model = systems[name]
    first, again, other = (run(model, collate(model, *six), key=key) for key in ("step", "step", "other"))
    assert torch.equal(first.loss, again.loss) and first.captions == again.captions
    assert torch.equal(first.text_loss, other.text_loss)
    assert name == "divter" or not torch.equal(first.image_loss, other.image_loss)  # divter drops few captions


def test_captions_longer_than_the_generators_limit_are_counted(systems, six, name):
    model, exact = systems[name], " ".join("a" * (systems[name].generator.max_length - 2))  # and its two marks
    rows = [dataclasses.replace(six[0][0], response=Turn(0, "", (SharedPhoto(six[0][1].response.photos[0].photo_id, caption),)))
            for caption in (exact, exact + " a", "a red car and " * 20, "")]
    assert run(model, collate(model, rows, six[1])).truncated == 2


def test_an_example_longer_than_the_language_models_positions_is_cut_and_learnt(systems, six, name):
    model, (_, example, *_) = systems[name], six[0]
    context = (*example.context, Turn(0, "We flew a red kite. " * 100))
    spoken, shared = Turn(1, "It was fun! " * 200), Turn(1, "", (dataclasses.replace(example.response.photos[0], caption="a red kite " * 200),))
    batch = collate(model, [dataclasses.replace(example, context=context, response=response) for response in (spoken, shared)], six[1])
    assert batch.input_ids.shape[1] == model.language.config.max_position_embeddings
    assert min(*batch.context_cut, *batch.response_cut) > 0 and (batch.labels[:, -1] == model.tokenizer.eos_token_id).all()
    assert run(model, batch).loss.isfinite() and batch.captions[0].startswith("a red kite a red kite")


def test_captions_can_take_the_place_of_the_perceptron(new_model, six):
    """Words stand where photos were; the rest is as before: one loss, an image gradient to the language model."""
    model = new_model(("model.image_input", "captions"), ("bridge.mapping", "span"))
    batch = collate(model, *six)
    assert batch.photos == [] and len(batch.target_photos) == 3 and model.perceptron is None and model.joint
    text = "".join(model.tokenizer.decode(batch.input_ids.flatten()).split())
    captions = six[1].captions(model.captioner.key)
    shared = {turn.photos[0].photo_id for example in six[0] for turn in example.context if turn.photos}
    assert len(shared) > 2 and all("".join(captions[photo_id].split()) in text for photo_id in shared)
    assert largest(gradients_of(run(model, batch).image_loss, model.language)) > 0
    assert set(model.trained_parts()) == {"language", "unet"}


@pytest.mark.parametrize(("changes", "systems_named", "complaint"), [
    ({"data.max_context": 481, "inference.max_new_tokens": 32}, SYSTEMS, "make 513 tokens, .* reads 512 at most: --set data.max_context=480"),
    ({"inference.max_new_tokens": 600}, SYSTEMS, "make 792 tokens, .* reads 512 at most: lower both"),
    ({"inference.num_inference_steps": 1000}, ("end_to_end", "end_to_end_aligned", "pipeline"), "inference.num_inference_steps = 1000: .* at most 999")])
def test_what_is_more_than_the_parts_can_do_is_refused_when_they_are_built(config, name, changes, systems_named, complaint):
    changed = replace(config, "model.system", name)
    for key, value in changes.items():
        changed = replace(changed, key, value)
    if name in systems_named:
        with pytest.raises(ConfigError, match=complaint):
            build(changed)
    else:
        assert build(changed)  # Divter's steps are the codes of a photo


def test_a_temperature_that_the_estimator_does_not_take_is_refused_before_training_comes_to_it(config):
    reinmax = replace(config, "bridge.estimator", "reinmax")
    with pytest.raises(ConfigError, match="bridge.temperature_end = 0.01: ReinMax needs a temperature of at least 1"):
        build(reinmax)
    with pytest.raises(ConfigError, match="bridge.temperature_start = 0.5: ReinMax"):
        build(replace(reinmax, "bridge.temperature_start", 0.5))
    assert build(replace(reinmax, "bridge.temperature_end", 1)) and build(replace(reinmax, "model.system", "pipeline"))


def test_a_context_too_short_for_a_photo_is_refused_where_photos_are_seen(config, tmp_path):
    short = replace(config, "data.max_context", 16)
    assert build(short) and build(replace(short, "model.system", "pipeline"))
    perceptron = load_perceptron(config.model.perceptron)
    perceptron.query_tokens = torch.nn.Parameter(torch.zeros(1, 12, 32))
    perceptron._hub_mixin_config["queries"] = 12
    perceptron.save_pretrained(tmp_path / "perceptron")
    with pytest.raises(ConfigError, match="a photo takes 12 tokens, .* data.max_context .*16"):
        build(replace(short, "model.perceptron", str(tmp_path / "perceptron")))


@pytest.mark.parametrize("size", [8, 33, 96, 200])
def test_every_photo_size_of_a_corpus_can_be_trained_on(systems, new_model, six, size, name):
    class Sized:
        def tensor(self, photo_id):
            return noise_photo(len(photo_id), size, size)

    model = new_model(("model.system", name))
    examples = with_captions(six[0], model.captioner, six[1]) if model.captioner else six[0]
    output = run(model, Collator(model.formatter, Sized())(examples))
    output.loss.backward()
    assert output.loss.isfinite() and output.image_loss > 0


def test_a_perceptron_of_another_width_gets_a_new_projection_and_it_is_known_to_be_new(config, tmp_path):
    perceptron = load_perceptron(config.model.perceptron)
    perceptron.language_projection = torch.nn.Linear(32, 48)
    perceptron._hub_mixin_config["language_width"] = 48
    perceptron.save_pretrained(tmp_path / "perceptron")
    one, other = (build(replace(config, "model.perceptron", str(tmp_path / "perceptron"))).perceptron for _ in range(2))
    assert one.projection_is_new and one.language_projection.weight.shape == (32, 32)
    assert torch.equal(one.language_projection.weight, other.language_projection.weight)
    assert not build(config).perceptron.projection_is_new


def test_a_word_list_ships_or_is_a_file_of_words(config, tmp_path, monkeypatch):
    shipped = word_list(config.bridge.word_list)
    assert len(shipped) > 50 and "car" in shipped and all(word == word.strip() and " " not in word for word in shipped)
    monkeypatch.setenv("HOME", str(tmp_path))
    for encoding in ("utf-8", "utf-8-sig"):  # with the mark that some editors write
        (tmp_path / "words.txt").write_text("café\nred car\n\n", encoding=encoding)
        assert word_list(f"{tmp_path}/words.txt") == word_list("~/words.txt") == ["café", "red", "car"]


def test_the_bridge_has_what_the_settings_say(config, systems):
    images, tokenizer = systems["end_to_end"].generator, systems["end_to_end"].tokenizer
    for changes in ({}, {"mapping": "word", "estimator": "soft", "pooling": "sum", "added_at": "caption_and_marks"},
                    {"mapping": "aligned", "top_k": 8}):
        settings = dataclasses.replace(config.bridge, **changes)
        bridge = new_bridge(settings, tokenizer, images)
        assert [getattr(bridge, name) for name in ("mapping", "estimator", "pooling", "added_at", "length")] == [
            settings.mapping, settings.estimator, settings.pooling, settings.added_at, images.max_length]
        assert bridge.top_k == (settings.top_k or None)
    for changes in ({"mapping": "aligned", "top_k": 1}, {"mapping": "span", "top_k": 8}):
        with pytest.raises(ConfigError, match="settings of bridge: top_k"):
            new_bridge(dataclasses.replace(config.bridge, **changes), tokenizer, images)


@pytest.mark.parametrize("source", ["/absent/words.txt", "shipped:word-lists/absent.txt", "binary"])
def test_a_missing_or_unreadable_word_list_is_named(config, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(bytes([200, 201]))
    static = replace(replace(config, "bridge.mapping", "static_word"), "bridge.word_list", source)
    with pytest.raises(ConfigError, match=f"bridge.word_list = '{source}' is neither a list that ships"):
        build(static)
