"""Evaluating a trained run: its answers to test contexts, saved in the run's folder, and their scores."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from e2e_lib import corpora
from e2e_lib.config import Config, with_defaults
from e2e_lib.data.examples import Example, examples_of, load_split, subsample
from e2e_lib.data.photos import PhotoStore, to_tensor
from e2e_lib.evaluation.image import features_of
from e2e_lib.evaluation.scores import Answers, all_scores, answer_row, reduce
from e2e_lib.inference.respond import respond
from e2e_lib.models import hub
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import ResourceMonitor, provenance_record, relativize_paths
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import RUNS, read_answers, read_details, run_folder
from e2e_lib.training.loop import load_trained
from e2e_lib.versions import versions

Echo = Callable[[str], None]


def evaluate(config: Config, seed: int, echo: Echo = print, *, label: str = "", into: str = "runs",
             answers: str = "answers", results_root: Path = results.RESULTS, runs_root: Path = RUNS,
             data_root: Path = corpora.DATA) -> Path:
    """Answers and scores the test set with the trained model of ``seed``; returns the result's file.

    That is ``results/<profile>/<into>/<label>-seed<k>.json``; ``label`` is by default the configuration's system.
    The answers stay in the run's folder, below ``answers``. A result that was made with the same settings from the
    same weights is kept. Raises CheckpointError, ConfigError, DataError and files.SaveError.
    """
    folder, corpus = run_folder(config, seed, runs_root), corpora.prepare(config, echo, data_root)
    label = label or config.model.system
    path = results_root / config.profile / into / f"{label}-seed{seed}.json"
    weights = {"trained": files.weights_hash(folder / "best"), **_shipped_parts(config)}
    numbers = {config.data.name: corpora.named(config.data.name).version,
               **versions("scoring", "decoding", "training")}
    if path.is_file() and (folder / answers).is_dir():
        made = results.load_json(path).get("provenance", {})
        if (made.get("weights"), made.get("numbers")) == (weights, numbers) \
                and with_defaults(made.get("config", {})) == relativize_paths(asdict(config)):
            echo(f"seed {seed}: {path} is there already")
            return path
    with ResourceMonitor() as monitor:
        _answer(config, seed, corpus, folder / answers, echo, runs_root)
        metrics = all_scores(saved_answers(config, config.model.system, seed, corpus, runs_root, answers))
    provenance = provenance_record(config, seeds={"training": seed, "data": config.data.seed}, weights=weights,
                                   data={file.name: file for file in sorted(corpus.glob("*.jsonl"))})
    done = json.loads((folder / "done.json").read_text()) if (folder / "done.json").is_file() else {}
    training = {key: done.get(key) for key in ("seconds", "steps", "epochs", "best")}
    provenance |= {"numbers": numbers, "evaluation": monitor.as_dict(), "training": training}
    results.write_run(config.profile, label, seed, metrics, provenance, results_root, into)
    return path


def _shipped_parts(config: Config) -> dict[str, str]:
    """The hashes of the shipped parts that a system may be made of."""
    names = {"shipped": "mini"}
    if config.model.system != "end_to_end" or config.model.image_input == "captions":
        names["baselines"] = "mini-baselines"
    return {key: files.sha256(hub.WEIGHTS / name / "manifest.json") for key, name in names.items()}


def test_examples(examples: Sequence[Example], max_text_only: int) -> list[Example]:
    """The examples whose response shares a photo, then ``max_text_only`` of the others, evenly spaced; 0 takes all."""
    others = [example for example in examples if not example.response.photo]
    return [example for example in examples if example.response.photo] + subsample(others, max_text_only or len(others))


def split_examples(corpus: Path, split: str, echo: Echo = lambda _: None) -> tuple[list[Example], PhotoStore]:
    """All examples of a split of the corpus in a folder, and its photos; says what was set aside. Raises DataError."""
    dialogues, store, report = load_split(corpus, split)
    echo(f"{split} dialogues: {report}")
    return [example for dialogue in dialogues for example in examples_of(dialogue)], store


def _answer(config: Config, seed: int, corpus: Path, folder: Path, echo: Echo, root: Path) -> None:
    """Answers test contexts, and the corpus's questions, with the trained model of ``seed``, and saves the answers.

    ``answers.jsonl`` has a row per test context, ``<row>.png`` is the photo drawn for it; ``details.jsonl`` has one
    per question. All of the corpus's questions are asked, and scored by themselves, so that they weigh no more in the
    other scores than they do in chats.
    """
    every, store = split_examples(corpus, "test", lambda line: echo(f"seed {seed}: {line}"))
    examples, scores = test_examples(every, config.evaluation.max_text_only_examples), corpora.scores_of(config.data, corpus)
    questions = scores.questions(every) if scores else []
    model = load_trained(config, seed, root=root)

    def progress(what: str, done: int, total: int) -> None:
        if done == total or done % (5 * config.inference.batch_size) == 0:
            echo(f"seed {seed}: {done:,} of {total:,} answers {what}")

    responses = respond(model, examples, store, config.inference, generator(seed, "test"), progress)
    replies = respond(model, [example for example, _ in questions], store, config.inference, generator(seed, "details"))
    notes: list[dict[str, Any]] = scores.annotate(examples, responses) if scores else [{} for _ in examples]
    rows = [answer_row(example, response) | note for example, response, note in zip(examples, responses, notes, strict=True)]
    details: list[dict[str, Any]] = [
        {"dialogue_id": example.dialogue_id, "index": example.index, **question, "text": reply.text}
        for (example, question), reply in zip(questions, replies, strict=True)]
    for row in details:
        values = [value for value in (scores.values(row) if scores else {}).values() if not math.isnan(value)]
        row["right"] = all(value == 1 for value in values)
    with files.atomic_folder(folder) as new:
        for i, response in enumerate(responses):
            if response.image:
                response.image.save(new / f"{i}.png")
        for name, lines in (("answers", rows), ("details", details)):
            files.write_text(new / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def saved_answers(config: Config, system: str, seed: int, corpus: Path, root: Path = RUNS,
                  folder: str = "answers") -> Answers:
    """A run's saved answers in ``folder`` below the run's own, reduced. Raises ResultsError if they are missing."""
    rows = read_answers(config.profile, [seed], root, system, folder)[seed]
    store, extractor = PhotoStore(corpus / "photos"), corpora.extractor_of(config.data)
    drawn = [to_tensor(Image.open(row["image"]).convert("RGB")) for row in rows if row["image"]]
    gold = [store.tensor(row["gold_photo_id"]) for row in rows if row["gold_photo_id"]]
    rows = rows + read_details(config.profile, [seed], root, system, folder)[seed]
    return reduce(rows, features_of(drawn, extractor), features_of(gold, extractor), corpora.scores_of(config.data, corpus))
