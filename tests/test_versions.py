"""Golden values of everything that ``e2e_lib.versions`` counts: numbers must not change while a version does not.

They were computed with the code of commit f4138f1, before the package's rooms were rebuilt.
"""

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from e2e_lib import config as settings
from e2e_lib import versions
from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.data.dialogue import SharedPhoto, Turn, to_row
from e2e_lib.data.examples import Example, Response, examples_of
from e2e_lib.data.minichat.chats import make_chat, photo_seed
from e2e_lib.data.minichat.scenes import draw_scene
from e2e_lib.data.photos import to_tensor
from e2e_lib.evaluation.image import features_of
from e2e_lib.evaluation.intervals import mean_interval
from e2e_lib.evaluation.minichat import MiniChatScores
from e2e_lib.evaluation.scores import all_scores, answer_row, reduce
from e2e_lib.experiments.comparison import differences, fid_by_number
from e2e_lib.inference.respond import parse_response, respond
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import generator, seed_of
from e2e_lib.training.loop import train

GOLDEN = {  # of each version that was
    "MINICHAT": {1: {
        "dialogues": "537efff07c3218fce7df0070128232d914f47e65bb21d886a7ae69a5b57b1d8d",
        "photos": "6779f0b610838bcb1158438d1c5e1ee4bec5dd098c8cb7e3f00cec7a34993f85",
    }},
    "SCORING": {1: {
        "n_examples": 72, "n_texts": 58, "n_gold_photos": 24, "n_scenes": 3, "bleu1": 23.217402484614716,
        "bleu2": 20.03882952541151, "bleu1_cumulative": 23.217402484614723,
        "bleu2_cumulative": 21.56964465196541,
        "sacrebleu_signature": "nrefs:1|case:mixed|eff:no|tok:none|smooth:none|version:2.6.0",
        "rougeL": 21.494252873563216, "caption_bleu": 22.9958937521216, "caption_bleu1": 23.239243319988923,
        "caption_bleu2": 22.755092417489152, "intent_precision": 0.9583333333333334,
        "intent_recall": 0.9583333333333334, "intent_f1": 0.9583333333333334, "is": 2.515191798753442,
        "is_std": 0.0013397082001478378, "fid": 1.7470876174072263, "kid": 11.326306353815959,
        "kid_std": 1.734655884282248e-14, "drawn_photos": 24, "scene_accuracy": 0.5555555555555555,
        "scene_thing": 0.6666666666666666, "scene_colour": 0.3333333333333333,
        "scene_place": 0.6666666666666666, "scene_number": 0.3333333333333333,
        "scene_size": 0.6666666666666666, "scene_time": 0.6666666666666666, "scene_n": 3, "scene_missing": 1,
        "details": 0.6666666666666666, "details_n": 3, "details_number": 0.0, "details_number_n": 1,
        "details_size": 1.0, "details_size_n": 1, "details_time": 1.0, "details_time_n": 1,
    }},
    "DECODING": {1: {
        "prompt": "961bf58c7804f522accfba79e4317bbdb593efd6d28d5b253cd9f0e900cc8a53", "length": 72, "kept": 4,
        "response": "[437, 260, 641, 319, 494, 557, 642, 2]", "caption": 3, "parsed": "so",
        "parsed_caption": "Yes! a blue car", "text": "Say hello to your dad!", "text_beside_photo": "",
        "caption_of_photo": "in the garden, some white cars", "photo": 116.052734375,
    }},
    "TRAINING": {1: {
        "text_loss_0": 1.249130368232727, "image_loss_0": None, "text_loss_1": 0.307889848947525,
        "image_loss_1": 0.125291645526886,
    }},
    "GRADIENTS": {1: {
        "static_piece gumbel": -0.012400861335995411, "static_word gumbel": -0.003147316003130181,
        "sentence gumbel": 0.025072672331732573, "word gumbel": 4.67121853199191e-05,
        "span gumbel": -0.008328923772991464, "span straight_through": -0.004076545246691741,
        "sentence decoupled": 0.00017379647144636712, "word reinmax": 0.413146892665472,
        "span gumbel_rao": -0.257662545044322,
    }},
}

