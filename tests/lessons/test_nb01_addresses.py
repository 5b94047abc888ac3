"""The server of notebook 01: what it sends, seen by another client, and the status that each address ends in."""

import dataclasses
import io
import urllib.error
import urllib.request
from collections import Counter

import pytest
from PIL import Image

from e2e_lib.data.photo_index import PASSING, STATUSES, PhotoIndex
from e2e_lib.data.photos import PhotoStore
from e2e_lib.lessons import nb01_addresses as addresses
from e2e_lib.lessons.nb01_addresses import FATES, PhotoServer

REPEATED = 5  # addresses with the same picture, which make it a placeholder


@pytest.fixture(scope="module")
def server():
    server = PhotoServer()
    yield server
    server.close()


def get(url, seconds=0.3):
    """Status and body as urllib sees them, which follows redirects; 0 where nothing came in time."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except TimeoutError:
        return 0, b""


def test_a_single_visitor_gets_the_http_status_that_the_table_says(server):
    found = {fate: get(server.address("train/1 ä", fate))[0] for fate in FATES}
    assert found == {name: fate.ends for name, fate in FATES.items()}


def test_what_comes_is_what_the_words_say(server):
    whole = Image.open(io.BytesIO(get(server.address("train/2", "good"))[1]))
    assert whole.format == "JPEG" and whole.size == (addresses.PHOTO_SIDE,) * 2
    gone = {get(server.address(name, fate))[1] for name in ("a", "b") for fate in ("placeholder", "moved")}
    assert len(gone) == 1
    with pytest.raises(OSError):
        Image.open(io.BytesIO(get(server.address("train/2", "cut"))[1])).load()
    assert get(server.address("train/2", "page"))[1].startswith(b"<html>")
    assert get(server.address("train/2", "hiccup"))[0] == 500 and get(server.address("train/2", "hiccup"))[0] == 200
    assert get(f"{server.address('', 'x').rpartition('/x/')[0]}/elsewhere")[0] == 404


def test_photos_differ_and_the_same_one_stays_the_same():
    first, second = addresses.photo_bytes("train/1"), addresses.photo_bytes("train/2")
    addresses.photo_bytes.cache_clear()
    assert first == addresses.photo_bytes("train/1") != second


def test_fates_have_their_shares_and_no_order():
    assert sum(fate.share for fate in FATES.values()) == 100
    ids = [f"photo {i}" for i in range(200)]
    fates = addresses.choose_fates(ids)
    assert Counter(fates.values()) == {name: 2 * fate.share for name, fate in FATES.items()}
    assert list(fates) == ids and fates == addresses.choose_fates(ids) != addresses.choose_fates(ids, 1)
    assert list(fates.values()) != sorted(fates.values(), key=list(FATES).index)
    assert addresses.choose_fates([]) == {}


def test_only_what_passes_may_change_its_status():
    for fate in FATES.values():
        assert {fate.first, fate.later} <= set(STATUSES)
        assert fate.first == fate.later or fate.first in PASSING and fate.later == "ok"


def test_each_address_ends_in_the_status_it_is_made_for_at_the_first_visit_and_after_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "LIMITS", dataclasses.replace(addresses.LIMITS, seconds=2.0))
    fates = {f"train/{fate}/{i}": fate for fate in FATES for i in range(REPEATED if fate == "placeholder" else 2)}
    server = PhotoServer()
    try:
        for visit in ("first", "later"):
            retry = ["failed"] if visit == "later" else []
            counts = addresses.visit(server.addresses(fates), tmp_path, retry)
            with PhotoIndex(tmp_path) as index:
                found = {fate: {row.status for row in index.rows() if fates[row.photo_id] == fate} for fate in FATES}
            assert found == {name: {getattr(fate, visit)} for name, fate in FATES.items()}
            assert counts == Counter(getattr(FATES[fate], visit) for fate in fates.values()) == addresses.statuses(tmp_path)
            asked_for_dead_ones = sum(count for path, count in server.asked.items() if path.startswith("/missing/"))
            assert asked_for_dead_ones == 2  # not again the next day
            server.next_day()
    finally:
        server.close()
    assert addresses.as_made(tmp_path, fates) == len(fates)
    assert addresses.as_made(tmp_path, fates | {"train/good/0": "gone"}) == len(fates) - 1
    assert not any(path.startswith("/private/") for path in server.asked)
    assert PhotoStore(tmp_path).load("train/busy/1").size == (addresses.PHOTO_SIDE,) * 2


def test_a_folder_where_nothing_was_asked_for_has_no_statuses(tmp_path):
    assert addresses.statuses(tmp_path) == Counter()
    assert not list(tmp_path.iterdir())
