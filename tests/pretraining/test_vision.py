"""Which photos and tokens the vision recipes learn from."""

import random

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from e2e_lib.data.collate import IGNORED, PromptFormatter
from e2e_lib.data.minichat.chats import make_chat
from e2e_lib.models.hub import WEIGHTS
from e2e_lib.models.perceptron import load_perceptron
from e2e_lib.pretraining.language import captioning_example
from e2e_lib.pretraining.vision import visual_chat_loss, visual_row


def test_visual_rows_have_one_scene_per_group_of_image_tokens():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "mini" / "language")
    chat = make_chat("train", 3, 1)
    example = captioning_example(chat, random.Random(0))
    formatter = PromptFormatter(tokenizer, 8, 192)
    ids, labels, scenes = visual_row(chat, example, formatter)
    assert ids.count(formatter.image_token_id) == 8
    assert scenes == [chat.scenes[example.response.photos[0].photo_id]]
    response = [token for token in labels if token != IGNORED]
    assert response == formatter.response(example.response)[0] and ids[-len(response):] == response
    as_caption = PromptFormatter(tokenizer, 1, 192, photos_as_captions=True)
    ids, _, scenes = visual_row(chat, example, as_caption)
    assert formatter.image_token_id not in ids and scenes == []


def test_shipped_model_captions_the_right_photos_better_than_others():
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "mini" / "language")
    language = LlamaForCausalLM.from_pretrained(WEIGHTS / "mini" / "language", dtype=torch.float32).eval()
    perceptron, formatter = load_perceptron("shipped:mini").eval(), PromptFormatter(tokenizer, 8, 192)
    chats = [make_chat("dev", i, 6) for i in range(16)]
    rows = [visual_row(chat, captioning_example(chat, random.Random(0)), formatter) for chat in chats]
    shuffled = [(ids, labels, rows[i - 1][2]) for i, (ids, labels, _) in enumerate(rows)]
    with torch.no_grad():
        right, queries, scenes = visual_chat_loss(language, perceptron, formatter, rows, torch.Generator())
        wrong, *_ = visual_chat_loss(language, perceptron, formatter, shuffled, torch.Generator())
    assert queries.shape == (16, 8, 128) and len(scenes) == 16
    assert right + 0.5 < wrong
