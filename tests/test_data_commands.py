"""From a published corpus's own files to examples that can be trained on, by the commands alone."""

import json
import os
import signal
import sqlite3
import threading
import time
from dataclasses import replace

import pytest
from fault_server import FaultServer
from PIL import Image
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib import config as settings
from e2e_lib import corpora
from e2e_lib.config import ConfigError
from e2e_lib.data.examples import load_split, split_examples
from e2e_lib.data.photo_index import PhotoIndex
from e2e_lib.data.photos import PhotoStore
from e2e_lib.download.parts import locked
from e2e_lib.sources import synthetic

COUNTS = {"train": 6, "dev": 3, "test": 3}


def run(*arguments):
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)])


@pytest.fixture(scope="module")
def server():
    with FaultServer() as running:
        yield running


@pytest.fixture
def source(server, tmp_path):
    """PhotoChat's files, the photos at addresses of the server; those of the first dialogue of train and of dev are missing."""
    folder, number = synthetic.write("photochat", tmp_path / "source", COUNTS), 0
    for path in sorted(folder.rglob("*.json")):
        rows = json.loads(path.read_text())
        for i, row in enumerate(rows):
            number += 1
            row["photo_url"] = server.url + ("missing?" if i == 0 and "test" not in path.name else "good/") + str(number)
        path.write_text(json.dumps(rows))
    return folder


@pytest.fixture
def built(source, tmp_path):
    out = tmp_path / "photochat"
    assert run("build", "photochat", "--source", source, "--out", out).exit_code == 0
    done = run("photos", out, "--allow-loopback", "--second-source", "", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["statuses"] == {"ok": 10, "missing": 2}
    return out


def test_build_photos_and_stats_print_one_json_object_and_progress_elsewhere(source, tmp_path):
    out = tmp_path / "out"
    made = run("build", "photochat", "--source", source, "--out", out, "--json")
    report = json.loads(made.stdout)
    assert {split: report[split]["kept"] for split in report} == COUNTS and "Table 1" in made.stderr and "dialogue[]" in made.stderr
    fetched = run("photos", out, "--allow-loopback", "--second-source", "", "--json")
    assert json.loads(fetched.stdout)["photos"] == 12 and "missing" in fetched.stderr and "127.0.0.1" in fetched.stderr
    again = json.loads(run("photos", out, "--allow-loopback", "--second-source", "", "--json").stdout)
    assert again["fetched"] == 0 and again["photos"] == 12
    numbers = json.loads(run("stats", out, "--json").stdout)
    assert list(numbers) == ["train", "dev", "test", "total"] and numbers["total"]["dialogues"] == 12
    assert numbers["train"]["dialogues"] == 6 and numbers["train"]["photos"] == {"fetched": 5, "drawn": 0, "not fetched": 1}
    real = json.loads(run("stats", out, "--real-only", "--json").stdout)
    assert (real["train"]["dialogues"], real["train"]["left_out"]) == (5, 1)


def test_a_redacted_report_of_photos_names_no_host(built):
    done = run("photos", built, "--allow-loopback", "--redact", "--json")
    assert "127.0.0.1" not in done.output and json.loads(done.stdout)["photos"] == 12


def test_table_1_stands_beside_the_papers_with_differences_marked(built):
    lines = run("stats", built).stdout.splitlines()
    ours, paper = (next(line for line in lines if line.startswith("train") and who in line) for who in ("ours", "paper"))
    assert "10,286" in paper and "8,889" in paper and "6 (−10,280)" in ours


def test_a_list_needs_no_dialogues(server, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (
        {"photo_id": "a", "url": server.url + "good/1"}, {"photo_id": "b", "url": ""}, {"photo_id": "c", "url": ""})))
    done = run("photos", "--list", path, "--out", tmp_path / "photos", "--allow-loopback", "--json")
    assert json.loads(done.stdout)["statuses"] == {"bad_address": 2, "ok": 1}
    assert PhotoStore(tmp_path / "photos").load("a").size == (32, 32)


