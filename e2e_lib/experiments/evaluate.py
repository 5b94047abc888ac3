"""Evaluating a trained run: its answers to test contexts, saved in the run's folder, and their scores."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from e2e_lib import corpora
from e2e_lib.config import BASELINES, Config, with_defaults
from e2e_lib.data.examples import Example, split_examples, subsample
from e2e_lib.data.photo_input import open_photo
from e2e_lib.data.photos import PhotoStore, to_tensor
from e2e_lib.evaluation.image import INCEPTION_SHA256, features_of, inception_scores
from e2e_lib.evaluation.scores import Answers, all_scores, answer_row, reduce
from e2e_lib.inference.respond import respond
from e2e_lib.models import hub
from e2e_lib.models.systems import origins
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import ResourceMonitor, provenance_record, relativize_paths
from e2e_lib.repro.randomness import seed_of
from e2e_lib.repro.run_files import RUNS, read_answers, read_details, read_done, run_folder
from e2e_lib.training.loop import Echo, load_trained
from e2e_lib.training.processes import meet
from e2e_lib.versions import versions


def evaluate(config: Config, seed: int, echo: Echo = print, *, label: str = "", into: str = "runs",
             answers: str = "answers", runs_root: Path = RUNS, split: str = "test") -> Path:
    """Answers and scores the test set, or another ``split``, with the trained model of ``seed``.

    Writes ``results/<profile>/<into>/<label>-seed<k>.json`` (``label`` is by default the system), unless it
    is there from the same settings and weights; answers stay in the run's folder, below ``answers``. Where
    there are several processes, all must call this; they share the answers out, and the main one scores.
    Raises CheckpointError, ConfigError, DataError and files.SaveError."""
    weights = corpora.inception_weights(config)
    inception = {"inception": INCEPTION_SHA256} if weights else {}
    elsewhere = {} if split == "test" else {"split": split}
    folder = run_folder(config, seed, runs_root)
    with meet().main_process_first():  # and not each its own, in the same folder
        corpus = corpora.prepare(config, echo)
    label = label or config.model.system
    path = results.RESULTS / config.profile / into / f"{label}-seed{seed}.json"
    settings = {"weights": {"trained": files.weights_hash(folder / "best"), **_parts(config), **inception},
                "numbers": versions_of_answers(config), **elsewhere}
    if path.is_file() and (folder / answers).is_dir():
        recorded = results.load_json(path).get("provenance", {})
        if with_defaults(recorded.get("config", {})) == relativize_paths(asdict(config)) \
                and all(recorded.get(name) == value for name, value in settings.items()):
            echo(f"seed {seed}: {path} is there already")
            return path
    with ResourceMonitor() as monitor:
        _answer(config, seed, corpus, folder / answers, echo, runs_root, split)
        if not PartialState().is_main_process:
            return path
        scores = all_scores(saved_answers(config, config.model.system, seed, corpus, runs_root, answers))
        if weights:
            scores |= _scores_by_inception(weights, config, seed, corpus, runs_root, answers)
    done = read_done(folder) or {}
    record = provenance_record(config, seeds={"training": seed, "data": config.data.seed},
                               data={file.name: file for file in sorted(corpus.glob("*.jsonl"))})
    provenance = {**record, **settings, "evaluation": monitor.as_dict(),
                  "training": {key: done.get(key) for key in ("seconds", "steps", "epochs", "best")}}
    return results.write_run(config.profile, label, seed, scores, provenance, folder=into)


def versions_of_answers(config: Config) -> dict[str, int]:
    """The versions of all that decides the scores of a run's answers, its corpus among them."""
    return {config.data.name: corpora.named(config.data.name).version,
            **versions("scoring", "decoding", "training")}


def _parts(config: Config) -> dict[str, str]:
    """What a system's parts began as: the hashes of the shipped ones, and where the others come from."""
    sources = origins(config)
    names = {"shipped": "mini"} if any(source.startswith("shipped:") for source in sources.values()) else {}
    names |= {"baselines": "mini-baselines"} if BASELINES in sources.values() else {}
    hashes = {key: files.sha256(hub.WEIGHTS / name / "manifest.json") for key, name in names.items()}
    others = {part: source for part, source in sources.items() if not source.startswith("shipped:")}
    return {**hashes, **relativize_paths(others)}


