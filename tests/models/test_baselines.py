"""The two baselines: nothing but text passes between their parts, and each part does what it would do by itself."""

import copy
import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, LlamaForCausalLM

from e2e_lib.config import ConfigError, Inference, replace
from e2e_lib.corpora import prepare
from e2e_lib.data.collate import IGNORED, Collator
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.photos import to_floats, to_pixels
from e2e_lib.experiments import evaluate
from e2e_lib.inference.chat import ChatPartner, PhotoAlbum
from e2e_lib.inference.respond import parse, respond, write
from e2e_lib.models.captioner import LONGEST, Captioner, CaptionLayout, load_captioner
from e2e_lib.models.generator import ImageGenerator
from e2e_lib.models.language import load_language
from e2e_lib.models.systems import build
from e2e_lib.models.translator import CAPTION_DROPOUT, ImageTranslator, load_translator
from e2e_lib.repro import files, results
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator
from e2e_lib.training import checkpoints, loop

BASELINES = ("pipeline", "divter")
CAPTIONS = ["a red car", "", "two blue cats at the beach, in the evening"]


@pytest.fixture(scope="module")
def built(config, six):
    """Both baselines from the saved parts, the photos of ``six`` captioned already. Not to be changed."""
    systems = {name: build(replace(config, "model.system", name)).eval() for name in BASELINES}
    systems["pipeline"].formatter.look(six[0], six[1], 64)
    systems["divter"].formatter.said = dict(systems["pipeline"].formatter.said)  # one captioner in both
    return systems


@pytest.fixture
def pipeline(built):
    return built["pipeline"]


@pytest.fixture(params=BASELINES)
def system(request, built):
    return built[request.param]


@pytest.fixture
def own(system):
    """A baseline of the test's own, to be changed."""
    return copy.deepcopy(system)


@pytest.fixture
def captioner(pipeline):
    return pipeline.captioner


@pytest.fixture
def translator(built):
    """Divter's translator with larger weights, so that what it draws depends on the caption and on the codes before."""
    own = copy.deepcopy(built["divter"].generator)
    enlarge(own.transformer)
    return own


@torch.no_grad()
def enlarge(module):
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.mul_(8)


@pytest.fixture(scope="module")
def six(examples):
    """Responses with a photo and without, after contexts with a photo and without, and where their photos are."""
    rows, store = examples
    seen, unseen = ([e for e in rows if any(turn.photo for turn in e.context) == sees] for sees in (True, False))
    chosen = [[e for e in some if bool(e.response.photo) == shares] for some in (seen, unseen) for shares in (True, False)]
    return [chosen[1][0], chosen[0][0], chosen[3][0], chosen[2][0], chosen[0][-1], chosen[1][-1]], store


def noise_of(colour, seed, size=64):
    """A photo (3, size, size), uint8, of one tone and much noise."""
    return (colour + torch.randint(0, 100, (3, size, size), generator=generator(seed))).to(torch.uint8)


def photos_of(count, size=64):
    return torch.stack([noise_of(20 * i, i, size) for i in range(count)])


def gradients_of(loss, module):
    return torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], retain_graph=True, allow_unused=True)


def quiet(_):
    pass


# ---------------------------------------------------------------------------------------------------------- the captioner

def test_pixels_are_normalised_channel_by_channel(captioner):
    eyes = Captioner(captioner.model, captioner.tokenizer, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    photos = photos_of(2)
    seen, expected = eyes.pixels(photos), photos.double().numpy() / 255
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.6), (0.3, 0.7))):
        assert np.allclose(seen[:, channel].numpy(), (expected[:, channel] - mean) / std, atol=1e-6)
    assert captioner.pixels(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).unique().tolist() == [-1]  # of the saved preprocessor_config.json
    assert captioner.pixels(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)).unique().tolist() == [1]


