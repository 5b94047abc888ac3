"""The helpers of notebook 04: losses before and after, captions that are wrong, and what it all takes."""

import json
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image
from trained_runs import save_trained

from e2e_lib.config import replace as set_to
from e2e_lib.corpora import training_captions
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import split_examples
from e2e_lib.lessons import nb04_joint as lesson
from e2e_lib.models.systems import build
from e2e_lib.repro.results import RESULTS, load_json
from e2e_lib.training.dev import dev_examples
from e2e_lib.training.loop import load_trained


def test_losses_are_of_the_same_examples_and_noises_before_and_after(config, corpus, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    save_trained(config)
    frame = lesson.dev_losses(config, [0], corpus, 4, noises=2).set_index("loss")
    assert frame.seed.tolist() == [0, 0]
    examples, store = split_examples(corpus, "dev")
    for when, model in (("before", build(config).eval()), ("after", load_trained(config, 0))):
        batch = Collator(model.formatter, store)(dev_examples(examples, 4))
        outputs = [model(batch, temperature=1.0, seed=number) for number in range(2)]
        assert frame[when]["text"] == pytest.approx(outputs[0].text_loss.item(), rel=1e-4)
        assert frame[when]["image"] == pytest.approx(sum(output.image_loss.item() for output in outputs) / 2, rel=1e-4)
    assert frame.before["text"] != pytest.approx(frame.after["text"], rel=1e-2)


def test_the_words_of_a_gallery_are_counted(tmp_path):
    folder = tmp_path / "runs" / "mini" / "end_to_end" / "seed-0" / "gallery" / "epoch-0"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    rows = [("a red kite at the beach", "a red hat at the beach"), ("two blue boats in the garden", None), ("a red kite", "a red kite")]
    (folder / "gallery.json").write_text(json.dumps([
        {"photo_id": "x", "gold": gold, "caption": own, "drawn": False} for gold, own in rows]))
    assert lesson.named_right(folder) == (2 + 0 + 2, 3 + 3 + 2)


@pytest.mark.parametrize("faults", ["none", "systematic"])
def test_wrong_captions_are_those_that_training_learns_from(config, corpus, faults):
    config = set_to(config, "data.caption_faults", faults)
    data = config.data if faults != "none" else replace(config.data, caption_faults="random", caption_fault_rate=0.6)
    examples, _ = split_examples(corpus, "train")
    pairs = {old.photo_id: (old.caption, new.caption) for one, other in zip(examples, training_captions(data, examples), strict=True)
             for old, new in zip(one.response.photos, other.response.photos, strict=True)}
    wrong = [pair for pair in pairs.values() if pair[0] != pair[1]]
    figure, share = lesson.wrong_captions(config, corpus, 2)
    assert share == pytest.approx(len(wrong) / len(pairs)) and 0.2 < share <= 1
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes]
    for title, (true, faulty) in zip(titles, wrong, strict=False):
        assert title.startswith(f"trained on: “{faulty}”")
        assert all(word.rstrip("s") in true for word in re.findall(r"\w+", title.rpartition("true: ")[2])), (title, true)


def test_the_sum_of_gradients_has_the_photos_at_a_set_length():
    text, photo = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 50.0):
        found = lesson.sum_of_gradients(text, scale * photo, 2.0) - text
        assert float(found.norm()) == pytest.approx(2 * float(text.norm()), rel=1e-5)
        torch.testing.assert_close(found / found.norm(), photo / photo.norm())
    assert torch.equal(lesson.sum_of_gradients(text, torch.zeros_like(text), 2.0), text)


def test_what_is_not_worked_out_yet_is_said(tmp_path):
    assert all(text.startswith("*Not shown: `") for text in lesson.plan(tmp_path))
    table, rows = lesson.hours(tmp_path)
    assert table.startswith("*Not shown: `") and rows == []


def test_the_plan_names_the_largest_part_and_the_hours_are_those_of_the_file():
    _, answer = lesson.plan()
    parts = load_json(RESULTS / "plans" / "paper-v100-32gb.json")["parts"]
    assert f"weights of *{max(parts, key=lambda part: part['learnt'])['name']}*." in answer
    assert answer.startswith("Most memory is taken by *language*, ")
    table, rows = lesson.hours()
    assert {row["profile"] for row in rows} == {"paper"}
    first = [cell.strip() for cell in table.splitlines()[2].split("|")[1:-1]]
    assert first == [rows[0]["corpus"], rows[0]["examples"], *(f"{each['hours']:.1f}" for each in rows[0]["rows"])]


def test_what_each_device_takes_and_what_gives_out_first_are_those_of_the_file(tmp_path):
    assert lesson.per_device(tmp_path).startswith("*Not shown: `") and lesson.what_breaks(tmp_path)[1].startswith("*Not shown: `")
    each = [{"devices": count, "hours": 80 / count, "memory_gb": 20 + (count > 1), "traffic_gb": 0.5 * (count > 1), "steps": 1000 / count}
            for count in (1, 4)]
    needs = [{"devices": count, "what": what, "need": need, "limit": 30.0} for count in (1, 4)
             for what, need in (("days of training", 90 / count), ("host memory of a process, GiB", 24.0))]
    growth = {"mmdialog": {"dialogues": 10, "photos": 14, "host_gb": 5.0, "minutes_to_read": 2.0, "needs": needs}, "epochs": 80,
              "made_up_dialogues": 2000, "bytes_per_dialogue": 5000, "workers": 4, "photo_bytes": 200_000, "device": "v100-32gb"}
    rows = [{"profile": "paper", "corpus": "photochat", "device": "v100-32gb", "examples": "dialogues", "rows": each}]
    (tmp_path / "cost.json").write_text(json.dumps({"rows": rows, "growth": growth}))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lesson.per_device(tmp_path).splitlines() if line.startswith("|")]
    assert lines[0] == ["", "1 × v100-32gb", "4 × v100-32gb"]
    assert lines[2:] == [["memory of each, GiB", "20.0", "21.0"], ["gradients each sends in a step, GiB", "0.0", "0.5"],
                         ["steps in an epoch of photochat", "1,000", "250"]]
    table, answer = lesson.what_breaks(tmp_path)
    assert "| days of training" in table and "22.5" in table and "10 dialogues, 14 photos" in table
    assert answer == "What gives out first: on 1 days of training, 3.0 times what there is. On 4 there is enough of all."
