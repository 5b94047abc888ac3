"""Photos that cannot be fetched, drawn from their captions: ``e2e data draw`` (section 3.1.1).

The paper drew them with stable-diffusion-3; here any text-to-image pipeline of diffusers does it. The noise
of each photo comes from its own id, so a photo depends neither on its batch nor on where a run was cut off.
"""

import hashlib
import inspect
import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from diffusers import AutoPipelineForText2Image
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image

from e2e_lib.config import SHIPPED, ConfigError
from e2e_lib.config import Inference as MiniChatDefaults
from e2e_lib.data.dialogue import DataError, clean_text
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow, usable_photos
from e2e_lib.data.photo_input import PhotoError, open_photo
from e2e_lib.data.photos import to_image
from e2e_lib.download.parts import locked
from e2e_lib.download.photos import JPEG_QUALITY, NO_ADDRESS, write_once
from e2e_lib.models.generator import load_generator
from e2e_lib.models.hub import LOADING, answers, locate, unreachable
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seed_of

MINICHAT = "minichat"  # in place of a pipeline: the generator that comes with the package
EVERY_SECONDS = 5.0  # between two lines of progress
Echo = Callable[[str], None]
# Captions and a seed for each, to photos in RGB, or None where the model's safety checker refuses one.
Drawer = Callable[[Sequence[str], Sequence[int]], list[Image.Image | None]]


@dataclass(frozen=True)
class Drawing:
    """How photos are drawn. ``None`` leaves a number to the model; ``size`` is a photo's side in pixels."""

    model: str
    steps: int | None = None
    guidance_scale: float | None = None
    size: int | None = None
    batch_size: int = 4
    seed: int = 0

    def __str__(self) -> str:
        """As the index says it: the model, the seed, and what is not left to the model."""
        given = {"steps": self.steps, "guidance scale": self.guidance_scale, "size": self.size}
        return ", ".join([self.model, f"seed {self.seed}",
                          *(f"{name} {value}" for name, value in given.items() if value is not None)])


class _Photo(msgspec.Struct):
    photo_id: str
    caption: str | None = None


def draw_missing(folder: Path, how: Drawing, echo: Echo) -> dict[str, Any]:
    """Draws each photo of a built corpus that was neither fetched nor drawn, and says so in the index.

    A drawn photo has a row of its own, with status "drawn"; that of its address, if it has one, still says
    why it could not be fetched. Returns how many "photos" there are, "drawn" now, "already_there" (of these
    "drawn_before"), "without_caption", "refused" by the model's own safety checker, and "lost" (fetched, but
    the file is gone). Raises DataError, CheckpointError, ConfigError and files.SaveError.
    """
    start, captions = time.monotonic(), dict(_captions(files.complete_files(folder) / "photos.jsonl"))
    with locked(folder / "photos"), PhotoIndex(folder / "photos") as index:
        usable = {name: row for name, row in usable_photos(index.folder).items() if name in captions}
        sound = {name for name, row in usable.items() if _has_file(index.folder, row)}
        lost = sum(row.status == "ok" for name, row in usable.items() if name not in sound)
        due = [name for name in captions if name not in sound and
               (name not in usable or usable[name].status == "drawn")]
        to_draw = [name for name in due if captions[name]]
        made = {"photos": len(captions), "drawn": 0, "already_there": len(sound),
                "drawn_before": sum(usable[name].status == "drawn" for name in sound),
                "without_caption": len(due) - len(to_draw), "refused": 0, "lost": lost}
        if to_draw:
            _warn_of_unasked(index, to_draw, echo)
            draw = load_drawer(how)
            for row in _progress(_draw_all(draw, to_draw, captions, how, index), len(to_draw), echo):
                made["refused" if row is None else "drawn"] += 1
    return {**made, "model": how.model, "seed": how.seed, "seconds": round(time.monotonic() - start, 1)}