@pytest.mark.parametrize("size", [40, 96])
def test_photos_of_another_size_are_resized_as_pillow_does(captioner, size):
    for low, high in ((80, 170), (0, 256)):
        photo = np.random.default_rng(size).integers(low, high, (size, size, 3), dtype=np.uint8)
        seen = captioner.pixels(torch.from_numpy(photo).permute(2, 0, 1)[None])
        assert seen.shape == (1, 3, 64, 64) and seen.min() >= -1 and seen.max() <= 1
        if low:  # Pillow cuts off what goes beyond black or white after each axis, torch after both
            expected = np.array(Image.fromarray(photo).resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
            assert np.abs((seen[0].permute(1, 2, 0).numpy() + 1) * 127.5 - expected).max() < 1.2  # Pillow rounds after each axis, too


@torch.no_grad()
def test_a_caption_is_the_likeliest_words_one_after_another(captioner):
    photos, model, words = photos_of(3), captioner.model, captioner.tokenizer
    told, lengths = captioner.generate_captions(photos), []
    start = [words.convert_tokens_to_ids("<image>")] * model.config.num_query_tokens + [words.bos_token_id]
    for photo, caption in zip(photos, told, strict=True):
        ids = list(start)
        while len(ids) < len(start) + LONGEST and ids[-1] != words.eos_token_id:
            now = torch.tensor([ids])
            logits = model(pixel_values=captioner.pixels(photo[None]), input_ids=now, attention_mask=torch.ones_like(now)).logits
            ids.append(int(logits[0, -1].argmax()))
        lengths.append(len(ids) - len(start))
        assert caption == " ".join(words.decode(ids, skip_special_tokens=True).split())
    assert len(set(told)) == 3 and min(lengths) < LONGEST == max(lengths)  # and some of them ended by themselves


def test_more_photos_than_fit_are_told_in_order(captioner, monkeypatch):
    photos = photos_of(5)
    together = captioner.generate_captions(photos)
    monkeypatch.setattr("e2e_lib.models.captioner.TOGETHER", 2)
    assert captioner.generate_captions(photos) == together


@pytest.mark.parametrize("system", ["pipeline"], indirect=True)
def test_what_the_captioner_says_is_no_matter_of_training_or_answering(own):
    # BLIP-2's own parts have dropout: a caption told in a training step would be another each time.
    photos = photos_of(2)
    told = own.eval().captioner.generate_captions(photos)
    own.train()
    assert own.captioner.generate_captions(photos) == told and own.language.training
    assert not any(module.training for module in own.captioner.modules())


# ------------------------------------------------------------------------------------------------- captions in the context

class Teller:
    """A captioner that names a photo's average grey, and counts the photos it is shown."""

    def __init__(self):
        self.shown = []

    def generate_captions(self, photos):
        self.shown.append(len(photos))
        return [f"all of it {round(float(photo.float().mean()))}" for photo in photos]


def grey(value):
    return Image.fromarray(np.full((64, 64, 3), value, dtype=np.uint8))


def shared(*names):
    """A chat in which these photos were shared, and then another."""
    turns = tuple(Turn(i % 2, "look", SharedPhoto(name, f"the gold caption of {name}")) for i, name in enumerate(names))
    return Example("d", len(turns), turns, Turn(0, "and this", SharedPhoto(names[0], f"the gold caption of {names[0]}")))


@pytest.fixture
def layout(pipeline):
    return CaptionLayout(pipeline.tokenizer, 192, Teller())


def told(example):
    return [turn.photo.caption for turn in example.context if turn.photo]


def test_each_photo_is_captioned_once_and_by_what_it_shows(layout):
    album = PhotoAlbum()
    names = [album.add(grey(value)) for value in (10, 200, 10)]
    rows = [shared(names[0], names[1]), shared(names[2], names[0])]
    assert [told(row) for row in formatter.look(rows, album, 64)] == [["all of it 10", "all of it 200"], ["all of it 10", "all of it 10"]]
    assert formatter.captioner.shown == [2]  # the first and the third are one photo under two names
    assert [told(row) for row in formatter.look(rows, album, 64)] == [["all of it 10", "all of it 200"], ["all of it 10", "all of it 10"]]
    other = PhotoAlbum()  # another chat, with the same names for other photos
    other.add(grey(200))
    other.add(grey(77))
    assert [told(row) for row in formatter.look([shared(names[0], names[1])], other, 64)] == [["all of it 200", "all of it 77"]]
    assert formatter.captioner.shown == [2, 1]


def test_only_contexts_are_rewritten_and_the_callers_examples_stay(layout):
    album = PhotoAlbum()
    row = shared(album.add(grey(10)), album.add(grey(20)))
    plain = Example("d", 1, (Turn(0, "hi"),), Turn(1, "hello"))
    before = copy.deepcopy([row, plain])
    seen = formatter.look([row, plain], album, 64)
    assert [row, plain] == before and seen[1] == plain
    assert seen[0].response == row.response and (seen[0].dialogue_id, seen[0].index) == (row.dialogue_id, row.index)
    assert [(t.speaker, t.text, t.photo.photo_id) for t in seen[0].context] == [(t.speaker, t.text, t.photo.photo_id) for t in row.context]
    assert formatter.look([plain], album, 64) == [plain] and formatter.captioner.shown == [2]


def test_a_context_holds_the_captioners_words_and_no_photo(system, six):
    rows, store = six
    batch = Collator(system.formatter, store, 64)(rows)
    assert batch.photos.shape == (0, 3, 64, 64) and not (batch.input_ids == system.formatter.slot).any()
    said = 0
    for row, ids, labels in zip(rows, batch.input_ids, batch.labels, strict=True):
        context = system.tokenizer.decode(ids[(labels == IGNORED) & (ids != system.formatter.pad)])
        _, kept = system.formatter.context(system.formatter.look([row], store, 64)[0].context, row.response.speaker)
        for turn in kept:
            if turn.photo:
                said += 1
                caption = system.captioner.generate_captions(store.tensor(turn.photo.photo_id, 64)[None])[0]
                assert "".join(caption.split()) in "".join(context.split())
    assert said >= 3
    gold = [e.response.photo for e in rows if e.response.photo]
    assert batch.captions == [photo.caption for photo in gold]
    assert [system.tokenizer.decode(ids[at]) for ids, at in zip(batch.input_ids, batch.is_caption, strict=True) if at.any()] == batch.captions
    assert torch.equal(batch.target_photos, torch.stack([store.tensor(photo.photo_id, 64) for photo in gold]))


# ------------------------------------------------------------------------------------------------------- the two losses

def forward(system, batch, key="step"):
    return system(batch, temperature=1.0, rng=generator(key))


@torch.no_grad()
def test_the_text_loss_is_that_of_the_language_model_reading_each_chat_alone(system, six):
    rows, store = six
    collate, total, count = Collator(system.formatter, store, 64), 0.0, 0
    for row in rows:
        alone = collate([row])
        logits = system.language(input_ids=alone.input_ids).logits[0].double()
        for t in (alone.labels[0] != IGNORED).nonzero().flatten().tolist():
            total -= F.log_softmax(logits[t - 1], -1)[alone.input_ids[0, t]].item()
            count += 1
    output = forward(system, collate(rows))
    assert output.text_loss.item() == pytest.approx(total / count, rel=1e-5)
    assert output.loss.item() == pytest.approx(output.text_loss.item() + output.image_loss.item(), rel=1e-6) and output.image_loss > 0.1


@torch.no_grad()
def test_the_pipelines_image_loss_is_eq_12_on_the_gold_captions(pipeline, six):
    rows, store = six
    gold, draws = [e.response.photo for e in rows if e.response.photo], pipeline.generator
    output = forward(pipeline, Collator(pipeline.formatter, store, 64)(rows))
    rng, errors = generator("step"), []
    latents = [draws.to_latents(store.tensor(photo.photo_id, 64)[None].float() / 127.5 - 1) for photo in gold]
    noise = torch.randn((len(gold), *latents[0].shape[1:]), generator=rng)
    timesteps = torch.randint(1000, (len(gold),), generator=rng)
    for photo, latent, wanted, t in zip(gold, latents, noise, timesteps, strict=True):
        ids = draws.tokenizer([photo.caption], padding="max_length", max_length=draws.limit, truncation=True, return_tensors="pt").input_ids
        text = draws.text_encoder(ids).last_hidden_state
        noisy = draws.scheduler.add_noise(latent, wanted[None], t[None])
        errors.append((draws.unet(noisy, t, encoder_hidden_states=text).sample - wanted).square().mean().item())
    assert output.image_loss.item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert output.drawn == [photo.caption for photo in gold] and output.truncated == 0


def test_a_caption_too_long_to_draw_from_is_counted(system, six):
    rows, store = six
    batch = Collator(system.formatter, store, 64)(rows)
    batch.captions[0] = "a red car and " * 20
    assert forward(system, batch).truncated == 1


def test_no_gradient_passes_between_the_parts(own, six):
    rows, store = six
    output = forward(own, Collator(own.formatter, store, 64)(rows))
    learner = own.generator.learner
    assert own.trained_parts() == {"language": own.language, learner: own.generator.get_submodule(learner)} and not own.joint
    assert all(g is None for g in gradients_of(output.image_loss, own.language))
    assert all(g is None for g in gradients_of(output.text_loss, own.generator))
    output.loss.backward()
    reached = {id(p) for p in own.parameters() if p.grad is not None and p.grad.any()}
    assert reached == {id(p) for part in own.trained_parts().values() for p in part.parameters()}  # what is trained, and nothing else


def test_a_batch_without_photos_to_draw_trains_the_language_model_alone(own, examples):
    rows, store = examples
    output = forward(own, Collator(own.formatter, store, 64)([e for e in rows if not e.response.photo][:2]))
    output.loss.backward()
    assert output.image_loss == 0 and output.drawn == [] and torch.equal(output.loss, output.text_loss)
    assert all(p.grad is None for p in own.generator.parameters())


@pytest.mark.parametrize(("name", "learner", "frozen"), [("pipeline", "unet", ("text_encoder", "vae")), ("divter", "transformer", ("vqvae",))])
def test_captioner_encoder_and_autoencoder_are_frozen(built, name, learner, frozen):
    system = built[name]
    weights, before = system.trained_weights(), system.state_dict()
    assert {key.split(".")[0] for key in weights} == {"language", "generator"}
    assert {key.split(".")[1] for key in weights if key.startswith("generator.")} == {learner}
    for part in (system.captioner, *(getattr(system.generator, other) for other in frozen)):
        assert list(part.parameters()) and not any(p.requires_grad for p in part.parameters())
    again = copy.deepcopy(system)
    with torch.no_grad():
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    again.load_state_dict(weights, strict=False)  # as a checkpoint is put in: nothing that was trained is left out
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.state_dict().items())


