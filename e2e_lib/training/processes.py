"""Several processes that train one model: how they meet, wait for each other, and end together.

``torchrun`` or ``launch`` starts them; everything here does nothing where there is one. Each tells the others
every few seconds that it lives. So one may work for hours while the others wait, and one that has died is
found at once, whatever the network's own limits are.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import distributed

Made = TypeVar("Made")
WAIT = timedelta(hours=12)  # how long a process waits for others that live
EVERY = 2.0  # seconds between two signs of life
SILENCE = 40.0  # seconds after which a process that gives none is taken for dead


class ProcessError(RuntimeError):
    """Another process ended or is in the way; the message names it and says what to do."""


def meet() -> PartialState:
    """This process among those of its run; they meet at the first call, with ``WAIT`` as their limit.

    Raises ProcessError where they do not.
    """
    # Unless it is told so, accelerate lets each process train by itself where there is no accelerator.
    count = int(os.environ.get("WORLD_SIZE", "1"))
    state = PartialState(cpu=count > 1 and not torch.cuda.is_available(), timeout=WAIT)
    if state.num_processes != count:
        raise ProcessError(f"WORLD_SIZE = {count}, but this process is one of {state.num_processes}; start "
                           "them with torchrun, or unset WORLD_SIZE")
    return state


def from_first(make: Callable[[], Made]) -> Made:
    """What ``make`` gives in the first process alone: all get it, or the package's error that it raised."""
    state = meet()
    if state.num_processes == 1:
        return make()
    made: list[Any] = [None, None]
    if state.is_main_process:
        try:
            made[0] = make()
        except Exception as error:
            if not type(error).__module__.startswith("e2e_lib."):
                raise
            made[1] = error
    made = broadcast_object_list(made)
    if made[1]:
        raise made[1]
    return made[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Watches over the other processes while a block runs: if one of them ends without having finished the
    block, this one ends as well, within a minute, and says which it was.

    An error of communication becomes a ProcessError; a process that waits is ended with a message.
    """
    state = meet()
    if state.num_processes == 1 or _Watch.current:
        yield
        return
    watch = _Watch.current = _Watch(state)
    try:
        yield
        watch.leave("")
    except Exception as error:
        if lost := watch.lost_by(error):
            raise ProcessError(lost) from None
        watch.leave(str(error) or type(error).__name__)
        raise
    except BaseException:
        watch.leave("interrupted")
        raise
    finally:
        _Watch.current = None
        watch.stop()


class _Watch:
    """A thread that tells the others that this process lives, and hears whether they do."""

    current: "_Watch | None" = None
    blocks = 0  # that were watched before: as many in each process

    def __init__(self, state: PartialState) -> None:
        # A connection of its own: a process waits in the other one, and must be heard meanwhile.
        common: Any = distributed.distributed_c10d._get_default_store()
        _Watch.blocks += 1
        self.store = distributed.PrefixStore(f"e2e/{_Watch.blocks}", common.clone())
        self.store.set_timeout(timedelta(seconds=SILENCE / 2))
        self.own, self.count = state.process_index, state.num_processes
        self.signs, now = 0, time.monotonic()
        self.heard = {rank: ("", now) for rank in range(self.count) if rank != self.own}
        self.ended, self.reached = threading.Event(), now
        where = f"process {self.own} (pid {os.getpid()} on {socket.gethostname()})"
        self.store.set(f"where/{self.own}", where)
        self.thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(EVERY):
            # Where all end for the same reason, each says so itself.
            if (lost := self.lost()) and not self.ended.wait(EVERY):
                print(f"\n{lost}", file=sys.stderr, flush=True)
                os._exit(1)  # the main thread may wait in a call that nothing else ends

    def lost(self) -> str:
        """A sign of life; then who of the others has ended without having finished, in words, or ""."""
        now = time.monotonic()
        try:
            self.signs += 1
            self.store.set(f"alive/{self.own}", str(self.signs))
            self.reached = now
            for rank, (before, _) in self.heard.items():
                if reason := self._get(f"left/{rank}"):
                    self.heard[rank] = (reason, now)
                    if reason != "finished":
                        return self._said(rank, f"ended: {reason}")
                elif (sign := self._get(f"alive/{rank}")) != before:
                    self.heard[rank] = (sign, now)
        except RuntimeError:  # the process that all others reach each other by is gone
            if now - self.reached > SILENCE / 2:
                return self._said(0, "cannot be reached any more")
            return ""
        for rank, (_, since) in self.heard.items():
            if now - since > SILENCE:
                return self._said(rank, f"died, or its machine did: no sign of life for {SILENCE:.0f} s")
        return ""

    def _get(self, key: str) -> str:
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _said(self, rank: int, what: str) -> str:
        try:
            who = self._get(f"where/{rank}") or f"process {rank}"
        except RuntimeError:
            who = f"process {rank}"
        return f"{who} {what}. All end; the same command goes on from the last checkpoint"

    def lost_by(self, error: BaseException) -> str:
        """If ``error`` is one of communication: who of the others was lost, as soon as that is known."""
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            return ""
        until = time.monotonic() + SILENCE + EVERY
        while not (lost := self.lost()) and time.monotonic() < until:
            time.sleep(EVERY)
        return lost or f"another process of this run ended ({error})"

    def leave(self, why: str) -> None:
        """Tells the others that this process has finished, or why it ends."""
        with contextlib.suppress(RuntimeError):  # they have ended before
            self.store.set(f"left/{self.own}", why or "finished")

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()


def launch(count: int, arguments: Sequence[str]) -> None:
    """Runs ``e2e ARGUMENTS`` in ``count`` processes of this machine, as ``torchrun`` does, to their end.

    Raises ProcessError naming the first that failed; all others are then ended.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Advice of DDP's that does not hold here: some batches leave a part unused, and others none.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Grad strides do not match:UserWarning")
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", run_id="e2e",
                          rdzv_endpoint="localhost:0", max_restarts=0, logs_specs=DefaultLogsSpecs())
    try:
        elastic_launch(config, sys.executable)("-m", "e2e_lib", *arguments)
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = (f"was ended by {signal.Signals(-failure.exitcode).name}" if failure.exitcode < 0
               else f"failed (exit code {failure.exitcode}); its own message stands above")
        raise ProcessError(f"process {rank} (pid {failure.pid}) {how}. All have ended; the same command goes "
                           "on from the last checkpoint") from None
