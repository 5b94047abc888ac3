"""Corpora by name: all that training, evaluation and figures know of their dialogues (section 3.1.1).

A corpus is one entry of ``CORPORA``. Its photos may have any size and any content; what only it can score (in
MiniChat, whether a drawn photo shows the right thing) comes with it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from e2e_lib import versions
from e2e_lib.config import Config, ConfigError, Data, did_you_mean
from e2e_lib.data.examples import Example, Response
from e2e_lib.data.minichat import corpus as minichat
from e2e_lib.data.minichat.faults import with_faults
from e2e_lib.data.photo_index import INDEX
from e2e_lib.evaluation.image import (
    INCEPTION_WEIGHTS,
    FeatureExtractor,
    InceptionExtractor,
    check_inception,
    features_of,
)
from e2e_lib.evaluation.minichat import MiniChatScores
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.scores import METRICS, CorpusScores, Metric, answer_row
from e2e_lib.repro import files

DATA = Path("data")
SPLITS = ("train", "dev", "test")
Echo = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """``write(settings, folder, echo)`` writes train.jsonl, dev.jsonl, test.jsonl and photos/ into a folder;
    None for a published corpus: `e2e data build` and `e2e data photos` write its ``data.folder``.

    ``feature_extractor()`` gives the features that photos are scored with, and ``scores(folder)`` are those
    that only this corpus has (a class, see ``evaluation.scores.CorpusScores``). ``version`` is raised when
    the same settings give other files. ``knows_scenes``: its scenes.jsonl says what every photo shows, and
    the same can be drawn anew, as ``experiments.propagation`` needs it. ``faults(examples, kind, rate,
    seed)`` makes captions wrong, in the ways of ``data.caption_faults``."""

    write: Callable[[Data, Path, Echo], None] | None
    feature_extractor: Callable[[], FeatureExtractor]
    version: int = 1
    scores: Callable[[Path], CorpusScores] | None = None
    knows_scenes: bool = False
    faults: Callable[[Sequence[Example], str, float, int], list[Example]] | None = None


INCEPTION = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS  # where torch-fidelity keeps them


def inception() -> FeatureExtractor:
    """Inception with the weights that torch-fidelity fetches. Raises ConfigError where they are not here."""
    try:
        return InceptionExtractor(INCEPTION)
    except ValueError as error:
        raise ConfigError(f"a published corpus is scored by Inception's features: {error}") from None


CORPORA: dict[str, Corpus] = {
    "minichat": Corpus(minichat.write, load_scene_classifier, versions.MINICHAT, MiniChatScores,
                       knows_scenes=True, faults=with_faults),
    "photochat": Corpus(None, inception),
    "dialogcc": Corpus(None, inception),
}


def named(name: str) -> Corpus:
    """The corpus called ``name``. Raises ConfigError."""
    if name not in CORPORA:
        raise ConfigError(f"data.name = {name!r}: there is no such corpus; there are: {', '.join(CORPORA)} "
                          f"(one is added to e2e_lib.corpora.CORPORA){did_you_mean(name, CORPORA, 0.7)}")
    return CORPORA[name]


def folder_of(data: Data, root: Path = DATA) -> Path:
    """Where the corpus of these settings is on disk: a published one in ``data.folder``, another in a folder
    whose name depends on them and on the corpus's version."""
    if named(data.name).write is None:
        return Path(data.folder) if data.folder else root / data.name
    # These decide nothing about a generated corpus.
    settings = {key: value for key, value in asdict(data).items()
                if key not in ("folder", "real_only", "workers", "caption_faults", "caption_fault_rate")}
    key = repr((sorted(settings.items()), named(data.name).version))
    return root / f"{data.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def training_captions(data: Data, examples: list[Example]) -> list[Example]:
    """The training examples with the captions that ``data.caption_faults`` asks for."""
    faults = named(data.name).faults
    if data.caption_faults == "none" or not faults:  # `check` refuses it where there are none
        return examples
    return faults(examples, data.caption_faults, data.caption_fault_rate, data.seed)