# --------------------------------------------------------------------------------------------------------- the translator

def own_ids(translator, caption):
    """A caption's tokens and the mark, without padding."""
    ids = translator.tokenizer(caption, truncation=True, max_length=translator.limit)["input_ids"]
    return [*ids, len(translator.tokenizer) + translator.codes]


def test_captions_are_padded_on_the_left_and_the_mark_follows_them(translator):
    captions = [*CAPTIONS, "a red car and " * 20]
    ids, mask = translator.tokenize(captions)
    assert ids.shape == mask.shape == (4, translator.limit + 1)
    for row, real, caption in zip(ids, mask, captions, strict=True):
        own = own_ids(translator, caption)
        assert row[-len(own):].tolist() == own and real.tolist() == [0] * (len(row) - len(own)) + [1] * len(own)
    assert mask.sum(1).tolist()[1] == 3 and mask[3].all()  # start, end and the mark of a caption without words; one that was cut


@torch.no_grad()
def test_codes_are_the_nearest_in_the_book_row_by_row(translator):
    photos = to_floats(photos_of(3))
    codes, book = translator.to_codes(photos), translator.vqvae.quantize.embedding.weight
    latents = translator.vqvae.encode(photos).latents
    assert codes.shape == (3, translator.side**2) and latents.shape[2:] == (translator.side,) * 2
    for photo, written in zip(latents, codes, strict=True):
        nearest = [int((book - photo[:, y, x]).square().sum(1).argmin()) for y in range(translator.side) for x in range(translator.side)]
        assert written.tolist() == nearest
    assert len(codes.unique()) > 3 and len({tuple(row) for row in codes.tolist()}) == 3


