"""The captioner is BLIP-2, greedy or sampling, and each photo is captioned once, before any batch."""

import copy
import os

import numpy as np
import pytest
import scipy.stats
import torch
from model_helpers import MIXED, noise_photo
from torch.utils.data import DataLoader

from e2e_lib.data.collate import Collator
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import PhotoStore, stretched, to_image
from e2e_lib.models.captioner import MAX_NEW_TOKENS, Captioner, GumbelNoise, with_captions


@pytest.fixture
def captioner(systems):
    """Not to be changed."""
    return systems["pipeline"].captioner


@pytest.fixture
def calls(captioner, monkeypatch):
    """How many photos each real call of the captioner was given."""
    counts, generate = [], captioner.generate_captions
    monkeypatch.setattr(captioner, "generate_captions", lambda photos: counts.append(len(photos)) or generate(photos))
    return counts


def other_weights(captioner):
    other = copy.deepcopy(captioner.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    return Captioner(other, captioner.tokenizer, [0.5] * 3, [0.5] * 3, captioner.samples)


def test_pixels_are_normalized_channel_by_channel(captioner):
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    pixels = Captioner(captioner.model, captioner.tokenizer, mean, std).pixels(MIXED)
    expected = (stretched(MIXED, 64).double().numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert pixels.shape == (4, 3, 64, 64) and np.allclose(pixels.numpy(), expected, atol=1e-6)
    for value, expected in ((0, [-1]), (255, [1])):  # by the saved preprocessor_config.json
        assert captioner.pixels([torch.full((3, 50, 90), value, dtype=torch.uint8)]).unique().tolist() == expected


@torch.no_grad()
def test_a_caption_is_the_likeliest_token_one_after_another(captioner):
    model, words, photos, lengths = captioner.model, captioner.tokenizer, [noise_photo(seed) for seed in range(3)], []
    likeliest = Captioner(model, words, [0.5] * 3, [0.5] * 3)
    assert captioner.samples and not likeliest.samples and captioner.key != likeliest.key
    captions = likeliest.generate_captions(photos)
    start = [words.convert_tokens_to_ids("<image>")] * model.config.num_query_tokens + [words.bos_token_id]
    for photo, caption in zip(photos, captions, strict=True):
        ids = list(start)
        while len(ids) < len(start) + MAX_NEW_TOKENS and ids[-1] != words.eos_token_id:
            inputs = torch.tensor([ids])
            logits = model(pixel_values=captioner.pixels([photo]), input_ids=inputs,
                           attention_mask=torch.ones_like(inputs)).logits
            ids.append(int(logits[0, -1].argmax()))
        lengths.append(len(ids) - len(start))
        assert caption == " ".join(words.decode(ids, skip_special_tokens=True).split())
    assert len(set(captions)) == 3 and min(lengths) < MAX_NEW_TOKENS == max(lengths)  # some end, some are cut off


def test_noise_makes_the_likeliest_token_a_sample():
    logits = torch.tensor([[2.0, 0.0, 1.0, -1.0]]).expand(2000, -1)
    noise = GumbelNoise([noise_photo(seed)[:, :2, :2] for seed in range(2000)])
    for _ in range(2):  # each token has noise of its own
        counts = noise(None, logits).argmax(-1).bincount(minlength=4)
        assert scipy.stats.chisquare(counts.numpy(), 2000 * logits[0].double().softmax(-1).numpy()).pvalue > 1e-4
    first, again = (GumbelNoise([noise_photo(1)])(None, logits[:1]) for _ in range(2))
    assert torch.equal(first, again)  # a photo has the same noise each time


def test_sampled_captions_differ_from_the_likeliest_ones(captioner):
    likeliest = Captioner(captioner.model, captioner.tokenizer, [0.5] * 3, [0.5] * 3)
    photos = [noise_photo(seed) for seed in range(8)]
    sampled = captioner.generate_captions(photos)
    assert sampled != likeliest.generate_captions(photos) and sampled == captioner.generate_captions(photos)


def test_captions_do_not_depend_on_the_batch_or_its_size(captioner, monkeypatch):
    together = captioner.generate_captions(MIXED)
    monkeypatch.setattr("e2e_lib.models.captioner.BATCH_SIZE", 3)
    assert captioner.generate_captions(MIXED) == together
    assert captioner.generate_captions([]) == []


def test_captioner_is_deterministic_in_train_mode(new_model):
    # BLIP-2's own parts have dropout: a caption from a training step would be another each time.
    model = new_model(("model.system", "pipeline"))
    captions = model.eval().captioner.generate_captions(MIXED)
    model.train()
    assert model.captioner.generate_captions(MIXED) == captions and model.language.training
    assert not any(module.training for module in model.captioner.modules())


@pytest.fixture
def chats(tmp_path):
    """Two chats that share three photos of different sizes, and their store."""
    store = PhotoStore(tmp_path / "photos")
    for name, photo in zip("abc", MIXED, strict=False):
        store.add(name, to_image(photo))

    def chat(*names):
        turns = tuple(Turn(i % 2, "look", (SharedPhoto(name, f"gold {name}"),)) for i, name in enumerate(names))
        return Example("d", len(turns), turns, Turn(0, "and this", (SharedPhoto(names[0], f"gold {names[0]}"),)))

    return [chat("a", "b"), chat("b", "c", "a"), Example("e", 1, (Turn(0, "hi"),), Turn(1, "hello"))], store


def captions_of(examples):
    return [[turn.photos[0].caption for turn in example.context if turn.photos] for example in examples]


def test_each_photo_is_captioned_once_and_its_caption_kept_beside_the_photos(chats, captioner, calls):
    examples, store = chats
    a, b, c = (captioner.generate_captions([store.tensor(name)])[0] for name in "abc")
    calls.clear()
    assert captions_of(with_captions(examples[:1], captioner, store)) == [[a, b]] and calls == [2]
    assert captions_of(with_captions(examples, captioner, store)) == [[a, b], [b, c, a], []] and calls == [2, 1]
    again = PhotoStore(store.folder)  # as another process finds it
    assert captions_of(with_captions(examples, captioner, again)) == [[a, b], [b, c, a], []] and calls == [2, 1]
    assert again.captions(captioner.key) == {"a": a, "b": b, "c": c} and len({a, b, c}) == 3


def test_every_photo_of_a_turn_is_captioned(chats, captioner, calls):
    store, photos = chats[1], tuple(SharedPhoto(name, "gold") for name in "cab")
    captioned, = with_captions([Example("d", 1, (Turn(0, "these:", photos),), Turn(1, "oh"))], captioner, store)
    assert calls == [3] and [photo.photo_id for photo in captioned.context[0].photos] == ["c", "a", "b"]
    kept = store.captions(captioner.key)
    assert [photo.caption for photo in captioned.context[0].photos] == [kept[name] for name in "cab"]


def test_photos_of_responses_are_not_captioned(chats, captioner, calls):
    examples, store = [Example("d", 1, (Turn(0, "hi"),), Turn(1, "", (SharedPhoto("c", "gold"),)))], chats[1]
    assert with_captions(examples, captioner, store) == examples and not calls and not store.captions(captioner.key)


def test_only_contexts_get_captions_and_the_callers_examples_stay(chats, captioner):
    examples, store = chats
    before = copy.deepcopy(examples)
    captioned = with_captions(examples, captioner, store)
    assert examples == before and captioned[2] == examples[2]
    for old, new in zip(examples, captioned, strict=True):
        assert (new.dialogue_id, new.index, new.response) == (old.dialogue_id, old.index, old.response)
        assert [(t.speaker, t.text, t.photos and t.photos[0].photo_id) for t in new.context] == [
            (t.speaker, t.text, t.photos and t.photos[0].photo_id) for t in old.context]


def test_other_weights_make_their_own_captions(chats, captioner):
    examples, store = chats
    other = other_weights(captioner)
    first, second = with_captions(examples, captioner, store), with_captions(examples, other, store)
    assert captions_of(first) != captions_of(second)
    assert {path.name for path in store.folder.glob("*.json")} == {f"captions-{c.key}.json" for c in (captioner, other)}


def test_data_loader_workers_never_run_the_captioner(chats, systems, captioner, monkeypatch):
    examples, store = with_captions(chats[0], captioner, chats[1]), chats[1]
    collate, parent = Collator(systems["pipeline"].formatter, store), os.getpid()

    def forbidden(*args, **kwargs):
        raise AssertionError(f"process {os.getpid()}, started by {parent}, ran the captioner")

    monkeypatch.setattr(captioner.model, "generate", forbidden)
    with pytest.raises(AssertionError):
        captioner.generate_captions(MIXED)
    batches = list(DataLoader(examples, 1, collate_fn=collate, num_workers=2))
    assert all(torch.equal(batch.input_ids, collate([row]).input_ids) for batch, row in zip(batches, examples, strict=True))
    assert all(batch.photos == [] for batch in batches) and batches[0].target_photos[0].shape == (3, 64, 64)