def check(data: Data, root: Path = DATA) -> None:
    """Raises ConfigError for an unknown corpus, for faults of captions that it does not know, and for a
    published one that has not been built here."""
    if data.caption_faults != "none" and not named(data.name).faults:
        raise ConfigError(f"data.caption_faults = {data.caption_faults!r}: what photos of {data.name} show "
                          "is not known, so its captions cannot be made wrong; set none")
    if named(data.name).write is not None:
        return
    folder, name = files.complete_files(folder_of(data, root)), data.name
    missing = [file for file in (*(f"{split}.jsonl" for split in SPLITS), f"photos/{INDEX}")
               if not (folder / file).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} is not the corpus {name} with its photos ({', '.join(missing)} missing); make it with "
            f"`e2e data get {name} --out {folder}-files`, `e2e data build {name} --source {folder}-files "
            f"--out {folder}` and `e2e data photos {folder}`, or say where it is with --set data.folder=DIR")


def check_scorable(config: Config) -> None:
    """Raises ConfigError where photos cannot be scored here as is set, before anything is made for it."""
    if is_by_inception(config.data) and not INCEPTION.is_file():
        raise ConfigError(f"{config.data.name} is scored by Inception's features, whose weights are not at "
                          f"{INCEPTION}: put {INCEPTION_WEIGHTS} of torch-fidelity's release v0.2.0 there")
    inception_weights(config)


def is_by_inception(data: Data) -> bool:
    """Whether the corpus's own features are Inception's."""
    return named(data.name).feature_extractor is inception


def inception_weights(config: Config) -> Path | None:
    """The file of Inception's weights by which photos are to be scored besides. Raises ConfigError where it
    is missing or another one, or where Inception gives the corpus's own features."""
    if not (path := config.evaluation.inception_weights):
        return None
    if is_by_inception(config.data):
        raise ConfigError(f"evaluation.inception_weights = {path!r}: {config.data.name} is scored by "
                          f"Inception in any case, with the weights at {INCEPTION}; leave it empty")
    try:
        check_inception(Path(path))
    except ValueError as error:
        raise ConfigError(f"evaluation.inception_weights: {error}") from None
    return Path(path)


def prepare(config: Config, echo: Echo, root: Path = DATA) -> Path:
    """Writes the configuration's corpus unless it is there; returns its folder, which appears when complete.
    A published corpus must be there.

    Raises ConfigError for an unknown corpus, one whose own reading or writing fails, or one that wrote less
    than it must, and files.SaveError.
    """
    corpus, folder = named(config.data.name), folder_of(config.data, root)
    check(config.data, root)
    if corpus.write is None:
        echo(f"data: {folder}")
        return folder
    if files.recover_folder(folder).is_dir():
        echo(f"data: {folder} is there already")
        return folder
    with files.atomic_folder(folder) as new:
        try:
            corpus.write(config.data, new, echo)
        except files.SaveError:
            raise
        except OSError as error:  # not one of this package's: saving would take it for its own
            problem = f"stopped with {type(error).__name__}: {error}"
            raise _mistake(config.data.name, "write", problem) from error
        missing = [name for name in (*(f"{split}.jsonl" for split in SPLITS), "photos")
                   if not (new / name).exists()]
        if missing:
            raise _mistake(config.data.name, "write", f"left out {', '.join(missing)}")
    echo(f"data: written to {folder}")
    return folder