@torch.no_grad()
def test_photos_of_codes_are_the_autoencoders_own(translator):
    photos = to_floats(photos_of(3))
    drawn = translator.to_photos(translator.to_codes(photos))
    assert drawn.dtype == torch.uint8 and drawn.shape == (3, 3, 64, 64)
    assert (drawn.int() - to_pixels(translator.vqvae(photos).sample).int()).abs().max() <= 1  # rounding
    assert not torch.equal(drawn[0], drawn[1])


def test_photos_of_another_size_than_the_autoencoders_are_refused(translator):
    with pytest.raises(ValueError, match="takes photos of 64 pixels, not 32: set data.photo_size"):
        translator.caption_loss(["a cat"], torch.zeros(1, 3, 32, 32), generator(0))


@torch.no_grad()
def test_the_code_loss_is_a_loop_over_captions_and_codes(translator):
    codes = translator.to_codes(to_floats(photos_of(3)))
    words, total = len(translator.tokenizer), 0.0
    for caption, row in zip(CAPTIONS, codes.tolist(), strict=True):
        ids = own_ids(translator, caption)
        for code in row:
            logits = translator.transformer(torch.tensor([ids])).logits[0, -1, words:words + translator.codes]
            total -= F.log_softmax(logits.double(), -1)[code].item()
            ids.append(words + code)
    assert translator.code_loss(CAPTIONS, codes).item() == pytest.approx(total / codes.numel(), rel=1e-5)
    shuffled = [CAPTIONS[2], CAPTIONS[0], CAPTIONS[1]]
    assert translator.code_loss(shuffled, codes).item() != pytest.approx(total / codes.numel(), rel=1e-3)


@torch.no_grad()
def test_a_tenth_of_the_captions_is_left_out_while_training(translator, monkeypatch):
    photos, captions = to_floats(photos_of(8)), [f"{number} cats" for number in range(8)]
    key = next(key for key in range(99) if 0 < int((torch.rand(8, generator=generator(key)) < CAPTION_DROPOUT).sum()) < 3)
    kept = ["" if gone else caption for caption, gone in zip(captions, torch.rand(8, generator=generator(key)) < CAPTION_DROPOUT, strict=True)]
    loss, heard = translator.caption_loss(captions, photos, generator(key)), translator.code_loss(captions, translator.to_codes(photos))
    assert torch.equal(loss, translator.code_loss(kept, translator.to_codes(photos))) and not torch.equal(loss, heard)
    seen = []
    monkeypatch.setattr(translator, "to_codes", lambda _: None)
    monkeypatch.setattr(translator, "code_loss", lambda captions, _: seen.extend(captions))
    translator.caption_loss(["a cat"] * 5000, photos, generator(0))
    assert set(seen) == {"a cat", ""} and 0.08 < seen.count("") / 5000 < 0.12


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_drawing_is_a_loop_without_cache_and_without_batches(translator, guidance):
    rng, expected, words = generator("draw"), [], len(translator.tokenizer)

    def log_p(caption, codes):
        ids = torch.tensor([own_ids(translator, caption) + [words + code for code in codes]])
        return F.log_softmax(translator.transformer(ids).logits[0, -1, words:words + translator.codes], -1)

    for caption in CAPTIONS:
        noise = -torch.empty(translator.side**2, translator.codes).exponential_(generator=rng).log()  # Gumbel's, as in Eq. 4
        codes = []
        for n in range(translator.side**2):
            heard = log_p(caption, codes)
            if guidance > 1:
                unheard = log_p("", codes)
                heard = unheard + guidance * (heard - unheard)
            codes.append(int((heard + noise[n]).argmax()))
        expected.append(codes)
    drawn = translator.draw(CAPTIONS, generator("draw"), guidance_scale=guidance)
    assert (drawn.int() - translator.to_photos(torch.tensor(expected)).int()).abs().max() <= 1
    assert len({tuple(codes) for codes in expected}) == 3


