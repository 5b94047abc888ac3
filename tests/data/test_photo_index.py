import contextlib
import sqlite3

import pytest

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import INDEX, PhotoIndex, PhotoRow, usable_photos
from e2e_lib.repro import files


def test_a_row_is_kept_as_it_was_put_and_replaced_by_the_next(tmp_path):
    first = PhotoRow("http://a", "x", "timeout", "slow", tries=1)
    second = PhotoRow("http://a", "x", "ok", "", "ab", 3, 4, 5, "downloaded", "", "ab/ab.jpg", 2)
    with PhotoIndex(tmp_path) as index:
        index.put(first)
        assert list(index.rows()) == [first]
        index.put(second)
        assert list(index.rows()) == [second] and list(index.rows(["timeout"])) == []
        assert index.counts() == {"ok": 1}


def test_one_address_has_one_row_and_every_photo_of_it_is_found(tmp_path):
    with PhotoIndex(tmp_path) as index:
        index.add([("http://a", "x"), ("http://a", "y"), ("http://b", "x")])
        assert [row.url for row in index.rows()] == ["http://a", "http://b"]
        index.put(PhotoRow("http://b", "x", "drawn", file="d.jpg"))
        assert index.find("x").status == "drawn" and index.find("y").status == "pending" and index.find("z") is None
        index.put(PhotoRow("http://a", "x", "ok", file="a.jpg"))
        assert index.find("x").file == "a.jpg"
    assert {name: row.file for name, row in usable_photos(tmp_path).items()} == {"x": "a.jpg", "y": "a.jpg"}


def test_a_fetched_photo_is_found_before_a_drawn_one_whichever_came_first(tmp_path):
    rows = [PhotoRow("http://a", "x", "ok", file="a.jpg"), PhotoRow("photo:x", "x", "drawn", file="d.jpg"),
            PhotoRow("photo:y", "y", "drawn", file="d.jpg"), PhotoRow("http://b", "y", "ok", file="b.jpg")]
    with PhotoIndex(tmp_path) as index:
        for row in rows:
            index.put(row)
        assert [index.find(name).status for name in "xy"] == ["ok", "ok"]
    assert {name: row.file for name, row in usable_photos(tmp_path).items()} == {"x": "a.jpg", "y": "b.jpg"}


@pytest.mark.parametrize("write", [lambda index: index.put(PhotoRow("http://b", "y")), lambda index: index.add([("http://b", "y")])])
def test_an_index_that_cannot_be_written_is_named_and_keeps_what_it_has(write, tmp_path):
    with PhotoIndex(tmp_path) as index:
        index.put(PhotoRow("http://a", "x", "ok"))
        index.execute("PRAGMA query_only = 1")  # fails as a full disk does
        with pytest.raises(files.SaveError, match="could not save .*index.sqlite: .*free some space"):
            write(index)
    with PhotoIndex(tmp_path) as index:
        assert [row.url for row in index.rows()] == ["http://a"]


def test_rows_are_read_in_order_though_they_change_meanwhile(tmp_path):
    with PhotoIndex(tmp_path) as index:
        index.add([(f"http://{i}", str(i)) for i in range(2500)])
        seen = []
        for row in index.rows(["pending"]):
            seen.append(row.photo_id)
            index.put(PhotoRow(row.url, row.photo_id, "missing"))
        assert seen == [str(i) for i in range(2500)]


def test_a_closed_index_is_one_file_that_can_be_copied(tmp_path):
    with PhotoIndex(tmp_path) as index:
        index.add([("http://a", "x")])
    assert [path.name for path in tmp_path.iterdir()] == [INDEX]
    with sqlite3.connect(tmp_path / INDEX) as copy:
        assert copy.execute("SELECT url, photo_id, status FROM photos").fetchall() == [("http://a", "x", "pending")]


@pytest.mark.parametrize("read", [usable_photos, PhotoIndex])
def test_a_file_that_is_no_index_is_named(read, tmp_path):
    (tmp_path / INDEX).write_bytes(b"no index" * 100)
    with pytest.raises(DataError, match="index.sqlite: not a readable index"):
        read(tmp_path)


def test_an_index_from_elsewhere_is_refused(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as connection:
        connection.execute("CREATE TABLE photos (photo_id TEXT, url TEXT)")
    with pytest.raises(DataError, match="not a readable index .*move it away"):
        PhotoIndex(tmp_path)


def test_an_unknown_status_is_refused_when_the_index_is_opened(tmp_path):
    with PhotoIndex(tmp_path) as index:
        index.add([("http://x/1", "1")])
        index.execute("UPDATE photos SET status = 'okk'")
    with pytest.raises(DataError, match="it has the unknown status 'okk'"):
        PhotoIndex(tmp_path)


def test_a_folder_in_the_indexs_place_is_refused(tmp_path):
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(DataError, match="not a readable index"):
        PhotoIndex(tmp_path)


def test_an_index_damaged_in_its_later_pages_is_refused_when_they_are_read(tmp_path):
    with PhotoIndex(tmp_path) as index:
        index.add([(f"http://x/{i}", str(i)) for i in range(3000)])
    content = bytearray((tmp_path / "index.sqlite").read_bytes())
    content[len(content) // 3:] = b"\xff" * (len(content) - len(content) // 3)
    (tmp_path / "index.sqlite").write_bytes(content)
    with pytest.raises(DataError, match="not a readable index"):
        with PhotoIndex(tmp_path) as index:
            list(index.rows())
