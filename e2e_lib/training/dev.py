"""Dev scores for early stopping, and the gallery of drawn photos (section 3.1.2)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from e2e_lib import corpora
from e2e_lib.config import Config
from e2e_lib.data.examples import Example, Response
from e2e_lib.data.photos import PhotoSource
from e2e_lib.evaluation.scores import dev_scores
from e2e_lib.inference.respond import respond
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.repro import files
from e2e_lib.repro.randomness import seed_of

GALLERY_SIZE = 6  # dev chats shown after each epoch


class DevSet:
    """The dev examples of a run, answered with the same random numbers after each epoch."""

    def __init__(self, config: Config, seed: int, examples: list[Example], store: PhotoSource,
                 gallery: Path) -> None:
        self.examples, self.store = dev_examples(examples, config.train.dev_examples), store
        self.settings, self.seed, self.gallery = config.inference, seed, gallery
        self.extractor = corpora.extractor_of(config.data)

    def score(self, model: PhotoChatModel, epoch: int) -> dict[str, Any]:
        """``{"bleu2", "fid", "score"}`` of the model after ``epoch`` epochs; saves its gallery. All processes
        answer, and each gets the scores.

        ``score`` may be -inf.
        """
        responses = self._answer(model, self.examples, epoch)
        scores = dev_scores(self.examples, responses, self.store, self.extractor)
        return {**scores, "score": dev_score(scores)}

    def save_gallery_before_training(self, model: PhotoChatModel) -> None:
        """Answers only the chats that the gallery shows, as epoch 0."""
        self._answer(model, [e for e in self.examples if e.response.photos][:GALLERY_SIZE], 0)

    def _answer(self, model: PhotoChatModel, examples: list[Example], epoch: int) -> list[Response]:
        responses = respond(model, examples, self.store, self.settings, seed_of(self.seed, "dev"))
        if PartialState().is_main_process:
            save_gallery(self.gallery / f"epoch-{epoch}", examples, responses)
        return responses


def dev_score(scores: dict[str, Any]) -> float:
    """One number for early stopping, higher is better: log BLEU-2 minus log FID, on equal terms.

    The paper names both metrics and not how they are weighed; no drawn photos at all counts as the worst.
    """
    if scores["fid"] is None:
        return -math.inf
    return math.log(max(scores["bleu2"], 1e-3)) - math.log(max(scores["fid"], 1e-3))


def dev_examples(examples: list[Example], count: int) -> list[Example]:
    """The first ``count`` / 2 examples that share a photo (for FID), the rest ones that do not (for BLEU)."""
    sharing = [e for e in examples if e.response.photos][:count // 2]
    return sharing + [e for e in examples if not e.response.photos][:count - len(sharing)]


def save_gallery(folder: Path, examples: Sequence[Example], responses: Sequence[Response]) -> None:
    """Saves the first responses to gold photos: ``gallery.json``, and drawn photos as PNG by row."""
    with files.atomic_folder(folder) as new:
        rows: list[dict[str, Any]] = []
        due = [(gold, response, k) for example, response in zip(examples, responses, strict=True)
               for k, gold in enumerate(example.response.photos)]
        for gold, response, k in due[:GALLERY_SIZE]:
            drawn = k < len(response.images)
            if drawn:
                response.images[k].save(new / f"{len(rows)}.png")
            rows.append({"photo_id": gold.photo_id, "gold": gold.caption,
                         "caption": response.captions[k] if drawn else None, "drawn": drawn})
        files.write_json(new / "gallery.json", rows)
