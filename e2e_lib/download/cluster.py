"""Fetching on several machines: ``e2e data photos --ray ADDRESS`` (section 3.1.1).

The addresses are divided by host into as many parts as the cluster has CPUs, and each part is a Ray task. A
task is told where its part's folder is and nothing else, so that one whose node is lost goes on elsewhere
from where it was, and a killed driver leaves parts that the next run merges. Therefore the photo folder has
to be on a file system that all nodes share, under the same path; files are written and read to see that.

Every node needs this package, as it needs its dependencies: Ray could send the package along, but not aiohttp
and Pillow, so that an environment of its own on each node is no more work, and says what is missing.

Ray runs whatever code it is sent, by whoever reaches its ports: only a cluster in a network that is trusted
belongs here.
"""

import contextlib
import importlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from e2e_lib.data.dialogue import DataError
from e2e_lib.data.photo_index import PhotoIndex
from e2e_lib.download import photos
from e2e_lib.download.parts import PARTS, merge_parts, write_parts
from e2e_lib.download.photos import Echo, Options, Runner
from e2e_lib.download.progress import Progress, saved
from e2e_lib.repro import files

MOST_PARTS = 200  # each has a file open while they are written
TRIES = 5  # of a part, on as many nodes
ENDING_SECONDS = 10.0  # for tasks that were told to end
TICK = 0.5  # seconds between two looks at the parts
ANSWER_SECONDS = 4.0  # for an address to answer at all
NODE_SECONDS = 120.0  # for every node to import the package and look at the folder
# HTTP/2's greeting, and an empty frame of settings; a server that speaks it begins with its own settings.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


class ClusterError(RuntimeError):
    """A Ray cluster cannot be used; the message says which part of it, and what to do."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[Runner]:
    """Connects with the Ray cluster at ``address`` ("HOST:PORT" of its head, or "auto" for the one that runs
    on this machine, which has to be one of its nodes); what it gives goes to ``photos.fetch`` as ``run``.

    Only a trusted cluster belongs here: Ray runs whatever it is sent. Raises ClusterError.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ClusterError("--ray needs Ray, which is not installed; pip install -e '.[cluster]' brings it, "
                           "on every node") from None
    _check_address(address)
    if ray.is_initialized():  # by a notebook, which ends it as well
        yield partial(_run, ray)
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it says what will change in it
    with _same_signals():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise ClusterError(f"--ray {address}: {_first_line(error)}; this machine has to be a node of the "
                               "cluster, with the same versions of Python and Ray") from None
    try:
        yield partial(_run, ray)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raises ClusterError where nothing answers: Ray would wait for long, and then end the process."""
    if address == "auto":
        return
    found = re.fullmatch(r"\[?([^\s/]+?)\]?:(\d{1,5})", address)
    if not found or not 0 < int(found[2]) < 65536:
        raise ClusterError(f"--ray {address!r}: expected HOST:PORT of the cluster's head, or auto")
    reason = "something else than Ray answers"
    try:
        with socket.create_connection((found[1], int(found[2])), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except OSError as error:
        answer, reason = b"", str(error.strerror or error)
    if answer[3:4] != b"\4":
        raise ClusterError(f"--ray {address}: no Ray cluster there ({reason}); `ray status` on the cluster's "
                           "head shows its address")


@contextlib.contextmanager
def _same_signals() -> Iterator[None]:
    """Keeps what happens on SIGTERM as it is: Ray has a way of its own, which would lose our last words."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            signal.signal(signal.SIGTERM, handler)


