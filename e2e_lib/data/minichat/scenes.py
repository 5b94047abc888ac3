"""MiniChat's photos: a scene, and drawings of it.

A scene is fully known, so "did the model draw what was meant" can be measured instead of judged. Positions,
colours and scenery vary with a seed, as between two photos of one thing.
"""

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageDraw import ImageDraw as Draw
from torch import Tensor

THINGS = ("car", "boat", "balloon", "umbrella", "kite", "mug", "hat", "tent", "chair", "bird", "guitar",
          "lantern", "ball", "flower")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PLACES = ("beach", "forest", "city", "snow", "desert", "garden")
NUMBERS = (1, 2, 3)
SIZES = ("small", "big")
TIMES = ("day", "evening", "night")
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "thing": THINGS, "colour": COLOURS, "place": PLACES, "number": NUMBERS, "size": SIZES, "time": TIMES,
}

_PAINT = {"red": (224, 32, 32), "orange": (255, 136, 0), "yellow": (255, 221, 32), "green": (24, 150, 56),
          "blue": (32, 88, 224), "purple": (132, 44, 180), "pink": (255, 130, 190), "white": (250, 250, 250)}
_SKY = {"day": (150, 205, 245), "evening": (250, 170, 120), "night": (28, 32, 76)}
_GROUND = {"beach": (238, 214, 150), "forest": (84, 110, 60), "city": (120, 120, 126),
           "snow": (232, 238, 246), "desert": (214, 158, 92), "garden": (126, 196, 92)}
_OVERSAMPLE = 4
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What a photo shows. Groups of two or three are always small, so ``size`` is about single things.

    Raises ValueError for a value that is not in ATTRIBUTES.
    """

    thing: str
    colour: str
    place: str
    number: int = 1
    size: str = "small"
    time: str = "day"

    def __post_init__(self) -> None:
        for name, value in zip(ATTRIBUTES, astuple(self), strict=True):
            if value not in ATTRIBUTES[name]:
                allowed = ", ".join(map(str, ATTRIBUTES[name]))
                raise ValueError(f"scene {name}: {value!r} is not one of {allowed}")

    @property
    def triple(self) -> tuple[str, str, str]:
        return self.thing, self.colour, self.place

    @property
    def noun(self) -> str:
        return self.thing if self.number == 1 else self.thing + "s"

    @property
    def details(self) -> tuple[str, str]:
        """What a caption may leave out: the size of a single thing or the number of several, and the time."""
        return "size" if self.number == 1 else "number", "time"

    @property
    def labels(self) -> tuple[int, ...]:
        """The index of each attribute's value, in the order of ATTRIBUTES."""
        return tuple(ATTRIBUTES[name].index(value) for name, value in asdict(self).items())