# Version 2: a photo's noise is its own, whatever batch it is in, a tenth of the captions is left out, each part is
# clipped by itself, and the profile trains on whole dialogues.
GOLDEN["TRAINING"][2] = {
    "text_loss_0": 1.0060704946517944, "image_loss_0": 0.11888013035058975, "text_loss_1": 0.6605363488197327,
    "image_loss_1": 0.24267452955245972,
}
# Version 2 has a second ROUGE-L, and as many photos in an answer as it has captions.
GOLDEN["SCORING"][2] = GOLDEN["SCORING"][1] | {"rougeL_whitespace": 21.49425287356322}
GOLDEN["SCORING"][3] = GOLDEN["SCORING"][2] | {  # and what captions name
    "caption_accuracy": 0.4444444444444444, "caption_thing": 0.6666666666666666, "caption_colour": 0.6666666666666666,
    "caption_place": 0.0}
GOLDEN["DECODING"][2] = GOLDEN["DECODING"][1] | {"text_of_two": "Yes! Nice?", "captions_of_two": ["a blue car", "a red kite"]}
# Version 3: each batch of words, and each photo, has random numbers of its own, whichever process answers.
GOLDEN["DECODING"][3] = GOLDEN["DECODING"][2] | {"photo": 152.9522247314453}
# Version 1 took percentiles of a bootstrap.
GOLDEN["INTERVALS"] = {2: {
    "bleu2 difference": -29.688040481738902, "bleu2 low": -36.95880873468348, "bleu2 high": -22.417272228794324,
    "bleu2 p": 9.210751116100767e-10, "bleu2 p_corrected": 2.76322533483023e-09,
    "rougeL difference": -29.770114942528735, "rougeL low": -35.60507254721283, "rougeL high": -23.935157337844643,
    "rougeL p": 3.4834181222226864e-12, "rougeL p_corrected": 1.3933672488890746e-11,
    "is difference": -0.16964545954170207, "is low": -0.388933773088488, "is high": 0.049642854005083836,
    "is p": 0.1231451166097487, "is p_corrected": 0.2462902332194974, "fid difference": 0.34381003513005126,
    "fid low": -0.4069786724495399, "fid high": 1.0945987427096424, "fid p": 0.35395863445200915,
    "fid p_corrected": 0.35395863445200915, "fid of 2": 19.316792717423382, "fid of 5": 7.813307097450465,
    "fid of 8": 4.316913189177375, "fid of 11": 4.299491925306759, "fid of 17": 2.8261952576763374,
    "fid of 23": 2.5209454796679136, "mean": 0.17314814814814816, "low": 0.08676835265449706,
    "high": 0.25952794364179926,
}}


def same(value, golden, rel):
    return value == pytest.approx(golden, rel=rel, abs=rel / 1000) if isinstance(golden, float) else value == golden


def check(name, values, rel=1e-9):
    """Compares a dictionary of values with the golden ones of the present version."""
    golden = GOLDEN[name].get(getattr(versions, name))
    assert golden, f"versions.{name} = {getattr(versions, name)} has no golden values yet; these are they: {values!r}"
    changed = {key: (values.get(key), golden.get(key)) for key in {**values, **golden}
               if key not in values or key not in golden or not same(values[key], golden[key], rel)}
    assert not changed, (
        f"numbers changed: raise versions.{name} and make results again (or undo the change); now and before: {changed}")


