"""Evaluating a trained run on the test split and writing down what came of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2e_lib.config import SHIPPED, Config, with_defaults
from e2e_lib.corpora import DATA, prepare
from e2e_lib.data.examples import Example, examples_of, load_split, subsample
from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.data.minichat.questions import Question, detail_accuracy, question_of
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.scores import all_scores, scenes_drawn
from e2e_lib.inference.respond import Response, respond
from e2e_lib.repro import files, results
from e2e_lib.repro.files import weights_hash
from e2e_lib.repro.provenance import ResourceMonitor, fingerprint, provenance_record, relativize_paths
from e2e_lib.repro.randomness import generator
from e2e_lib.repro.run_files import RUNS, run_folder
from e2e_lib.training.loop import load_trained
from e2e_lib.versions import versions


def evaluate(config: Config, seed: int, echo: Callable[[str], None], *, label: str = "", into: str = "runs",
             answers: str = "answers", results_root: Path = results.RESULTS, runs_root: Path = RUNS, data_root: Path = DATA) -> Path:
    """Answers test contexts (``tested``) with the trained model of ``seed`` and writes ``results/<profile>/<into>/<label>-seed<k>.json``.

    Questions about what captions leave out (``questions.question_of``) are asked besides, all of them, and scored by themselves, so that
    they weigh no more in the other scores than they do in chats. ``label`` names what was tested, by default the configuration's
    system. The answers themselves stay in the run's folder, below ``answers``. A result that stands already, made with the same
    settings from the same weights, is kept. Raises CheckpointError, DataError and files.SaveError.
    """
    folder = run_folder(config, seed, runs_root)
    corpus = prepare(config, echo, data_root)
    trained = json.loads((folder / "done.json").read_text()) if (folder / "done.json").is_file() else {}
    label = label or config.model.system
    parts = {"shipped": fingerprint(hub.WEIGHTS / "mini" / "manifest.json")}
    if config.model.system != "end_to_end" or config.model.image_input == "captions":
        parts["baselines"] = fingerprint(hub.WEIGHTS / "mini-baselines" / "manifest.json")
    weights = {"trained": weights_hash(folder / "best"), **parts}
    # Scores made by an older way of scoring are no longer valid.
    numbers = versions("minichat", "scoring", "decoding", "training")
    path = results_root / config.profile / into / f"{label}-seed{seed}.json"
    if path.is_file() and (folder / answers).is_dir():
        found = results.load_json(path).get("provenance", {})
        if found.get("weights") == weights and found.get("numbers") == numbers and with_defaults(found.get("config", {})) == relativize_paths(asdict(config)):
            echo(f"seed {seed}: {path} is there already")
            return path
    with ResourceMonitor() as measure:
        dialogues, store, report = load_split(corpus, "test")
        echo(f"seed {seed}: test dialogues: {report}")
        everything = [example for dialogue in dialogues for example in examples_of(dialogue)]
        examples, scenes = tested(everything, config.evaluation.max_text_only_examples), read_scenes(corpus / "scenes.jsonl")
        asked = [(example, question) for example in everything if (question := question_of(example, scenes))]
        model, reader = load_trained(config, seed, root=runs_root), load_scene_classifier(SHIPPED)

        def progress(what: str, done: int, of: int) -> None:
            if done == of or done % (5 * config.inference.batch_size) == 0:
                echo(f"seed {seed}: {done:,} of {of:,} answers {what}")

        responses = respond(model, examples, store, config.inference, generator(seed, "test"), config.data.photo_size, progress)
        rows = scenes_drawn(examples, responses, corpus, reader)
        metrics = all_scores(examples, responses, store, rows, reader, config.data.photo_size)
        replies = respond(model, [example for example, _ in asked], store, config.inference, generator(seed, "details"), config.data.photo_size)
        metrics |= detail_accuracy([question for _, question in asked], [reply.text for reply in replies])
    save_answers(folder / answers, examples, responses, {row["photo_id"]: row for row in rows}, asked, replies)
    provenance = provenance_record(config, seeds={"training": seed, "data": config.data.seed}, weights=weights,
                       data={name: corpus / name for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "scenes.jsonl")})
    history = {key: trained.get(key) for key in ("seconds", "steps", "epochs", "best")}
    provenance |= {"numbers": numbers, "evaluation": measure.as_dict(), "training": history}
    results.write_run(config.profile, label, seed, metrics, provenance, results_root, into)
    return path


def tested(examples: Sequence[Example], others: int) -> list[Example]:
    """The examples whose answer shares a photo, then ``others`` of the rest (all of them for 0), subsample spaced."""
    plain = [example for example in examples if not example.response.photo]
    return [example for example in examples if example.response.photo] + subsample(plain, others or len(plain))


def save_answers(folder: Path, examples: Sequence[Example], responses: Sequence[Response], read: dict[str, Any],
                 asked: Sequence[tuple[Example, Question]], replies: Sequence[Response]) -> None:
    """Writes the test answers: ``answers.jsonl`` and one PNG a drawn photo, numbered by row; and ``details.jsonl``, the replies to questions
    about details."""
    with files.atomic_folder(folder) as new:
        rows = []
        for i, (example, response) in enumerate(zip(examples, responses, strict=True)):
            gold = example.response.photo
            rows.append({"dialogue_id": example.dialogue_id, "index": example.index, "text": response.text, "caption": response.caption,
                         "gold_text": example.response.text, "gold_caption": gold.caption if gold else None,
                         "gold_photo_id": gold.photo_id if gold else None, "scene": read.get(gold.photo_id) if gold else None})
            if response.image:
                response.image.save(new / f"{i}.png")
        told = [{"dialogue_id": example.dialogue_id, "index": example.index, **asdict(question), "text": reply.text,
                 "right": question.answered_by(reply.text)}
                for (example, question), reply in zip(asked, replies, strict=True)]
        for name, lines in (("answers", rows), ("details", told)):
            files.write_text(new / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
