"""What only MiniChat can score, since it knows what its photos show: scenes, and questions about details."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from e2e_lib.data.examples import Example, Response
from e2e_lib.data.minichat.corpus import open_photos, read_scenes
from e2e_lib.data.minichat.faults import named_values
from e2e_lib.data.minichat.questions import Question, detail_question
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.evaluation.scores import Metric

CORE_ATTRIBUTES = ("thing", "colour", "place")
DETAILS = ("number", "size", "time")  # the attributes that questions are about
NAMES = ("scene_accuracy", *(f"scene_{name}" for name in ATTRIBUTES),
         "caption_accuracy", *(f"caption_{name}" for name in CORE_ATTRIBUTES),
         "details", *(f"details_{name}" for name in DETAILS))
# {"gold": {attribute: value}, "drawn": the same, or None where no photo was drawn, "named": what its caption
# names of thing, colour and place, or None}
Scene = Mapping[str, Any]


def wrong_attributes(scene: Scene, names: Sequence[str] = CORE_ATTRIBUTES) -> list[str]:
    """Which attributes of a drawn photo are not the gold photo's. Without a drawn photo **all** are wrong, so
    that a model cannot gain by drawing only what it is sure of."""
    gold, drawn = scene["gold"], scene["drawn"]
    return [name for name in names if drawn is None or drawn[name] != gold[name]]


def scene_values(scene: Scene) -> dict[str, float]:
    """``scene_<attribute>``: 1 where the drawn photo has the gold one's value, else 0; ``scene_accuracy``:
    their mean over thing, colour and place. Groups are always small, so size is easier than it looks.
    ``caption_<attribute>`` and ``caption_accuracy``: the same of what the caption names."""
    wrong, named = wrong_attributes(scene, tuple(ATTRIBUTES)), scene["named"] or {}
    right = {f"caption_{name}": float(named.get(name) == scene["gold"][name]) for name in CORE_ATTRIBUTES}
    return {"scene_accuracy": float(np.mean([name not in wrong for name in CORE_ATTRIBUTES])),
            **{f"scene_{name}": float(name not in wrong) for name in ATTRIBUTES},
            "caption_accuracy": float(np.mean([*right.values()])), **right}


class MiniChatScores:
    """A ``scores.CorpusScores`` for the MiniChat in ``folder``. Raises DataError if it lacks its scenes."""

    metrics: Mapping[str, Metric] = {
        "scene_accuracy": Metric("scene accuracy", "higher", "share of thing, colour and place that are "
                                 "drawn right; no photo is all wrong (0-1)"),
        "caption_accuracy": Metric("caption accuracy", "higher", "share of thing, colour and place that "
                                   "a shared photo's caption names right; none is all wrong (0-1)"),
        "details": Metric("detail questions", "higher", "share of right answers to what the photo shows and "
                          "its caption leaves out (0-1)")}

    def __init__(self, folder: Path) -> None:
        self.scenes = read_scenes(folder / "scenes.jsonl")
        self.open_photos = open_photos(folder / "scenes.jsonl")

    def questions(self, examples: Sequence[Example]) -> list[tuple[Example, dict[str, Any]]]:
        """The examples that ask for a detail which only the photo shows, each with the true answer."""
        pairs = [(example, detail_question(example, self.scenes)) for example in examples]
        return [(example, asdict(question)) for example, question in pairs if question]

    def annotate(self, examples: Sequence[Example], responses: Sequence[Response]) -> list[dict[str, Any]]:
        """``scenes``: for each gold photo whose context determines it, what it shows, what the classifier
        says of the one that was drawn in its place (the first for the first; None if none was drawn), and
        what the caption that it was drawn from names."""
        predictions = iter(load_scene_classifier().predict([photo for r in responses for photo in r.photos]))
        rows: list[dict[str, Any]] = []
        for example, response in zip(examples, responses, strict=True):
            drawn = [next(predictions) for _ in response.photos]
            named = list(map(named_values, response.captions))
            count = len(example.response.photos)
            triples = zip_longest(example.response.photos, drawn[:count], named[:count])
            rows.append({"scenes": [
                {"photo_id": photo.photo_id, "gold": asdict(self.scenes[photo.photo_id]), "drawn": prediction,
                 "named": names} for photo, prediction, names in triples
                if photo.photo_id not in self.open_photos]})
        return rows

    def values(self, row: Mapping[str, Any]) -> dict[str, float]:
        """``scene_values`` of an answer, the mean where it has several photos; ``details`` and
        ``details_<attribute>`` of a reply to a question."""
        values = dict.fromkeys(NAMES, np.nan)
        if scenes := [scene_values(scene) for scene in row.get("scenes", ())]:
            values |= {name: float(np.mean([scene[name] for scene in scenes])) for name in scenes[0]}
        if "attribute" in row:
            question = Question(row["photo_id"], row["attribute"], row["truth"])
            right = float(question.answered_by(row["text"]))
            values |= {"details": right, f"details_{question.attribute}": right}
        return values

    def counts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """How many gold photos and questions were scored, and how many photos were not drawn."""
        scenes = [scene for row in rows for scene in row.get("scenes", ())]
        kinds = [row["attribute"] for row in rows if "attribute" in row]
        return {"scene_n": len(scenes), "scene_missing": sum(scene["drawn"] is None for scene in scenes),
                "details_n": len(kinds), **{f"details_{name}_n": kinds.count(name) for name in DETAILS},
                "n": {"scenes": len(scenes)}}