@torch.no_grad()
def test_a_drawn_photo_does_not_depend_on_its_batch(translator):
    together = translator.draw(CAPTIONS, generator("draw"))
    assert together.shape == (3, 3, 64, 64) and together.dtype == torch.uint8
    assert torch.equal(together, translator.draw(CAPTIONS, generator("draw"), num_inference_steps=9)) and not torch.equal(together[0], together[2])
    rng = generator("draw")
    for caption, photo in zip(CAPTIONS, together, strict=True):
        assert (translator.draw([caption], rng)[0].int() - photo.int()).abs().max() <= 1  # rounding of sums in another order
    assert not torch.equal(together, translator.draw(CAPTIONS, generator("another")))


def test_guidance_of_one_draws_the_plain_prediction(translator):
    plain, almost, guided = (translator.draw(CAPTIONS, generator("draw"), guidance_scale=guidance) for guidance in (1.0, 1.0 + 1e-6, 5.0))
    assert (plain.int() - almost.int()).abs().max() <= 1
    assert not torch.equal(plain, guided)
    assert (plain[1].int() - guided[1].int()).abs().max() <= 1  # a caption without words is what guidance leads away from


def test_codes_are_drawn_as_often_as_the_transformer_expects_them(translator):
    # The first code of many photos of one caption, against the transformer's own probabilities.
    with torch.no_grad():
        logits = translator.transformer(torch.tensor([own_ids(translator, "a red car")])).logits[0, -1]
        expected = F.softmax(logits[len(translator.tokenizer):-1], -1)
    firsts, count = Counter(), 500
    translator.side, translator.to_photos = 1, lambda codes: firsts.update(codes[:, 0].tolist()) or codes
    translator.draw(["a red car"] * count, generator("often"), guidance_scale=1.0)
    drawn = torch.tensor([firsts[code] for code in range(translator.codes)])
    assert expected.max() < 0.9 and ((drawn - count * expected) / (count * expected * (1 - expected) + 1).sqrt()).abs().max() < 4


@pytest.mark.parametrize("change", [{"vocab_size": 2}, {"n_positions": -1}])
def test_a_transformer_of_the_wrong_size_is_refused(translator, tmp_path, config, change):
    right = {"vocab_size": translator.first + translator.codes + 1, "n_positions": translator.limit + 1 + translator.side**2}
    sizes = {key: value + change.get(key, 0) for key, value in right.items()}
    wrong = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None, **sizes))
    complaint = (f"has {sizes['vocab_size']} words, {sizes['n_positions']} positions; {right['vocab_size']} and at least {right['n_positions']} "
                 f"are needed for {translator.first} words, 24 codes and 4² of them")
    with pytest.raises(ValueError, match=complaint):
        ImageTranslator(translator.tokenizer, translator.vqvae, wrong, translator.limit)
    shutil.copytree(config.model.translator, tmp_path / "translator")
    wrong.save_pretrained(tmp_path / "translator" / "transformer")
    with pytest.raises(CheckpointError, match="translator: could not load"):
        load_translator(str(tmp_path / "translator"))


# --------------------------------------------------------------------------------------------------------------- building

@pytest.mark.parametrize(("name", "language", "draws"), [("pipeline", LlamaForCausalLM, ImageGenerator), ("divter", GPT2LMHeadModel, ImageTranslator)])
def test_a_system_has_the_parts_the_paper_names_wherever_they_come_from(shipped, config, built, name, language, draws):
    local = built[name]
    assert isinstance(local.language, language) and isinstance(local.generator, draws) and isinstance(local.formatter, CaptionLayout)
    assert local.formatter.max_context == config.data.max_context and local.formatter.captioner is local.captioner
    from_shipped = replace(config, "model.system", name)
    for part, place in (("language", "mini"), ("generator", "mini"), ("captioner", "mini-baselines"), ("dialogue", "mini-baselines"),
                        ("translator", "mini-baselines")):
        from_shipped = replace(from_shipped, f"model.{part}", f"shipped:{place}")
    theirs = build(from_shipped).state_dict()
    assert theirs.keys() == local.state_dict().keys() and all(torch.equal(theirs[key], tensor) for key, tensor in local.state_dict().items())


