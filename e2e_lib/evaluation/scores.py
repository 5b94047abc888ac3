"""A model's answers to test contexts, and every metric of section 3.1.3 on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.corpus import open_photos, read_scenes
from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.image import image_scores
from e2e_lib.evaluation.scene_classifier import SceneClassifier
from e2e_lib.evaluation.sharing import intent_scores, scene_accuracy
from e2e_lib.evaluation.text import bleu, rouge_l
from e2e_lib.inference.respond import Response


def gold_photos(examples: Sequence[Example], store: PhotoStore, size: int) -> Tensor:
    """The responses' own photos (N, 3, S, S), uint8, in order."""
    return torch.stack([store.tensor(e.response.photo.photo_id, size) for e in examples if e.response.photo])


def text_scores(examples: Sequence[Example], responses: Sequence[Response]) -> dict[str, Any]:
    """BLEU and ROUGE-L of the text (photo descriptions removed) where the gold response has text, and of the captions where it shares."""
    pairs = [(r.text, e.response.text) for e, r in zip(examples, responses, strict=True) if e.response.text]
    captions = [(r.caption or "", e.response.photo.caption) for e, r in zip(examples, responses, strict=True) if e.response.photo]
    said, gold = [list(side) for side in zip(*pairs, strict=True)]
    scores: dict[str, Any] = {**bleu(said, gold), "rougeL": rouge_l(said, gold)}
    if captions:
        caption_scores = bleu(*[list(side) for side in zip(*captions, strict=True)])
        # Cumulative BLEU-2 without the individual order's blindness to single words.
        scores |= {"caption_bleu": caption_scores["bleu2_cumulative"], "caption_bleu1": caption_scores["bleu1"],
                   "caption_bleu2": caption_scores["bleu2"]}
    return scores


def photo_scores(examples: Sequence[Example], responses: Sequence[Response], store: PhotoStore, reader: SceneClassifier, size: int) -> dict[str, Any]:
    """IS, FID and KID of all drawn photos against all gold ones; None for each while fewer than two photos are drawn."""
    drawn = [r.photo for r in responses if r.photo is not None]
    if len(drawn) < 2:
        return {"is": None, "fid": None, "kid": None}
    return image_scores(torch.stack(drawn), gold_photos(examples, store, size), reader)


def scenes_drawn(examples: Sequence[Example], responses: Sequence[Response], corpus: Path, reader: SceneClassifier) -> list[dict[str, Any]]:
    """For each gold photo that its context determines: what it shows and what the reader sees in the drawn one (None if none was drawn)."""
    scenes, undetermined = read_scenes(corpus / "scenes.jsonl"), open_photos(corpus / "scenes.jsonl")
    pairs = [(e.response.photo.photo_id, r.photo) for e, r in zip(examples, responses, strict=True)
             if e.response.photo and e.response.photo.photo_id not in undetermined]
    drawn = [photo for _, photo in pairs if photo is not None]
    read = iter(reader.read(torch.stack(drawn)) if drawn else [])
    return [{"photo_id": photo_id, "gold": {name: getattr(scenes[photo_id], name) for name in ATTRIBUTES},
             "drawn": None if photo is None else next(read)} for photo_id, photo in pairs]


def all_scores(examples: Sequence[Example], responses: Sequence[Response], store: PhotoStore, rows: Sequence[dict[str, Any]],
               reader: SceneClassifier, size: int) -> dict[str, Any]:
    """Every metric; ``rows`` are those of ``scenes_drawn``, and ``n`` holds what each metric was computed on."""
    sharing = intent_scores([r.caption is not None for r in responses], [e.response.photo is not None for e in examples])
    photos = photo_scores(examples, responses, store, reader, size)
    counts = {"examples": len(examples), "texts": sum(bool(e.response.text) for e in examples),
              "gold_photos": sum(e.response.photo is not None for e in examples), "scenes": len(rows)}
    scenes = scene_accuracy([row["drawn"] for row in rows], [row["gold"] for row in rows]) if rows else {}
    photos = {key: value for key, value in photos.items() if not key.startswith("image_n")}
    drawn = {"drawn_photos": sum(r.photo is not None for r in responses)}
    return {**text_scores(examples, responses), **sharing, **photos, **drawn, **scenes, "n": counts}
