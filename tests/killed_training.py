"""Training runs for processes of their own, which must be able to import them: one kills itself, two train together."""

import contextlib
import dataclasses
import json
import os
import signal
from collections import Counter
from pathlib import Path

import torch

from e2e_lib.corpora import prepare
from e2e_lib.data.examples import split_examples
from e2e_lib.inference import respond
from e2e_lib.models.captioner import Captioner
from e2e_lib.repro import files
from e2e_lib.training import checkpoints, loop, processes
from e2e_lib.training.loop import load_trained, train


def train_in_process(config, root, data_root, kill=None):
    """What a process of its own does: trains, and kills itself in the ``call``-th checkpoint of ``kill``.

    Either half way into the weights, or between the two renames that put the checkpoint in its place.
    """
    torch.set_num_threads(1)
    where, call = kill or ("nowhere", 0)
    save_file, rename, calls = checkpoints.save_file, os.replace, Counter()

    def half_a_file(tensors, path):
        calls["save"] += 1
        save_file(tensors, path)
        if where == "weights" and calls["save"] == call:
            path.write_bytes(path.read_bytes()[:1000])
            os.kill(os.getpid(), signal.SIGKILL)

    def half_a_replacement(source, target):
        calls["replace"] += Path(source).name == "latest"
        if where == "renames" and calls["replace"] == call and Path(target).name == "latest":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    checkpoints.save_file, files.os.replace = half_a_file, half_a_replacement
    train(config, 0, lambda _: None, root=root, data_root=data_root)


@contextlib.contextmanager
def always_photos():
    """Each answer has a photo or two, whatever a model wrote: tiny parts write no captions."""
    generate = respond.generate_texts
    try:
        respond.generate_texts = lambda *given: [
            dataclasses.replace(answer, captions=["two red cars"] * (1 + len(answer.text) % 2)) for answer in generate(*given)]
        yield
    finally:
        respond.generate_texts = generate


def answered(config, root):
    """A trained run's answers to five examples, two at a time, each with a photo or two whatever it wrote."""
    model = load_trained(config, 0, root=root)
    examples, store = split_examples(prepare(config, lambda _: None, root / "data"), "dev")
    with always_photos():
        answers = respond.respond(model, examples[:5], store, dataclasses.replace(config.inference, batch_size=2), 3)
    return [[answer.text, [photo.flatten()[::97].tolist() for photo in answer.photos]] for answer in answers]


def meet(rank, root):
    """Makes this process one of two, as `torchrun` does."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    # They meet by a file instead of a port, which another test could have.
    torch.distributed.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)


def train_together(rank, configs, shared, root):
    """What each of two processes does: trains every configuration with the other, as `torchrun` starts them, and answers.

    Then both train ``shared`` for a step; and then the second one dies while they train it further. Written into ``root``
    is how many photos each captioned, its answers, what the first one said of ``shared``, and its last words.
    """
    meet(rank, root)
    generate, captioned = Captioner.generate_captions, []
    Captioner.generate_captions = lambda self, photos: captioned.append(len(photos)) or generate(self, photos)
    for config in configs:
        train(config, 0, lambda _: None, root=root, data_root=root / "data")
        answers = answered(config, root)
        (root / f"answers-{rank}-{config.model.system}.json").write_text(json.dumps(answers))
    (root / f"captioned-{rank}").write_text(str(sum(captioned)))
    said, save, step = [], loop._Run.save, loop._Run.finish_step

    def interrupted(self):
        save(self)
        raise KeyboardInterrupt

    def dies(self, *_):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, *_)

    loop._Run.save = interrupted
    with contextlib.suppress(KeyboardInterrupt):
        train(shared, 0, said.append, root=root, data_root=root / "data")
    if rank == 0:
        (root / "said").write_text("\n".join(said))
    loop._Run.finish_step, processes.SILENCE, processes.EVERY = dies, 3.0, 0.2
    try:
        train(dataclasses.replace(shared, profile="dying"), 0, said.append, root=root, data_root=root / "data")
    except processes.ProcessError as error:
        (root / "lost").write_text(str(error))
    os._exit(0)  # and not into a meeting with one who is gone