# Each thing as strokes (kind, points, colour or width), in coordinates from -1 to 1 around its centre:
# polygons and lines of points, ovals and rings in a box, slices of ovals between two angles in degrees.
_PETAL_ANGLES = [2 * math.pi * i / 5 - math.pi / 2 for i in range(5)]
_PETALS = [(0.45 * math.cos(angle), -0.3 + 0.45 * math.sin(angle)) for angle in _PETAL_ANGLES]
_STROKES: dict[str, Sequence[tuple[str, tuple[float, ...], Any]]] = {
    "car": (("polygon", (-0.55, -0.1, -0.35, -0.6, 0.35, -0.6, 0.6, -0.1), (210, 235, 250)),
            ("polygon", (-1, -0.1, 1, -0.1, 1, 0.4, -1, 0.4), "paint"),
            ("oval", (-0.55 - 0.28, 0.15, -0.55 + 0.28, 0.71), (60, 60, 66)),
            ("oval", (0.55 - 0.28, 0.15, 0.55 + 0.28, 0.71), (60, 60, 66))),
    "boat": (("line", (0, -1, 0, 0.3), 1.3),
             ("polygon", (0.1, -0.9, 0.85, 0.1, 0.1, 0.1), (245, 240, 225)),
             ("polygon", (-1, 0.25, 1, 0.25, 0.6, 0.8, -0.6, 0.8), "paint")),
    "balloon": (("line", (0, 0.3, -0.15, 0.65, 0.1, 1), 1),
                ("oval", (-0.62, -1, 0.62, 0.35), "paint"),
                ("polygon", (0, 0.3, 0.16, 0.5, -0.16, 0.5), "paint")),
    "umbrella": (("line", (0, -0.1, 0, 0.8, 0.12, 0.95, 0.3, 0.8), 1.6),
                 ("slice", (-1, -0.9, 1, 0.9, 180, 360), "paint"),
                 ("slice", (-0.4, -0.9, 0.4, 0.9, 180, 360), "shade")),
    "kite": (("line", (0, 0.5, 0.25, 0.7, -0.1, 0.85, 0.2, 1), 1),
             ("polygon", (0, -1, 0.62, -0.25, 0, 0.5, -0.62, -0.25), "paint"),
             ("line", (0, -1, 0, 0.5), 1), ("line", (-0.62, -0.25, 0.62, -0.25), 1)),
    "mug": (("ring", (0.2, -0.4, 0.95, 0.45), 1.8),
            ("polygon", (-0.75, -0.7, 0.5, -0.7, 0.5, 0.75, -0.75, 0.75), "paint"),
            ("oval", (-0.75, -0.9, 0.5, -0.5), (90, 60, 40))),
    "hat": (("polygon", (-0.5, 0.35, -0.45, -0.65, 0.45, -0.65, 0.5, 0.35), "paint"),
            ("polygon", (-0.5, 0.05, 0.5, 0.05, 0.5, 0.35, -0.5, 0.35), "edge"),
            ("oval", (-1, 0.2, 1, 0.65), "paint")),
    "tent": (("polygon", (0, -0.85, 1, 0.75, -1, 0.75), "paint"),
             ("polygon", (0, -0.1, 0.32, 0.75, -0.32, 0.75), "edge")),
    "chair": (("line", (-0.55, 0.3, -0.55, 0.95), 2), ("line", (0.6, 0.3, 0.6, 0.95), 2),
              ("polygon", (-0.75, -1, -0.4, -1, -0.4, 0.1, -0.75, 0.1), "paint"),
              ("polygon", (-0.75, 0.05, 0.8, 0.05, 0.8, 0.4, -0.75, 0.4), "paint")),
    "bird": (("polygon", (0.8, -0.45, 1.1, -0.3, 0.8, -0.15), (250, 170, 40)),
             ("polygon", (-0.6, 0.1, -1.1, -0.25, -1.05, 0.4), "paint"),
             ("oval", (-0.8, -0.35, 0.6, 0.6), "paint"), ("oval", (0.2, -0.7, 0.9, 0.05), "paint"),
             ("polygon", (-0.45, 0.0, 0.15, 0.0, -0.35, -0.75), "shade"),
             ("oval", (0.52, -0.5, 0.68, -0.34), "edge")),
    "guitar": (("line", (0.15, -0.15, 0.85, -0.85), 3.2), ("oval", (-0.45, -0.45, 0.4, 0.4), "paint"),
               ("oval", (-0.95, -0.15, 0.15, 0.95), "paint"), ("oval", (-0.42, 0.02, -0.02, 0.42), "edge")),
    "lantern": (("line", (-0.3, -0.65, -0.3, -1, 0.3, -1, 0.3, -0.65), 1.3),
                ("polygon", (-0.55, -0.7, 0.55, -0.7, 0.55, -0.45, -0.55, -0.45), (80, 70, 70)),
                ("polygon", (-0.45, -0.45, 0.45, -0.45, 0.6, 0.7, -0.6, 0.7), "paint"),
                ("oval", (-0.2, -0.15, 0.2, 0.45), (255, 245, 170)),
                ("polygon", (-0.7, 0.7, 0.7, 0.7, 0.7, 0.95, -0.7, 0.95), (80, 70, 70))),
    "ball": (("oval", (-0.85, -0.85, 0.85, 0.85), "paint"),
             *(("slice", (-0.85, -0.85, 0.85, 0.85, start, start + 50), (255, 255, 255))
               for start in (200, 320, 80))),
    "flower": (("line", (0, 0.1, 0, 1), 2), ("polygon", (0, 0.75, 0.45, 0.45, 0.5, 0.7), (60, 140, 60)),
               *(("oval", (x - 0.34, y - 0.34, x + 0.34, y + 0.34), "paint") for x, y in _PETALS),
               ("oval", (-0.24, -0.54, 0.24, -0.06), (120, 80, 30))),
}


