"""What notebooks read of trained runs and of ``results/``, and what stands there while it is not made yet.

In a fresh clone nothing is trained. Then a notebook goes on: the parts as they ship answer in place of
trained systems, and where only trained ones would do, one sentence says which command makes what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib import corpora
from e2e_lib.config import PAPER_SYSTEMS, Config
from e2e_lib.data.examples import Example, split_examples, subsample
from e2e_lib.data.minichat.corpus import open_photos
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.scores import answer_row
from e2e_lib.inference.respond import respond
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.report.plots import STYLES, Figure, Markdown
from e2e_lib.repro import results
from e2e_lib.repro.randomness import seed_of
from e2e_lib.repro.run_files import RUNS, Rows, read_answers, seed_folder

# How long each command takes in mini, on two CPU cores.
DURATIONS = {"e2e reproduce": "about 25 minutes", "e2e compare": "about 40 minutes",
             "e2e ablate": "several hours", "e2e ablate --variants faults": "several hours",
             "e2e ablate --variants terms": "about an hour", "make bench": "about ten minutes"}


def not_yet(path: Path, profile: str, seeds: Sequence[int] = (0,)) -> Markdown:
    """The sentence that stands in a notebook for what needs ``path``, of a run of ``seeds`` or of results."""
    command = results.FILES.get(path.stem, ("e2e reproduce", {}))[0]
    duration = DURATIONS.get(command, "minutes")
    if profile != "mini" and command != "make bench":
        command += f" --profile {profile}"
        duration = "minutes" if profile == "smoke" else "longer than in mini"
    if not set(seeds) <= ({0} if profile == "smoke" else {0, 1, 2}):
        command += f" --seeds {' '.join(map(str, seeds))}"
    command = "make reproduce" if command == "e2e reproduce" else command  # as the README says it
    return Markdown(f"*Not shown: `{path}` is not there yet. `{command}` makes it ({duration} on two CPU "
                    "cores).*")


def _first_missing(paths: Sequence[Path], profile: str, seeds: Sequence[int]) -> Markdown | None:
    return next((not_yet(path, profile, seeds) for path in paths if not path.exists()), None)


def missing_answers(profile: str, seeds: Sequence[int], root: Path = RUNS) -> Markdown | None:
    """``not_yet`` of the first system and seed without test answers, None where all have them."""
    folders = [seed_folder(root, profile, system, seed) for system in PAPER_SYSTEMS for seed in seeds]
    return _first_missing([folder / "answers" for folder in folders], profile, seeds)


def missing_scores(profile: str, seeds: Sequence[int], root: Path = results.RESULTS) -> Markdown | None:
    """``not_yet`` of the first system and seed without test scores, None where all have them."""
    names = [f"{system}-seed{seed}.json" for system in PAPER_SYSTEMS for seed in seeds]
    return _first_missing([root / profile / "runs" / name for name in names], profile, seeds)


def if_measured(profile: str, name: str, view: Callable[[Any], Any], root: Path = results.RESULTS) -> Any:
    """``view`` of ``results/<profile>/<name>.json``, or ``not_yet``. Raises ResultsError if it is damaged."""
    path = root / profile / f"{name}.json"
    return view(results.load_json(path)) if path.is_file() else not_yet(path, profile)


def answer(profile: str, name: str, view: Callable[[Any], str], root: Path = results.RESULTS) -> Any:
    """``if_measured``, as the answer to a prediction: ``view`` gives its sentences."""
    return if_measured(profile, name, lambda record: Markdown(f"**Answer.** {view(record)}"), root)


def answer_now(models: Mapping[str, PhotoChatModel], examples: Sequence[Example], corpus: Path,
               config: Config, seed: int) -> dict[str, Rows]:
    """What each system answers now: rows as ``run_files.read_answers`` has them, with photos for files."""
    store, own = PhotoStore(corpus / "photos"), corpora.scores_of(config.data, corpus)
    answers: dict[str, Rows] = {}
    for name, model in models.items():
        responses = respond(model, examples, store, config.inference, seed_of(seed, "answer now"))
        notes: list[dict[str, Any]] = own.annotate(examples, responses) if own else [{}] * len(examples)
        answers[name] = [answer_row(example, response) | note | {"images": response.images}
                         for example, response, note in zip(examples, responses, notes, strict=True)]
    return answers


def answers_to_show(models: Mapping[str, PhotoChatModel], count: int, corpus: Path, config: Config,
                    seed: int) -> tuple[dict[str, Rows], str]:
    """Each system's saved test answers, or ``count`` answered now where they are not there, and which it is.

    Those answered now are evenly spaced among the responses whose photo's content is known.
    """
    if not missing_answers(config.profile, [seed]):
        saved = {name: read_answers(config.profile, [seed], system=name)[seed] for name in models}
        return saved, "answers of the test"
    unknown = open_photos(corpus / "scenes.jsonl")
    due = [example for example in split_examples(corpus, "test")[0]
           if example.response.photos and example.response.photos[0].photo_id not in unknown]
    now = answer_now(models, subsample(due, count), corpus, config, seed)
    return now, f"{min(count, len(due))} of {len(due)} test photos, drawn now"


def right_in_gallery(gallery: Figure, systems: Sequence[str]) -> str:
    """How many photos of a ``report.photos.gallery`` of several systems are right, as its titles say."""
    titles = [" ".join(ax.get_title().split()) for ax in gallery.axes]
    counts = []
    for label in (STYLES[name][0] for name in systems):
        own = [title.removeprefix(f"{label}, ") for title in titles
               if title.startswith(tuple(f"{label}, {kind}" for kind in ("right:", "wrong ", "no photo:")))]
        counts.append(f"{label} {sum(title.startswith('right:') for title in own)} of {len(own)}")
    return f"Right in thing, colour and place: {'; '.join(counts)}."
