"""Dev scores after each epoch, and the gallery of drawn photos."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e_lib.data.examples import Example
from e2e_lib.inference.respond import Response
from e2e_lib.repro import files


def dev_score(scores: dict[str, Any]) -> float:
    """One number for early stopping, higher is better: log BLEU-2 minus log FID, so that neither's scale decides.

    The paper names both metrics and not how they are weighed; no drawn photos at all counts as the worst."""
    if scores["fid"] is None:
        return -math.inf
    return math.log(max(scores["bleu2"], 1e-3)) - math.log(max(scores["fid"], 1e-3))


GALLERY = 6  # dev chats shown after each epoch


def dev_examples(examples: list[Example], count: int) -> list[Example]:
    """The first half of ``count`` responses that share a photo and the first half that do not: FID needs photos, BLEU needs text."""
    sharing = [e for e in examples if e.response.photo][:count // 2]
    return sharing + [e for e in examples if not e.response.photo][:count - len(sharing)]


def save_gallery(folder: Path, examples: Sequence[Example], answers: Sequence[Response]) -> None:
    """Saves the first answers with gold photos: their captions as JSON, the drawn photos as PNG."""
    with files.atomic_folder(folder) as new:
        shown = [(e, a) for e, a in zip(examples, answers, strict=True) if e.response.photo][:GALLERY]
        rows = []
        for i, (example, answer) in enumerate(shown):
            if answer.image:
                answer.image.save(new / f"{i}.png")
            rows.append({"photo_id": example.response.photo.photo_id, "gold": example.response.photo.caption,  # type: ignore[union-attr]
                         "caption": answer.caption, "drawn": answer.image is not None})
        files.write_json(new / "gallery.json", rows)
