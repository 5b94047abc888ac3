"""Does the photo correct the words? Training on captions that are wrong, and known to be (not in the paper).

Where captions are right, the photo can tell a language model nothing that they do not. Here a part of the
training captions is wrong, the photos and the truth are not, and the image generator is left as it is: what
it knows of words, it knows from its pretraining. First the language model is adapted to such captions without
any gradient from photos, so that nothing is left to keep ("before"); then training goes on with each
vocabulary map, over the same examples in the same order, so that no map meets a caption that others do not.

What an outcome would mean. The aligned map ahead of "none", of Eq. 10 and of its controls: the photo says
which word would have been right. Ahead of "none" but not of a control: any gradient would have done, as it
keeps the model from learning the captions (with parts that have not been adapted, this could happen). Equal
to "none": the photo says nothing that is heard. The controls' gradients are as long, and never say which word
would have been right: one names the same wrong word for each word all along, which can be learnt, the other
one another wrong word in every batch, which cannot. Ahead of "none" but not of "before": the gradient slows
the model down, and corrects nothing.
Every part is kept once it is done, so that an interrupted experiment goes on.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2e_lib import corpora
from e2e_lib.config import Config, replace
from e2e_lib.evaluation import intervals
from e2e_lib.experiments.comparison import differences_record, numbers_of, read_runs
from e2e_lib.experiments.evaluate import Echo, evaluate
from e2e_lib.repro import files, results
from e2e_lib.repro.run_files import RUNS, read_answers, run_folder
from e2e_lib.training.loop import train

ROOT = RUNS / "faults"
ANSWERS = "answers"
MAX_TEXT_ONLY = 150  # of the test contexts without a photo; all with one are answered
CONTROLLED = ("none", "sentence", "aligned", "aligned_shuffled")
BEFORE = "before"  # in place of a map: the adapted parts as they are
RATES, RATE = (0.0, 0.2, 0.4, 0.6, 0.8), 0.6
COMPARED = ("bleu2", "rougeL", "is", "fid")  # besides what only the corpus has
# Chosen on dev captions; the same for every map, so that all gradients into the words are equally long.
# The last epoch counts: dev photos show the truth, and would choose the one least adapted to the captions.
FIXED = {"train.keep": "last", "train.dev_examples": 8, "train.generator_rate": 0}
SETTINGS = {**FIXED, "bridge.gradient_ratio": 3, "bridge.estimator": "straight_through",
            "bridge.temperature_end": 1}


@dataclass(frozen=True)
class Condition:
    """What training begins from and learns from: captions that are wrong in a ``kind`` of way at a ``rate``
    (see ``data.caption_faults``), parts that were ``start`` "adapted" to them or are "clean", and the caption
    that is drawn while training."""

    kind: str
    rate: float
    start: str = "adapted"
    caption_source: str = "gold"

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.rate:g}_{self.start}_{self.caption_source}"

    def label(self, mapping: str) -> str:
        """What its run with a map is called in results."""
        return f"{self.name}_{mapping}"


CONDITIONS: dict[Condition, tuple[str, ...]] = {
    Condition("random", RATE): (BEFORE, "none", "sentence", "static_piece", "span", "aligned",
                                "aligned_shuffled", "aligned_random"),
    Condition("systematic", RATE): (BEFORE, *CONTROLLED),
    Condition("random", RATE, caption_source="predicted"): CONTROLLED,
    Condition("random", RATE, start="clean"): CONTROLLED,
    Condition("vague", RATE): CONTROLLED, Condition("other_photo", RATE): CONTROLLED,
    **{Condition("random", rate): CONTROLLED for rate in RATES if rate != RATE}}


def settings_of(config: Config, condition: Condition, mapping: str) -> Config:
    """The configuration of a run with a map, or of BEFORE all of them."""
    if mapping == BEFORE:
        return replace(adaptation_of(config, condition), "evaluation.max_text_only_examples", MAX_TEXT_ONLY)
    start = adapted_folder(config, condition) / "seed-{seed}" / "best" if condition.start == "adapted" else ""
    return _faulty(config, condition, {
        **SETTINGS, "bridge.mapping": mapping, "bridge.caption_source": condition.caption_source,
        "train.start_from": str(start), "evaluation.max_text_only_examples": MAX_TEXT_ONLY})


def adaptation_of(config: Config, condition: Condition) -> Config:
    """The configuration of the training that a condition's runs begin from."""
    return _faulty(config, condition, {**FIXED, "bridge.mapping": "none"})


def root_of(condition: Condition, mapping: str) -> Path:
    """Where the runs with a map are, of all profiles."""
    adapted = ROOT / f"{condition.kind}_{condition.rate:g}" / "adapted"
    return adapted if mapping == BEFORE else ROOT / condition.name / mapping


def adapted_folder(config: Config, condition: Condition) -> Path:
    """Where the adapted parts of a condition are, of all seeds."""
    return run_folder(config, 0, root_of(condition, BEFORE)).parent


def _faulty(config: Config, condition: Condition, settings: dict[str, Any]) -> Config:
    for key, value in {"data.caption_faults": condition.kind, "data.caption_fault_rate": condition.rate,
                       **settings}.items():
        config = replace(config, key, value)
    return config


