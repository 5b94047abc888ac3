"""Photos fetched on a real Ray cluster of two nodes on this machine: `make cluster` installs Ray and runs this."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fault_server import FAULTS
from photo_folders import ManyHosts, content_of
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PhotoIndex
from e2e_lib.download.client import Limits
from e2e_lib.download.cluster import ClusterError, connected
from e2e_lib.download.parts import PARTS
from e2e_lib.download.photos import fetch
from e2e_lib.download.progress import ALIKE

ray = pytest.importorskip("ray")
LIMITS = Limits(seconds=3, bytes=3_000_000, tries=2, host_rate=1000, longest_pause=0.1, allow_loopback=True)
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes, connected, so that workers serve one test after the other; the second can be lost."""
    # Each of Ray's dozen processes imports this, as it comes with notebooks, and needs 2 s of CPU to do so.
    folder = tmp_path_factory.mktemp("without")
    (folder / "rfc3987_syntax.py").write_text("raise ImportError('takes too long')\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    made = pytest.importorskip("ray.cluster_utils").Cluster(initialize_head=True, head_node_args={
        "num_cpus": 1, "include_dashboard": False, "_system_config": QUICK})
    made.second = made.add_node(num_cpus=1)
    with connected(made.address) as made.run:
        yield made
    made.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.fixture
def server():
    with ManyHosts() as running:
        yield running


def until(happened, seconds=30):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def list_of(rows, path):
    path.write_text("".join(json.dumps({"url": url, "photo_id": name}) + "\n" for url, name in rows))
    return path


def command(rows, folder, address):
    return ["data", "photos", "--list", list_of(rows, folder / "list.jsonl"), "--out", folder / "photos", "--allow-loopback",
            "--second-source", "", "--ray", address]


def goes_on_without_the_cluster(server, rows, folder):
    report = fetch(rows, folder, print, limits=LIMITS)
    assert report["statuses"] == {"ok": len(rows)} and 0 < report["fetched"] <= len(rows) - 10
    assert not (folder / PARTS).exists() and all((folder / row["file"]).is_file() for row in content_of(folder)[0])
    assert sum(server.asked[path] for _, path in rows) <= len(rows) + 2 * 64  # what was in flight


def test_a_cluster_gives_what_one_machine_gives(nodes, tmp_path, capfd):
    found = []
    for name, run in (("here", None), ("there", nodes.run)):
        with ManyHosts() as server:
            report = fetch(server.rows(FAULTS), tmp_path / name, print, limits=LIMITS, run=run)
            found.append((*content_of(tmp_path / name, "url", "tries", "reason"), report["statuses"], report["fetched"]))
    assert found[0] == found[1] and (report["parts"], report["fair_part"]) == (2, -(-len(FAULTS) // 2))
    told = capfd.readouterr()
    assert "addresses in 2 parts, by host, on 2 nodes" in told.out and not told.err


def test_an_interruption_keeps_what_came(nodes, server, tmp_path):
    rows = server.rows(f"good/{i}" for i in range(240))

    def interrupt():
        until(lambda: len(list(tmp_path.glob(f"photos/{PARTS}/*/*/*.jpg"))) > 10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    done = CliRunner().invoke(cli.app, list(map(str, command(rows, tmp_path, nodes.address))))
    assert done.exit_code == 130, done.output
    assert "photos are kept in" in done.stderr and "Traceback" not in done.output
    assert not (tmp_path / "photos" / PARTS).exists()
    goes_on_without_the_cluster(server, rows, tmp_path / "photos")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_killed_driver_loses_at_most_what_was_in_flight(number, code, nodes, server, tmp_path):
    rows = server.rows(f"good/{i}" for i in range(240))
    driver = subprocess.Popen([sys.executable, "-m", "e2e_lib", *command(rows, tmp_path, nodes.address)],
                              stderr=subprocess.PIPE, text=True)
    until(lambda: len(list(tmp_path.glob(f"photos/{PARTS}/*/*/*.jpg"))) > 10)
    driver.send_signal(number)
    told = driver.communicate()[1]
    assert driver.returncode == code and told.strip().count("\n") == 0, told
    assert ("photos are kept in" in told) == (number == signal.SIGTERM) != (tmp_path / "photos" / PARTS).exists()
    goes_on_without_the_cluster(server, rows, tmp_path / "photos")


def test_what_fails_alike_in_all_parts_ends_the_run(nodes, tmp_path):
    rows = [(f"http://127.0.0.{9 + i % 4}:1/{i}", str(i)) for i in range(2 * ALIKE)]
    with pytest.raises(DataError, match="all failed .* as network"):
        fetch(rows, tmp_path, print, limits=LIMITS, run=nodes.run)
    with PhotoIndex(tmp_path) as index:
        assert index.counts()["network"] >= ALIKE and not (tmp_path / PARTS).exists()


def test_a_node_lost_on_the_way_loses_no_photo(nodes, server, tmp_path):
    rows, left = server.rows(f"good/{i}" for i in range(240)), []

    def lose():
        until(lambda: all(len(list(tmp_path.glob(f"{PARTS}/{part}/*/*.jpg"))) > 5 for part in ("000", "001")))
        nodes.remove_node(nodes.second, allow_graceful=False)
        left.append(240 - sum(server.asked.get(path, 0) for _, path in rows))

    thread = threading.Thread(target=lose)
    thread.start()
    report = fetch(rows, tmp_path, print, limits=replace(LIMITS, host_rate=30), run=nodes.run)
    thread.join()
    assert left[0] > 40  # it was lost on the way, not at the end
    assert report["statuses"] == {"ok": 240} and report["fetched"] == 240 and report["parts"] == 2
    assert all((tmp_path / row["file"]).is_file() for row in content_of(tmp_path)[0])
    assert 240 <= sum(server.asked[path] for _, path in rows) <= 240 + 64  # the part went on from where it was


def test_a_node_without_what_it_needs_is_named(nodes, tmp_path, monkeypatch):
    (tmp_path / "PIL.py").write_text("raise ImportError('no Pillow here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    nodes.add_node(num_cpus=1)
    with pytest.raises(ClusterError, match="e2e_lib cannot be imported .no Pillow here"):
        fetch([], tmp_path / "photos", print, run=nodes.run)