def _draw_thing(draw: Draw, thing: str, x: float, y: float, radius: float, paint: RGB) -> None:
    """Draws a thing around (x, y), outlined, so that white on snow and green in the forest stay crisp."""
    shade, edge = (tuple(int(share * c) for c in paint) for share in (0.72, 0.42))
    colours, width = {"paint": paint, "shade": shade, "edge": edge}, max(2, round(1.1 * _OVERSAMPLE))
    for kind, points, style in _STROKES[thing]:
        points, angles = (points[:4], points[4:]) if kind == "slice" else (points, ())
        at = [(x + u * radius, y + v * radius) for u, v in zip(points[::2], points[1::2], strict=True)]
        if kind in ("line", "ring"):
            thick = round(width * style)
            draw.line(at, edge, thick, "curve") if kind == "line" else draw.ellipse(at, None, edge, thick)
            continue
        fill = colours.get(style, style)
        if kind == "polygon":
            draw.polygon(at, fill)
            draw.line([*at, *at[:2]], edge, width, "curve")
        elif kind == "oval":
            draw.ellipse(at, fill, edge, width)
        else:
            draw.pieslice(at, angles[0], angles[1], fill, edge, width)


def _jitter(colour: RGB, rng: random.Random, amount: float) -> RGB:
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    s, v = (min(1.0, max(0.0, x + rng.uniform(-amount, amount))) for x in (s, v))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, s, v))  # type: ignore[return-value]


def _disc(draw: Draw, x: float, y: float, radius: float, fill: RGB) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _draw_sky(draw: Draw, scene: Scene, side: int, horizon: float, rng: random.Random) -> None:
    draw.rectangle((0, 0, side, side), fill=_jitter(_SKY[scene.time], rng, 0.04))
    u = side / 64
    x, y, r = rng.uniform(8, 56) * u, rng.uniform(6, 10) * u, 4.5 * u
    if scene.time == "day":
        _disc(draw, x, y, r, (255, 225, 90))
    elif scene.time == "evening":
        _disc(draw, x, horizon, r, (255, 90, 60))  # the sun is half set
    else:
        _disc(draw, x, y, r, (245, 240, 210))
        draw.ellipse((x - 0.2 * r, y - 1.2 * r, x + 1.6 * r, y + 0.7 * r), fill=_SKY["night"])
        for _ in range(6):
            _disc(draw, rng.uniform(2, 62) * u, rng.uniform(2, 18) * u, 0.7 * u, (240, 240, 255))