def contexts_to_answer(examples: Sequence[Example], max_text_only: int) -> list[Example]:
    """The examples whose response shares a photo, then ``max_text_only`` others, evenly spaced (0: all)."""
    others = [example for example in examples if not example.response.photos]
    sharing = [example for example in examples if example.response.photos]
    return sharing + subsample(others, max_text_only or len(others))


def _answer(config: Config, seed: int, corpus: Path, folder: Path, echo: Echo, root: Path, split: str
            ) -> None:
    """Saves answers in ``folder``: ``answers.jsonl``, a row per context of the split, its photos
    ``<row>-<k>.png`` (both count from 0), and ``details.jsonl``, a row per question of the corpus: all, since
    scored apart."""
    every, store = split_examples(corpus, split, lambda line: echo(f"seed {seed}: {line}"),
                                  config.data.real_only)
    examples = contexts_to_answer(every, config.evaluation.max_text_only_examples)
    own = corpora.scores_of(config.data, corpus)
    questions = own.questions(every) if own else []
    model = load_trained(config, seed, root=root)

    def progress(what: str, done: int, total: int) -> None:
        if done == total or done % (5 * config.inference.batch_size) == 0:
            echo(f"seed {seed}: {done:,} of {total:,} answers {what}")

    responses = respond(model, examples, store, config.inference, seed_of(seed, split), progress)
    replies = respond(model, [example for example, _ in questions], store, config.inference,
                      seed_of(seed, "details"))
    if not PartialState().is_main_process:
        return
    notes: list[dict[str, Any]] = own.annotate(examples, responses) if own else [{} for _ in examples]
    rows = [answer_row(example, response) | note
            for example, response, note in zip(examples, responses, notes, strict=True)]
    details: list[dict[str, Any]] = [
        {"dialogue_id": example.dialogue_id, "index": example.index, **question, "text": reply.text}
        for (example, question), reply in zip(questions, replies, strict=True)]
    for row in details:  # a reply is right if all its values are 1
        row["right"] = not any(value < 1 for value in (own.values(row) if own else {}).values())
    with files.atomic_folder(folder) as new:
        for i, response in enumerate(responses):
            for k, image in enumerate(response.images):
                image.save(new / f"{i}-{k}.png")
        for name, lines in (("answers", rows), ("details", details)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.write_text(new / f"{name}.jsonl", text)


def saved_answers(config: Config, system: str, seed: int, corpus: Path, root: Path = RUNS,
                  folder: str = "answers") -> Answers:
    """A run's answers, saved in ``folder`` below the run's own, reduced. Raises ResultsError."""
    rows = read_answers(config.profile, [seed], root, system, folder)[seed]
    replies = read_details(config.profile, [seed], root, system, folder)[seed]
    store, extractor = PhotoStore(corpus / "photos"), corpora.extractor_of(config.data)
    drawn, gold = _photos(rows, store)
    answers = reduce([*rows, *replies], features_of(drawn, extractor), features_of(gold, extractor),
                     corpora.scores_of(config.data, corpus))
    gold_ids = [photo_id for row in rows for photo_id in row["gold_photo_ids"]]
    if not_real := sum(map(store.is_drawn, gold_ids)):  # they could not be fetched (section 3.1.1)
        answers.counts["n"]["gold_photos_drawn_from_captions"] = not_real
    return answers


def _scores_by_inception(weights: Path, config: Config, seed: int, corpus: Path, root: Path,
                         folder: str) -> dict[str, float | None]:
    """The scores of the same photos by Inception with these weights."""
    rows = read_answers(config.profile, [seed], root, config.model.system, folder)[seed]
    return inception_scores(*_photos(rows, PhotoStore(corpus / "photos")), weights)


def _photos(rows: Sequence[dict[str, Any]], store: PhotoStore) -> tuple[list[Tensor], list[Tensor]]:
    """Drawn and gold photos of saved answers, uint8 (3, H, W) each, in the order of rows."""
    drawn = [to_tensor(open_photo(image)) for row in rows for image in row["images"]]
    return drawn, [store.tensor(photo_id) for row in rows for photo_id in row["gold_photo_ids"]]