def test_tokenizers_come_back_as_they_were_saved(built, config):
    # A library could take those that its model classes usually have.
    words, clip = load_language(config.model.language)[1], built["pipeline"].generator.tokenizer
    text = "Did you see it? ¡Sí!\nAssistant: a red car"
    for tokenizer in (built["divter"].tokenizer, built["pipeline"].captioner.tokenizer):
        assert tokenizer(text)["input_ids"] == words(text)["input_ids"] and len(tokenizer) == len(words)
    assert built["divter"].generator.tokenizer(text)["input_ids"] == clip(text)["input_ids"] and built["divter"].generator.limit == 32


def test_a_dialogue_model_of_the_hub_answers(config, six, tmp_path):
    # DialoGPT's tokenizer has one mark for everything: no padding, no beginning of its own, and none of ours.
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(["User: did you see the red car?\nAssistant: yes, at the beach!\n"], vocab_size=280, special_tokens=["<|endoftext|>"])
    words.save_model(str(tmp_path))
    end = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2Tokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=words.get_vocab_size(), n_positions=512, n_embd=16, n_layer=1, n_head=2, **end)).save_pretrained(tmp_path)
    chosen = replace(replace(config, "model.system", "divter"), "model.dialogue", str(tmp_path))
    with pytest.raises(ConfigError, match="make .* tokens, but the language model reads 512 at most: --set data.max_context=480"):
        build(replace(replace(chosen, "inference.max_new_tokens", 32), "data.max_context", 481))
    model = build(replace(replace(chosen, "inference.max_new_tokens", 32), "data.max_context", 480))
    layout, batch = model.formatter, Collator(model.formatter, six[1], 64)(six[0])
    assert len({formatter.start, formatter.end, formatter.slot, formatter.pad, model.tokenizer.eos_token_id}) == 5
    assert model.tokenizer.decode(formatter.text("a red car [IMG]")) == "a red car [IMG]" and formatter.start not in formatter.text("a red car [IMG]")
    out = model(batch, temperature=1.0, rng=generator("step"))
    out.loss.backward()
    table = model.language.get_input_embeddings().weight
    assert out.loss.isfinite() and table.grad[formatter.start].abs().sum() > 0 and model.language.lm_head.weight is table
    answers = respond(model, six[0], six[1], Inference(do_sample=False, max_new_tokens=6), generator("answer"))
    assert len(answers) == len(six[0])


PARTS = [("pipeline", "captioner"), ("pipeline", "language"), ("pipeline", "generator"), ("divter", "captioner"), ("divter", "dialogue"), ("divter", "translator")]


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_missing_part_is_named(config, tmp_path, name, part):
    chosen = replace(config, "model.system", name)
    with pytest.raises(CheckpointError, match=f"{part}: there is no folder {tmp_path}/absent"):
        build(replace(chosen, f"model.{part}", f"{tmp_path}/absent"))
    with pytest.raises(CheckpointError, match=f"{part}: could not load .*--set model.{part}=FOLDER"):
        build(replace(chosen, f"model.{part}", str(tmp_path)))


@pytest.mark.parametrize(("name", "damage"), [
    ("captioner/model.safetensors", "cut short"), ("captioner/model.safetensors", "gone"), ("captioner/tokenizer.json", "cut short"),
    ("captioner/preprocessor_config.json", "gone"), ("captioner/preprocessor_config.json", "cut short"),
    ("captioner/preprocessor_config.json", "empty"), ("dialogue/model.safetensors", "cut short"),
    ("translator/vqvae/diffusion_pytorch_model.safetensors", "cut short"), ("translator/vqvae/diffusion_pytorch_model.safetensors", "gone"),
    ("translator/transformer/model.safetensors", "cut short"), ("translator/transformer/model.safetensors", "gone"),
    ("translator/tokenizer/tokenizer.json", "cut short")])