def report_lines(made: Mapping[str, Any]) -> list[str]:
    """What ``draw_missing`` returned, in words."""
    lines = [f"{made['photos']:,} photos: {made['drawn']:,} drawn now by {made['model']} with seed "
             f"{made['seed']}, in {made['seconds']:,} s; {made['already_there']:,} were there already, "
             f"{made['drawn_before']:,} of them drawn"]
    if made["without_caption"]:
        lines.append(f"{made['without_caption']:,} have no caption, so they could not be drawn")
    if made["refused"]:
        lines.append(f"{made['refused']:,} were refused by the model's safety checker and are not kept; "
                     "another --seed may give others")
    if made["lost"]:
        lines.append(f"{made['lost']:,} were fetched, and their files are gone or cut short: "
                     "`e2e data photos` with --retry ok fetches them again")
    return lines


def kept_in(folder: Path) -> str:
    """What is kept of drawn photos, in words, after an interruption."""
    with PhotoIndex(folder / "photos") as index:
        return f"{index.counts().get('drawn', 0):,} drawn photos are kept in {index.folder}"


def _captions(path: Path) -> Iterator[tuple[str, str]]:
    """Photo ids and captions ("" where there is none) of a corpus. Raises DataError by row."""
    decoder = msgspec.json.Decoder(_Photo)
    for number, line in enumerate(files.read_bytes(path, "e2e data build").split(b"\n"), 1):
        if line.strip():
            try:
                row = decoder.decode(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, row {number}: expected an object with \"photo_id\" and \"caption\" "
                                f"({error}); `e2e data build` makes the file again") from None
            yield row.photo_id, clean_text(row.caption or "")


def _has_file(folder: Path, row: PhotoRow) -> bool:
    try:
        return row.file is not None and (folder / row.file).stat().st_size == row.bytes
    except OSError:
        return False


def _warn_of_unasked(index: PhotoIndex, names: Sequence[str], echo: Echo) -> None:
    rows = map(index.find, names)
    if unasked := sum(row is None or row.status == "pending" for row in rows):
        echo(f"{unasked:,} of the {len(names):,} photos to draw were never asked for: `e2e data photos` "
             "fetches what can be had first")


def _draw_all(draw: Drawer, names: Sequence[str], captions: Mapping[str, str], how: Drawing,
              index: PhotoIndex) -> Iterator[PhotoRow | None]:
    """Draws and keeps photos, batch by batch; gives each one's row, or None where it was refused."""
    for first in range(0, len(names), how.batch_size):
        part = names[first:first + how.batch_size]
        images = draw([captions[name] for name in part], [seed_of(how.seed, name) for name in part])
        for name, image in zip(part, images, strict=True):
            yield None if image is None else _keep(name, image, how, index)


def _keep(name: str, image: Image.Image, how: Drawing, index: PhotoIndex) -> PhotoRow:
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=JPEG_QUALITY)
    content = encoded.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    file = f"{digest[:2]}/{digest}.jpg"
    row = PhotoRow(f"{NO_ADDRESS}{name}", name, "drawn", f"drawn by {how}", digest, *image.size,
                   len(content), "drawn", file=file)
    write_once(index.folder / file, content)
    index.put(row)
    return row


def _progress(rows: Iterator[PhotoRow | None], total: int, echo: Echo) -> Iterator[PhotoRow | None]:
    start = last = time.monotonic()
    for number, row in enumerate(rows, 1):
        yield row
        if (now := time.monotonic()) - last > EVERY_SECONDS:
            last, left = now, (now - start) / number * (total - number)
            echo(f"photos drawn: {number:,} of {total:,}, about {left / 60:.0f} min left")


def load_drawer(how: Drawing) -> Drawer:
    """What draws: MiniChat's generator, or a pipeline on the GPU if there is one.

    Raises CheckpointError for a model that cannot be loaded, and ConfigError for what it does not take.
    """
    return _minichat(how) if how.model == MINICHAT else _Pipeline(how)