def _run(ray: Any, index: PhotoIndex, statuses: Sequence[str], options: Options,
         echo: Echo) -> tuple[Progress, dict[str, Any]]:
    """Fetches what has one of the ``statuses`` on the cluster: a ``photos.Runner``."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    cpus = sum(int(node["Resources"]["CPU"]) for node in nodes)
    if not nodes:
        raise ClusterError("the Ray cluster has no node with a CPU")
    _check_nodes(ray, [node["NodeID"] for node in nodes], index.folder.resolve())
    split = write_parts(index, statuses, min(cpus, MOST_PARTS))
    total = sum(split.counts)
    echo(f"photos: {total:,} addresses in {len(split.counts):,} parts, by host, on {len(nodes):,} nodes")
    for count in split.large:
        echo(f"photos: one host has {count:,} addresses and stays whole; a fair part has {split.fair:,}")
    limits = replace(options.limits, clients=max(1, len(split.counts)))
    task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_fetch_part)
    tasks = [task.remote(str(folder.resolve()), replace(options, limits=limits, decoders=1))
             for folder in split.folders]
    try:
        progress = _wait(ray, tasks, split.folders, total, echo)
    except BaseException:  # an interruption as well
        for running in tasks:
            ray.cancel(running, force=True)
        with contextlib.suppress(DataError):  # a task that does not end: the next run takes what it had
            merge_parts(index, ENDING_SECONDS)
        raise
    merge_parts(index)
    return progress, {"parts": len(split.counts), "fair_part": split.fair, "large_hosts": split.large}


def _fetch_part(folder: str, options: Options) -> str:
    """The task: fetches a part. Returns what went wrong, on which machine; "" for nothing."""
    try:
        photos.fetch_part(Path(folder), options)
    except (DataError, files.SaveError) as error:
        return f"on {socket.gethostname()}: {error}"
    return ""


def _wait(ray: Any, tasks: list[Any], folders: list[Path], total: int, echo: Echo) -> Progress:
    """Waits for all tasks and says how far they are. Raises DataError, also where all fails alike."""
    waiting, last, progress = list(tasks), time.monotonic(), Progress()
    while waiting:
        time.sleep(TICK)  # here and not in Ray, which would lose the exit code of an interruption
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        for task in ready:
            if problem := _result(ray, task):
                raise DataError(problem)
        progress = saved(folders)
        progress.check_network()
        if time.monotonic() - last > photos.EVERY_SECONDS:
            last = time.monotonic()
            found = ", ".join(f"{count:,} {name}" for name, count in progress.statuses.most_common())
            echo(f"photos: {progress.done:,} of {total:,} asked for: {found}")
    return progress


def _result(ray: Any, task: Any) -> str:
    try:
        return str(ray.get(task))
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a task of the Ray cluster failed: {_first_line(error)}. What came is kept: the "
                           "same command goes on") from None


def _check_nodes(ray: Any, nodes: Sequence[str], folder: Path) -> None:
    """Raises ClusterError for nodes that lack this package or do not share the photo folder."""
    place = folder / PARTS
    place.mkdir(parents=True, exist_ok=True)
    written, token = place / "probe", os.urandom(8).hex()
    written.write_text(token)
    probe = ray.remote(num_cpus=0, max_retries=2)(_probe())
    on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    tasks = [probe.options(scheduling_strategy=on_node(node, soft=False)).remote(str(written), token, node)
             for node in nodes]
    try:
        found = ray.get(tasks, timeout=NODE_SECONDS)
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node of the Ray cluster does not answer: {_first_line(error)}") from None
    for node, (name, problem) in zip(nodes, found, strict=True):
        if not problem and not place.joinpath(f"probe-{node}").is_file():
            problem = "what it writes into the photo folder is not seen here"
        if problem:
            raise ClusterError(f"node {name} of the Ray cluster: {problem}. Each node needs this package "
                               f"(pip install -e '.[cluster]') and {folder} on a file system they share")


def _probe() -> Callable[[str, str, str], tuple[str, str]]:
    """What each node is asked first: its name, and what it lacks ("" for nothing).

    It is a function inside another one: Ray sends such a one whole, also to where this package is not.
    """
    def probe(path: str, token: str, node: str) -> tuple[str, str]:
        import platform
        try:
            import e2e_lib.download.cluster  # noqa: F401
        except ImportError as error:
            return platform.node(), f"e2e_lib cannot be imported ({error})"
        try:
            with open(path) as file:
                is_same = file.read() == token
            with open(f"{path}-{node}", "w"):
                pass
        except OSError as error:
            return platform.node(), f"the photo folder cannot be used there ({error.strerror})"
        return platform.node(), "" if is_same else "another folder is under the photo folder's path there"
    return probe


def _first_line(error: BaseException) -> str:
    """What a library's error says, on one line and no longer than one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]
