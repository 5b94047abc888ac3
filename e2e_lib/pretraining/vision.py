"""Vision from scratch: the scene classifier that judges photos, the perceptron, the baselines' captioner."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, LlamaForCausalLM

from e2e_lib.data.collate import IGNORED, IMAGE_TOKEN, PromptFormatter
from e2e_lib.data.examples import Example, examples_of
from e2e_lib.data.minichat.chats import TOLD_DETAIL, Chat, describe
from e2e_lib.data.minichat.questions import detail_question
from e2e_lib.data.minichat.scenes import Scene, render_photos
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.models.end_to_end import merge_image_embeddings
from e2e_lib.models.hub import load_own
from e2e_lib.models.language import load_language
from e2e_lib.models.perceptron import ImagePerceptron
from e2e_lib.pretraining import language
from e2e_lib.pretraining.fit import Pretraining, Probes, attribute_loss, sample_photos
from e2e_lib.repro.randomness import python_random, seeded

QUERIES = 8  # 32 in BLIP-2
BATCH_SIZE = 64  # photos
VisualRow = tuple[list[int], list[int], list[Scene]]  # token ids, labels, the scenes of the context's photos


def train_scene_classifier(run: Pretraining) -> SceneClassifier:
    """Cross-entropy of every attribute, on all triples, with blur and noise so that it can judge drawings."""
    with seeded(run.seed, "reader"):
        classifier = SceneClassifier()
    photos, scenes = sample_photos(run.config.pretrain.photos, run.seed, "reader photos", every_triple=True)
    labels = torch.tensor([scene.labels for scene in scenes])

    def loss_of(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(photos), (BATCH_SIZE,), generator=rng)
        batch = photos[index].float()  # (B, 3, 64, 64)
        blurred = F.avg_pool2d(F.pad(batch, (1, 1, 1, 1), mode="replicate"), 3, 1)
        strength, is_blurred = (torch.rand(len(index), 1, 1, 1, generator=rng) for _ in range(2))
        blur = strength * (is_blurred < 0.5)
        batch = (1 - blur) * batch + blur * blurred + 6 * torch.randn(batch.shape, generator=rng)
        return attribute_loss(classifier(batch.clamp(0, 255).to(torch.uint8)), labels[index])

    run.fit("scene_reader", classifier, loss_of, 2e-3)
    return classifier


def visual_row(chat: Chat, example: Example, formatter: PromptFormatter) -> VisualRow:
    """An example's tokens, labels of its response, and the scenes of the photos in its context."""
    context = formatter.context(example.context, example.response.speaker)
    response = formatter.response(example.response).ids
    turns = [] if formatter.photos_as_captions else context.turns
    scenes = [chat.scenes[photo.photo_id] for turn in turns for photo in turn.photos]
    return context.ids + response, [IGNORED] * len(context.ids) + response, scenes


def visual_chat_loss(llama: LlamaForCausalLM, perceptron: ImagePerceptron, formatter: PromptFormatter,
                     rows: Sequence[VisualRow], rng: torch.Generator) -> tuple[Tensor, Tensor, list[Scene]]:
    """Eq. 2 for a batch of ``rows``, with a new photo of each scene every time.

    Also returns the photos' query embeddings (P, Q, D) and their scenes; P is 0 where a batch has no photo.
    """
    ids, labels, scenes_of_rows = zip(*language.similar_rows(rows, rng), strict=True)
    batch = language.pad_rows(ids, labels, formatter.pad_token_id)
    input_ids = batch.pop("input_ids")  # (B, T)
    embeddings = llama.get_input_embeddings()(input_ids)  # (B, T, D)
    scenes, queries = [scene for row in scenes_of_rows for scene in row], embeddings[:0]
    if scenes:
        seeds = torch.randint(2**31, (len(scenes),), generator=rng).tolist()
        queries = perceptron(render_photos(scenes, seeds))  # (P, Q, D)
        embeddings = merge_image_embeddings(embeddings, input_ids == formatter.image_token_id, queries)
    return llama(inputs_embeds=embeddings, **batch).loss, queries, scenes


