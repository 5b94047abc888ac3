"""Whether a configuration's training fits a device, and what it takes there, before anything is downloaded.

All sizes are in GiB (2³⁰ bytes). The plan is of one device at the fullest moment of a training step with the
largest usual batch, and of answering, see ``step_memory``. Added to what is counted are CUDA's context and a
margin for fragmentation; not in it is what a data loader's workers take.

Of several processes on one machine, each has a device of its own; see ``part_memory`` for what it holds.
"""

import dataclasses
from collections.abc import Iterable
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

from e2e_lib.config import Config, ConfigError, replace
from e2e_lib.experiments.part_memory import Held, Part, held, sizes_of, states
from e2e_lib.experiments.step_memory import GRADIENTS, answering_bytes, full_batch, step_bytes
from e2e_lib.models import systems
from e2e_lib.models.meta_parts import build
from e2e_lib.settings import did_you_mean
from e2e_lib.training.precision import check_sharding

GIB = 2**30
CONTEXT = 1.0  # GiB: an estimate of CUDA's context, its kernels, and workspaces of cuBLAS and cuDNN
MARGIN = 1.03  # of all that is allocated: what an allocator cannot use, being in pieces
NETWORK = 0.5  # GiB: an estimate of NCCL's own buffers, where there are several processes
PYTHON = 2.0  # GiB of host memory: Python, the libraries and a few batches


class Device(NamedTuple):
    """An accelerator: the memory that PyTorch reports on it in GiB, and whether it computes in bf16."""

    gib: float
    has_bf16: bool = True


# The least that PyTorch's own messages report of each.
DEVICES = {"v100-16gb": Device(15.77, False), "v100-32gb": Device(31.73, False), "a100-40gb": Device(39.39),
           "a100-80gb": Device(79.14), "h100-80gb": Device(79.1), "h200-141gb": Device(139.7),
           "t4-16gb": Device(14.56, False), "rtx-4090-24gb": Device(23.5)}

Settings = dict[str, Any]
# Settings that need less memory, those that cost least first.
CHANGES: tuple[Settings, ...] = (
    {"train.optimizer": "adamw8bit"}, {"train.checkpointing": "true"}, {"model.language_bits": 4},
    {"model.unet_lora": 16}, {"train.batch_size": 1}, {"model.language_lora": 32},
    {"model.language_lora": 32, "model.language_bits": 4}, {"model.perceptron_trains": "qformer"},
    {"train.mixed_precision": "fp16", "model.frozen": "float16"}, {"data.max_context": 512})


SHARED_STATES: Settings = {"train.optimizer_sharding": True}
SHARED: Settings = {"train.full_sharding": True, "train.optimizer_sharding": False}
NOT_SHARED: Settings = {"train.full_sharding": False, "train.optimizer_sharding": False}


class Usage(NamedTuple):
    """What a configuration takes, in GiB: rows of its parts, and totals while training and answering."""

    parts: list[dict[str, Any]]
    training: float
    answering: float
    learnt: float
    states: float
    host: float

    @property
    def total(self) -> float:
        return max(self.training, self.answering)


def plan(config: Config, device: str, processes: int = 1) -> dict[str, Any]:
    """The plan as one object: ``total_gb``, ``parts``, ``fits``, ``device``, ``advice`` and more.

    Of several ``processes``, all of one machine, it is for each of their devices; host memory and disk are
    those of the machine. ``traffic_gb`` is what each sends in a step.

    ``advice`` is None where it fits; else settings that, changed together, make it fit or come nearest, found
    by planning again. Raises ConfigError for an unknown device, or settings that cannot work on it, and
    CheckpointError for parts whose configurations cannot be read.
    """
    there = device_named(device)
    check(config, device)
    usage, batch = _usage(config, processes), full_batch(config)
    fits = usage.total <= there.gib
    return {
        "profile": config.profile, "system": config.model.system, "device": device, "device_gb": there.gib,
        "total_gb": round(usage.total, 2), "fits": fits, "training_gb": round(usage.training, 2),
        "answering_gb": round(usage.answering, 2), "parts": usage.parts, "context_gb": CONTEXT,
        "margin": MARGIN,
        # The last checkpoint, the one before and the one being written; and the best weights.
        "disk_gb": round(4 * usage.learnt + 3 * usage.states, 2),
        "host_gb": round(processes * usage.host, 2), "processes": processes,
        "traffic_gb": round(_traffic(config, usage.learnt, processes), 2),
        "batch": dataclasses.asdict(batch), "advice": None if fits else _advice(config, there, processes)}


