"""The photo store gives back what was put in or says what is wrong; photos as tensors keep their pixels."""

import errno
import hashlib
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from e2e_lib.data import photos as module
from e2e_lib.data.photo_input import MAX_PIXELS, PhotoError
from e2e_lib.data.photos import PhotoStore, square, to_image, to_tensor
from e2e_lib.repro import files


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("durable", [True, False])
def test_a_photo_comes_back_pixel_for_pixel(tmp_path, durable):
    store, image = PhotoStore(tmp_path / "photos"), noise(64, 64)
    assert "a" not in store
    path = store.add("a", image, durable=durable)
    assert "a" in store and path == store.path("a")
    assert [p.name for p in store.folder.iterdir()] == [hashlib.sha256(b"a").hexdigest()[:32] + ".png"]
    loaded = store.load("a")
    assert loaded.mode == "RGB" and np.array_equal(np.array(loaded), np.array(image))
    store.add("a", noise(64, 64, 1), durable=durable)
    assert np.array_equal(np.array(store.load("a")), np.array(noise(64, 64, 1)))


@pytest.mark.parametrize("durable", [True, False])
def test_a_photo_enters_the_store_upright_and_on_white(tmp_path, durable):
    store, exif = PhotoStore(tmp_path / "photos"), Image.Exif()
    exif[0x0112] = 6
    rgba = noise(5, 8).convert("RGBA")
    rgba.putpixel((0, 4), (0, 255, 0, 0))
    path = tmp_path / "phone.png"
    rgba.save(path, exif=exif)
    stored = Image.open(store.add("a", path, durable=durable))
    assert stored.mode == "RGB" and stored.size == (5, 8) and not stored.getexif()
    expected = np.rot90(np.array(noise(5, 8)), -1).copy()
    expected[0, 0] = 255
    assert np.array_equal(np.array(store.load("a")), expected)
    with pytest.raises(PhotoError, match="no such file"):
        store.add("b", tmp_path / "nope.png", durable=durable)
    assert "b" not in store


def test_a_stored_file_is_read_as_upright_and_opaque_as_others(tmp_path):
    store = PhotoStore(tmp_path)
    clear = noise(5, 8)
    clear.putalpha(0)
    clear.save(store.path("a"))  # put there by another program
    assert (np.array(store.load("a")) == 255).all()


@pytest.mark.parametrize("photo_id", ["../../etc/passwd", "/etc/x", "train/4beacc", "", "a\0b", "\ud800", "x" * 5000])
def test_odd_ids_are_only_names(tmp_path, photo_id):
    store = PhotoStore(tmp_path / "photos")
    assert store.add(photo_id, noise(8, 8)).parent == store.folder
    assert np.array_equal(np.array(store.load(photo_id)), np.array(noise(8, 8)))
    assert len(list(tmp_path.rglob("*.png"))) == len(list(store.folder.iterdir())) == 1


def test_a_missing_photo_says_which_and_what_to_do(tmp_path):
    store = PhotoStore(tmp_path)
    with pytest.raises(PhotoError, match=r"'gone'.*\.png.*e2e data"):
        store.load("gone")


