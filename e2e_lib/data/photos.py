"""The photo store, one folder of PNG files found by photo id (section 3.1.1), and photos as tensors.

Ids come from data, so they are never used as paths: a photo's file is named after the SHA-256 of its id. A
photo has its own size wherever it goes; whoever needs another one calls ``square``.
"""

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

from e2e_lib.data.dialogue import DataError, Problem, Report
from e2e_lib.repro import files

MAX_PIXELS = 50_000_000  # larger than any camera photo shared in a chat, small enough for 150 MB decoded


class PhotoError(DataError):
    """A photo is missing, damaged or too large; the message names its id and file and says what to do."""

    def __init__(self, photo_id: str, path: Path, reason: str) -> None:
        super().__init__(f"photo {photo_id!r} ({path}): {reason}")
        self.photo_id, self.path, self.reason = photo_id, path, reason


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

    def path(self, photo_id: str) -> Path:
        """The file of a photo, whether or not it is there: 32 hexadecimal digits and ``.png``."""
        # JSON can carry lone surrogates, which plain UTF-8 refuses.
        digest = hashlib.sha256(photo_id.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / f"{digest[:32]}.png"

    def __contains__(self, photo_id: str) -> bool:
        """Whether the photo has a file; ``load`` and ``check`` say whether it is sound."""
        return self.path(photo_id).is_file()

    def add(self, photo_id: str, image: Image.Image, durable: bool = True) -> Path:
        """Saves ``image`` as RGB PNG under ``photo_id``, replacing an earlier one; returns its file.

        With ``durable=False`` the photo is written straight to its place and not flushed to the disk, which
        is several times faster. Use it only inside ``files.atomic_folder``, which flushes all files and moves
        the whole folder into place, or nothing. Raises files.SaveError.
        """
        path, encoded = self.path(photo_id), io.BytesIO()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        rgb.save(encoded, format="PNG", compress_level=1)
        if durable:
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
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise PhotoError(photo_id, path, "there is no such file; make the corpus again with `e2e data`, "
                             "or add the photo to the store") from None
        except OSError as error:
            raise PhotoError(photo_id, path, f"the file cannot be read ({error.strerror}); check its "
                             "permissions") from error
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as header:
                width, height = header.size
                too_large = width * height > MAX_PIXELS
                if not too_large:
                    header.verify()  # decoding alone does not compare the checksums of the pixel data
            if not too_large:
                with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                    return image.convert("RGB")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            pass
        except Exception as error:  # Pillow reports broken bytes by half a dozen unrelated exceptions
            raise PhotoError(photo_id, path,
                             f"the file is damaged or cut short ({error}); delete it and make the "
                             "corpus again with `e2e data`, or add the photo to the store again") from error
        raise PhotoError(photo_id, path,
                         f"the photo is larger than {MAX_PIXELS:,} pixels; scale it down "
                         "and add it again")

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
        """Decodes every photo: how many are sound, and each that is not, its row being its position from 1.
        """
        report = Report()
        for row, photo_id in enumerate(photo_ids, 1):
            try:
                self.load(photo_id)
                report.kept += 1
            except PhotoError as error:
                report.problems.append(Problem(error.path.name, row, "photo",
                                               f"{photo_id!r}: {error.reason}"))
        return report


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (3, H, W)


def to_image(photo: Tensor) -> Image.Image:
    """A photo, uint8 (3, H, W), as an RGB image."""
    return Image.fromarray(photo.permute(1, 2, 0).cpu().numpy())


def square(photos: Tensor | Sequence[Tensor], side: int) -> Tensor:
    """Photos, each uint8 (3, H, W) of any size, as one tensor (N, 3, side, side).

    One of another size has its shorter side scaled to ``side`` (bicubic) and is cut at the centre.
    """
    if not len(photos):
        return torch.zeros((0, 3, side, side), dtype=torch.uint8)
    return torch.stack([_to_square(photo, side) for photo in photos])  # (N, 3, side, side)


def _to_square(photo: Tensor, side: int) -> Tensor:
    height, width = photo.shape[1:]
    if (height, width) == (side, side):
        return photo
    shorter = min(width, height)
    width, height = (max(side, round(length * side / shorter)) for length in (width, height))
    left, top = (width - side) // 2, (height - side) // 2
    scaled = to_image(photo).resize((width, height), Image.Resampling.BICUBIC)
    return to_tensor(scaled.crop((left, top, left + side, top + side))).to(photo.device)  # (3, side, side)


def to_floats(photos: Tensor) -> Tensor:
    """uint8 photos to floats from -1 to 1."""
    return photos.float() / 127.5 - 1


def to_pixels(photos: Tensor) -> Tensor:
    """Floats from -1 to 1 to uint8; values outside are cut off."""
    return ((photos.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