def made_up_photo(number):
    values = torch.arange(3 * 64 * 64).reshape(3, 64, 64)
    return ((values * (number * 7 + 3) + values**2 // (number + 5)) % (100 + 11 * number)).to(torch.uint8)


class DrawnPhotos:
    """The photos of a MiniChat chat, drawn when they are asked for."""

    def __init__(self, chat):
        self.chat = chat

    def tensor(self, photo_id):
        return to_tensor(draw_scene(self.chat.scenes[photo_id], photo_seed(photo_id, 0), 64))


class CornerExtractor:
    def extract(self, photos):
        corners = torch.stack([photo[:, 0, 1:3].flatten().float() / 64 for photo in photos])
        return corners, 3 * corners


def minichat_values():
    digest = hashlib.sha256()
    chats = [make_chat(split, index, seed) for split, index, seed in (("train", 0, 0), ("train", 7, 1), ("dev", 3, 0), ("test", 2, 5))]
    for chat in chats:
        digest.update(json.dumps([to_row(chat.dialogue), sorted(chat.open_photos)], sort_keys=True).encode())
    photos = [draw_scene(scene, photo_seed(photo_id, 0), 64) for chat in chats for photo_id, scene in chat.scenes.items()]
    return {"dialogues": digest.hexdigest(), "photos": hashlib.sha256(b"".join(photo.tobytes() for photo in photos)).hexdigest()}


def answers_and_photos():
    """Made-up answers; every third should share a photo, most do."""
    texts = ["a red dog", "two kites at the beach", "no", "it was the big one", "", "at night, I think."]
    pairs = []
    for i in range(72):
        gold = Turn(1, texts[i % 5], (SharedPhoto(str(20 + i), texts[(i + 1) % 4]),) if i % 3 == 0 else ())
        shares = i % 3 == 0 and i != 6 or i == 4  # 24 photos: two splits of the Inception Score
        pairs.append((Example(f"d{i // 2}", i, (Turn(0, "hello"),), gold),
                      Response(texts[(i * 5) % 6], [texts[(i + i % 2) % 4]] * shares, [made_up_photo(i)] * shares)))
    return pairs


SCENE = {"thing": "car", "colour": "red", "place": "beach", "number": 1, "size": "big", "time": "day"}
SCENES = [{"gold": SCENE, "drawn": drawn, "named": drawn and {"thing": "car", "colour": "red"}} for drawn in (SCENE, SCENE | {"colour": "blue", "number": 2}, None)]
QUESTIONS = [("size", "big", "The bigger one."), ("time", "night", "Under the stars."), ("number", 2, "two or three")]


class NoFolder(MiniChatScores):
    def __init__(self):
        pass


def scoring_values():
    rows = [answer_row(*pair) | {"images": pair[1].photos} for pair in answers_and_photos()]
    for row, scene in zip(rows[::3], SCENES, strict=False):
        row["scenes"] = [scene]
    drawn = features_of([photo for row in rows for photo in row["images"]], CornerExtractor())
    gold = features_of([made_up_photo(int(name)) for row in rows for name in row["gold_photo_ids"]], CornerExtractor())
    replies = [{"dialogue_id": "d0", "index": 0, "photo_id": "1", "attribute": name, "truth": truth, "text": text}
               for name, truth, text in QUESTIONS]
    scores = all_scores(reduce([*rows, *replies], drawn, gold, NoFolder()))
    return {**{f"n_{name}": count for name, count in scores.pop("n").items()}, **scores}


def interval_values():
    rows = [answer_row(*pair) | {"images": pair[1].photos} for pair in answers_and_photos()]
    gold, drawn, others = (features_of([made_up_photo(number) for number in numbers], CornerExtractor()) for numbers in (
        [int(name) for row in rows for name in row["gold_photo_ids"]], range(24), range(3, 27)))
    one = reduce(rows, drawn, gold)
    other = reduce([row | {"text": row["gold_text"] if i % 4 else row["text"]} for i, row in enumerate(rows)], others, gold)
    found = differences({"one": [one, other], "other": [one, one]}, [("other", "one")], ("bleu2", "rougeL", "is", "fid"))
    values = {f"{row['metric']} {key}": row[key] for row in found for key in ("difference", "low", "high", "p", "p_corrected")}
    return values | {f"fid of {row['n']}": row["mean"] for row in fid_by_number(one, subsets=3)} | mean_interval(np.nan_to_num(one.rouge), one.dialogue_ids)


@pytest.fixture(scope="module")
def model():
    return build(settings.load("smoke")).eval()


CONTEXT = (Turn(0, "Hi! I took a picture, [IMG] look!"), Turn(0, "", (SharedPhoto("3", "a red kite at the beach"),)),
           Turn(1, "How nice. How many were there?"), Turn(0, "Just the one. Do you have a photo of your car?"))


def decoding_values(model):
    formatter = model.formatter
    ids, kept, _ = formatter.context(CONTEXT, 1)
    answer, caption_index, *_ = formatter.response(Turn(1, "Yes!", (SharedPhoto("4", "a blue car"),)))
    parsed = parse_response(model, torch.tensor(formatter.tokenize("so ") + [formatter.image_start_id] + answer))
    second = formatter.response(Turn(1, "Nice?", (SharedPhoto("5", "a red kite"),))).ids
    two = parse_response(model, torch.tensor([*answer[:-1], *second]))
    greedy = settings.load("smoke", ["inference.do_sample=false", "inference.num_inference_steps=2"]).inference
    chat = make_chat("test", 2, 5)
    examples = examples_of(chat.dialogue)
    examples = [next(e for e in examples if e.response.photos), examples[-1]]
    sharing, telling = respond(model, examples, DrawnPhotos(chat), greedy, seed_of("golden"))
    return {"prompt": hashlib.sha256(repr(ids).encode()).hexdigest(), "length": len(ids), "kept": len(kept),
            "response": repr(answer), "caption": sum(k == 0 for k in caption_index), "parsed": parsed.text, "parsed_caption": parsed.captions[0], "text_of_two": two.text, "captions_of_two": two.captions,
            "text": telling.text, "text_beside_photo": sharing.text, "caption_of_photo": sharing.captions[0],
            "photo": float(sharing.photos[0].float().mean())}


TRAINING = ["data.train=6", "data.dev=2", "data.test=1", "train.epoch_examples=16", "train.batch_size=8", "train.epochs=1",
            "train.dev_examples=4", "inference.max_new_tokens=4", "inference.num_inference_steps=1"]


def training_values(folder):
    folder = train(settings.load("smoke", TRAINING), 3, lambda _: None, root=folder / "runs", data_root=folder / "data")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "text_loss" in line]
    return {f"{name}_{i}": line[name] for i, line in enumerate(steps) for name in ("text_loss", "image_loss")}


def gradient_values(model):
    captions = ["a red kite at the beach", "two cars, parked in the snow"]
    source, target = model.tokenizer, model.generator.tokenizer
    lengths = [len(source(caption, add_special_tokens=False).input_ids) for caption in captions]
    shape = (len(captions), max(lengths), len(source))
    logits = torch.sin(torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.float64) * 0.7).reshape(shape) * 3
    table = nn.Embedding(len(target), 3, dtype=torch.float64)
    table.weight.data = torch.cos(torch.arange(len(target) * 3, dtype=torch.float64)).reshape(-1, 3)
    values = {}
    for mapping, estimator in (("static_piece", "gumbel"), ("static_word", "gumbel"), ("sentence", "gumbel"), ("word", "gumbel"),
                               ("span", "gumbel"), ("span", "straight_through"), ("sentence", "decoupled"), ("word", "reinmax"),
                               ("span", "gumbel_rao")):
        bridge = CaptionBridge(source, target, mapping, estimator=estimator, words=["red", "kite", "cars", "snow"], length=32)
        free = logits.clone().requires_grad_()
        out = bridge(captions, free, table, 1.5, "gumbel", generator("golden", mapping))
        weights = torch.sin(torch.arange(out.embeddings.numel(), dtype=torch.float64)).reshape(out.embeddings.shape)
        gradient, = torch.autograd.grad((out.embeddings * weights).sum(), free)
        values[f"{mapping} {estimator}"] = float((gradient * torch.cos(logits)).sum())
    return values


