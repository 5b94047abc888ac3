"""Chats in a language model's own template: its tokens to the last one, and rules for what it refuses."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import tokenizer as small_tokenizer
from transformers import PreTrainedTokenizerFast

from e2e_lib.data.chat_template import ChatTemplate
from e2e_lib.data.collate import IGNORED, IMAGE_END, IMAGE_START, IMAGE_TOKEN, Collator, PromptFormatter
from e2e_lib.data.dialogue import SharedPhoto, Turn, clean_text
from e2e_lib.data.examples import Example
from e2e_lib.models.language import add_markers

META = Path(__file__).resolve().parents[3] / "shared" / "tokenizers" / "llama-2"
# As published with Llama-2-chat, TinyLlama-Chat and SmolLM2-Instruct.
LLAMA = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}")
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a red car<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
CAT, DOG = SharedPhoto("1", "a cat"), SharedPhoto("2", "two red dogs")


def with_template(words, template):
    words.chat_template, words.model_max_length = template, 10**9
    add_markers(words)
    return words


def chatml():
    words = copy.deepcopy(small_tokenizer("byte_level"))
    words.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    return with_template(words, CHATML)


def meta(template):
    if not META.is_dir():
        pytest.skip("Llama-2's tokenizer is not beside this repository")
    return with_template(PreTrainedTokenizerFast.from_pretrained(META), template)


TOKENIZERS = {"llama": lambda: with_template(copy.deepcopy(small_tokenizer("sentencepiece")), LLAMA), "chatml": chatml, "meta": lambda: meta(LLAMA),
              "meta zephyr": lambda: meta(ZEPHYR)}


@pytest.fixture(scope="module", params=TOKENIZERS)
def words(request):
    """Llama-2's own is large: it is read for the tests of tokens alone."""
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def formatter(words):
    return PromptFormatter(words, queries=4, max_context=10_000)


def by_rule(turns, answering):
    """The messages that a context stands for: turns of the user in a row as one, the assistant's each by itself, empty ones between."""
    messages, said = [], []
    for turn in turns:
        if turn.speaker != answering:
            said.append(turn.text)
        else:
            messages += [{"role": "user", "content": "\n".join(said)}, {"role": "assistant", "content": turn.text}]
            said = []
    return [*messages, {"role": "user", "content": "\n".join(said)}]


MARKS = ("<", "[", "|")
TEXT = st.one_of(st.sampled_from(["Hello there!", "a red car, ok?", ": )", "1 2  3", "café 日本", "it's"]),
                 st.text(alphabet=st.characters(exclude_categories=["Cs", "Cn"]), max_size=12)).map(clean_text).filter(
                     lambda text: text and not any(mark in text for mark in MARKS))
CHATS = st.lists(st.builds(Turn, st.sampled_from([0, 1]), TEXT), max_size=6)


@given(chat=CHATS, answering=st.integers(0, 1))
@settings(max_examples=25, deadline=None)
def test_tokens_are_those_of_the_template(words, formatter, chat, answering):
    """Also of contexts that begin with the assistant and of repeated speakers, which become legal messages first."""
    ids, kept, cut = formatter.context(chat, answering)
    assert ids == words.apply_chat_template(by_rule(chat, answering), add_generation_prompt=True)["input_ids"]
    assert kept == chat and cut == 0 and ids[-len(formatter.cue):] == formatter.cue


@given(chat=CHATS, text=TEXT)
@settings(max_examples=25, deadline=None)
def test_a_response_ends_as_the_template_ends_a_message_and_answers_stop_there(words, formatter, chat, text):
    ids, response = formatter.context(chat, 1).ids, formatter.response(Turn(1, text)).ids
    whole = words.apply_chat_template([*by_rule(chat, 1), {"role": "assistant", "content": text}])["input_ids"]
    assert whole[:len(ids + response)] == ids + response and len(whole) - len(ids + response) <= 2  # a line end after it
    assert response[-1] in formatter.eos_token_ids and not set(response[:-1]) & set(formatter.eos_token_ids)
    assert clean_text(words.decode([i for i in response if i not in formatter.no_words])) == text


