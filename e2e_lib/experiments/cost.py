"""What an epoch costs on one accelerator and on many: operations counted, hours and traffic worked out.

Operations are counted as the parts' own code runs on the meta device, with a batch of the usual size, not of
the largest, as ``plan`` has it. Hours follow from a device's peak and the share of it that training reaches,
which is an assumption here until it is measured (``tests/device/paper_scale.py``).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from e2e_lib.config import Config, ConfigError, load
from e2e_lib.experiments import growth, plan, step_memory
from e2e_lib.experiments.growth import MMDIALOG, CorpusSize
from e2e_lib.experiments.step_memory import BatchSizes
from e2e_lib.models.meta_parts import build
from e2e_lib.repro import files, results

GIB = 2**30
PEAKS = {"v100-32gb": 112.0, "a100-80gb": 312.0, "h100-80gb": 989.0}  # TFLOP/s in fp16, by their makers
UTILISATION = 0.3  # share of the peak, assumed
DEVICES = (1, 4, 8, 64)
DEVICE = "v100-32gb"
# Of MMDialog's size, see there; the others stand in the paper's Table 1.
CORPORA = ("photochat", "dialogcc", "mmdialog")


def size_of(corpus: str) -> CorpusSize:
    """The training split of one of CORPORA."""
    if corpus == "mmdialog":
        return MMDIALOG
    row = next(row for row in results.published(1)["rows"]
               if row["dataset"].lower() == corpus and row["split"] == "train")
    return CorpusSize(row["dialogues"], row["utterances_per_dialogue"], row["images_per_dialogue"])


def usual_batch(config: Config, corpus: CorpusSize) -> BatchSizes:
    """A batch of the corpus's mean sizes: of each dialogue, or response, all that its row holds."""
    full, said = step_memory.full_batch(config), corpus.turns * corpus.tokens
    photos = config.train.batch_size * corpus.photos
    if config.train.examples == "dialogues":  # of one speaker
        learnt, context, shared = said / 2, said, photos / 2
    else:
        learnt, context, shared = corpus.tokens, said / 2, photos / corpus.turns
    queries = 32 * corpus.photos
    rows = config.train.batch_size
    return replace(full, tokens=min(full.tokens, round(context + learnt + queries)),
                   learnt=round(rows * learnt),
                   context_photos=round(photos / 2) if full.context_photos else 0,
                   response_photos=max(1, round(shared)))


def epoch_cost(config: Config, corpus: str, device: str) -> dict[str, Any]:
    """Operations of a batch, hours of an epoch, gibibytes of memory that a device needs to train and of
    gradients that it sends and takes in a step, on 1, 4, 8 and 64 devices.

    Raises ConfigError for an unknown corpus or device, and CheckpointError for parts whose configurations
    cannot be read."""
    if corpus not in CORPORA or device not in PEAKS:
        raise ConfigError(f"no cost is known of {corpus} on {device}; known: {', '.join(CORPORA)}; "
                          f"{', '.join(PEAKS)}")
    size, parts = size_of(corpus), build(config)
    batch = usual_batch(config, size)
    learnt = sum(p.numel() * p.element_size() for module in parts.modules().values()
                 for p in module.parameters() if p.requires_grad)
    operations = step_memory.step_flops(parts, config, batch)
    rows_per_dialogue = 2 if config.train.examples == "dialogues" else size.turns - 1
    rows_per_dialogue /= 1 if config.train.speakers == "all" else 2
    batches = size.dialogues * rows_per_dialogue / config.train.batch_size
    seconds = operations / (PEAKS[device] * 1e12 * UTILISATION)
    rows = [{"devices": count, "hours": batches * seconds / count / 3600,
             "memory_gb": plan.plan(config, device, count)["training_gb"],
             # What a ring sends of every gradient: once to add up, once to spread.
             "traffic_gb": 2 * (count - 1) / count * learnt / GIB,
             "steps": batches / count / config.train.gradient_accumulation_steps} for count in DEVICES]
    return {"profile": config.profile, "corpus": corpus, "device": device, "utilisation": UTILISATION,
            "peak_tflops": PEAKS[device], "batch": asdict(batch), "tflop_per_batch": operations / 1e12,
            "batches": round(batches), "rows": rows}


def of_reading(config: Config, device: str, hours: Mapping[int, float]) -> dict[str, Any]:
    """What grows with a corpus: the measured rates of reading one, what they come to for MMDialog,
    ``growth.at_size``, and on each number of devices what there may be too little of; ``hours`` are those of
    an epoch of it by number of devices."""
    reading, host = growth.measure(config), plan.plan(config, device)["host_gb"]
    found = growth.at_size(reading, MMDIALOG.dialogues, growth.MMDIALOG_PHOTOS, config.data.workers)
    return {"made_up_dialogues": growth.DIALOGUES, "workers": config.data.workers,
            "photo_bytes": growth.PHOTO_BYTES, "epochs": config.train.epochs, "device": device,
            "microseconds_per_dialogue": round(1e6 * reading.seconds),
            "bytes_per_dialogue": round(reading.kept), "most_bytes_per_dialogue": round(reading.most),
            "mmdialog": {"dialogues": MMDIALOG.dialogues, "photos": growth.MMDIALOG_PHOTOS, **found,
                         "needs": growth.needs(config, hours, host, found)}}


def measure() -> Path:
    """Writes ``results/cost.json``: ``epoch_cost`` of both profiles of this scale on every corpus, with
    responses and with whole dialogues for examples; and ``of_reading`` of profile paper."""
    rows = [{"examples": form, **epoch_cost(load(profile, [f"train.examples={form}"]), corpus, DEVICE)}
            for profile in ("paper", "small") for corpus in CORPORA for form in ("responses", "dialogues")]
    usual = load("paper")
    of_mmdialog = next(row["rows"] for row in rows if (row["profile"], row["corpus"], row["examples"])
                       == ("paper", "mmdialog", usual.train.examples))
    hours = {row["devices"]: row["hours"] for row in of_mmdialog}
    return files.write_json(results.RESULTS / "cost.json", {
        "command": "e2e cost", "rows": rows, "growth": of_reading(usual, DEVICE, hours)})
