"""Parts of a photo folder, without a cluster: how addresses are divided, and what is left when all is one again."""

import fcntl
import re
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType

import pytest
from fault_server import FAULTS
from hypothesis import given
from hypothesis import strategies as st
from photo_folders import ManyHosts, content_of
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PhotoIndex, PhotoRow
from e2e_lib.download import cluster
from e2e_lib.download.addresses import host_of
from e2e_lib.download.client import Client, Limits
from e2e_lib.download.parts import PARTS, locked, merge_parts, shards_of, write_parts
from e2e_lib.download.photos import fetch, fetch_part
from e2e_lib.download.progress import ALIKE, Progress, saved

LIMITS = Limits(seconds=1.5, bytes=3_000_000, tries=2, host_rate=1000, longest_pause=0.1, allow_loopback=True)


@pytest.fixture
def server():
    with ManyHosts() as running:
        yield running


def quietly(_):
    pass


def in_parts(number, work=fetch_part):
    """What a cluster does with parts, done by threads of this process."""
    def run(index, statuses, options, echo):
        split = write_parts(index, statuses, number)
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(lambda folder: work(folder, options), split.folders))
        progress = saved(split.folders)
        merge_parts(index)
        return progress, {}
    return run


@given(st.dictionaries(st.text(max_size=5), st.integers(1, 1000), max_size=40), st.integers(1, 12), st.randoms())
def test_every_host_is_in_one_shard_and_shards_are_nearly_even(counts, number, random):
    shards = shards_of(counts, number)
    assert shards.keys() == counts.keys()
    assert set(shards.values()) == set(range(min(number, len(counts))))  # none is empty
    loads = Counter()
    for host, shard in shards.items():
        loads[shard] += counts[host]
    for shard, load in loads.items():  # none was fuller than a fair one before its last and smallest host came
        assert load - min(counts[host] for host in shards if shards[host] == shard) <= sum(counts.values()) / number
    shuffled = list(counts.items())
    random.shuffle(shuffled)
    assert shards_of(dict(shuffled), number) == shards