@pytest.mark.parametrize("arguments, message", [
    (["photos"], "--list FILE and --out DIR"), (["photos", "--list", "x.jsonl"], "--out DIR"), (["photos", "absent"], "photos.jsonl"),
    (["photos", "absent", "--retry", "fialed"], "'fialed': expected failed"), (["stats", "absent"], "`e2e data build` writes"),
    (["build", "photochat", "--source", "absent", "--out", "out"], "`e2e data get`"), (["get", "coco", "--out", "out"], "expected one of")])
def test_a_mistake_is_one_clear_message_and_exit_code_1(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 1 and " ".join(message.split()) in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


def photochat(folder, *changes):
    return settings.load("smoke", ["data.name=photochat", f"data.folder={folder}", *changes])


def test_a_built_corpus_is_found_and_dialogues_without_their_photos_are_counted(built):
    config = photochat(built)
    folder = corpora.prepare(config, lambda _: None)
    dialogues, store, report = load_split(folder, "train")
    assert len(dialogues) == 5 and report.kept == 5 and [problem.field for problem in report.problems] == ["photo"]
    photo = store.tensor(dialogues[0].photos[0].photo_id)
    assert photo.shape == (3, 32, 32)


def test_nothing_is_decoded_when_a_split_is_loaded(built, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a photo was opened"))
    assert len(load_split(built, "test")[0]) == 3


def test_a_photo_cut_short_on_disk_is_noticed_though_nothing_is_decoded(built):
    store = load_split(built, "test")[1]
    path = store.path(next(iter(store.index)))
    path.write_bytes(path.read_bytes()[:100])
    using = sum(store.path(name) == path for name in store.index)  # photos of the same bytes share a file
    assert sum(len(load_split(built, split)[0]) for split in COUNTS) == 10 - using


def test_drawn_photos_are_used_unless_only_real_ones_are_wanted(built):
    missing = next(row for row in load_split(built, "train")[2].problems)
    with PhotoIndex(built / "photos") as index:
        fetched = next(index.rows(["ok"]))
        for row in list(index.rows(["missing"])):
            index.put(replace(row, status="drawn", source="drawn", file=fetched.file, bytes=fetched.bytes))
    assert "e2e data photos" in missing.reason
    assert len(load_split(built, "train")[0]) == 6
    config = photochat(built, "data.real_only=true")
    examples, _ = split_examples(built, "train", real_only=config.data.real_only)
    assert len({example.dialogue_id for example in examples}) == 5
    _, _, report = load_split(built, "train", real_only=True)
    assert [problem.field for problem in report.problems] == ["drawn photo"]


def test_missing_photos_are_drawn_told_apart_in_every_report_and_give_way_to_the_fetched_ones(built):
    done = run("draw", built, "--model", "minichat", "--steps", "1", "--seed", "3", "--json")
    made = json.loads(done.stdout)
    assert {key: made[key] for key in ("photos", "drawn", "already_there", "drawn_before", "without_caption", "refused")} == {
        "photos": 12, "drawn": 2, "already_there": 10, "drawn_before": 0, "without_caption": 0, "refused": 0}
    assert "12 photos: 2 drawn now by minichat with seed 3" in done.stderr
    stats = run("stats", built, "--json")
    assert json.loads(stats.stdout)["total"]["photos"] == {"fetched": 10, "drawn": 2, "not fetched": 0} and "2 photos drawn" in stats.stderr
    total = next(line for line in stats.stderr.splitlines() if line.startswith("total") and "paper" in line)
    assert "12,286" in total and "10,889" in total  # of the paper's own row of that name
    assert json.loads(run("stats", built, "--real-only", "--json").stdout)["total"]["left_out"] == 2
    assert [len(load_split(built, "train", real_only=real_only)[0]) for real_only in (False, True)] == [6, 5]
    fetched = json.loads(run("photos", built, "--allow-loopback", "--second-source", "", "--json").stdout)
    assert fetched["statuses"] == {"ok": 10, "drawn": 2, "missing": 2} and fetched["photos"] == 12
    photo = load_split(built, "train")[0][0].photos[0]
    assert load_split(built, "train")[1].load(photo.photo_id).size == (64, 64)


@pytest.mark.parametrize("arguments, message", [
    (["--model", "nobody/nothing"], "you are offline"), (["--model", "minichat", "--size", "32"], "minichat draws 64 pixels only"),
    (["--model", "./absent"], "there is no folder ./absent")])
def test_a_model_that_cannot_draw_is_one_clear_message(arguments, message, tmp_path):
    (tmp_path / "photos.jsonl").write_text('{"photo_id": "a", "caption": "a kite"}\n')
    done = run("draw", tmp_path, *arguments)
    assert done.exit_code == 1 and message in done.stderr and "Traceback" not in done.output


def test_interrupted_drawing_says_what_is_kept(tmp_path, monkeypatch):
    (tmp_path / "photos.jsonl").write_text('{"photo_id": "a", "caption": "a kite"}\n')

    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("e2e_lib.experiments.missing_photos.load_drawer", interrupted)
    done = run("draw", tmp_path, "--model", "minichat")
    assert done.exit_code == 130 and "0 drawn photos are kept" in done.stderr and "goes on from there" in done.stderr


def test_the_schema_of_known_files_is_printed_when_asked_for(source, tmp_path):
    said = [run("build", "photochat", "--source", source, "--out", tmp_path / "out", *more).stdout for more in ((), (), ("--schema",))]
    assert ["fields seen" in text for text in said] == [True, False, True]


@pytest.mark.parametrize("name", ["photochat", "dialogcc"])
def test_a_corpus_that_is_not_there_says_how_to_make_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("get", "build", "photos"):
        with pytest.raises(ConfigError, match=f"`e2e data {command} .*data/{name}"):
            corpora.prepare(settings.load("smoke", [f"data.name={name}"]), lambda _: None)


def test_photos_of_a_published_corpus_are_scored_by_inception_or_the_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="weights-inception-2015"):
        corpora.extractor_of(settings.load("paper").data)


def test_an_interrupted_build_says_that_nothing_was_written(source, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("e2e_lib.sources.build.to_row", interrupted)
    done = run("build", "photochat", "--source", source, "--out", tmp_path / "out")
    assert done.exit_code == 130 and "nothing was written" in done.stderr and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_download_says_what_is_kept(number, server, tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps({"photo_id": f"{i}", "url": server.url + name}) + "\n"
                            for i, name in enumerate(["good/7", *(f"silent?{i}" for i in range(5))])))
    def interrupt():
        while not server.asked.get("silent") or not list(tmp_path.glob("photos/*/*.jpg")):
            time.sleep(0.02)
        index = sqlite3.connect(tmp_path / "photos" / "index.sqlite")
        while not index.execute("SELECT COUNT(*) FROM photos WHERE status = 'ok'").fetchone()[0]:
            time.sleep(0.02)  # the file comes first
        index.close()
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    done = run("photos", "--list", path, "--out", tmp_path / "photos", "--allow-loopback")
    assert done.exit_code == 128 + number and "1 photos are kept in" in done.stderr and "Traceback" not in done.output


@pytest.mark.parametrize("change, message", [
    (lambda folder: (folder / "train" / "train_01.json.part").write_text("[]"), "train_01.json.part: a file that was not fetched to its end; run `e2e data get` again"),
    (lambda folder: (folder / "dev_00.json.gz").write_bytes(b"packed"), "dev_00.json.gz: a packed file, which is not read; unpack it"),
    (lambda folder: (folder / "data.train.zip").write_bytes(b"packed"), "")])
def test_what_would_be_left_out_unsaid_is_an_error(source, tmp_path, change, message):
    change(source)
    done = run("build", "photochat", "--source", source, "--out", tmp_path / "out")
    assert (done.exit_code, message in done.stderr) == (1 if message else 0, True)


def test_a_file_in_capital_letters_is_read_too(source, tmp_path):
    path = next((source / "dev").glob("*.json"))
    path.rename(path.with_suffix(".JSON"))
    assert json.loads(run("build", "photochat", "--source", source, "--out", tmp_path / "out", "--json").stdout)["dev"]["kept"] == COUNTS["dev"]


def test_a_blank_photo_id_is_none(source, tmp_path):
    path = next((source / "test").glob("*.json"))
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "photo_id": "  "} for row in rows]))
    assert run("build", "photochat", "--source", source, "--out", tmp_path / "out").exit_code == 0
    assert json.loads(run("stats", tmp_path / "out", "--json").stdout)["test"]["set_aside"] == {}