def _minichat(how: Drawing) -> Drawer:
    generator, defaults = load_generator(SHIPPED).eval(), MiniChatDefaults()
    if how.size not in (None, generator.photo_size):
        raise ConfigError(f"--size {how.size}: {MINICHAT} draws {generator.photo_size} pixels only")
    steps = how.steps or defaults.num_inference_steps
    guidance = defaults.guidance_scale if how.guidance_scale is None else how.guidance_scale
    try:
        generator.sampler(steps)
    except ConfigError as error:
        raise ConfigError(f"--steps {steps}: too many for {MINICHAT} ({error})") from None

    def draw(captions: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        return [to_image(generator.draw([caption], torch.Generator().manual_seed(seed),
                                        num_inference_steps=steps, guidance_scale=guidance)[0])
                for caption, seed in zip(captions, seeds, strict=True)]
    return draw


class _Pipeline:
    """Any text-to-image pipeline of diffusers, from safetensors files alone and without a stranger's code."""

    def __init__(self, how: Drawing) -> None:
        self.how, self.precision, device = how, torch.float32, "cpu"
        if torch.cuda.is_available():
            has_bfloat16, device = torch.cuda.is_bf16_supported(including_emulation=False), "cuda"
            self.precision = torch.bfloat16 if has_bfloat16 else torch.float16
        try:
            self.pipeline: Any = _loaded(locate(how.model, "--model"), self.precision).to(device)
        except CheckpointError:
            raise
        except LOADING as error:
            raise unreachable("--model", how.model, error, "--model FOLDER") from None
        self.pipeline.set_progress_bar_config(disable=True)
        numbers = {"num_inference_steps": ("--steps", how.steps), "height": ("--size", how.size),
                   "width": ("--size", how.size), "guidance_scale": ("--guidance-scale", how.guidance_scale)}
        self.given = {name: value for name, (_, value) in numbers.items() if value is not None}
        taken = inspect.signature(self.pipeline.__call__).parameters
        for name in self.given:
            if name not in taken:
                raise ConfigError(f"{numbers[name][0]}: {how.model}, a {type(self.pipeline).__name__}, "
                                  f"takes no {name}; leave the option out")

    def __call__(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Image.Image | None]:
        # Noise comes from the CPU, so that it does not depend on the machine.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            made = self.pipeline(list(captions), generator=generators, output_type="np", **self.given)
            refused = getattr(made, "nsfw_content_detected", None) or [False] * len(captions)
            return [None if is_refused else open_photo(pixels)  # pixels: float (H, W, 3), 0 to 1
                    for pixels, is_refused in zip(made.images, refused, strict=True)]
        except torch.OutOfMemoryError:
            raise CheckpointError(f"--model {self.how.model}: out of memory; a smaller --batch-size than "
                                  f"{self.how.batch_size}, or a smaller --size, needs less") from None
        except PhotoError as error:
            raise CheckpointError(f"--model {self.how.model}: what it drew in {self.precision} is no photo "
                                  f"({error})") from None
        except Exception as error:  # whatever a pipeline raises
            raise CheckpointError(f"--model {self.how.model}: it could not draw ({type(error).__name__}: "
                                  f"{str(error)[:200]})") from None


def _loaded(place: str, precision: torch.dtype) -> Any:
    """The pipeline in a folder, or of a hub id with or without ``@revision``. Raises CheckpointError for what
    is none, and whatever the libraries do."""
    name, where, problem = place, dict[str, Any](), "there is no model_index.json in it"
    if not Path(place).is_dir():
        name, _, revision = place.partition("@")
        where = {"revision": revision or None, "local_files_only": not answers()}
    elif not (Path(place) / "model_index.json").is_file():
        raise CheckpointError(f"--model {place}: it is no text-to-image pipeline of diffusers ({problem})")
    try:
        with warnings.catch_warnings():  # one of the libraries about another
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            return AutoPipelineForText2Image.from_pretrained(name, dtype=precision, use_safetensors=True,
                                                             trust_remote_code=False, **where)
    except Exception as error:
        if "AutoPipeline can't find" in str(error):
            problem = str(error)
        elif not isinstance(error.__context__, RemoteEntryNotFoundError):
            raise
        raise CheckpointError(f"--model {place}: it is no text-to-image pipeline of diffusers "
                              f"({problem})") from None