def faults(config: Config, seeds: Sequence[int], echo: Echo) -> Path:
    """Trains and scores every condition with every map and seed; writes ``results/<profile>/faults.json``."""
    for number, (condition, maps) in enumerate(CONDITIONS.items(), 1):
        for seed in seeds:
            say = _of(echo, f"condition {number} of {len(CONDITIONS)}, {condition.name}, seed {seed}")
            if condition.start == "adapted":
                say("adapting to the captions")
                train(adaptation_of(config, condition), seed, echo, root=root_of(condition, BEFORE))
            for mapping in maps:
                say(mapping if mapping == BEFORE else f"map {mapping}")
                run, root = settings_of(config, condition, mapping), root_of(condition, mapping)
                if mapping != BEFORE:
                    train(run, seed, echo, root=root)
                evaluate(run, seed, echo, label=condition.label(mapping), into="faults", answers=ANSWERS,
                         runs_root=root)
    return summarise(config, seeds, echo)


def _of(echo: Echo, where: str) -> Echo:
    return lambda line: echo(f"== {where}: {line}")


def summarise(config: Config, seeds: Sequence[int], echo: Echo) -> Path:
    """Writes ``results/<profile>/faults.json``: "rows", one per condition and map with its scores as mean,
    standard deviation and number of seeds, and "pairs", each map minus each other one of its condition with
    intervals, all p-values corrected together. A condition has those of ``seeds`` that all its maps
    were trained with; one that has none is left out, and said. Raises files.ResultsError."""
    path = results.RESULTS / config.profile / "faults.json"
    done = {(run["system"], run["seed"]): run for run in results.read_runs(config.profile, folder="faults")}
    seeds_of = {condition: [seed for seed in seeds
                            if all((condition.label(mapping), seed) in done for mapping in maps)]
                for condition, maps in CONDITIONS.items()}
    for condition, own in seeds_of.items():
        if own != [*seeds]:
            echo(f"{condition.name}: {len(own)} of {len(seeds)} seeds have runs of all maps")
    labels = [(condition.label(mapping), seed) for condition, own in seeds_of.items()
              for mapping in CONDITIONS[condition] for seed in own]
    weights = {f"{label}-seed{seed}": done[label, seed]["provenance"]["weights"] for label, seed in labels}
    arguments = {"seeds": list(seeds), "numbers": numbers_of(config), "weights": weights}
    if not weights or results.is_up_to_date(path, arguments, echo):
        return path
    corpus = corpora.prepare(config, echo)
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for condition, own in seeds_of.items():
        if own:
            summary = results.averages([done[condition.label(mapping), seed]
                                        for mapping in CONDITIONS[condition] for seed in own],
                                       f"e2e {results.COMMANDS['faults']} --profile {config.profile}")
            labels_of = {mapping: condition.label(mapping) for mapping in CONDITIONS[condition]}
            rows += [{**asdict(condition), "mapping": mapping, "label": label, "seeds": own,
                      "scores": summary["systems"][label], "things": things(config, condition, mapping, own)}
                     for mapping, label in labels_of.items()]
            record = _differences(config, condition, own, corpus, echo)
            pairs += [{**asdict(condition), **row} for row in record["pairs"]]
    for row, p in zip(pairs, intervals.holm([row["p"] for row in pairs]), strict=True):
        row["p_corrected"] = p
    kept: dict[str, Any] = {key: summary[key] for key in ("profile", "test", "shipped") if key in summary}
    kept |= {key: record[key] for key in ("numbers", "examples", "dialogues", "provenance")}
    return files.write_json(path, {
        "command": f"e2e ablate --profile {config.profile} --variants faults", "arguments": arguments,
        "settings": {key: str(value) for key, value in SETTINGS.items()}, "rows": rows, "pairs": pairs,
        "seeds": list(seeds), "higher_is_better": record["higher_is_better"], **kept})


def things(config: Config, condition: Condition, mapping: str, seeds: Sequence[int]) -> dict[str, Any]:
    """How often captions with a map name each thing, and how often the photos due show it, as shares over all
    ``seeds``: whether a gradient prefers some words whatever the photo. Raises files.ResultsError."""
    answers = read_answers(config.profile, seeds, root_of(condition, mapping), folder=ANSWERS)
    scenes = [scene for rows in answers.values() for row in rows for scene in row["scenes"]]
    named = Counter((scene["named"] or {}).get("thing") for scene in scenes)
    shown = Counter(scene["gold"]["thing"] for scene in scenes)
    return {thing: {"named": named[thing] / len(scenes), "shown": count / len(scenes)}
            for thing, count in sorted(shown.items())}


def _differences(config: Config, condition: Condition, seeds: Sequence[int], corpus: Path,
                 echo: Echo) -> dict[str, Any]:
    """Of every two maps of a condition, as ``differences_record``."""
    maps = CONDITIONS[condition]
    roots = {mapping: ("end_to_end", root_of(condition, mapping)) for mapping in maps}
    runs = read_runs(config, roots, seeds, corpus, ANSWERS)
    compared = [(one, other) for k, other in enumerate(maps) for one in maps[k + 1:]]
    return differences_record(config, seeds, runs, compared, echo, COMPARED)