def extractor_of(data: Data) -> FeatureExtractor:
    """The corpus's feature extractor. Raises ConfigError for one that gives no features of two photos."""
    extractor = named(data.name).feature_extractor()
    _check_has(data.name, "feature_extractor", extractor, ("extract",))
    try:
        features_of([torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2, extractor)
    except Exception as error:  # whatever a stranger's code raises
        raise _mistake(data.name, "feature_extractor",
                       f"gives features of no two photos ({type(error).__name__}: {error})") from error
    return extractor


def scores_of(data: Data, folder: Path) -> CorpusScores | None:
    """The scores that only this corpus has, for its ``folder``, checked as they are used; None if it has
    none. Raises ConfigError, also for ``metrics`` that ``scores`` itself, a class, does not have."""
    make = named(data.name).scores
    if not make:
        return None
    scores = make(folder)
    _check_has(data.name, "scores", scores, ("metrics", "questions", "annotate", "values"))
    if unknown := set(scores.metrics) - metrics_of(data).keys():
        raise _mistake(data.name, "scores", f"is no class with {', '.join(sorted(unknown))} in its `metrics`")
    return _CheckedScores(data.name, scores)


def metrics_of(data: Data) -> dict[str, Metric]:
    """How scores are shown, in order: those of every corpus, without a star where its own features are
    Inception's, then those that only this one has. Raises ConfigError for ``metrics`` that are no mapping of
    names to ``Metric``."""
    own = getattr(named(data.name).scores, "metrics", {})
    if not isinstance(own, Mapping) or (problem := files.find_problem(dict(own), {"*": Metric})):
        problem = problem if isinstance(own, Mapping) else f"expected a mapping, found {type(own).__name__}"
        raise _mistake(data.name, "metrics", f"is of another form: {problem}")
    star = "" if is_by_inception(data) else "*"
    general = {key: metric._replace(label=metric.label.replace("*", star))
               for key, metric in METRICS.items()}
    return {**general, **own}


class _CheckedScores:
    """A corpus's own scores; what they give in another form than ``CorpusScores`` says is a ConfigError."""

    def __init__(self, name: str, scores: CorpusScores) -> None:
        self.name, self.scores, self.metrics = name, scores, scores.metrics

    def questions(self, examples: Sequence[Example]) -> list[tuple[Example, dict[str, Any]]]:
        """The corpus's, once the other methods were tried on the first example and the first question, so
        that what is wrong with them shows before anything is answered."""
        pairs = self._checked("questions", self.scores.questions(examples), [tuple])
        for number, pair in enumerate(pairs, 1):
            if len(pair) != 2 or not isinstance(pair[0], Example) or not isinstance(pair[1], dict):
                raise _mistake(self.name, "questions", f"gives as pair {number} {pair!r:.80}, not an Example "
                               "and a dictionary")
        first, silence = list(examples[:1]), Response("")
        rows = [answer_row(example, silence) | note
                for example, note in zip(first, self.annotate(first, [silence] * len(first)), strict=True)]
        rows += [{"dialogue_id": example.dialogue_id, "index": example.index, **question, "text": ""}
                 for example, question in pairs[:1]]
        for row in rows:
            self.values(row)
        self.counts(rows)
        return pairs

    def annotate(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Any]]:
        notes = self._checked("annotate", self.scores.annotate(examples, responses), [{}])
        if len(notes) != len(examples):
            raise _mistake(self.name, "annotate", f"gives {len(notes)} rows for {len(examples)} answers")
        if examples and (taken := answer_row(examples[0], responses[0]).keys() & notes[0].keys()):
            raise _mistake(self.name, "annotate", f"overwrites what answers have: {', '.join(sorted(taken))}")
        return notes

    def values(self, row: Mapping[str, Any]) -> dict[str, float]:
        return self._checked("values", self.scores.values(row), {"*": int | float | bool})

    def counts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        made = self.scores.counts(rows) if hasattr(self.scores, "counts") else {}
        return self._checked("counts", made, {"n?": {"*": int | float}})

    def _checked(self, method: str, made: Any, shape: Any) -> Any:
        problem = files.find_problem(made, shape)
        if not problem and method in ("annotate", "counts"):  # these are saved
            try:
                json.dumps(made, allow_nan=False)
            except (TypeError, ValueError) as error:
                problem = f"it cannot be saved as JSON ({error})"
        if problem:
            raise _mistake(self.name, method, f"gives another form: {problem}")
        return made


def _check_has(name: str, part: str, made: Any, needed: tuple[str, ...]) -> None:
    if missing := [attribute for attribute in needed if not hasattr(made, attribute)]:
        raise _mistake(name, part, f"gives a {type(made).__name__}, which has no {' and no '.join(missing)}")


def _mistake(name: str, part: str, problem: str) -> ConfigError:
    see = {"write": "corpora.Corpus", "feature_extractor": "evaluation.image.FeatureExtractor"}
    return ConfigError(f"corpus {name!r}: its `{part}` {problem}; see e2e_lib."
                       f"{see.get(part, 'evaluation.scores.CorpusScores')}")
