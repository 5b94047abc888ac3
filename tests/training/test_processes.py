"""Processes that train together: what one makes all get, one that died is named, and `launch` starts and ends them."""

import os
import re
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from typer.testing import CliRunner

from e2e_lib import __main__ as cli
from e2e_lib.config import ConfigError, Train
from e2e_lib.training import processes
from e2e_lib.training.precision import new_optimizer
from e2e_lib.training.processes import ProcessError, from_first, launch, meet, together


def test_one_process_is_its_own_first_and_watches_nobody():
    before = threading.active_count()
    with together():
        assert threading.active_count() == before and from_first(lambda: 3) == 3 and meet().num_processes == 1

    def fail():
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="^no$"), together():
        from_first(fail)


def test_a_process_that_would_train_by_itself_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    meet_alone = SimpleNamespace(num_processes=1)
    monkeypatch.setattr(processes, "PartialState", lambda **_: meet_alone)
    with pytest.raises(ProcessError, match="WORLD_SIZE = 2, but this process is one of 1; start them with torchrun"):
        meet()


@pytest.fixture
def pair(monkeypatch):
    """Two processes' watches, both in this one, by a store in memory; no threads, and a clock of their own."""
    store, clock = distributed.HashStore(), SimpleNamespace(now=0.0)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", lambda: SimpleNamespace(clone=lambda: store))
    monkeypatch.setattr(processes.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None, join=lambda: None))
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: None))

    def watch(own):
        monkeypatch.setattr(processes._Watch, "blocks", 0)
        return processes._Watch(SimpleNamespace(process_index=own, num_processes=2))

    return watch(0), watch(1), clock


def test_a_process_that_is_silent_too_long_is_named(pair):
    one, two, clock = pair
    for _ in range(50):  # both live
        clock.now += processes.SILENCE / 10
        assert one.lost() == two.lost() == ""
    for _ in range(10):  # the second one is silent
        assert one.lost() == ""
        clock.now += processes.SILENCE / 10
    clock.now += 1
    assert re.match(rf"process 1 \(pid {os.getpid()} on \S+\) died, or its machine did: no sign of life for 40 s. All end; "
                    "the same command goes on from the last checkpoint", one.lost())


def test_why_a_process_ended_is_passed_on_and_one_that_finished_is_not_missed(pair):
    one, two, clock = pair
    two.leave("the disk is full")
    assert re.match(r"process 1 \(pid .*\) ended: the disk is full. All end", one.lost())
    one.leave("")
    for _ in range(30):
        clock.now += processes.SILENCE / 10
        assert two.lost() == ""


def test_an_error_of_communication_is_that_of_who_was_lost(pair):
    one, two, clock = pair
    assert one.lost_by(ValueError("mine")) == "" == one.lost_by(RuntimeError("shapes differ"))
    two.leave("the disk is full")
    for error in (RuntimeError("[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1"), distributed.DistNetworkError("x")):
        assert "process 1" in one.lost_by(error) and "the disk is full" in one.lost_by(error)


def test_where_the_common_store_is_gone_it_is_said_after_a_while(pair, monkeypatch):
    one, _, clock = pair

    def gone(*_):
        raise RuntimeError("Broken pipe")

    monkeypatch.setattr(one, "store", SimpleNamespace(set=gone, get=gone, check=gone))
    assert one.lost() == ""  # it may be a moment's trouble
    clock.now += processes.SILENCE / 2 + 1
    assert one.lost().startswith("process 0 cannot be reached any more")


def test_an_error_of_the_first_reaches_all(monkeypatch):
    """The others get what is broadcast, and have made nothing."""
    sent = []
    monkeypatch.setattr(processes, "broadcast_object_list", lambda objects: sent.append(objects) or sent[0])

    def fail():
        raise ConfigError("no")

    for first in (True, False):
        monkeypatch.setattr(processes, "meet", lambda first=first: SimpleNamespace(num_processes=2, is_main_process=first))
        with pytest.raises(ConfigError, match="^no$"):
            from_first(fail if first else lambda: pytest.fail("made twice"))
    sent.clear()
    for first in (True, False):
        monkeypatch.setattr(processes, "meet", lambda first=first: SimpleNamespace(num_processes=2, is_main_process=first))
        assert from_first(lambda first=first: [first]) == [True]


def test_launch_starts_processes_and_names_the_one_that_fails(tmp_path, monkeypatch, capfd):
    """A stand-in for Python, which starts in a moment."""
    script = tmp_path / "python"
    script.write_text(f"""#!{sys.executable} -S
import os, signal, sys, time
rank, what = os.environ["RANK"], sys.argv[3]
print("rank", rank, "of", os.environ["WORLD_SIZE"], sys.argv[1:], flush=True)
if what == "fail" and rank == "1":
    sys.exit(3)
if what == "kill" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if what != "run" and rank == "0":
    time.sleep(600)  # it waits for the other one
""")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    for name, value in {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": ""}.items():
        monkeypatch.setenv(name, value)  # or `launch` would set them for the tests after this one
    launch(2, ["run", "--seeds", "3"])
    assert sorted(line for line in capfd.readouterr().out.splitlines() if "rank" in line) == [
        f"rank {rank} of 2 ['-m', 'e2e_lib', 'run', '--seeds', '3']" for rank in (0, 1)]
    for what, how in (("fail", "failed .exit code 3.; its own message stands above"), ("kill", "was ended by SIGKILL")):
        with pytest.raises(ProcessError, match=rf"process 1 \(pid \d+\) {how}. All have ended; the same command goes on"):
            launch(2, [what])


def test_the_command_line_starts_the_same_command_in_each_process(monkeypatch, shipped):
    calls = []
    monkeypatch.setattr(processes, "launch", lambda count, arguments: calls.append((count, arguments)))
    line = ["train", "--profile", "smoke", "--set", "train.epochs=1", "--seeds", "4", "5", "--system", "pipeline", "--launch", "2"]
    assert CliRunner().invoke(cli.app, line).exit_code == 0
    assert calls == [(2, ["train", "--profile", "smoke", "--system", "pipeline", "--set", "train.epochs=1", "--seeds", "4", "5"])]


def test_states_of_eight_bits_are_not_shared_out():
    with pytest.raises(ConfigError, match="train.optimizer_sharding = true shares out the states of adamw, and not of adamw8bit"):
        new_optimizer([], Train(optimizer="adamw8bit", optimizer_sharding=True), torch.device("cpu"), processes=2)