def _traffic(config: Config, learnt: float, processes: int) -> float:
    """GiB that a process sends in a step: its part of the gradients' sum, there and back in a ring; and of
    the weights that it made new for the others. Shares are put together for each batch, forward and backward,
    and its gradients are added up."""
    steps = config.train.gradient_accumulation_steps
    times = 3 * steps if config.train.full_sharding else 2 + config.train.optimizer_sharding
    return times * learnt * (processes - 1) / processes


def device_named(name: str) -> Device:
    """One of ``DEVICES``. Raises ConfigError for another name."""
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is unknown; known: {', '.join(DEVICES)}"
                          f"{did_you_mean(name, DEVICES)}")
    return DEVICES[name]


def check(config: Config, device: str) -> None:
    """Raises ConfigError for number formats that do not work together, or not on the device."""
    systems.check_formats(config)
    check_sharding(config.train)
    if config.train.mixed_precision == "bf16" and not device_named(device).has_bf16:
        raise ConfigError(f"train.mixed_precision = 'bf16': {device} has no bf16 of its own and would "
                          "emulate it, slowly; use fp16")


def lines(planned: dict[str, Any]) -> list[str]:
    """A plan as a table and sentences."""
    columns = ("weights", "gradients", "states", "activations")
    head = f"{'part':16s}{'parameters':>15s}{'learnt':>14s}" + "".join(f"{name:>13s}" for name in columns)
    rows = [head, *(_row(part, columns) for part in planned["parts"])]
    total = {name: sum(part[f"{name}_gb"] for part in planned["parts"]) for name in columns}
    counts = {name: sum(part[name] for part in planned["parts"]) for name in ("parameters", "learnt")}
    rows += ["-" * len(head), _row({"name": "all", "formats": {}, **counts,
                                    **{f"{name}_gb": size for name, size in total.items()}}, columns)]
    batch = planned["batch"]
    rows += [
        "", "GiB at the fullest moment of a training step; weights in "
        + ", ".join(sorted({name for part in planned["parts"] for name in part["formats"]})),
        f"batch: {batch['examples']} examples of {batch['tokens']} tokens, {batch['learnt']} of them learnt, "
        f"{batch['context_photos']} photos in contexts and {batch['response_photos']} in responses",
        f"training {planned['training_gb']:.2f}, answering {planned['answering_gb']:.2f} (with "
        f"{CONTEXT:.1f} for CUDA's context and a margin of {MARGIN - 1:.0%})",
        f"disk for checkpoints {planned['disk_gb']:.1f}, host memory {planned['host_gb']:.1f}"]
    if planned["processes"] > 1:
        rows.append(f"each of {planned['processes']} processes has a device like this, and sends "
                    f"{planned['traffic_gb']:.2f} in a step; disk and host memory are of all together")
    rows.append("")
    verdict = "fits" if planned["fits"] else "does not fit"
    rows.append(f"{planned['total_gb']:.2f} GiB {verdict} {planned['device']} ({planned['device_gb']:.2f} "
                "GiB)")
    if advice := planned["advice"]:
        settings = " ".join(f"--set {setting}" for setting in advice["set"]) or "no change of settings"
        result = "it fits" if advice["fits"] else (
            "the least that settings reach, and too much: take a larger device, or a smaller model.language "
            "(profile small)")
        rows.append(f"with {settings}: {advice['total_gb']:.2f} GiB, {result}")
    return rows


