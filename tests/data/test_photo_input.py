"""Every form of a photo becomes the same upright, opaque RGB image of 8 bits, or one clear PhotoError."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from e2e_lib.data.photo_input import MAX_PIXELS, PhotoError, open_photo

ORIENTATION = 0x0112
SMOOTH = np.stack([*np.meshgrid(np.linspace(0, 255, 24), np.linspace(0, 255, 16)), np.full((16, 24), 90)], -1).round()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(source: object) -> np.ndarray:
    photo = open_photo(source)
    assert photo.mode == "RGB" and not photo.info and not photo.getexif()
    return np.asarray(photo).astype(int)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours (…, C) and alpha (…, 1), both from 0 to 1, seen before white, from 0 to 255."""
    return 255 * (colour * alpha + (1 - alpha))


@pytest.mark.parametrize(("orientation", "upright"), [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
    (5, lambda a: a.swapaxes(0, 1)), (6, lambda a: np.rot90(a, -1)), (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
    (8, lambda a: np.rot90(a))])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_photo_is_turned_as_its_exif_says(orientation, upright, kind):
    exif, stored = Image.Exif(), noise(5, 8, 3)
    exif[ORIENTATION] = orientation
    content = encoded(Image.fromarray(stored), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(pixels(content), upright(stored))
    assert np.array_equal(pixels(Image.open(io.BytesIO(content))), upright(stored))


def test_a_jpeg_from_a_phone_is_upright_and_says_no_more_where_it_was_taken():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)  # GPS latitude
    content = encoded(Image.fromarray(SMOOTH.astype(np.uint8)), "JPEG", exif=exif, quality=95)
    assert Image.open(io.BytesIO(content)).getexif().get_ifd(0x8825)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))).astype(int)
    assert expected.shape == (24, 16, 3) and np.abs(pixels(content) - expected).max() <= 1
    assert b"Exif" not in encoded(open_photo(content))


KINDS = {np.uint8: 255, np.uint16: 65535, bool: 1, np.float32: 1.0, np.float64: 1.0, np.float16: 1.0, ">u2": 65535}


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 1, 3, 4]), st.booleans(),
       st.integers(0, 99))
def test_arrays_and_tensors_of_every_type_are_scaled_and_laid_on_white(kind, height, width, channels, as_tensor, seed):
    shape, rng = (height, width, *([channels] if channels else [])), np.random.default_rng(seed)
    values = rng.uniform(size=shape)
    array = (values > 0.5 if kind is bool else values * KINDS[kind] if KINDS[kind] == 1 else np.rint(values * KINDS[kind])).astype(kind)
    true = array.astype(float) / KINDS[kind]
    source = array
    if as_tensor:
        source = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        source = source.permute(2, 0, 1) if channels else source
    if channels == 4:
        expected = on_white(true[..., :3], true[..., 3:])
    else:
        expected = 255 * np.broadcast_to(true.reshape(height, width, -1), (height, width, 3))
    # The nearest level; with transparency, two roundings more.
    assert np.abs(pixels(source) - expected).max() <= (0.5 + 1e-4 if channels != 4 else 2)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_a_tensor_with_a_gradient_and_of_any_float_type_is_a_photo(kind):
    photo = torch.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5).to(kind).requires_grad_()
    expected = 255 * photo.detach().double().permute(1, 2, 0).numpy()
    assert np.abs(pixels(photo) - expected).max() <= 0.5


def test_a_tensor_may_have_its_channels_last():
    photo = noise(7, 5, 3)
    assert np.array_equal(pixels(torch.from_numpy(photo)), photo)