def train_perceptron(run: Pretraining) -> ImagePerceptron:
    """BLIP-2's two stages, with linear probes of the attributes in place of image-text matching.

    First the queries alone must hold what a photo shows; then the frozen language model must chat about it.
    """
    llama, tokenizer = load_language(str(run.parts / "language"))
    llama.requires_grad_(False).eval()
    size = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4}
    vision = {**size, "num_hidden_layers": 3, "image_size": 64, "patch_size": 8}
    qformer = {**size, "num_hidden_layers": 2, "encoder_hidden_size": 96, "cross_attention_frequency": 1,
               "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    with seeded(run.seed, "perceptron"):
        perceptron = ImagePerceptron(vision, qformer, QUERIES, language_width=llama.config.hidden_size)
        probes = Probes(llama.config.hidden_size)
    modules = nn.ModuleDict({"perceptron": perceptron, "probes": probes})
    photos, scenes = sample_photos(run.config.pretrain.photos, run.seed, "perceptron photos")
    labels = torch.tensor([scene.labels for scene in scenes])

    def vision_loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(photos), (BATCH_SIZE,), generator=rng)
        shift = (torch.randint(5, (2,), generator=rng) - 2).tolist()  # as a vision transformer must ignore it
        return probes.loss(perceptron(photos[index].roll(shift, (2, 3))), labels[index])

    run.fit("sight", modules, vision_loss, 1e-3)
    formatter = PromptFormatter(tokenizer, QUERIES, run.config.data.max_context)
    rng = python_random(run.seed, "seen chats")
    rows = []
    for chat in language.make_chats(run.config, run.config.pretrain.chats // 2):
        sample = language.captioning_example if rng.random() < 0.5 else language.sample_example
        rows.append(visual_row(chat, sample(chat, rng), formatter))
    rows = sorted((row for row in rows if row[2]), key=lambda row: len(row[0]))

    def chat_loss(rng: torch.Generator) -> Tensor:
        loss, queries, scenes = visual_chat_loss(llama, perceptron, formatter, rows, rng)
        return loss + 0.3 * probes.loss(queries, torch.tensor([scene.labels for scene in scenes]))

    run.fit("perceptron", modules, chat_loss, 1e-3)
    return perceptron


def train_visual_instruction(run: Pretraining) -> tuple[LlamaForCausalLM, ImagePerceptron]:
    """Language model and perceptron together, on responses to photos: LLaVA's second stage (Liu et al. 2023).

    Before it, the query embeddings hold what a question asks for, but the language model does not look it up
    there. A quarter of the responses caption a photo in full; of the others, half answer a detail question
    (where the chat has one), and a third have captions in place of photos, lest reading those is unlearnt.
    """
    llama, tokenizer = load_language(str(run.parts / "language"))
    perceptron = load_own(ImagePerceptron, str(run.parts / "perceptron"))
    with_photos = PromptFormatter(tokenizer, QUERIES, run.config.data.max_context)
    with_captions = PromptFormatter(tokenizer, 1, run.config.data.max_context, photos_as_captions=True)
    rng = python_random(run.seed, "looking chats")
    rows = []
    for chat in language.make_chats(run.config, run.config.pretrain.chats // 2):
        examples = examples_of(chat.dialogue)
        questions = [example for example in examples if detail_question(example, chat.scenes)]
        is_captioning = bool(chat.dialogue.photos) and rng.random() < 0.25
        if is_captioning:
            example = language.captioning_example(chat, rng)
        elif questions and rng.random() < 0.5:
            example = rng.choice(questions)
        else:
            example = language.sample_example(chat, rng)
        formatter = with_captions if not is_captioning and rng.random() < 1 / 3 else with_photos
        rows.append(visual_row(chat, example, formatter))
    rows.sort(key=lambda row: len(row[0]))

    modules = nn.ModuleDict({"language": llama, "perceptron": perceptron})
    loss_of = partial(visual_chat_loss, llama, perceptron, with_photos, rows)
    run.fit("looking", modules, lambda rng: loss_of(rng)[0], 1e-3)
    return llama, perceptron


def train_captioner(run: Pretraining) -> Blip2ForConditionalGeneration:
    """A BLIP-2 with the perceptron's frozen vision transformer and Q-Former.

    It is tuned on captions as people write them (the paper's on COCO's), which omit as much as MiniChat's.
    """
    tokenizer = AutoTokenizer.from_pretrained(run.parts / "language")
    perceptron = load_own(ImagePerceptron, str(run.parts / "perceptron"))
    text = {"model_type": "opt", "hidden_size": 96, "word_embed_proj_dim": 96, "ffn_dim": 256,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "dropout": 0.0,
            **language.token_settings(tokenizer)}
    with seeded(run.seed, "captioner"):
        model = Blip2ForConditionalGeneration(Blip2Config(
            vision_config=perceptron.vision_model.config.to_dict(),
            qformer_config=perceptron.qformer.config.to_dict(), num_query_tokens=QUERIES,
            image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN], text_config=text))
    for name in ("vision_model", "qformer"):
        model.get_submodule(name).requires_grad_(False).load_state_dict(
            perceptron.get_submodule(name).state_dict())
    model.query_tokens.requires_grad_(False).copy_(perceptron.query_tokens)
    photos, scenes = sample_photos(run.config.pretrain.photos, run.seed, "captioner photos")
    perceptron.language_projection = nn.Identity()  # the captioner has its own
    with torch.no_grad():
        queries = torch.cat([perceptron(part) for part in photos.split(256)])  # (N, Q, D)
    text_model = model.language_model
    rng = python_random(run.seed, "captions of photos")
    captions = [tokenizer(describe(scene, rng, TOLD_DETAIL), add_special_tokens=False) for scene in scenes]
    rows = [torch.tensor([tokenizer.bos_token_id, *caption["input_ids"], tokenizer.eos_token_id])
            for caption in captions]

    def loss_of(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(queries), (BATCH_SIZE,), generator=rng)
        ids = pad_sequence([rows[i] for i in index], batch_first=True, padding_value=IGNORED)  # (B, T)
        words = text_model.get_input_embeddings()(ids.clamp_min(0))  # (B, T, D)
        inputs = torch.cat([model.language_projection(queries[index]), words], 1)  # (B, Q + T, D)
        logits = text_model(inputs_embeds=inputs).logits[:, QUERIES:-1]  # (B, T - 1, V)
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED)

    modules = nn.ModuleDict({"projection": model.language_projection, "language": text_model})
    run.fit("captioner", modules, loss_of, 2e-3)
    return model
