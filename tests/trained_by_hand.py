"""Training by a loop of its own, to compare the package's with; and how tests run that in other processes and interrupt it."""

import multiprocessing
from dataclasses import dataclass

import pytest
import torch
from killed_training import train_in_process

from e2e_lib.config import replace
from e2e_lib.data.collate import IGNORED
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import seed_of
from e2e_lib.repro.run_files import read_log
from e2e_lib.training import checkpoints, loop
from e2e_lib.training.step import temperature_at

LEARNERS = {"end_to_end": "unet", "pipeline": "unet", "divter": "transformer"}


def quiet(_):
    pass


def changed(config, **changes):
    """The configuration with other settings, as in ``changed(config, train__epochs=2)``."""
    for key, value in changes.items():
        config = replace(config, key.replace("__", "."), value)
    return config


def log_of(folder, kind):
    return [line for line in read_log(folder) if line["kind"] == kind]


def in_process(*args, target=train_in_process, **kwargs):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["e2e_lib.training.loop"])  # the slow imports once for all processes
    process = context.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    return process


def stop_after(monkeypatch, step):
    """Interrupts a run once it has saved the checkpoint of a step."""
    save = loop._Run.save

    def interrupted(self):
        save(self)
        if self.state["step"] == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "save", interrupted)


@dataclass
class Expected:
    """What training gives by a loop of its own: the model, and for each step what its log line should say."""

    model: torch.nn.Module
    lines: list[dict]


def rounds_of(at_once):
    """Batches that so many processes take at once, one after another in the epoch's order, each with its place in the epoch."""
    def split(batches):
        rounds = [batches[k:k + at_once] for k in range(0, len(batches), at_once)]
        return [(k / len(rounds), members) for k, members in enumerate(rounds)]
    return split


def trained_by_hand(config, root, data_root, split=None):
    """Training as sections 2.5 and 3.1.2 say: AdamW on the mean gradient of each step's batches, clipped, after a warm-up.

    ``split`` says which batches of an epoch are trained on at once, by default one after another.
    """
    run, settings = loop._Run(config, 0, root / "by-hand", data_root, quiet), config.train
    torch.manual_seed(99)  # nothing may depend on torch's global state
    model, lines = build(config).train(), []
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parts = {id(p): number for number, part in enumerate(model.trained_parts().values()) for p in part.parameters()}
    groups = [[name for name, p in named.items() if parts[id(p)] == number] for number in set(parts.values())]
    optimizer = torch.optim.AdamW(named.values(), settings.learning_rate, weight_decay=settings.weight_decay)
    for epoch in range(settings.epochs):
        batches = [batch for batch, _ in run.epochs.batches(epoch)]
        rounds = (split or rounds_of(1))(batches)
        for first in range(0, len(rounds), settings.gradient_accumulation_steps):
            members = [(epoch * len(rounds) + first + k, epoch + place, process, batch)
                       for k, (place, parallel) in enumerate(rounds[first:first + settings.gradient_accumulation_steps])
                       for process, batch in enumerate(parallel)]
            mean, from_image, outputs = (dict.fromkeys(named, 0.0), dict.fromkeys(named, 0.0), [])
            tokens, photos = ([count(batch) for *_, batch in members] for count in (
                lambda batch: int((batch.labels != IGNORED).sum()), lambda batch: len(batch.captions)))
            for i, (number, place, process, batch) in enumerate(members):
                torch.manual_seed(seed_of(0, "dropout", number, process))
                outputs.append(model(batch, temperature=temperature_at(config.bridge, place),
                                     seed=seed_of(0, "noise", epoch)))
                image = outputs[-1].image_loss * (photos[i] / max(1, sum(photos)))
                joint = outputs[-1].text_loss * (tokens[i] / sum(tokens)) + settings.image_loss_weight * image
                for loss, sums in ((joint, mean), (image, from_image)):
                    gradients = (torch.autograd.grad(loss, named.values(), retain_graph=True, allow_unused=True)
                                 if loss.requires_grad else ())
                    sums |= {name: sums[name] + g for name, g in zip(named, gradients, strict=False) if g is not None}

            def size(gradients, prefix=""):
                parts = [g.flatten() for name, g in gradients.items() if name.startswith(prefix) and torch.is_tensor(g)]
                return torch.cat(parts).norm().item() if parts else 0.0

            rate = settings.learning_rate * (min(1, len(lines) / settings.warmup_steps) if settings.warmup_steps else 1)
            with_photos = [o.image_loss.item() * n for o, n in zip(outputs, photos, strict=True) if n]
            lines.append({"step": len(lines), "epoch": members[0][1], "learning_rate": rate,
                          "temperature": temperature_at(config.bridge, members[0][1]),
                          "text_loss": sum(o.text_loss.item() * n for o, n in zip(outputs, tokens, strict=True)) / sum(tokens),
                          "image_loss": sum(with_photos) / sum(photos) if with_photos else None,
                          "captions_truncated": sum(o.truncated for o in outputs),
                          "contexts_cut": sum(cut > 0 for *_, batch in members for cut in batch.context_cut),
                          "gradient_language": size(mean, "language"),
                          f"gradient_{LEARNERS[config.model.system]}": size(mean, "generator"),
                          "gradient_language_from_image": size(from_image, "language") if with_photos else None})
            optimizer.param_groups[0]["lr"] = rate
            for names in groups:
                clipping = min(1, settings.max_grad_norm / (size({name: mean[name] for name in names}) + 1e-6))
                for name in names:  # what had no part in the losses stays as it is
                    named[name].grad = mean[name] * clipping if torch.is_tensor(mean[name]) else None
            optimizer.step()
    return Expected(model, lines)


def check_trained(folder, expected, config):
    """The run's weights went where those of ``expected`` went, and its log says how."""
    weights, _ = checkpoints.load(folder / "latest")
    before, after = (dict(model.named_parameters()) for model in (build(config), expected.model))
    for part in {name.rsplit(".", 2)[0] for name in weights}:
        names = [name for name in weights if name.rsplit(".", 2)[0] == part]
        moved, apart = (torch.cat([(after[name] - other[name]).flatten() for name in names]).norm()
                        for other in (before, weights))
        assert apart <= 0.02 * moved, part
        assert all((after[name] - weights[name]).abs().max() <= 1e-5 for name in names), part
    for line, wanted in zip(log_of(folder, "step"), expected.lines, strict=True):
        for key in wanted:
            assert line[key] == (None if wanted[key] is None else pytest.approx(wanted[key], rel=2e-3, abs=1e-6)), key