def _row(part: dict[str, Any], columns: Iterable[str]) -> str:
    sizes = "".join(f"{part[f'{name}_gb']:13.2f}" for name in columns)
    return f"{part['name']:16s}{part['parameters']:15,d}{part['learnt']:14,d}{sizes}"


class Measured(NamedTuple):
    """Everything but optimizer states: parts, bytes by owner at the fullest moment of a step, bytes of
    answering (weights left out of both), and what loading takes besides the weights."""

    parts: list[Part]
    at_peak: dict[str, int]
    answering: int
    loading: int


def _usage(config: Config, processes: int = 1) -> Usage:
    measured = _measured(_without_optimizer(config))
    made = _made(config, measured, processes)
    others = [name for name in made if name not in {part.name for part in measured.parts}]
    own = held(config, measured.parts, measured.at_peak, processes)
    nothing = Held(0, 0, 0, 0)
    rows: list[dict[str, Any]] = []
    for part in (*measured.parts, *(Part(name, 0, (), {}, 0) for name in others)):
        weights, gradients, of_optimizer, _ = own.get(part.name, nothing)
        sizes = {"weights": weights, "gradients": gradients, "states": of_optimizer,
                 "activations": made.get(part.name, 0)}
        rows.append({"name": part.name, "parameters": part.parameters, "learnt": sum(part.learnt),
                     "formats": {name: round(size / GIB, 4) for name, size in part.formats.items()},
                     **{f"{key}_gb": round(size / GIB, 4) for key, size in sizes.items()}})
    whole = sum(part.weights for part in measured.parts) / GIB
    all_states = sum(states(config, measured.parts, 1).values()) / GIB
    learnt = sum(4 * sum(part.learnt) for part in measured.parts) / GIB  # what learns is in float32
    host = PYTHON + max(whole + measured.loading / GIB, learnt + all_states)
    extra = CONTEXT + (NETWORK if processes > 1 else 0)
    training, answering = (size / GIB * MARGIN + extra for size in (
        sum(sum(sizes[:3]) for sizes in own.values()) + sum(made.values()),
        sum(sizes.answering for sizes in own.values()) + measured.answering))
    return Usage(rows, training, answering, learnt, all_states, host)


def _made(config: Config, measured: Measured, processes: int) -> dict[str, int]:
    """Bytes of all that a step makes but gradients, at its fullest moment, by owner."""
    made = {name: size for name, size in measured.at_peak.items() if not name.startswith(GRADIENTS)}
    if processes == 1 or not config.train.full_sharding:
        return made
    made["image gradient"] = made.get("image gradient", 0) // processes
    # Once the activations are gone, gradients of what is not in layers are copied to be sent.
    copies = {part.name: part.rest_bytes for part in measured.parts} | {
        "image gradient": made["image gradient"]}
    return max(made, copies, key=lambda sizes: sum(sizes.values()))


@cache
def _measured(config: Config) -> Measured:
    parts = build(config)
    sizes, perceptron = sizes_of(parts.modules()), parts.perceptron
    # The perceptron is read in float32, whatever its ViT ends in.
    loading = sum(p.numel() * (4 - p.element_size()) for p in perceptron.parameters()) if perceptron else 0
    answering = answering_bytes(parts, config)
    return Measured(sizes, dict(step_bytes(parts, config, full_batch(config))), answering, loading)


def _without_optimizer(config: Config) -> Config:
    """None of them makes anything in a step that another does not."""
    return _with(config, {"train.optimizer": "adamw", "train.optimizer_sharding": False,
                          "train.full_sharding": False})


def _advice(config: Config, device: Device, processes: int = 1) -> dict[str, Any]:
    """Settings that make it fit: of single changes the first that does, else of all up to one of them.

    What a change saves is estimated, and a change whose estimate fits is planned before it is named.
    """
    changes = _changes(config, processes)
    together = list(accumulate(changes, lambda one, other: one | other))
    for change in ({}, *changes, *together):
        changed = _with(config, change)
        if _estimate(config, changed, processes) > device.gib or (
                usage := _usage(changed, processes)).training > device.gib:
            continue
        if usage.answering > device.gib:
            change = change | {"inference.batch_size": _fewer_answers(changed, device, processes)}
        if _usage(_with(config, change), processes).total <= device.gib:
            return _advised(config, change, device, processes)
    return _advised(config, (together[-1] if together else {}) | {"inference.batch_size": 1}, device,
                    processes)


