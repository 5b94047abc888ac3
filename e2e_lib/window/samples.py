"""Photos to share for whoever has none at hand: MiniChat's own scenes, drawn when a window opens."""

from functools import cache

from PIL import Image

from e2e_lib.data.minichat.scenes import Scene, draw_scene

_SEED = 7
SCENES = (Scene("boat", "blue", "beach", 2), Scene("tent", "green", "forest", time="night"),
          Scene("car", "red", "city", size="big"), Scene("kite", "yellow", "snow", 3),
          Scene("guitar", "orange", "desert", time="evening"),
          Scene("flower", "purple", "garden", size="big"))


def sample_name(scene: Scene) -> str:
    """What a scene is called where it can be chosen, such as "2 blue boats, beach"."""
    return f"{scene.number} {scene.colour} {scene.noun}, {scene.place}"


@cache
def sample_photos() -> dict[str, Image.Image]:
    """The sample photos, 64 by 64 pixels, by their names."""
    return {sample_name(scene): draw_scene(scene, _SEED) for scene in SCENES}