def test_every_address_is_in_one_part_and_no_host_in_two(tmp_path):
    urls = [f"http{'s' * (i % 2)}://{host}{port}/{i}.jpg" for i in range(60) for host in
            ("a.example", "A.example", "b.example", "127.0.0.1", "[::1]") for port in ("", ":8080")]
    urls += ["", "photo:x", "http://", "http://[::1", "data:,x", *(f"https://large.example/{i}" for i in range(400))]
    with PhotoIndex(tmp_path) as index:
        index.add([(url, str(i)) for i, url in enumerate(urls)])
        index.put(PhotoRow("http://done.example/1", "done", "missing"))
        index.put(PhotoRow("http://late.example/1", "late", "timeout", "too slow", licence="a licence", tries=3))
        split = write_parts(index, ("pending", "timeout"), 4)
    rows, hosts = {}, {}
    for folder in split.folders:
        with PhotoIndex(folder) as part:
            for row in part.rows():
                assert row.url not in rows and row.status == "pending" and not row.reason
                assert hosts.setdefault(host_of(row.url), folder) == folder
                rows[row.url] = row
    assert rows.keys() == {*urls, "http://late.example/1"}
    assert (rows["http://late.example/1"].tries, rows["http://late.example/1"].licence) == (3, "a licence")
    assert hosts["a.example"] and "A.example" not in hosts and sum(split.counts) == len(rows)
    assert split.large == [400] and split.fair == -(-len(rows) // 4)  # stays whole, which is told


def test_parts_give_what_one_run_gives_with_every_fault(tmp_path):
    found = []
    for name, options in (("whole", {}), ("parts", {"run": in_parts(3)})):
        with ManyHosts() as server:
            report = fetch(server.rows(FAULTS), tmp_path / name, quietly, limits=LIMITS, **options)
            rows, files = content_of(tmp_path / name, "url", "tries", "reason")
            retried = fetch(server.rows(FAULTS), tmp_path / name, quietly, limits=replace(LIMITS, seconds=0.2), retry=["timeout"],
                            **options)
        report["hosts"] = [counts for _, counts in sorted(report["hosts"].items())]
        found.append((rows, files, {**report, "seconds": 0}, retried["fetched"], retried["statuses"]))
        assert {row["photo_id"]: row["status"] for row in rows} == FAULTS  # placeholders over all parts as well
        with PhotoIndex(tmp_path / name) as index:
            assert index.find("silent").tries == 2
        assert not (tmp_path / name / PARTS).exists()
    assert found[0] == found[1]


def test_parts_that_a_killed_run_left_are_taken_over(server, tmp_path):
    rows = server.rows(f"good/{i}" for i in range(40))

    def killed(index, statuses, options, echo):
        split = write_parts(index, statuses, 3)
        fetch_part(split.folders[0], options)
        with PhotoIndex(split.folders[1]) as part:  # was at work
            fetch_part(split.folders[1], options)
            part.execute("UPDATE photos SET status = 'pending' WHERE rowid % 2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(rows, tmp_path, quietly, limits=LIMITS, run=killed)
    (tmp_path / PARTS / "002" / "index.sqlite").write_bytes(b"")  # and one that was only begun
    report = fetch(rows, tmp_path, quietly, limits=LIMITS)
    assert report["statuses"] == {"ok": 40} and not (tmp_path / PARTS).exists()
    # Of four hosts with ten addresses each, two were fetched, of one half is lost, and one was not begun.
    assert report["fetched"] == 15 and sum(server.asked[path] for _, path in rows) == 45
    assert all((tmp_path / row["file"]).is_file() for row in content_of(tmp_path)[0])


def test_merging_twice_changes_nothing(server, tmp_path):
    rows = server.rows([f"good/{i}" for i in range(9)] + [f"same/{i}" for i in range(5)] + ["missing", "page.jpg"])

    def keep_copy(index, statuses, options, echo):
        split = write_parts(index, statuses, 3)
        for folder in split.folders:
            fetch_part(folder, options)
        shutil.copytree(tmp_path / "photos" / PARTS, tmp_path / "copy")
        merge_parts(index)
        return Progress(), {}

    fetch(rows, tmp_path / "photos", quietly, limits=LIMITS, run=keep_copy)
    once = content_of(tmp_path / "photos")
    assert {row["status"] for row in once[0]} == {"ok", "missing", "not_a_photo", "placeholder"}
    shutil.copytree(tmp_path / "copy", tmp_path / "photos" / PARTS)
    assert fetch(rows, tmp_path / "photos", quietly, limits=LIMITS)["fetched"] == 0
    assert content_of(tmp_path / "photos") == once


def test_a_photo_stays_whatever_a_part_says_and_a_lost_file_is_asked_for_again(tmp_path):
    good = PhotoRow("http://a/1", "1", "ok", sha256="00", bytes=1, file="00/00.jpg")
    with PhotoIndex(tmp_path) as index:
        index.put(good)
        index.put(PhotoRow("http://a/2", "2", "drawn", file="00/01.jpg"))
        index.add([("http://a/3", "3"), ("http://a/4", "4")])
        index.put(PhotoRow("http://a/5", "5", "timeout", "too slow"))
        with PhotoIndex(tmp_path / PARTS / "000") as part:
            for name in "12345":
                part.put(PhotoRow(f"http://a/{name}", name, "missing", "HTTP 404"))
            part.put(PhotoRow("http://a/3", "3", "ok", sha256="02", bytes=1, file="02/02.jpg"))  # there is no such file
            part.put(PhotoRow("http://a/4", "4"))
        assert merge_parts(index) == 1
        assert [row.status for row in index.rows()] == ["ok", "drawn", "pending", "pending", "missing"]
        assert next(iter(index.rows())) == good


def test_a_retry_that_fails_keeps_the_photo(server, tmp_path):
    url = server.url + "flaky"
    fetch([(url, "a")], tmp_path, quietly, limits=LIMITS)
    server.asked.clear()
    report = fetch([(url, "a")], tmp_path, quietly, limits=replace(LIMITS, tries=1), retry=["ok"])
    assert (report["statuses"], report["fetched"]) == ({"ok": 1}, 1)


def test_two_runs_never_work_in_one_folder(tmp_path):
    with PhotoIndex(tmp_path / PARTS / "000"):
        pass
    with open(tmp_path / PARTS / "000" / ".lock", "w") as part, PhotoIndex(tmp_path) as index:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="000: another run is at work"):
            merge_parts(index, patience=0.1)
    with locked(tmp_path), pytest.raises(DataError, match="another run is at work"):
        fetch([], tmp_path, quietly)
    assert fetch([], tmp_path, quietly)["photos"] == 0 and not (tmp_path / PARTS).exists()


def test_a_damaged_part_is_named(tmp_path):
    with PhotoIndex(tmp_path / PARTS / "000"):
        pass
    (tmp_path / PARTS / "000" / "index.sqlite").write_bytes(b"no index at all" * 100)
    with pytest.raises(DataError, match="000/index.sqlite: not a readable index"):
        fetch([], tmp_path, quietly)


def test_whether_all_fails_alike_is_asked_of_all_parts(server, tmp_path):
    dead = [(f"http://127.0.0.{9 + i}:1/{i}", str(i)) for i in range(2 * ALIKE)]
    for rows, is_alike in ((dead, True), ([*dead, *server.rows(["good/1"])], False)):
        folder = tmp_path / str(is_alike)
        report = fetch(rows, folder, quietly, limits=LIMITS, run=in_parts(4))
        progress = Progress(Counter(report["statuses"]))
        assert progress.done == len(rows) and progress.statuses["network"] == len(dead)
        if is_alike:
            with pytest.raises(DataError, match="all failed .60 as network.*--retry failed"):
                progress.check_network()
        else:
            progress.check_network()


def test_clients_share_the_pace_at_hosts_that_are_not_theirs(server, tmp_path, monkeypatch):
    turns, wait = {}, Client._wait_for_turn

    async def noted(self, host, seconds):
        turns[host] = (seconds, self.slots[host]._value)
        await wait(self, host, seconds)

    monkeypatch.setattr(Client, "_wait_for_turn", noted)
    own, other = (url.split("/")[2].split(":")[0] for url in server.urls[:2])
    for clients in (1, 4):
        limits = replace(LIMITS, host_rate=100, per_host=8, clients=clients, robots=False)
        fetch([(server.urls[0] + "missing", f"train/{0:016x}")], tmp_path / str(clients), quietly, limits=limits,
              second_source=server.urls[1] + "good/1?{photo_id}")
        assert turns == {own: (0.01, 7), other: (0.01 * clients, 8 // clients - 1)}


def test_without_ray_one_sentence_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(cli.app, ["data", "photos", "--list", "x", "--out", str(tmp_path / "photos"), "--ray", "auto"])
    assert done.exit_code == 1 and "pip install -e '.[cluster]'" in done.stderr and "\n" not in done.stderr.strip()


@pytest.mark.parametrize("address, message", [
    ("nowhere", "expected HOST:PORT"), ("head:0", "expected HOST:PORT"), ("http://head:1", "expected HOST:PORT"),
    ("127.0.0.1:1", "no Ray cluster there .*refused"), ("[::1]:1", "no Ray cluster there"), (None, "something else than Ray answers")])
def test_an_address_without_a_cluster_is_one_sentence(address, message, server, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # which is not asked yet
    done = CliRunner().invoke(cli.app, ["data", "photos", "--list", "x", "--out", str(tmp_path / "photos"), "--ray",
                                        address or server.url[7:-1]])
    assert done.exit_code == 1 and re.search(message, done.stderr) and "\n" not in done.stderr.strip(), done.stderr


def test_a_node_that_does_not_share_the_folder_is_noticed(tmp_path):
    probe, file = cluster._probe(), tmp_path / "probe"
    assert "cannot be used there" in probe(str(file), "token", "node")[1]
    file.write_text("another token")
    assert "another folder" in probe(str(file), "token", "node")[1]
    assert not probe(str(file), "another token", "node")[1] and (tmp_path / "probe-node").exists()