def test_a_photo_whose_file_and_address_are_gone_is_said_to_be_gone_and_can_be_drawn(built):
    with PhotoIndex(built / "photos") as index:
        row = next(index.rows(["ok"]))
        index.execute("UPDATE photos SET url = replace(url, 'good', 'missing?gone') WHERE url = ?", (row.url,))
        index.execute("UPDATE names SET url = replace(url, 'good', 'missing?gone') WHERE url = ?", (row.url,))
    (built / "photos" / row.file).unlink()
    listed = built / "photos.jsonl"
    listed.write_text(listed.read_text().replace(row.url + '"', row.url.replace("good", "missing?gone") + '"'))
    again = json.loads(run("photos", built, "--allow-loopback", "--second-source", "", "--retry", "ok", "--json").stdout)
    assert again["statuses"]["missing"] == 3
    assert json.loads(run("draw", built, "--model", "minichat", "--steps", "1", "--json").stdout)["drawn"] == 3


def test_two_draws_of_one_corpus_are_kept_apart(built):
    with locked(built / "photos"):
        done = run("draw", built, "--model", "minichat", "--steps", "1")
    assert done.exit_code == 1 and "another run is at work there" in done.stderr


def test_a_list_that_is_not_there_makes_nothing(tmp_path):
    done = run("photos", tmp_path / "absent", "--allow-loopback")
    assert done.exit_code == 1 and "photos.jsonl" in done.stderr and not (tmp_path / "absent").exists()
    assert run("photos", tmp_path, "--out", "").exit_code == 1