def _advised(config: Config, changes: Settings, device: Device, processes: int) -> dict[str, Any]:
    total = _usage(_with(config, changes), processes).total
    return {"set": [f"{key}={value}" for key, value in changes.items()], "total_gb": round(total, 2),
            "fits": total <= device.gib}


def _changes(config: Config, processes: int = 1) -> list[Settings]:
    """``CHANGES`` that change something: a smaller batch makes a step of more of them, a rank stays."""
    changes: list[Settings] = []
    for change in CHANGES:
        if "train.optimizer" in change and processes > 1 and config.train.optimizer == "adamw":
            # States in 8 bits cannot be shared out: it is the one or the other.
            train = config.train
            changes += [SHARED_STATES] * (not train.optimizer_sharding and not train.full_sharding)
            changes += [SHARED] * (not config.model.language_lora and not train.full_sharding)
            changes.append(change | NOT_SHARED)
        elif "model.language_lora" in change and config.train.full_sharding:
            changes += [change | NOT_SHARED] * _changes_something(config, change)
        elif change == {"train.batch_size": 1}:
            size, steps = config.train.batch_size, config.train.gradient_accumulation_steps
            while size > 1:
                size, steps = size // 2, steps * 2
                changes.append({"train.batch_size": size, "train.gradient_accumulation_steps": steps})
        elif change == {"data.max_context": 512}:
            changes += [change] * (config.data.max_context > 512)
        elif _changes_something(config, change):
            changes.append(change)
    return changes


def _changes_something(config: Config, change: Settings) -> bool:
    changed = _with(config, change)
    has_rank = any(key.endswith("_lora") and getattr(config.model, key.partition(".")[2]) for key in change)
    if "model.language_bits" in change and not _goes_in_4_bits(changed):
        return False
    return changed != config and not has_rank


def _goes_in_4_bits(changed: Config) -> bool:
    """Whether the language model of a configuration is one that can be in 4 bits; Divter has none."""
    try:
        _parts(_without_optimizer(changed))
    except ConfigError:
        return False
    return changed.model.system != "divter"


def _with(config: Config, settings: Settings) -> Config:
    for key, value in settings.items():
        config = replace(config, key, value)
    return config


def _fewer_answers(config: Config, device: Device, processes: int = 1) -> int:
    usage, count = _usage(config, processes), config.inference.batch_size
    each = _measured(_without_optimizer(config)).answering * MARGIN / GIB / count
    room = device.gib - (usage.answering - each * count)
    return max(1, min(count, int(room / each)))


def _estimate(config: Config, changed: Config, processes: int = 1) -> float:
    """About how much a changed configuration takes, by its weights, gradients and states, and activations in
    proportion to its batch."""
    share = (changed.train.batch_size / config.train.batch_size
             * changed.data.max_context / config.data.max_context)
    if changed.train.checkpointing and not config.train.checkpointing:
        share *= 0.3  # of the parts at hand, about
    activations = sum(_made(changed, _measured(_without_optimizer(config)), processes).values())
    return _static(changed, processes) + share * activations * MARGIN / GIB


@cache
def _static(config: Config, processes: int = 1) -> float:
    """GiB without what a step makes: weights, gradients and states."""
    parts = _parts(_without_optimizer(config))
    gradients = {GRADIENTS + part.name: part.learnt_bytes for part in parts}
    total = sum(sum(sizes[:3]) for sizes in held(config, parts, gradients, processes).values())
    return total / GIB * MARGIN + CONTEXT + (NETWORK if processes > 1 else 0)


@cache
def _parts(config: Config) -> list[Part]:
    return sizes_of(build(config).modules())
