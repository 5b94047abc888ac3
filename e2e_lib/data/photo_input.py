"""The one way in for photos: whatever form a user gives one in, it becomes an upright, opaque RGB image."""

import contextlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from e2e_lib.data.dialogue import DataError

MAX_PIXELS = 50_000_000  # larger than any camera photo shared in a chat, small enough for 150 MB decoded
# What Pillow decodes by itself: its reader of EPS, for one, would start another program on the file.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
PhotoInput = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor


class PhotoError(DataError):
    """A photo is missing, damaged, too large or in no form that is taken.

    ``where`` says which photo it is, ``reason`` what is wrong and what to do.
    """

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def open_photo(source: PhotoInput) -> Image.Image:
    """A photo in any form as an RGB image of 8 bits, of its own size, upright, opaque, without metadata.

    ``source`` is a file's name ("~" and "file://" addresses too), bytes, a binary file, a PIL image, or a
    NumPy array or tensor (H, W) or (H, W, 1|3|4), a tensor also (1|3|4, H, W): uint8, uint16, bool, or floats
    from 0 to 1. The photo is turned as its EXIF says and laid on white where it is transparent; 16 bits are
    scaled to 8, CMYK is converted, and of an animation the first frame is taken. Its size is checked before
    it is decoded. Raises PhotoError, which says what was given and what is accepted.
    """
    if isinstance(source, Image.Image):
        with _explained(where := f"PIL image of mode {source.mode}"):
            _check_size(*source.size, where)
            return _upright_rgb(source, where)
    if isinstance(source, np.ndarray | Tensor):
        return _from_array(source)
    if isinstance(source, str | os.PathLike):
        where = f"photo {os.fsdecode(source)[:300]!r}"
        with _open_file(os.fsdecode(source), where) as file:
            return decode_photo(file, where)
    content: Any = source
    with _explained(where := f"photo in {type(source).__name__}"):
        with contextlib.suppress(AttributeError, OSError):  # a pipe cannot go back to its beginning
            content.seek(0)
        content = content.read() if hasattr(content, "read") else content
    if not isinstance(content, bytes | bytearray | memoryview):
        raise PhotoError(f"found {type(source).__name__}", "expected a photo: the name of a file, bytes, a "
                         "file open in binary mode, a PIL image, a NumPy array or a tensor")
    return decode_photo(io.BytesIO(content), where)


def decode_photo(file: BinaryIO, where: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The photo in an open file of one of Pillow's ``formats``, as ``open_photo`` gives it.

    Raises PhotoError, in which ``where`` names the photo.
    """
    with _explained(where):
        with Image.open(file, formats=formats) as header:
            _check_size(*header.size, where)
            header.verify()  # decoding alone does not compare the checksums of a PNG's pixels
        file.seek(0)
        with Image.open(file, formats=formats) as image:
            return _upright_rgb(image, where)


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns what Pillow raises into a PhotoError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the limit here
            yield
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise PhotoError(where, f"larger than {MAX_PIXELS:,} pixels; scale it down first") from None
    except UnidentifiedImageError:
        raise PhotoError(where, "empty, damaged or cut short, or in a format that is not read; save it as "
                         f"one of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow reports broken bytes by half a dozen unrelated exceptions
        raise PhotoError(where, f"damaged or cut short, or of a kind that is not read ({error})") from error


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise PhotoError(where, f"{width} x {height} pixels are larger than {MAX_PIXELS:,} pixels; scale it "
                         "down first")
    if width * height < 1:
        raise PhotoError(where, f"there is no pixel in {width} x {height}")


def _open_file(name: str, where: str) -> BinaryIO:
    try:
        path = Path(url2pathname(urlsplit(name).path) if name.startswith("file://") else name).expanduser()
        if path.is_file():
            return path.open("rb")
        reason = "not a file" if path.exists() else "there is no such file"
    except RuntimeError:  # expanduser's
        reason = f"there is no such user; for a file of that name write ./{name}"
    except (OSError, ValueError) as error:
        reason = f"the file cannot be opened ({getattr(error, 'strerror', None) or error})"
    if re.match(r"(?!file:)[a-z][a-z0-9+.-]+:/|data:", name, re.IGNORECASE):
        reason = "this is an address; download the photo first and give the name of its file"
    raise PhotoError(where, reason)


def _upright_rgb(image: Image.Image, where: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # grey of 16 or 32 bits, which `convert` would clip
        grey = np.asarray(image)  # (H, W)
        if image.mode == "I" and grey.min() >= 0 and grey.max() <= 65535:
            grey = grey.astype(np.uint16)
        levels = _to_levels(grey, where)
        levels[grey == image.info.get("transparency", -1)] = 255
        return Image.fromarray(levels).convert("RGB")
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return Image.fromarray(np.asarray(image.convert("RGB")))  # a new image has no EXIF


def _from_array(source: np.ndarray | Tensor) -> Image.Image:
    kind = "tensor" if isinstance(source, Tensor) else "array"
    with _explained(where := f"{kind} of shape {tuple(source.shape)} and type {source.dtype}"):
        if isinstance(source, Tensor):
            source = source.detach().cpu()
            pixels = (source.float() if source.is_floating_point() else source).numpy()
            if pixels.ndim == 3 and len(pixels) in (1, 3, 4):
                pixels = pixels.transpose(1, 2, 0)  # (H, W, 1|3|4)
        else:
            pixels = source
        if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4)):
            raise PhotoError(where, "expected one photo, (H, W) or (H, W, 1|3|4), or a tensor (1|3|4, H, W)")
        _check_size(pixels.shape[1], pixels.shape[0], where)
        levels = _to_levels(pixels, where)  # (H, W) or (H, W, 1|3|4)
        return _upright_rgb(Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels), where)


def _to_levels(pixels: np.ndarray, where: str) -> np.ndarray:
    """Pixels of any accepted type as the nearest of 256 levels, uint8, in a new array of the same shape."""
    kind, bits = pixels.dtype.kind, 8 * pixels.dtype.itemsize
    if kind == "b":
        return np.where(pixels, np.uint8(255), np.uint8(0))
    if kind == "u" and bits <= 16:
        return pixels.copy() if bits == 8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if kind != "f":
        raise PhotoError(where, "expected uint8 (0 to 255), uint16 (0 to 65535), bool, or floats from 0 to 1")
    with np.errstate(all="ignore"):
        levels = np.rint(pixels.astype(np.float32) * 255)
    if not (levels.min() >= 0 and levels.max() <= 255):  # also where one is NaN
        raise PhotoError(where, f"expected floats from 0 to 1, found {pixels.min():g} to {pixels.max():g}")
    return levels.astype(np.uint8)
