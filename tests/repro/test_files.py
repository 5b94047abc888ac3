"""What is on the disk is the old version or the new one, whatever happens in between."""

import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.repro import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=10, deadline=None)
def test_bytes_come_back_and_are_replaced(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("files") / "deep" / "file"
    for content in (first, second):
        assert files.write_bytes(path, content) == path
        assert path.read_bytes() == content and names(path.parent) == ["file"]


def test_text_and_json(tmp_path):
    assert files.write_text(tmp_path / "t", "snow ☃\n").read_bytes() == "snow ☃\n".encode()
    value = {"a": [1, 2.5, None, "☃"], "b": {"c": True}}
    assert json.loads(files.write_json(tmp_path / "j", value).read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError, match="[Oo]ut of range float"):
        files.write_json(tmp_path / "j", {"a": float("nan")})
    assert json.loads((tmp_path / "j").read_text()) == value and names(tmp_path) == ["j", "t"]


def test_files_can_be_read_by_others(tmp_path):
    with files.atomic_folder(tmp_path / "folder") as new:
        files.write_text(new / "file", "x")
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(("number", "advice"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota is used up"), (errno.EACCES, "not writable"),
                                                (errno.EROFS, "read-only"), (errno.EIO, os.strerror(errno.EIO))])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_says_why(tmp_path, monkeypatch, number, advice, call):
    path = files.write_text(tmp_path / "file", "old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, fail)
        with pytest.raises(files.SaveError, match=f"could not save {path}: .*{advice}.*untouched"):
            files.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_appears_whole(tmp_path):
    with files.atomic_folder(tmp_path / "deep" / "folder") as new:
        (new / "a").write_text("1")
        assert not (tmp_path / "deep" / "folder").exists()
    assert names(tmp_path / "deep") == ["folder"] and names(tmp_path / "deep" / "folder") == ["a"]
    with files.atomic_folder(tmp_path / "deep" / "folder") as new:
        (new / "b").write_text("2")
        assert names(tmp_path / "deep" / "folder") == ["a"]
    assert names(tmp_path / "deep") == ["folder"] and names(tmp_path / "deep" / "folder") == ["b"]  # replaced, not mixed


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_while_a_folder_is_filled_leaves_the_old_one(tmp_path, error):
    # The second is how safetensors reports it.
    folder = tmp_path / "folder"
    with files.atomic_folder(folder) as new:
        (new / "a").write_text("old")
    with pytest.raises(files.SaveError, match="the disk is full: free some space"), files.atomic_folder(folder) as new:
        (new / "a").write_text("new")
        raise error
    assert names(tmp_path) == ["folder"] and (folder / "a").read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_an_interruption_while_a_folder_is_filled_leaves_the_old_one(tmp_path, error):
    with files.atomic_folder(tmp_path / "folder") as new:
        (new / "a").write_text("old")
    with pytest.raises(type(error)), files.atomic_folder(tmp_path / "folder"):
        raise error
    assert names(tmp_path) == ["folder"] and (tmp_path / "folder" / "a").read_text() == "old"


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_rename_that_fails_loses_nothing(tmp_path, monkeypatch, fails_at):
    folder = tmp_path / "folder"
    with files.atomic_folder(folder) as new:
        (new / "a").write_text("old")
    calls, rename = [], os.replace

    def sometimes(*pair):
        calls.append(pair)
        if len(calls) == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        rename(*pair)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", sometimes)
        with pytest.raises(files.SaveError), files.atomic_folder(folder) as new:
            (new / "a").write_text("new")
    assert len(calls) == fails_at
    assert (files.recover_folder(folder) / "a").read_text() == "old" and names(tmp_path) == ["folder"]


def test_a_folder_cut_off_between_its_two_renames_is_put_back(tmp_path):
    # Killed where it hurts most: the old folder is aside, the new one not yet in place.
    script = """
import os, signal, sys
from e2e_lib.repro import files
folder, rename, calls = sys.argv[1], os.replace, []
def deadly(*pair):
    calls.append(pair)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*pair)
with files.atomic_folder(folder) as new:
    (new / "a").write_text("old")
files.os.replace = deadly
with files.atomic_folder(folder) as new:
    (new / "a").write_text("new")
"""
    folder = tmp_path / "folder"
    ended = subprocess.run([sys.executable, "-c", script, str(folder)], timeout=60,
                           env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert ended.returncode == -9 and not folder.exists()
    assert (files.recover_folder(folder) / "a").read_text() == "old"
    assert files.recover_folder(folder) == folder and (folder / "a").read_text() == "old"  # a second time changes nothing
    with files.atomic_folder(folder) as new:
        (new / "a").write_text("newer")
    assert (folder / "a").read_text() == "newer"


MOVES = """
import os, pathlib, signal, sys
from e2e_lib.repro import files
folder, name, last, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), []
def deadly(of, *arguments):
    calls.append(arguments)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    of(*arguments)
with files.atomic_files(folder) as new:
    for one in "abc":
        (new / one).write_text("old")
place = pathlib.Path if name == "rmdir" else os
setattr(place, name, (lambda of: lambda *arguments: deadly(of, *arguments))(getattr(place, name)))
with files.atomic_files(folder) as new:
    for one in "abc":
        (new / one).write_text("new")
"""


@pytest.mark.parametrize("call, number, expected", [("rename", 1, "old"), *(("replace", i, "new") for i in (1, 2, 3)), ("rmdir", 1, "new")])
def test_files_killed_at_any_of_their_moves_are_all_old_or_all_new(tmp_path, call, number, expected):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "photos").write_text("stays")
    ended = subprocess.run([sys.executable, "-c", MOVES, str(folder), call, str(number)], timeout=60, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert ended.returncode == -9
    texts = [(folder / name).read_text() for name in "abc"]
    assert texts == ["old"] * 3 if call == "rename" else texts == ["new"] * (number - 1) + ["old"] * (4 - number) if call == "replace" else True
    for _ in range(2):  # a second time changes nothing
        files.complete_files(folder)
        assert {(folder / name).read_text() for name in "abc"} == {expected} and (folder / "photos").read_text() == "stays"
    with files.atomic_files(folder) as new:
        (new / "b").write_text("newer")
    assert [(folder / name).read_text() for name in "abc"] == [expected, "newer", expected]
    assert names(folder) == ["a", "b", "c", "photos"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_files_whose_moves_fail_or_are_interrupted_are_completed_by_the_next_reader(tmp_path, monkeypatch, error, at):
    with files.atomic_files(tmp_path) as new:
        for name in "abc":
            (new / name).write_text("old")
    calls, replace = [], os.replace

    def sometimes(*pair):
        calls.append(pair)
        if len(calls) == at:
            raise error
        replace(*pair)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", sometimes)
        with pytest.raises((KeyboardInterrupt, files.SaveError), match=None if error is KeyboardInterrupt else "the disk is full.*wait in"):
            with files.atomic_files(tmp_path) as new:
                for name in "abc":
                    (new / name).write_text("new")
    assert len(calls) == at
    files.complete_files(tmp_path)
    assert {(tmp_path / name).read_text() for name in "abc"} == {"new"} and names(tmp_path) == ["a", "b", "c"]


def test_no_file_moves_where_one_cannot(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(files.SaveError, match="b: a folder of that name is there"), files.atomic_files(tmp_path) as new:
        for name in "abc":
            (new / name).write_text("new")
    assert names(tmp_path) == ["b"]


def test_two_processes_that_write_the_same_files_at_once_leave_those_of_one(tmp_path):
    with files.atomic_files(tmp_path) as first:
        for name in "abc":
            (first / name).write_text("first")
        waiting = tmp_path / files.READY  # of another process, which was killed meanwhile
        waiting.mkdir()
        (waiting / "a").write_text("second")
    assert {(tmp_path / name).read_text() for name in "abc"} == {"first"} and names(tmp_path) == ["a", "b", "c"]


def test_recovery_prefers_the_folder_in_place(tmp_path):
    for name, text in (("folder", "new"), (".folder.old", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
    assert (files.recover_folder(tmp_path / "folder") / "a").read_text() == "new"
    assert files.recover_folder(tmp_path / "absent") == tmp_path / "absent" and not (tmp_path / "absent").exists()


def test_json_lines_come_back_and_a_damaged_row_is_named(tmp_path):
    path = files.write_text(tmp_path / "log.jsonl", '{"a": 1}\n{"text": "one\u2028line"}\n')
    assert files.read_json_lines(path, "e2e train") == [{"a": 1}, {"text": "one\u2028line"}]
    files.append_text(path, '{"a": ')
    assert files.read_json_lines(path, "e2e train", growing=True) == [{"a": 1}, {"text": "one\u2028line"}]
    with pytest.raises(files.ResultsError, match=rf"{path}, row 3: damaged, .*make it again with `e2e train`"):
        files.read_json_lines(path, "e2e train")
    with pytest.raises(files.ResultsError, match="row 1: expected an object, found list"):
        files.read_json_lines(files.write_text(path, "[1]\n"), "e2e train")
    with pytest.raises(files.ResultsError, match="gone.jsonl: no such file in .*; `e2e train` makes it"):
        files.read_json_lines(tmp_path / "gone.jsonl", "e2e train")


def test_a_checkpoint_is_checked_against_its_manifest(tmp_path):
    files.write_text(tmp_path / "one" / "model.safetensors", "weights")
    with pytest.raises(files.CheckpointError, match="no readable manifest.json"):
        files.check(tmp_path / "one")
    hashes = files.sha256_folder(tmp_path / "one")
    for manifest in (hashes, {"files": hashes, "settings": {}}):
        files.write_json(tmp_path / "one" / "manifest.json", manifest)
        assert files.check(tmp_path / "one") == hashes
    assert files.weights_hash(tmp_path / "one") == hashes["model.safetensors"]
    files.write_text(tmp_path / "one" / "model.safetensors", "wEights")
    with pytest.raises(files.CheckpointError, match="damaged: model.safetensors is not what was saved"):
        files.check(tmp_path / "one")
    (tmp_path / "one" / "model.safetensors").unlink()
    with pytest.raises(files.CheckpointError, match="damaged: model.safetensors is missing; remove the folder and train again"):
        files.check(tmp_path / "one")
    with pytest.raises(files.CheckpointError, match="there is no checkpoint at .*two; train one with `e2e train`"):
        files.check(tmp_path / "two")


def test_hashes_are_those_of_sha256sum(tmp_path):
    files.write_bytes(tmp_path / "b" / "large", b"x" * 3_000_000)
    files.write_text(tmp_path / "a", "hello")
    hashes = files.sha256_folder(tmp_path)
    assert list(hashes) == ["a", "b/large"]
    assert hashes["a"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    expected = subprocess.run(["sha256sum", str(tmp_path / "b" / "large")], capture_output=True, text=True, check=True).stdout.split()[0]
    assert hashes["b/large"] == expected


KILLED = """
import os, signal, sys
from e2e_lib.repro import files
target, kind = sys.argv[1], sys.argv[2]
def stop(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "file":
    files.os.fsync = stop
    files.write_text(target, "new")
with files.atomic_folder(target) as new:
    (new / "a").write_text("half")
    stop()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path, kind):
    target, again = tmp_path / "target", files.write_text if kind == "file" else lambda path, _: files.recover_folder(path)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(target), kind], timeout=60, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert ended.returncode == -9 and len(names(tmp_path)) == 1 and not target.exists()
    files.recover_folder(tmp_path / "another")
    assert len(names(tmp_path)) == 1  # only beside its own target
    again(target, "new")
    assert names(tmp_path) == (["target"] if kind == "file" else [])


def test_a_folder_to_write_in_is_made_or_refused_at_once(tmp_path, monkeypatch):
    assert files.make_folder(tmp_path / "deep" / "parts") == files.make_folder(tmp_path / "deep" / "parts") == tmp_path / "deep" / "parts"
    assert names(tmp_path / "deep" / "parts") == []
    files.write_text(tmp_path / "file", "x")
    with pytest.raises(files.SaveError, match=f"could not save {tmp_path}/file/parts: Not a directory"):
        files.make_folder(tmp_path / "file" / "parts")

    def refused(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refused)
    with pytest.raises(files.SaveError, match="the folder is not writable"):
        files.make_folder(tmp_path / "deep")


def test_what_a_living_process_is_writing_is_left_alone(tmp_path):
    with files.atomic_folder(tmp_path / "folder") as first:
        (first / "a").write_text("1")
        with files.atomic_folder(tmp_path / "folder") as second:
            files.recover_folder(tmp_path / "folder")
            (second / "a").write_text("2")
        assert names(first) == ["a"]
    assert names(tmp_path) == ["folder"] and (tmp_path / "folder" / "a").read_text() == "1"


def test_a_new_folder_that_another_process_takes_for_abandoned_is_made_again(tmp_path, monkeypatch):
    # Between its making and its lock: the other one opens, locks and removes it first.
    lock, taken = files.fcntl.flock, []

    def late(opened, kind):
        if not taken:
            taken.append([path for path in tmp_path.iterdir()])
            taken[0][0].rmdir()
        lock(opened, kind)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.atomic_folder(tmp_path / "folder") as new:
        (new / "a").write_text("1")
        assert new not in taken[0]
    assert names(tmp_path) == ["folder"]


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    (tmp_path / ".folder.abc.tmp").mkdir()
    with files.atomic_folder(tmp_path / "folder") as new:
        (new / "a").write_text("1")
    assert names(tmp_path) == [".folder.abc.tmp", "folder"]
