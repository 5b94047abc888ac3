"""The drawn world of MiniChat: a scene, and the 64-pixel photo of it.

A scene is fully known (thing, colour, place, number, size, time), so "did the model draw what was meant" can be
measured instead of judged. Positions, sky and scenery jitter with a seed: two photos of one scene differ as two
photos of one thing would.
"""

import colorsys
import math
import random
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

THINGS = ("car", "boat", "balloon", "umbrella", "kite", "mug", "hat", "tent", "chair", "bird", "guitar", "lantern", "ball", "flower")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PLACES = ("beach", "forest", "city", "snow", "desert", "garden")
NUMBERS = (1, 2, 3)
SIZES = ("small", "big")
TIMES = ("day", "evening", "night")
ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "thing": THINGS, "colour": COLOURS, "place": PLACES, "number": NUMBERS, "size": SIZES, "time": TIMES,
}

_PAINT = {"red": (224, 32, 32), "orange": (255, 136, 0), "yellow": (255, 221, 32), "green": (24, 150, 56), "blue": (32, 88, 224),
          "purple": (132, 44, 180), "pink": (255, 130, 190), "white": (250, 250, 250)}
_SKY = {"day": (150, 205, 245), "evening": (250, 170, 120), "night": (28, 32, 76)}
_GROUND = {"beach": (238, 214, 150), "forest": (84, 110, 60), "city": (120, 120, 126), "snow": (232, 238, 246),
           "desert": (214, 158, 92), "garden": (126, 196, 92)}
_OVERSAMPLE = 4


@dataclass(frozen=True)
class Scene:
    """What a photo shows. Groups of two or three are always drawn small, so ``size`` says something only of one thing."""

    thing: str
    colour: str
    place: str
    number: int = 1
    size: str = "small"
    time: str = "day"

    def __post_init__(self) -> None:
        for name, value in zip(ATTRIBUTES, astuple(self), strict=True):
            if value not in ATTRIBUTES[name]:
                raise ValueError(f"scene {name}: {value!r} is not one of {', '.join(map(str, ATTRIBUTES[name]))}")

    @property
    def triple(self) -> tuple[str, str, str]:
        return self.thing, self.colour, self.place

    @property
    def labels(self) -> tuple[int, ...]:
        """The index of each attribute's value, in the order of ATTRIBUTES."""
        return tuple(ATTRIBUTES[name].index(value) for name, value in asdict(self).items())