def _draw_place(draw: Draw, scene: Scene, side: int, horizon: float, rng: random.Random) -> None:
    u, dim = side / 64, {"day": 1.0, "evening": 0.88, "night": 0.62}[scene.time]

    def tone(*colour: int) -> RGB:
        return tuple(round(c * dim) for c in colour)  # type: ignore[return-value]

    def box(left: float, top: float, right: float, bottom: float, fill: RGB) -> None:
        draw.rectangle((left, horizon + top * u, right, horizon + bottom * u), fill=fill)

    def peak(x: float, height: float, half: float, bottom: float, fill: RGB) -> None:
        y = horizon + bottom
        draw.polygon([(x, horizon - height), (x + half, y), (x - half, y)], fill=fill)

    xs = [(12 + 20 * i + rng.uniform(-7, 7)) * u for i in range(3)]
    if scene.place == "desert":
        dune = (xs[0] - 34 * u, horizon - 7 * u, xs[0] + 34 * u, horizon + 30 * u)
        draw.ellipse(dune, fill=tone(196, 136, 72))
    draw.rectangle((0, horizon, side, side), fill=tone(*_GROUND[scene.place]))
    if scene.place == "beach":
        box(0, -2, side, 9, tone(60, 150, 205))
        box(0, 8, side, 10, tone(245, 250, 250))
    elif scene.place == "forest":
        for i in range(6):
            x, height = (5 + 11 * i + rng.uniform(-2, 2)) * u, rng.uniform(15, 21) * u
            peak(x, height, 7.5 * u, 2 * u, tone(34, 84, 52))
    elif scene.place == "city":
        for i in range(5):
            x, height = (1 + 12.7 * i) * u, rng.uniform(11, 22)
            box(x, -height, x + 10.5 * u, 0, tone(92, 98, 122))
            for right, down in ((2.2, 3), (2.2, 8), (6.2, 3), (6.2, 8)):  # windows
                box(x + right * u, down - height, x + (right + 2) * u, down + 2.4 - height, (250, 230, 140))
        box(0, 22, side, 23.5, tone(235, 235, 220))
    elif scene.place == "snow":
        for x in xs:
            height = rng.uniform(13, 18) * u
            peak(x, height, 16 * u, 0, tone(118, 130, 156))
            peak(x, height, 6 * u, -height * 0.62, tone(244, 248, 252))
    elif scene.place == "desert":
        for x in (xs[0], xs[2]):  # cactuses
            arm = [(x, horizon - 4 * u), (x + 5 * u, horizon - 4 * u), (x + 5 * u, horizon - 9 * u)]
            draw.line((x, horizon + 2 * u, x, horizon - 12 * u), fill=tone(40, 120, 70), width=round(3 * u))
            draw.line(arm, fill=tone(40, 120, 70), width=round(2 * u))
    else:
        for i in range(9):  # a white picket fence
            x = (3.5 + 7 * i) * u
            box(x - 1.6 * u, -8, x + 1.6 * u, 2, tone(248, 244, 236))
        box(0, -5, side, -3, tone(248, 244, 236))
        for _ in range(5):
            x, y = rng.uniform(2, 62) * u, horizon + rng.uniform(18, 26) * u
            _disc(draw, x, y, 1.5 * u, tone(240, 110, 130))


def draw_scene(scene: Scene, seed: int, side: int = 64) -> Image.Image:
    """A photo of the scene, RGB, ``side`` by ``side``; the same scene and seed give the same pixels."""
    rng = random.Random(seed)
    canvas = side * _OVERSAMPLE
    image = Image.new("RGB", (canvas, canvas))
    draw, u = Draw(image), canvas / 64
    horizon = (28 + rng.uniform(-0.7, 0.7)) * u
    _draw_sky(draw, scene, canvas, horizon, rng)
    _draw_place(draw, scene, canvas, horizon, rng)
    radius = {1: 15.0 if scene.size == "small" else 22.0, 2: 13.0, 3: 9.5}[scene.number] * u
    radius *= rng.uniform(0.97, 1.03)
    middle = 32 + rng.uniform(-2, 2) * (scene.number == 1)
    spread = {1: 0.0, 2: 29.0, 3: 20.5}[scene.number]
    for i in range(scene.number):
        x = (middle + spread * (i - (scene.number - 1) / 2) + rng.uniform(-0.4, 0.4)) * u
        y = (40 + rng.uniform(-1, 1)) * u
        _draw_thing(draw, scene.thing, x, y, radius, _jitter(_PAINT[scene.colour], rng, 0.03))
    return image.reduce(_OVERSAMPLE)


def render_photos(scenes: Sequence[Scene], seeds: Sequence[int]) -> Tensor:
    """A photo of each scene, drawn with the seed beside it: (N, 3, 64, 64), uint8; N is at least 1."""
    photos = [np.asarray(draw_scene(scene, seed)) for scene, seed in zip(scenes, seeds, strict=True)]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()