@given(chat=CHATS, replies=st.lists(TEXT, min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_context_with_its_cue_and_response_begins_every_later_context(formatter, chat, replies):
    for reply in replies:
        said = formatter.context(chat, 1).ids + formatter.response(Turn(1, reply)).ids
        chat = [*chat, Turn(1, reply)]
        for later in (chat, [*chat, Turn(0, "and then?")]):
            assert formatter.context(later, 1).ids[:len(said)] == said


def test_photos_stand_where_they_were_shared(words, formatter):
    turns = [Turn(1, "mine:", (CAT,)), Turn(0, "look", (DOG, CAT)), Turn(0, "nice, isn't it?"), Turn(1, "", (DOG,))]
    ids = formatter.context(turns, 1).ids
    marks = {formatter.image_start_id: "(", formatter.image_token_id: "x", formatter.image_end_id: ")"}
    assert "".join(marks.get(i, "") for i in ids) == "(xxxx)" * 4
    shown = words.decode(ids).replace(" ", "")
    photo = IMAGE_START + IMAGE_TOKEN * 4 + IMAGE_END
    order = ["mine:" + photo, "look" + photo * 2 + "\nnice,isn'tit?", photo]
    assert [shown.find(part) for part in order[:2]] == sorted(shown.find(part) for part in order[:2]) and shown.count(photo) == 4
    assert all(part in shown for part in order)
    captioned = PromptFormatter(words, 1, 10_000, photos_as_captions=True).context(turns, 1).ids
    assert words.decode(captioned).replace(" ", "").count(f"{IMAGE_START}acat{IMAGE_END}") == 2


@pytest.mark.parametrize("text", [IMAGE_TOKEN, f"{IMAGE_START} hm {IMAGE_END}", "a <pad> b"])
def test_marks_typed_by_a_person_are_plain_text(words, formatter, text):
    ids = formatter.context([Turn(0, text)], 1).ids
    assert not {formatter.image_start_id, formatter.image_end_id, formatter.image_token_id, formatter.pad_token_id} & set(ids)
    assert text.replace(" ", "") in words.decode(ids).replace(" ", "")
    assert set(words.all_special_ids) & set(formatter.response(Turn(1, text)).ids[:-1]) == set()


PHOTOS = st.lists(st.sampled_from([CAT, DOG]), max_size=3).map(tuple)


@given(chat=st.lists(st.builds(Turn, st.sampled_from([0, 1]), st.sampled_from(["red " * 9, "hi", "", "x" * 80]), PHOTOS), min_size=1, max_size=5),
       room=st.integers(0, 120))
@settings(max_examples=25, deadline=None)
def test_what_does_not_fit_is_left_out_oldest_first_and_whole(words, chat, room):
    unlimited = PromptFormatter(words, 4, 10_000)
    limit = len(unlimited.context([Turn(0, "", (CAT,))], 0).ids) + room
    ids, kept, cut = PromptFormatter(words, 4, limit).context(chat, 1)
    whole = unlimited.context(chat, 1).ids
    assert len(ids) <= limit and cut == len(whole) - len(ids) and ids[-len(unlimited.cue):] == unlimited.cue
    assert [ids.count(i) for i in (unlimited.image_start_id, unlimited.image_end_id)] == [sum(len(turn.photos) for turn in kept)] * 2
    assert ids.count(unlimited.image_token_id) == 4 * sum(len(turn.photos) for turn in kept)
    assert kept[:-1] == chat[len(chat) - len(kept):-1] and kept[-1].photos == chat[-1].photos[len(chat[-1].photos) - len(kept[-1].photos):]
    if len(kept) < len(chat):
        assert len(unlimited.context(chat[len(chat) - len(kept) - 1:], 1).ids) > limit
    if ids != unlimited.context(kept, 1).ids:  # the last turn alone is too long: it lost its first words
        texts = [kept[-1].text[at:] for at in range(len(kept[-1].text) + 1)]
        fits = [text for text in texts if unlimited.context([Turn(kept[-1].speaker, text, kept[-1].photos)], 1).ids == ids]
        assert len(kept) == 1 and fits


def test_a_long_message_keeps_its_last_words_whole(words):
    unlimited, text = PromptFormatter(words, 4, 10_000), "We flew a kite. " * 30 + "Was it big?"
    for limit in range(70, 84, 3):
        ids = PromptFormatter(words, 4, limit).context([Turn(0, text)], 1).ids
        kept = next(n for n in range(200) if unlimited.context([Turn(0, " ".join(text.split()[n:]))], 1).ids == ids)
        assert kept > 0 and len(unlimited.context([Turn(0, " ".join(text.split()[kept - 1:]))], 1).ids) > limit >= len(ids)


def test_a_response_is_cut_before_its_ending(words, formatter):
    whole = formatter.response(Turn(1, "so look at this", (CAT,)))
    for limit in range(1, len(whole.ids) + 2):
        ids, caption_index, photos, cut = PromptFormatter(words, 4, 10_000, max_response=limit).response(Turn(1, "so look at this", (CAT,)))
        assert len(ids) == len(caption_index) <= limit and ids[-1] == formatter.template.stop
        assert len(photos) == ids.count(formatter.image_end_id) == (max(caption_index) + 1)
        assert cut == len(whole.ids) - len(ids) or limit <= len(formatter.ending)


def test_a_batch_is_context_and_response_whose_loss_begins_after_the_cue(words, formatter):
    store = SimpleNamespace(tensor=lambda name: None)
    row = Example("d", 1, (Turn(0, "hi"), Turn(1, "yes")), Turn(1, "look"))
    batch = Collator(formatter, store)([row])
    context, response = formatter.context(row.context, 1).ids, formatter.response(row.response).ids
    assert batch.input_ids[0].tolist() == context + response
    assert batch.labels[0].tolist() == [IGNORED] * len(context) + response


def test_llama_2_cuts_its_template_as_its_authors_do():
    words = meta(LLAMA)
    ids = PromptFormatter(words, 4, 100).context([Turn(0, "hello")], 1).ids
    assert ids == [1, 518, 25580, 29962, 22172, 518, 29914, 25580, 29962]
    assert PromptFormatter(words, 4, 100).response(Turn(1, "hello")).ids == [22172, 29871, 2]


@pytest.mark.parametrize(("template", "why"), [
    ("{% for message in messages %}{{ message.content }}\n{% endfor %}", "no special token ends"),
    ("{{ raise_exception('no') }}", "no"), ("{{ messages[0].content }}{{ eos_token }}", "not write every message in the same way"),
    ("{% for message in messages %}{{ loop.index }}{{ message.content }}{{ eos_token }}{% endfor %}", "not write every message"),
    ("{% for m in messages %}{% if m.content[0] == '(' %}!{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}", "its tokens depend on more"),
    ("{% for message in messages %}{{ message.content", "unexpected end of template")])
def test_a_template_that_cannot_be_taken_apart_is_refused_with_what_to_do(template, why):
    with pytest.raises(ValueError, match=f"chat template cannot be used .*{why}.*--set model.chat_format=own"):
        ChatTemplate(with_template(copy.deepcopy(small_tokenizer("sentencepiece")), template), lambda photo: [1])
