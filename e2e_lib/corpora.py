"""Corpora by name: all that training, evaluation and figures know of their dialogues (section 3.1.1).

A corpus is one entry of ``CORPORA``. Its photos may have any size and any content; what only it can score (in
MiniChat, whether a drawn photo shows the right thing) comes with it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2e_lib import versions
from e2e_lib.config import Config, ConfigError, Data, did_you_mean
from e2e_lib.data.minichat import corpus as minichat
from e2e_lib.evaluation.image import FeatureExtractor
from e2e_lib.evaluation.minichat import MiniChatScores
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.scores import METRICS, CorpusScores, Metric
from e2e_lib.repro import files

DATA = Path("data")
SPLITS = ("train", "dev", "test")
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """``write(settings, folder, echo)`` writes train.jsonl, dev.jsonl, test.jsonl and photos/ into a folder.

    ``feature_extractor()`` gives the features that photos are scored with, and ``scores(folder)`` are those
    that only this corpus has (see ``evaluation.scores.CorpusScores``). ``version`` is raised when the same
    settings give other files."""

    write: Callable[[Data, Path, Echo], None]
    feature_extractor: Callable[[], FeatureExtractor]
    version: int = 1
    scores: Callable[[Path], CorpusScores] | None = None


CORPORA: dict[str, Corpus] = {
    "minichat": Corpus(minichat.write, load_scene_classifier, versions.MINICHAT, MiniChatScores),
}


def named(name: str) -> Corpus:
    """The corpus called ``name``. Raises ConfigError."""
    if name not in CORPORA:
        raise ConfigError(f"data.name = {name!r}: there is no such corpus; there are: {', '.join(CORPORA)} "
                          f"(one is added to e2e_lib.corpora.CORPORA){did_you_mean(name, CORPORA, 0.7)}")
    return CORPORA[name]


def folder_of(data: Data, root: Path = DATA) -> Path:
    """Where the corpus of these settings is on disk; the name depends on them and on the corpus's version."""
    key = repr((sorted(asdict(data).items()), named(data.name).version))
    return root / f"{data.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def prepare(config: Config, echo: Echo, root: Path = DATA) -> Path:
    """Writes the configuration's corpus unless it is there; returns its folder, which appears when complete.

    Raises ConfigError for an unknown corpus or one that wrote less than it must, and files.SaveError.
    """
    corpus, folder = named(config.data.name), files.recover_folder(folder_of(config.data, root))
    if folder.is_dir():
        echo(f"data: {folder} is there already")
        return folder
    with files.atomic_folder(folder) as new:
        corpus.write(config.data, new, echo)
        missing = [name for name in (*(f"{split}.jsonl" for split in SPLITS), "photos")
                   if not (new / name).exists()]
        if missing:
            raise ConfigError(f"corpus {config.data.name!r}: its `write` left out {', '.join(missing)}; see "
                              "e2e_lib.corpora.Corpus for what it must write")
    echo(f"data: written to {folder}")
    return folder


def extractor_of(data: Data) -> FeatureExtractor:
    """The corpus's feature extractor. Raises ConfigError for one without ``extract``."""
    extractor = named(data.name).feature_extractor()
    _check(data.name, "feature_extractor", extractor, ("extract",), "evaluation.image.FeatureExtractor")
    return extractor


def scores_of(data: Data, folder: Path) -> CorpusScores | None:
    """The scores that only this corpus has, for its ``folder``; None if it has none. Raises ConfigError."""
    make = named(data.name).scores
    scores = make(folder) if make else None
    if scores is not None:
        _check(data.name, "scores", scores, ("metrics", "questions", "annotate", "values"),
               "evaluation.scores.CorpusScores")
    return scores


def metrics_of(data: Data) -> dict[str, Metric]:
    """How scores are shown, in order: those of every corpus, then those that only this one has."""
    return {**METRICS, **getattr(named(data.name).scores, "metrics", {})}


def _check(name: str, field: str, value: Any, needed: tuple[str, ...], protocol: str) -> None:
    if missing := [attribute for attribute in needed if not hasattr(value, attribute)]:
        raise ConfigError(f"corpus {name!r}: what its `{field}` gives, a {type(value).__name__}, has no "
                          f"{' and no '.join(missing)}; see e2e_lib.{protocol} for what it must have")