GREY, ALPHA = noise(6, 7) / 255, noise(6, 7, seed=1) / 255


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "memory"])
def test_transparency_is_white(kind):
    colour = noise(6, 7, 3, seed=2)
    image = Image.fromarray(np.dstack([colour, (255 * ALPHA).round().astype(np.uint8)]))
    source = image if kind == "memory" else encoded(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(pixels(source) - on_white(colour / 255, ALPHA[..., None])).max() <= 1


def test_transparency_of_grey_palette_and_colour_key_is_white():
    la = Image.merge("LA", [Image.fromarray((255 * a).round().astype(np.uint8)) for a in (GREY, ALPHA)])
    expected = on_white(GREY, ALPHA)[..., None]
    for source in (la, encoded(la), la.convert("La")):
        assert np.abs(pixels(source) - expected).max() <= (2 if source is not la and isinstance(source, Image.Image) else 1)
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3
    assert pixels(encoded(palette)).tolist() == [[red, green, blue]]
    assert pixels(encoded(palette, transparency=1)).tolist() == [[red, white, blue]]
    assert pixels(encoded(palette, transparency=bytes([255, 0, 128]))).tolist() == [[red, white, [127, 127, 255]]]
    assert pixels(encoded(palette, "GIF", transparency=2)).tolist() == [[red, green, white]]
    key = Image.fromarray(np.array([[[0, 255, 0], [0, 254, 0]]], np.uint8))
    assert pixels(encoded(key, transparency=(0, 255, 0))).tolist() == [[white, [0, 254, 0]]]


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, transparent: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_16_bits_are_scaled_and_not_clipped():
    levels = np.array([[65535, 0, 32768, 257, 40000]], np.uint16)
    expected, big = [[255, 0, 128, 1, 156]], levels.astype(">u2").tobytes()
    sources = [png(5, 1, 16, 0, b"\0" + big), Image.fromarray(levels), encoded(Image.fromarray(levels), "TIFF"),
               b"P5 5 1 65535\n" + big, Image.fromarray(levels.astype(np.int32))]
    for source in sources:
        assert pixels(source)[..., 0].tolist() == expected
    assert pixels(png(5, 1, 16, 0, b"\0" + big, struct.pack(">H", 0)))[..., 1].tolist() == [[255, 255, 128, 1, 156]]
    floats = Image.fromarray((levels / 65535).astype(np.float32))
    assert pixels(floats)[..., 2].tolist() == pixels(encoded(floats, "TIFF"))[..., 2].tolist() == expected
    colours = np.array([[65535, 0, 32768, 65535], [0, 65535, 0, 0]], ">u2")
    assert pixels(png(2, 1, 16, 6, b"\0" + colours.tobytes())).tolist() == [[[255, 0, 128], [255, 255, 255]]]


def test_other_ways_to_write_colours_are_converted():
    c, m, y, k = np.moveaxis(noise(6, 7, 4, seed=3) / 255, -1, 0)
    cmyk = Image.fromarray(noise(6, 7, 4, seed=3), "CMYK")
    expected = 255 * np.stack([(1 - ink) * (1 - k) for ink in (c, m, y)], -1)
    assert np.abs(pixels(cmyk) - expected).max() <= 1
    assert np.abs(pixels(encoded(cmyk, "TIFF")) - expected).max() <= 1
    bits = noise(6, 7) > 127
    assert np.array_equal(pixels(encoded(Image.fromarray(bits)))[..., 0], 255 * bits)
    smooth = Image.fromarray(SMOOTH.astype(np.uint8))
    for mode in ("YCbCr", "HSV", "RGBX"):
        assert np.abs(pixels(smooth.convert(mode)) - SMOOTH).max() <= 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert (pixels(content) == [255, 0, 0]).all()


def test_a_photo_is_the_same_in_whatever_form_it_comes(tmp_path, monkeypatch):
    photo = noise(9, 6, 3)
    path = tmp_path / "my cat é.png"
    content = encoded(Image.fromarray(photo))
    path.write_bytes(content)
    written = io.BytesIO()
    written.write(content)  # and not rewound
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with path.open("rb") as file:
        forms = [path, str(path), path.name, f"~/{path.name}", Path("~") / path.name, path.as_uri(), content, bytearray(content),
                 memoryview(content), written, file, Image.open(path), Image.fromarray(photo), photo, torch.from_numpy(photo),
                 torch.from_numpy(photo).permute(2, 0, 1)]
        for form in forms:
            assert np.array_equal(pixels(form), photo), form


def test_what_was_given_stays_as_it_was():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(noise(4, 6, 4)), exif=exif)))
    photo = open_photo(image)
    photo.paste((1, 2, 3), (0, 0, 3, 3))
    assert image.size == (6, 4) and image.mode == "RGBA" and image.getexif()[ORIENTATION] == 6
    array = noise(4, 6, 3)
    photo = open_photo(array)
    array[:] = 0
    assert np.array_equal(np.asarray(photo), noise(4, 6, 3))


