"""Notebook 00: one message about one photo, sent again with the photo swapped."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.chats import photo_seed
from e2e_lib.data.minichat.questions import Question
from e2e_lib.data.minichat.scenes import Scene, draw_scene
from e2e_lib.data.photos import PhotoStore
from e2e_lib.lessons.nb05_questions import Counterfactuals, ask, counterfactual_photos
from e2e_lib.models.systems import PhotoChatModel

_PHOTO, _SEED = "the photo", 0


def twin_photos(scene: Scene, attribute: str) -> dict[Any, Image.Image]:
    """The scene's photo once per value of ``attribute`` ("number", "size" or "time"), by that value."""
    return counterfactual_photos(_question(scene, attribute), scene, _SEED)


def ask_about_twins(models: Mapping[str, PhotoChatModel], captioner: Any, text: str, scene: Scene,
                    attribute: str) -> Counterfactuals:
    """What each system, by name, answers to ``text`` sent along with each of the ``twin_photos``.

    ``text`` ends in one of MiniChat's questions about the attribute; ``captioner`` writes the captions that
    the baselines read.
    """
    example = Example("twins", 1, (Turn(0, text, (SharedPhoto(_PHOTO, ""),)),), Turn(1, ""))
    with tempfile.TemporaryDirectory() as folder:
        store = PhotoStore(Path(folder))
        store.add(_PHOTO, draw_scene(scene, photo_seed(_PHOTO, _SEED)))
        return ask(models, example, _question(scene, attribute), scene, store, captioner, _SEED)


def _question(scene: Scene, attribute: str) -> Question:
    return Question(_PHOTO, attribute, getattr(scene, attribute))