def test_minichat_has_the_same_dialogues_and_photos():
    check("MINICHAT", minichat_values())


def test_the_same_answers_have_the_same_scores():
    check("SCORING", scoring_values())


def test_the_same_scores_have_the_same_intervals():
    check("INTERVALS", interval_values(), rel=1e-6)


def test_the_same_chat_has_the_same_prompt_and_answer(model):
    check("DECODING", decoding_values(model), rel=0.02)


def test_the_same_steps_have_the_same_losses(tmp_path):
    check("TRAINING", training_values(tmp_path), rel=2e-3)


def test_the_same_logits_have_the_same_gradient(model):
    check("GRADIENTS", gradient_values(model), rel=1e-3)


@pytest.mark.parametrize("name", ["MINICHAT", "SCORING", "DECODING", "TRAINING", "INTERVALS", "GRADIENTS"])
def test_a_change_is_reported_with_what_to_do(name, monkeypatch):
    golden = GOLDEN[name][getattr(versions, name)]
    key = next(iter(golden))
    with pytest.raises(AssertionError, match=f"numbers changed: raise versions.{name} and make results again .or undo the change."):
        check(name, golden | {key: "another value"}, rel=0.1)
    check(name, golden)
    monkeypatch.setattr(versions, name, 99)
    with pytest.raises(AssertionError, match=f"versions.{name} = 99 has no golden values yet; these are they: .*{key}"):
        check(name, golden)
