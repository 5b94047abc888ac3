"""Who can answer in a chat window: the parts as they ship, trained runs, an export."""

import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from e2e_lib import config as configuration
from e2e_lib.config import SYSTEMS, Config, Inference
from e2e_lib.inference.chat import chat_settings
from e2e_lib.models.systems import PhotoChatModel, build, ready
from e2e_lib.repro.run_files import RUNS
from e2e_lib.training.loop import load_trained


@dataclass(frozen=True)
class Answerer:
    """A system that is ready to answer, and how it does."""

    name: str
    model: PhotoChatModel
    settings: Inference


class Partners:
    """The systems that a window offers, by name; one is kept loaded as long as a chat is held with it.

    ``first`` is loaded already and offered first. The others are those of a configuration, each as its parts
    ship and with every trained run that is below ``root``; they are loaded when they are first asked for.
    """

    def __init__(self, first: Answerer, config: Config, root: Path = RUNS) -> None:
        self.first = first
        self._loaders = _shipped(config) | _trained(config, root)
        self._loaders.pop(first.name, None)
        self._loaded: weakref.WeakValueDictionary[str, Answerer] = weakref.WeakValueDictionary()

    @property
    def names(self) -> list[str]:
        return [self.first.name, *self._loaders]

    def get(self, name: str) -> Answerer:
        """The system of a name. Raises ConfigError for an unknown name, and CheckpointError or ConfigError
        for one that cannot be loaded."""
        if name == self.first.name:
            return self.first
        if name not in self._loaders:
            raise configuration.ConfigError(f"there is no system {name!r}; there are {', '.join(self.names)}")
        if not (answerer := self._loaded.get(name)):
            model, settings = self._loaders[name]()
            answerer = self._loaded[name] = Answerer(name, ready(model), settings)
        return answerer


Loader = Callable[[], tuple[PhotoChatModel, Inference]]


def shipped_name(system: str) -> str:
    """What a system is called whose parts are as they ship."""
    return f"{system}, as it ships"


def trained_name(system: str, seed: int) -> str:
    """What a system's trained run is called."""
    return f"{system}, trained (seed {seed})"


def _shipped(config: Config) -> dict[str, Loader]:
    def loader(own: Config) -> Loader:
        return lambda: (build(own), own.inference)

    # "end_to_end_aligned" is made of the same parts as "end_to_end".
    names = [system for system in SYSTEMS if system != "end_to_end_aligned"]
    return {shipped_name(name): loader(_of_system(config, name)) for name in names}


def _trained(config: Config, root: Path) -> dict[str, Loader]:
    def loader(own: Config, seed: int) -> Loader:
        return lambda: (load_trained(own, seed, root=root), own.inference)

    found = []
    for path in (root / config.profile).glob("*/seed-*/done.json"):
        number = re.fullmatch(r"seed-(0|[1-9]\d{0,18})", path.parent.name)
        if number and path.parts[-3] in SYSTEMS:
            found.append((SYSTEMS.index(path.parts[-3]), int(number[1])))
    return {trained_name(SYSTEMS[i], seed): loader(_of_system(config, SYSTEMS[i]), seed)
            for i, seed in sorted(found)}


def _of_system(config: Config, system: str) -> Config:
    return config if config.model.system == system else configuration.replace(config, "model.system", system)


def usual_temperature(settings: Inference) -> float:
    """The temperature at which a chat samples words, 0 where it searches for the likeliest."""
    chat = chat_settings(settings)
    return chat.temperature if chat.do_sample and chat.num_beams == 1 else 0.0


def at_temperature(settings: Inference, temperature: float) -> Inference:
    """The settings of a chat in which words are sampled at a temperature, or, at 0, searched for with
    ``chat_num_beams`` beams (or as ``settings`` say, where they search)."""
    if temperature > 0:
        return replace(settings, do_sample=True, temperature=temperature, num_beams=1)
    if usual_temperature(settings) == 0:
        return chat_settings(settings)
    return replace(settings, do_sample=False, num_beams=settings.chat_num_beams)
