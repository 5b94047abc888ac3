"""The photo store, one folder of files found by photo id (section 3.1.1), and photos as tensors.

Ids come from data, so they are never used as paths: the file of a photo that was added is named after the
SHA-256 of its id, and where fetched photos lie is in the folder's index (see ``photo_index``). A photo has
its own size wherever it goes; whoever needs another one calls ``square``.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from e2e_lib.data.dialogue import Problem, Report
from e2e_lib.data.photo_index import INDEX, PhotoRow, usable_photos
from e2e_lib.data.photo_input import FORMATS, PhotoError, PhotoInput, decode_photo, open_photo
from e2e_lib.repro import files


class PhotoSource(Protocol):
    """Where photos are found by id: a PhotoStore, or any other object with these methods."""

    def tensor(self, photo_id: str) -> Tensor:
        """The photo as uint8 (3, H, W), at its own size."""

    def captions(self, key: str) -> dict[str, str]:
        """The captions that the captioner called ``key`` gave so far, by photo id."""

    def keep_captions(self, key: str, captions: Mapping[str, str]) -> None:
        """Keeps all captions of the captioner called ``key``."""


class PhotoStore:
    """Photos in ``folder``, by id. The folder need not exist until a photo is added."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @functools.cached_property
    def index(self) -> dict[str, PhotoRow]:
        """The rows of fetched and drawn photos, by photo id, as they were when the first was asked for."""
        return usable_photos(self.folder) if (self.folder / INDEX).is_file() else {}

    def path(self, photo_id: str) -> Path:
        """The file of a photo, there or not: the index's, or else 32 hexadecimal digits and ``.png``."""
        if photo_id in self.index:
            return self.folder / str(self.index[photo_id].file)
        # JSON can carry lone surrogates, which plain UTF-8 refuses.
        digest = hashlib.sha256(photo_id.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"{digest[:32]}.png"

    def __contains__(self, photo_id: str) -> bool:
        """Whether the photo has a file; ``load`` and ``check`` say whether it is sound."""
        return self.path(photo_id).is_file()

    def add(self, photo_id: str, photo: PhotoInput, durable: bool = True) -> Path:
        """Saves a photo, as ``open_photo`` gives it, under ``photo_id``; returns its PNG file.

        It replaces an earlier photo of that id, whose kept captions are dropped. With ``durable=False`` the
        photo is written straight to its place and not flushed to the disk, and there are no captions to look
        for: several times faster. Use it only inside ``files.atomic_folder``, which flushes all files and
        moves the whole folder into place, or nothing. Raises PhotoError and files.SaveError.
        """
        if photo_id in self.index:
            raise PhotoError(f"photo {photo_id!r}", f"{self.folder / INDEX} has it already; not replaced")
        path, encoded = self.path(photo_id), io.BytesIO()
        open_photo(photo).save(encoded, format="PNG", compress_level=1)
        if durable:
            for file in self.folder.glob("captions-*.json"):
                key = file.stem.removeprefix("captions-")
                if photo_id in (captions := self.captions(key)):
                    self.keep_captions(key, {name: captions[name] for name in captions if name != photo_id})
            return files.write_bytes(path, encoded.getvalue())
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
            path.write_bytes(encoded.getbuffer())
        except OSError as error:
            raise files.SaveError(error.errno, f"could not save the photo {photo_id!r} to {path}: "
                                  f"{error.strerror}") from error
        return path

    def load(self, photo_id: str) -> Image.Image:
        """The photo as a fully decoded RGB image.

        Raises PhotoError if it is missing, damaged or too large.
        """
        path = self.path(photo_id)
        where = f"photo {photo_id!r} ({path})"
        again = "make the corpus again with `e2e data`, or add the photo"
        if (self.folder / INDEX).is_file():
            retry = "ok" if photo_id in self.index else "failed"
            again = f"fetch it with `e2e data photos --retry {retry}`, or draw it, or add it"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise PhotoError(where, f"there is no such file; {again} to the store") from None
        except OSError as error:
            raise PhotoError(where, f"the file cannot be read ({error.strerror}); check its "
                             "permissions") from error
        try:
            return decode_photo(io.BytesIO(content), where, FORMATS if photo_id in self.index else ("PNG",))
        except PhotoError as error:
            raise PhotoError(where, f"the file is {error.reason}; delete it and {again} again") from error

    def tensor(self, photo_id: str) -> Tensor:
        """The photo as uint8 (3, H, W), 0 to 255, at its own size. Raises PhotoError as ``load`` does."""
        return to_tensor(self.load(photo_id))

    def captions(self, key: str) -> dict[str, str]:
        """The captions kept beside the photos for the captioner ``key``, by photo id; {} if there are none.

        A file that cannot be read counts as none: captions are made again from the photos.
        """
        try:
            return dict(json.loads(self._captions_file(key).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def keep_captions(self, key: str, captions: Mapping[str, str]) -> None:
        """Writes all captions of the captioner called ``key``. Raises files.SaveError."""
        files.write_json(self._captions_file(key), dict(captions))

    def _captions_file(self, key: str) -> Path:
        return self.folder / f"captions-{key}.json"

    def check(self, photo_ids: Iterable[str]) -> Report:
        """How many photos are sound, and each that is not, its row being its position from 1.

        Those of the index were decoded when they came: only their size in bytes is compared. All others are
        decoded.
        """
        report = Report()
        for row, photo_id in enumerate(photo_ids, 1):
            try:
                if not self._is_as_indexed(photo_id):
                    self.load(photo_id)
                report.kept += 1
            except PhotoError as error:
                report.problems.append(Problem(self.path(photo_id).name, row, "photo",
                                               f"{photo_id!r}: {error.reason}"))
        return report

    def is_drawn(self, photo_id: str) -> bool:
        """Whether the index says that the photo was drawn from its caption, and not fetched."""
        return photo_id in self.index and self.index[photo_id].status == "drawn"

    def _is_as_indexed(self, photo_id: str) -> bool:
        try:
            return photo_id in self.index and self.path(photo_id).stat().st_size == self.index[photo_id].bytes
        except OSError:
            return False


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W)


def to_image(photo: Tensor) -> Image.Image:
    """A photo, uint8 (3, H, W), as an RGB image."""
    return Image.fromarray(photo.permute(1, 2, 0).cpu().numpy())


def square(photos: Tensor | Sequence[Tensor], side: int) -> Tensor:
    """Photos, each uint8 (3, H, W) of any size, as one tensor (N, 3, side, side).

    One of another size gives its centre square, scaled (bicubic).
    """
    if not len(photos):
        return torch.zeros((0, 3, side, side), dtype=torch.uint8)
    return torch.stack([_to_square(photo, side) for photo in photos])  # (N, 3, side, side)


def _to_square(photo: Tensor, side: int) -> Tensor:
    height, width = photo.shape[1:]
    if (height, width) == (side, side):
        return photo
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    # Only the box is scaled: the whole of a long, narrow photo could take gigabytes.
    scaled = to_image(photo).resize((side, side), Image.Resampling.BICUBIC,
                                    box=(left, top, left + shorter, top + shorter))
    return to_tensor(scaled).to(photo.device)  # (3, side, side)


def stretched(photos: Tensor | Sequence[Tensor], side: int) -> Tensor:
    """Photos, each uint8 (3, H, W) of any size, as one tensor (N, 3, side, side).

    One of another size is scaled as a whole (bicubic), whatever its shape, as BLIP-2's own processor does.
    """
    if not len(photos):
        return torch.zeros((0, 3, side, side), dtype=torch.uint8)
    return torch.stack([photo if photo.shape[1:] == (side, side) else to_tensor(
        to_image(photo).resize((side, side), Image.Resampling.BICUBIC)).to(photo.device) for photo in photos])


def normalised(photos: Tensor | Sequence[Tensor], side: int, mean: Tensor, std: Tensor) -> Tensor:
    """Photos, ``stretched``, as floats (N, 3, side, side) less ``mean`` and over ``std``, both (3, 1, 1) and
    of numbers from 0 to 1; on the device of these."""
    return (stretched(photos, side).to(mean.device).float() / 255 - mean) / std


def to_floats(photos: Tensor) -> Tensor:
    """uint8 photos to floats from -1 to 1."""
    return photos.float() / 127.5 - 1


def to_pixels(photos: Tensor) -> Tensor:
    """Floats from -1 to 1 to uint8; values outside are cut off."""
    return ((photos.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