def test_every_truncation_is_noticed(tmp_path):
    store = PhotoStore(tmp_path)
    content = store.add("a", noise(6, 6)).read_bytes()
    for length in range(len(content) - 4):  # the last four bytes are the checksum of the empty end chunk
        store.path("a").write_bytes(content[:length])
        with pytest.raises(PhotoError, match="damaged or cut short"):
            store.load("a")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_flipped_bit_never_changes_pixels_unnoticed(tmp_path_factory, data):
    store = PhotoStore(tmp_path_factory.getbasetemp() / "flipped")
    content = bytearray(store.add("a", noise(6, 6)).read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    store.path("a").write_bytes(content)
    try:
        assert np.array_equal(np.array(store.load("a")), np.array(noise(6, 6)))
    except PhotoError as error:
        assert "'a'" in str(error) and store.path("a").name in str(error)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_decoding(tmp_path, side):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    assert side**2 > MAX_PIXELS
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    store = PhotoStore(tmp_path)
    store.path("b").write_bytes(bomb)
    with pytest.raises(PhotoError, match="larger than 50,000,000 pixels"):
        store.load("b")


@pytest.mark.parametrize("size", [(64, 64), (120, 200), (7, 3)])
def test_a_tensor_holds_the_photos_own_pixels(tmp_path, size):
    store = PhotoStore(tmp_path)
    store.add("a", noise(*size))
    tensor = store.tensor("a")
    assert tensor.shape == (3, *size) and tensor.is_contiguous() and tensor.dtype == torch.uint8
    assert np.array_equal(tensor.numpy(), np.array(noise(*size)).transpose(2, 0, 1))
    assert to_image(tensor).tobytes() == noise(*size).tobytes()


@given(st.integers(1, 90), st.integers(0, 40), st.booleans(), st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_square_is_the_centre_square_scaled(shorter, beyond, upright, side):
    size = (shorter, shorter + 2 * beyond) if upright else (shorter + 2 * beyond, shorter)
    photos = [noise(*size), noise(side, side), noise(shorter, shorter, 1)]
    squares = square([to_tensor(photo) for photo in photos], side)
    assert squares.shape == (3, 3, side, side) and squares.dtype == torch.uint8
    for photo, ours in zip(photos, squares, strict=True):
        assert np.array_equal(ours.numpy().transpose(1, 2, 0), ImageOps.fit(photo, (side, side), Image.Resampling.BICUBIC))
    whole = noise(shorter, shorter, 1).resize((side, side), Image.Resampling.BICUBIC)
    assert torch.equal(squares[2], to_tensor(whole))


@pytest.mark.parametrize(("size", "rows", "columns"), [((64, 67), slice(None), slice(1, 65)), ((71, 64), slice(3, 67), slice(None))])
def test_a_photo_that_is_only_cut_keeps_its_pixels(size, rows, columns):
    photo = to_tensor(noise(*size))
    assert torch.equal(square([photo], 64)[0], photo[:, rows, columns])


def test_a_long_narrow_photo_is_cut_before_it_is_scaled(monkeypatch):
    long, sizes, resize = torch.zeros(3, 10, 40_000, dtype=torch.uint8), [], Image.Image.resize
    long[:, :, 19_990:20_010] = 200
    monkeypatch.setattr(Image.Image, "resize", lambda *args, **kwargs: (scaled := resize(*args, **kwargs), sizes.append(scaled.size))[0])
    assert (square([long], 512) == 200).all() and sizes == [(512, 512)]
    assert (square([long.transpose(1, 2)], 512) == 200).all()


def test_square_of_no_photo_is_empty():
    assert square([], 9).shape == (0, 3, 9, 9)


def test_photos_of_the_right_size_are_not_changed():
    photos = torch.stack([to_tensor(noise(48, 48, seed)) for seed in range(3)])
    assert torch.equal(square(photos, 48), photos) and torch.equal(square(list(photos), 48), photos)


def test_pixels_and_floats_convert_without_loss():
    pixels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 4, 256)
    floats = module.to_floats(pixels)
    assert floats.min() == -1 and floats.max() == 1 and torch.equal(module.to_pixels(floats), pixels)
    assert module.to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_captions_are_kept_per_captioner_beside_the_photos(tmp_path):
    store = PhotoStore(tmp_path / "photos")
    assert store.captions("one") == {}
    captions = {"a": "a cat", "é/..": "café"}
    store.keep_captions("one", captions)
    store.keep_captions("two", {"a": "a dog"})
    again = PhotoStore(tmp_path / "photos")
    assert again.captions("one") == captions and again.captions("two") == {"a": "a dog"}
    assert again.captions("three") == {}


def test_the_captions_of_a_photo_go_when_another_takes_its_place(tmp_path):
    store = PhotoStore(tmp_path)
    for name in "ab":
        store.add(name, noise(8, 8))
    for key in ("one", "two"):
        store.keep_captions(key, {"a": f"a cat ({key})", "b": "a dog"})
    store.keep_captions("three", {"b": "a fox"})
    store.add("a", noise(8, 8, 1))
    assert [store.captions(key) for key in ("one", "two", "three")] == [{"b": "a dog"}, {"b": "a dog"}, {"b": "a fox"}]
    store.path("b").unlink()
    store.add("b", noise(8, 8, 2))  # also where the old one was deleted by hand
    assert [store.captions(key) for key in ("one", "two", "three")] == [{}, {}, {}]


@pytest.mark.parametrize("content", [b"", b'{"a": "a c', b"3", b"[1, 2]", b"null", bytes([200, 201])])
def test_an_unreadable_file_of_captions_counts_as_none(tmp_path, content):
    store = PhotoStore(tmp_path)
    store.keep_captions("one", {"a": "a cat"})
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert store.captions("one") == {}


def test_check_counts_and_lists(tmp_path):
    store = PhotoStore(tmp_path)
    for name in "abc":
        store.add(name, noise(8, 8))
    store.path("b").write_bytes(b"not a photo")
    report = store.check(["a", "b", "c", "gone"])
    assert report.kept == 2
    assert [(p.file, p.row, p.field) for p in report.problems] == [
        (store.path("b").name, 2, "photo"), (store.path("gone").name, 4, "photo")]
    assert "'b'" in report.problems[0].reason and "damaged" in report.problems[0].reason


def test_a_write_that_fails_keeps_the_old_photo_or_names_the_new_one(tmp_path, monkeypatch):
    store = PhotoStore(tmp_path)
    store.add("a", noise(8, 8))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(files.SaveError, match="could not save"):
        store.add("a", noise(8, 8, 1))
    assert np.array_equal(np.array(store.load("a")), np.array(noise(8, 8)))
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "photos").write_text("a file where the folder should be")
    with pytest.raises(files.SaveError, match=r"could not save the photo 'a' to .*\.png"):
        PhotoStore(tmp_path / "photos").add("a", noise(8, 8), durable=False)