@pytest.mark.parametrize(("corpus", "message"), [
    ("minichat", "evaluation.inception_weights: Inception weights absent.pth: no such file"),
    ("photochat", "evaluation.inception_weights = 'absent.pth': photochat is scored by Inception in any case")])
def test_other_weights_of_inception_are_refused_before_anything_is_made(built, tmp_path, monkeypatch, corpus, message):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "there.pth"
    weights.touch()
    monkeypatch.setattr(corpora, "INCEPTION", weights)
    before = sorted(tmp_path.iterdir())
    folder = ["--set", f"data.folder={built}"] if corpus == "photochat" else []
    done = CliRunner().invoke(cli.app, ["train", "--profile", "smoke", "--set", f"data.name={corpus}", *folder,
                                        "--set", "evaluation.inception_weights=absent.pth"])
    assert done.exit_code == 1 and message in done.stderr and sorted(tmp_path.iterdir()) == before


def test_inceptions_weights_are_asked_for_before_anything_is_trained(built, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "INCEPTION", tmp_path / "absent.pth")
    done = CliRunner().invoke(cli.app, ["train", "--profile", "smoke", "--set", "data.name=photochat", "--set", f"data.folder={built}"])
    assert done.exit_code == 1 and "Inception's features, whose weights are not at" in done.stderr and "release v0.2.0" in done.stderr