def test_a_damaged_local_part_is_named(weights, tmp_path, name, damage):
    part = name.split("/")[0]
    shutil.copytree(weights / "mini-baselines" / part, tmp_path / part)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(b"{}" if damage == "empty" else content[:len(content) // 2])
    load = {"captioner": load_captioner, "translator": load_translator, "dialogue": lambda place: load_language(place, "dialogue", GPT2LMHeadModel)}
    with pytest.raises(CheckpointError, match=f"{part}: could not load"):
        load[part](str(tmp_path / part))


def test_a_damaged_shipped_part_is_named(weights, config, tmp_path, monkeypatch):
    shutil.copytree(weights, tmp_path / "weights")
    monkeypatch.setattr(hub, "WEIGHTS", tmp_path / "weights")
    path = tmp_path / "weights" / "mini-baselines" / "translator" / "vqvae" / "config.json"
    path.write_text(path.read_text().replace("64", "32", 1))
    with pytest.raises(CheckpointError, match="mini-baselines is damaged: translator/vqvae/config.json is not what was saved"):
        load_captioner("shipped:mini-baselines")  # whichever part is asked for


# -------------------------------------------------------------------------------------------------------------- answering

GREEDY = Inference(do_sample=False, max_new_tokens=12, num_inference_steps=2)


@pytest.fixture
def talkative(own):
    """A baseline whose language model has larger weights, so that its words depend on the context and not on rounding."""
    enlarge(own.language)
    return own


@torch.no_grad()
def test_answers_are_the_likeliest_words_after_the_captioned_context(talkative, six):
    rows, store = six
    together = write(talkative, rows, store, GREEDY, generator(0), 64)
    for row, answer in zip(rows, together, strict=True):
        (seen,) = talkative.formatter.look([row], store, 64)
        so_far, _ = talkative.formatter.context(seen.context, row.response.speaker)
        ids = []
        while len(ids) < GREEDY.max_new_tokens and (not ids or ids[-1] not in talkative.formatter.stops):
            ids.append(int(talkative.language(torch.tensor([so_far + ids])).logits[0, -1].argmax()))
        assert answer == parse(talkative, torch.tensor(ids))
    assert len({(answer.text, answer.caption) for answer in together}) > 2


def test_what_the_captioner_says_decides_the_answer(talkative, six):
    rows, store = six
    seen = [row for row in rows if any(turn.photo for turn in row.context)]
    first = write(talkative, seen, store, GREEDY, generator(0), 64)
    talkative.formatter.said = {key: "nothing at all" for key in talkative.formatter.said}
    assert [answer.text for answer in write(talkative, seen, store, GREEDY, generator(0), 64)] != [answer.text for answer in first]


def test_a_shared_photo_is_drawn_from_its_caption(talkative, six):
    rows, store = six
    ids = talkative.formatter.response(Turn(1, "look", SharedPhoto("p", "two red cars")))[0]
    talkative.language.generate = lambda inputs_embeds, **_: torch.tensor([ids] * len(inputs_embeds))
    answers = respond(talkative, rows[:2], store, GREEDY, generator(3))
    rng = generator(3)
    torch.randint(2**62, (1,), generator=rng)  # the seed for the words
    expected = talkative.generator.draw(["two red cars"] * 2, rng, num_inference_steps=2, guidance_scale=GREEDY.guidance)
    assert [(a.text, a.caption) for a in answers] == [("look", "two red cars")] * 2
    assert torch.equal(torch.stack([a.photo for a in answers]), expected)


def test_in_a_chat_photos_are_read_as_captions(system):
    partner, photo = ChatPartner(system, GREEDY, seed=4), Image.fromarray(noise_of(90, 7).permute(1, 2, 0).numpy())
    system.forget()
    partner.say("look", photo)
    assert list(system.formatter.said.values()) == system.captioner.generate_captions(noise_of(90, 7)[None])
    assert partner.turns[0] == Turn(0, "look", SharedPhoto("photo 1", ""))


# --------------------------------------------------------------------------------------------------------------- training

@pytest.fixture(scope="module")
def short(config):
    """One epoch of three steps, with a checkpoint after each and gradients that are clipped."""
    for key, value in (("train.epochs", 1), ("train.checkpoint_every", 1), ("train.max_grad_norm", 0.05), ("train.learning_rate", 0.01),
                       ("train.dev_examples", 4), ("inference.max_new_tokens", 4), ("inference.num_inference_steps", 1)):
        config = replace(config, key, value)
    return config


@pytest.fixture(scope="module")
def data_root(tmp_path_factory, short):
    root = tmp_path_factory.mktemp("corpora")
    prepare(short, quiet, root)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(short, weights, data_root, root):
    """The configuration and the folder of a run of each baseline that nothing disturbed."""
    configs = [replace(short, "model.system", name) for name in BASELINES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "WEIGHTS", weights)
        return {config.model.system: (config, loop.train(config, 0, quiet, root=root, data_root=data_root)) for config in configs}


@pytest.fixture(params=BASELINES)
def finished(request, trained):
    return trained[request.param]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_logs_its_steps_and_leaves_what_is_needed(finished, built, shipped, root):
    config, folder = finished
    name = config.model.system
    assert folder == root / "smoke" / name / "seed-0"
    steps, dev = ([line for line in lines_of(folder) if line["kind"] == kind] for kind in ("step", "dev"))
    assert [line["step"] for line in steps] == [0, 1, 2] and [line["epoch"] for line in dev] == [1]
    assert any(line["image_loss"] for line in steps)
    for line in steps:
        assert 0 < line["text_loss"] < 20 and line["gradient_language"] > 0 and "gradient_perceptron" not in line
        assert line["gradient_language_from_image"] == (None if line["image_loss"] is None else 0)
        assert line["image_loss"] is None or 0 < line["image_loss"] < 20 and line[f"gradient_{built[name].generator.learner}"] > 0
    done = json.loads((folder / "done.json").read_text())
    assert (done["steps"], done["epochs"], done["config"]["model"]["system"]) == (3, 1, name)
    model = loop.load_trained(config, 0, root=root)
    best, _ = checkpoints.load(folder / "best")
    found, before = dict(model.named_parameters()), dict(built[name].named_parameters())
    assert not model.training and best.keys() == model.trained_weights().keys() < before.keys()
    for key, tensor in before.items():
        assert torch.equal(found[key], best[key] if key in best else tensor), key  # what is frozen comes from the parts
    assert all(any(not torch.equal(best[key], before[key]) for key in best if key.startswith(part)) for part in ("language", "generator"))


def test_a_run_cut_off_in_a_checkpoint_goes_on_to_the_same_bytes(trained, shipped, data_root, tmp_path, monkeypatch):
    (config, folder), calls, save_file = trained["divter"], Counter(), checkpoints.save_file  # both of its parts have dropout

    def cut_off(*arguments):
        calls["save"] += 1
        if calls["save"] == 4:  # the second step's optimizer
            raise KeyboardInterrupt
        save_file(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", cut_off)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, 0, quiet, root=tmp_path, data_root=data_root)
    said = []
    again = loop.train(config, 0, said.append, root=tmp_path, data_root=data_root)
    assert any("going on after step 1" in line for line in said)
    for name in ("best/model", "latest/model", "latest/optimizer"):
        assert files.sha256(again / f"{name}.safetensors") == files.sha256(folder / f"{name}.safetensors"), name


@pytest.fixture(scope="module")
def epoch(short, weights, data_root, tmp_path_factory):
    """The pipeline's run after its one epoch, and the gradients that its first step took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "WEIGHTS", weights)
        run = loop._Run(replace(short, "model.system", "pipeline"), 0, tmp_path_factory.mktemp("epoch"), data_root, quiet)
    step, taken = run.optimizer.step, {}

    def remember():
        taken.update({} if taken else {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        step()

    run.optimizer.step = remember
    run._epoch()
    return run, taken


def test_the_parts_are_clipped_apart(epoch, short):
    run, taken = epoch
    batch, model, left = next(iter(run._loader(0))), build(replace(short, "model.system", "pipeline")).train(), set(taken)
    output = model(batch, temperature=1.0, rng=generator(0, "noise", 0, 0))
    assert output.drawn
    for loss, part in ((output.text_loss, "language"), (output.image_loss, "generator.unet")):
        named = [(f"{part}.{name}", p) for name, p in model.get_submodule(part).named_parameters()]
        gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True)
        size = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        assert size > 2 * short.train.max_grad_norm
        for (name, _), gradient in zip(named, gradients, strict=True):
            assert torch.allclose(taken[name], gradient * short.train.max_grad_norm / size, rtol=1e-4, atol=1e-8), name
            left.remove(name)
    assert not left


def test_the_language_model_learns_as_if_it_were_trained_alone(epoch, short):
    run, _ = epoch
    settings, (language, tokenizer) = short.train, load_language(short.model.language)
    untrained = copy.deepcopy(language.state_dict())
    collate = Collator(CaptionLayout(tokenizer, short.data.max_context, run.model.captioner), run.store, 64)
    rng = generator(0, "order", 0)
    order = torch.randperm(len(run.examples), generator=rng)[:settings.epoch_examples].tolist()
    order = loop.by_length(order, run.lengths, settings.batch_size, rng)
    optimizer = torch.optim.AdamW(language.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    for step in range(3):
        batch = collate([run.examples[i] for i in order[4 * step:4 * step + 4]])
        logits = language(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(language.parameters(), settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1, step / settings.warmup_steps)
        optimizer.step()
    found = run.model.language.state_dict()
    for name, tensor in language.state_dict().items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-6), name
        assert not torch.allclose(tensor, untrained[name], rtol=0, atol=1e-3), name


# ------------------------------------------------------------------------------------------------------------- evaluating

def test_a_baselines_results_name_it_and_its_parts(finished, weights, shipped, root, data_root, tmp_path, monkeypatch):
    config, folder = finished
    config = replace(config, "evaluation.max_text_only_examples", 3)
    where = {"results_root": tmp_path, "runs_root": root, "data_root": data_root}
    path = evaluate.evaluate(config, 0, quiet, **where)
    assert path == tmp_path / "smoke" / "runs" / f"{config.model.system}-seed0.json"
    (run,) = results.read_runs("smoke", tmp_path)
    assert run["system"] == config.model.system and run["metrics"]["n"]["examples"] == run["metrics"]["n"]["gold_photos"] + 3
    assert run["provenance"]["weights"] == {
        "trained": files.sha256(folder / "best" / "model.safetensors"), "shipped": files.sha256(weights / "mini" / "manifest.json"),
        "baselines": files.sha256(weights / "mini-baselines" / "manifest.json")}
    said = []
    evaluate.evaluate(config, 0, said.append, **where)
    assert "is there already" in said[-1]
    assert run["metrics"]["details_n"] == len((folder / "answers" / "details.jsonl").read_text().splitlines()) > 0