WRONG = {
    "nothing": (None, "NoneType: expected a photo"), "a number": (3, "int: expected a photo"),
    "a list": ([noise(4, 4, 3)], "list: expected a photo"), "a text": (io.StringIO("x"), "open in binary mode"),
    "no such file": ("nope.png", "'nope.png'.*no such file"), "no name": ("", "not a file"), "a folder": ("/", "'/'.*not a file"),
    "no such user": ("~nouser-of-that-name/x.png", "no such user.*write ./~nouser"), "a zero byte": ("a\0b", "a.*b"),
    "a long name": ("x" * 5000, "cannot be opened"), "half a surrogate": ("\ud800", "no such file"),
    "an address": ("https://example.org/a.png", "download the photo first"), "data in an address": ("data:image/png;base64,aa", "download"),
    "an absent file:// address": ("file:///nowhere/a%20b.png", "no such file"),
    "no bytes": (b"", "empty, damaged"), "words": (b"hello there", "format that is not read.*JPEG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format that is not read"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "format that is not read"),
    "no rows": (np.zeros((0, 5, 3)), r"\(0, 5, 3\).*no pixel"), "no columns": (torch.zeros(3, 4, 0), "no pixel"),
    "an image without pixels": (Image.new("RGB", (0, 5)), "no pixel"), "two channels": (noise(4, 5, 2), r"\(4, 5, 2\).*one photo"),
    "a batch": (torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\).*one photo"), "channels first in NumPy": (noise(3, 8, 8), "one photo"),
    "a scalar": (np.array(3.0), "one photo"), "texts": (np.array([["a"]]), "uint8"), "whole numbers": (np.zeros((4, 4), int), "int64.*uint8"),
    "complex numbers": (np.zeros((4, 4), complex), "uint8"), "objects": (np.zeros((4, 4), object), "uint8"),
    "NaN": (np.full((4, 4), np.nan), "floats from 0 to 1"), "infinity": (np.full((4, 4), np.inf), "floats from 0 to 1"),
    "floats to 255": (np.array([[0.0, 254.0]]), "found 0 to 254"), "a model's own floats": (torch.tensor([[-1.0, 1.0]]), "found -1 to 1"),
    "large floats": (Image.new("F", (2, 2), 7), "found 7 to 7"), "32 bits": (Image.new("I", (2, 2), 70_000), "0 to 65535"),
    "a sparse tensor": (torch.zeros(4, 4).to_sparse(), "Sparse"), "large": (torch.zeros(8000, 8000, dtype=torch.uint8), "8000 x 8000 pixels"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("error")
def test_what_is_no_photo_is_refused_in_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, message = WRONG[name]
    with pytest.raises(PhotoError, match=message) as caught:
        open_photo(source)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM"])
def test_the_size_is_checked_before_anything_is_decoded(side, kind, monkeypatch):
    assert side**2 > MAX_PIXELS
    bomb = {"PNG": png(side, side, 8, 2, bytes(1000)), "PPM": b"P6 %d %d 255\n" % (side, side) + bytes(1000),
            "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1054, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(1000)}
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PhotoError, match="larger than 50,000,000 pixels"):
        open_photo(bomb[kind])


SAMPLES = [encoded(Image.fromarray(SMOOTH.astype(np.uint8)), kind) for kind in
           ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")]


@pytest.mark.fuzz
@given(st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damaged metadata, and goes on
def test_damaged_bytes_are_a_photo_or_a_photo_error(data):
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[:data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        assert open_photo(bytes(content)).mode == "RGB"
    except PhotoError:
        pass
