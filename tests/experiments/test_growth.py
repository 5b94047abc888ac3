"""What reading a corpus takes, per dialogue, and that it is as much whatever their number."""

import json

import pytest

from e2e_lib.config import load
from e2e_lib.data.examples import load_split
from e2e_lib.experiments import growth


def test_the_made_up_corpus_has_mmdialogs_means_and_can_be_read(tmp_path):
    growth.make(tmp_path, 400)
    dialogues, store, report = load_split(tmp_path, "train")
    assert len(dialogues) == 400 and not report.problems
    assert sum(len(d.turns) for d in dialogues) / 400 == pytest.approx(4.56, abs=0.1)
    assert sum(len(d.photos) for d in dialogues) / 400 == pytest.approx(2.59, abs=0.1)
    assert len(store.index) == round(400 * 1.53 / 1.079117) == len(list((tmp_path / "photos").glob("*.jpg")))


def test_as_much_is_kept_of_each_dialogue_whatever_their_number(monkeypatch):
    few, many = (growth.measure(load("paper"), count) for count in (150, 600))
    assert few.kept == pytest.approx(many.kept, rel=0.1) and few.kept <= few.most and few.seconds > 0
    text = json.dumps(["x" * 65] * 4)  # its turns' words alone
    assert many.kept > 4 * len(text)
    real = growth._read
    monkeypatch.setattr(growth, "_read", lambda *given: [real(*given), real(*given)])
    assert growth.measure(load("paper"), 150).kept == pytest.approx(2 * few.kept, rel=0.1)


def test_what_is_needed_by_hand():
    found = growth.at_size(growth.Reading(1e-4, 5000.0, 6000.0), 1_000_000, 2_000_000, workers=4)
    assert found["minutes_to_read"] == pytest.approx(100 / 60) and found["host_gb"] == pytest.approx(5e9 / 2**30)
    assert found["host_gb_with_workers"] == 5 * found["host_gb"] and found["photos_gb"] == pytest.approx(2e6 * 200_000 / 2**30)
    rows = growth.needs(load("paper"), {1: 24.0, 8: 3.0}, 20.0, found)
    assert [(row["devices"], row["need"]) for row in rows if row["what"] == "days of training"] == [(1, 80.0), (8, 10.0)]
    (host,) = {row["need"] for row in rows if row["what"].startswith("host memory")}
    assert host == pytest.approx(20 + 25e9 / 2**30, abs=0.01) and len(rows) == 6