class _Brush:
    """Draws a thing given in coordinates from -1 to 1 around a centre."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, paint: tuple[int, int, int]) -> None:
        self.draw, self.x, self.y, self.radius, self.paint = draw, x, y, radius, paint
        self.width = max(2, round(1.1 * _OVERSAMPLE))
        self.shade = tuple(int(0.72 * c) for c in paint)
        self.edge = tuple(int(0.42 * c) for c in paint)  # outlined, so that white on snow and green in the forest stay crisp

    def _at(self, *points: float) -> list[tuple[float, float]]:
        return [(self.x + u * self.radius, self.y + v * self.radius) for u, v in zip(points[::2], points[1::2], strict=True)]

    def shape(self, *points: float, fill: tuple[int, ...] | None = None) -> None:
        corners = self._at(*points)
        self.draw.polygon(corners, fill=fill or self.paint)
        self.draw.line([*corners, corners[0], corners[1]], fill=self.edge, width=self.width, joint="curve")

    def oval(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, ...] | None = None) -> None:
        self.draw.ellipse(self._at(left, top, right, bottom), fill=fill or self.paint, outline=self.edge, width=self.width)

    def slice(self, left: float, top: float, right: float, bottom: float, start: float, end: float, fill: tuple[int, ...] | None = None) -> None:
        self.draw.pieslice(self._at(left, top, right, bottom), start, end, fill=fill or self.paint, outline=self.edge, width=self.width)

    def ring(self, left: float, top: float, right: float, bottom: float) -> None:
        self.draw.ellipse(self._at(left, top, right, bottom), outline=self.edge, width=round(1.8 * self.width))

    def line(self, *points: float, thick: float = 1.0) -> None:
        self.draw.line(self._at(*points), fill=self.edge, width=round(self.width * thick), joint="curve")


def _car(b: _Brush) -> None:
    b.shape(-0.55, -0.1, -0.35, -0.6, 0.35, -0.6, 0.6, -0.1, fill=(210, 235, 250))
    b.shape(-1, -0.1, 1, -0.1, 1, 0.4, -1, 0.4)
    for x in (-0.55, 0.55):
        b.oval(x - 0.28, 0.15, x + 0.28, 0.71, fill=(60, 60, 66))


def _boat(b: _Brush) -> None:
    b.line(0, -1, 0, 0.3, thick=1.3)
    b.shape(0.1, -0.9, 0.85, 0.1, 0.1, 0.1, fill=(245, 240, 225))
    b.shape(-1, 0.25, 1, 0.25, 0.6, 0.8, -0.6, 0.8)


def _balloon(b: _Brush) -> None:
    b.line(0, 0.3, -0.15, 0.65, 0.1, 1)
    b.oval(-0.62, -1, 0.62, 0.35)
    b.shape(0, 0.3, 0.16, 0.5, -0.16, 0.5)


def _umbrella(b: _Brush) -> None:
    b.line(0, -0.1, 0, 0.8, 0.12, 0.95, 0.3, 0.8, thick=1.6)
    b.slice(-1, -0.9, 1, 0.9, 180, 360)
    b.slice(-0.4, -0.9, 0.4, 0.9, 180, 360, fill=b.shade)


def _kite(b: _Brush) -> None:
    b.line(0, 0.5, 0.25, 0.7, -0.1, 0.85, 0.2, 1)
    b.shape(0, -1, 0.62, -0.25, 0, 0.5, -0.62, -0.25)
    b.line(0, -1, 0, 0.5)
    b.line(-0.62, -0.25, 0.62, -0.25)


def _mug(b: _Brush) -> None:
    b.ring(0.2, -0.4, 0.95, 0.45)
    b.shape(-0.75, -0.7, 0.5, -0.7, 0.5, 0.75, -0.75, 0.75)
    b.oval(-0.75, -0.9, 0.5, -0.5, fill=(90, 60, 40))


def _hat(b: _Brush) -> None:
    b.shape(-0.5, 0.35, -0.45, -0.65, 0.45, -0.65, 0.5, 0.35)
    b.shape(-0.5, 0.05, 0.5, 0.05, 0.5, 0.35, -0.5, 0.35, fill=b.edge)
    b.oval(-1, 0.2, 1, 0.65)


def _tent(b: _Brush) -> None:
    b.shape(0, -0.85, 1, 0.75, -1, 0.75)
    b.shape(0, -0.1, 0.32, 0.75, -0.32, 0.75, fill=b.edge)


def _chair(b: _Brush) -> None:
    for x in (-0.55, 0.6):
        b.line(x, 0.3, x, 0.95, thick=2)
    b.shape(-0.75, -1, -0.4, -1, -0.4, 0.1, -0.75, 0.1)
    b.shape(-0.75, 0.05, 0.8, 0.05, 0.8, 0.4, -0.75, 0.4)


def _bird(b: _Brush) -> None:
    b.shape(0.8, -0.45, 1.1, -0.3, 0.8, -0.15, fill=(250, 170, 40))
    b.shape(-0.6, 0.1, -1.1, -0.25, -1.05, 0.4)
    b.oval(-0.8, -0.35, 0.6, 0.6)
    b.oval(0.2, -0.7, 0.9, 0.05)
    b.shape(-0.45, 0.0, 0.15, 0.0, -0.35, -0.75, fill=b.shade)
    b.draw.ellipse(b._at(0.52, -0.5, 0.68, -0.34), fill=b.edge)


def _guitar(b: _Brush) -> None:
    b.line(0.15, -0.15, 0.85, -0.85, thick=3.2)
    b.oval(-0.45, -0.45, 0.4, 0.4)
    b.oval(-0.95, -0.15, 0.15, 0.95)
    b.oval(-0.42, 0.02, -0.02, 0.42, fill=b.edge)


def _lantern(b: _Brush) -> None:
    b.line(-0.3, -0.65, -0.3, -1, 0.3, -1, 0.3, -0.65, thick=1.3)
    b.shape(-0.55, -0.7, 0.55, -0.7, 0.55, -0.45, -0.55, -0.45, fill=(80, 70, 70))
    b.shape(-0.45, -0.45, 0.45, -0.45, 0.6, 0.7, -0.6, 0.7)
    b.oval(-0.2, -0.15, 0.2, 0.45, fill=(255, 245, 170))
    b.shape(-0.7, 0.7, 0.7, 0.7, 0.7, 0.95, -0.7, 0.95, fill=(80, 70, 70))


def _ball(b: _Brush) -> None:
    b.oval(-0.85, -0.85, 0.85, 0.85)
    b.slice(-0.85, -0.85, 0.85, 0.85, 200, 250, fill=(255, 255, 255))
    b.slice(-0.85, -0.85, 0.85, 0.85, 320, 370, fill=(255, 255, 255))
    b.slice(-0.85, -0.85, 0.85, 0.85, 80, 130, fill=(255, 255, 255))


def _flower(b: _Brush) -> None:
    b.line(0, 0.1, 0, 1, thick=2)
    b.shape(0, 0.75, 0.45, 0.45, 0.5, 0.7, fill=(60, 140, 60))
    for i in range(5):
        a = 2 * math.pi * i / 5 - math.pi / 2
        x, y = 0.45 * math.cos(a), -0.3 + 0.45 * math.sin(a)
        b.oval(x - 0.34, y - 0.34, x + 0.34, y + 0.34)
    b.oval(-0.24, -0.54, 0.24, -0.06, fill=(120, 80, 30))


_DRAW = {"car": _car, "boat": _boat, "balloon": _balloon, "umbrella": _umbrella, "kite": _kite, "mug": _mug, "hat": _hat, "tent": _tent,
         "chair": _chair, "bird": _bird, "guitar": _guitar, "lantern": _lantern, "ball": _ball, "flower": _flower}


def _jitter(colour: tuple[int, int, int], rng: random.Random, amount: float) -> tuple[int, int, int]:
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    s, v = (min(1.0, max(0.0, x + rng.uniform(-amount, amount))) for x in (s, v))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, s, v))  # type: ignore[return-value]


def _draw_sky(draw: ImageDraw.ImageDraw, scene: Scene, side: int, horizon: float, rng: random.Random) -> None:
    draw.rectangle((0, 0, side, side), fill=_jitter(_SKY[scene.time], rng, 0.04))
    u = side / 64
    x, y, r = rng.uniform(8, 56) * u, rng.uniform(6, 10) * u, 4.5 * u
    if scene.time == "night":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(245, 240, 210))
        draw.ellipse((x - 0.2 * r, y - 1.2 * r, x + 1.6 * r, y + 0.7 * r), fill=_SKY["night"])
        for _ in range(6):
            sx, sy = rng.uniform(2, 62) * u, rng.uniform(2, 18) * u
            draw.ellipse((sx - 0.7 * u, sy - 0.7 * u, sx + 0.7 * u, sy + 0.7 * u), fill=(240, 240, 255))
    else:
        y = y if scene.time == "day" else horizon  # the evening sun is half set
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 225, 90) if scene.time == "day" else (255, 90, 60))


def _draw_place(draw: ImageDraw.ImageDraw, scene: Scene, side: int, horizon: float, rng: random.Random) -> None:
    u, dim = side / 64, {"day": 1.0, "evening": 0.88, "night": 0.62}[scene.time]

    def tone(colour: tuple[int, int, int]) -> tuple[int, int, int]:
        return tuple(round(c * dim) for c in colour)  # type: ignore[return-value]

    def ground(colour: tuple[int, int, int]) -> None:
        draw.rectangle((0, horizon, side, side), fill=tone(colour))

    at = [(12 + 20 * i + rng.uniform(-7, 7)) * u for i in range(3)]
    if scene.place == "beach":
        draw.rectangle((0, horizon - 2 * u, side, horizon + 9 * u), fill=tone((60, 150, 205)))
        draw.rectangle((0, horizon + 9 * u, side, side), fill=tone(_GROUND["beach"]))
        draw.rectangle((0, horizon + 8 * u, side, horizon + 10 * u), fill=tone((245, 250, 250)))
    elif scene.place == "forest":
        ground(_GROUND["forest"])
        for i in range(6):
            x, h = (5 + 11 * i + rng.uniform(-2, 2)) * u, rng.uniform(15, 21) * u
            draw.polygon([(x, horizon - h), (x + 7.5 * u, horizon + 2 * u), (x - 7.5 * u, horizon + 2 * u)], fill=tone((34, 84, 52)))
    elif scene.place == "city":
        ground(_GROUND["city"])
        for i in range(5):
            x, h = (1 + 12.7 * i) * u, rng.uniform(11, 22) * u
            draw.rectangle((x, horizon - h, x + 10.5 * u, horizon), fill=tone((92, 98, 122)))
            for wx in (2.2, 6.2):
                for wy in (3, 8):
                    draw.rectangle((x + wx * u, horizon - h + wy * u, x + (wx + 2) * u, horizon - h + (wy + 2.4) * u), fill=(250, 230, 140))
        draw.rectangle((0, horizon + 22 * u, side, horizon + 23.5 * u), fill=tone((235, 235, 220)))
    elif scene.place == "snow":
        ground(_GROUND["snow"])
        for x in at:
            h = rng.uniform(13, 18) * u
            draw.polygon([(x, horizon - h), (x + 16 * u, horizon), (x - 16 * u, horizon)], fill=tone((118, 130, 156)))
            draw.polygon([(x, horizon - h), (x + 6 * u, horizon - h * 0.62), (x - 6 * u, horizon - h * 0.62)], fill=tone((244, 248, 252)))
    elif scene.place == "desert":
        draw.ellipse((at[0] - 34 * u, horizon - 7 * u, at[0] + 34 * u, horizon + 30 * u), fill=tone((196, 136, 72)))
        ground(_GROUND["desert"])
        for x in (at[0], at[2]):
            draw.line((x, horizon + 2 * u, x, horizon - 12 * u), fill=tone((40, 120, 70)), width=round(3 * u))
            draw.line((x, horizon - 4 * u, x + 5 * u, horizon - 4 * u, x + 5 * u, horizon - 9 * u), fill=tone((40, 120, 70)), width=round(2 * u))
    else:
        ground(_GROUND["garden"])
        for i in range(9):  # a white picket fence
            x = (3.5 + 7 * i) * u
            draw.rectangle((x - 1.6 * u, horizon - 8 * u, x + 1.6 * u, horizon + 2 * u), fill=tone((248, 244, 236)))
        draw.rectangle((0, horizon - 5 * u, side, horizon - 3 * u), fill=tone((248, 244, 236)))
        for _ in range(5):
            x, y = rng.uniform(2, 62) * u, horizon + rng.uniform(18, 26) * u
            draw.ellipse((x - 1.5 * u, y - 1.5 * u, x + 1.5 * u, y + 1.5 * u), fill=tone((240, 110, 130)))


def draw_scene(scene: Scene, seed: int, side: int = 64) -> Image.Image:
    """A photo of the scene, RGB, ``side`` by ``side`` pixels; the same scene and seed give the same pixels."""
    rng = random.Random(seed)
    canvas = side * _OVERSAMPLE
    image = Image.new("RGB", (canvas, canvas))
    draw, u = ImageDraw.Draw(image), canvas / 64
    horizon = (28 + rng.uniform(-0.7, 0.7)) * u
    _draw_sky(draw, scene, canvas, horizon, rng)
    _draw_place(draw, scene, canvas, horizon, rng)
    radius = {1: 15.0 if scene.size == "small" else 22.0, 2: 13.0, 3: 9.5}[scene.number] * u * rng.uniform(0.97, 1.03)
    middle, spread = 32 + rng.uniform(-2, 2) * (scene.number == 1), {1: 0.0, 2: 29.0, 3: 20.5}[scene.number]
    for i in range(scene.number):
        x = (middle + spread * (i - (scene.number - 1) / 2) + rng.uniform(-0.4, 0.4)) * u
        y = (40 + rng.uniform(-1, 1)) * u
        _DRAW[scene.thing](_Brush(draw, x, y, radius, _jitter(_PAINT[scene.colour], rng, 0.03)))
    return image.reduce(_OVERSAMPLE)


def render_photos(scenes: list[Scene], seeds: list[int]) -> Tensor:
    """Photos (N, 3, 64, 64), uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw_scene(s, k)) for s, k in zip(scenes, seeds, strict=True)])).permute(0, 3, 1, 2).contiguous()
