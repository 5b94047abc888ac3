"""The helpers of notebook 04, on joint training (section 2.5) and captions that are wrong."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from e2e_lib import corpora
from e2e_lib.bridge.weighting import weighted_gradient
from e2e_lib.config import PROFILES, Config, replace
from e2e_lib.data.collate import Collator
from e2e_lib.data.examples import split_examples
from e2e_lib.data.minichat.faults import named_values
from e2e_lib.models.systems import PhotoChatModel, build, ready
from e2e_lib.report import plots, readme
from e2e_lib.repro import results, run_files
from e2e_lib.training.dev import dev_examples
from e2e_lib.training.loop import load_trained


def dev_losses(config: Config, seeds: Sequence[int], corpus: Path, count: int,
               noises: int = 4) -> pd.DataFrame:
    """The text loss (Eq. 2, nats per token) and image loss (Eq. 12) of the same ``count`` dev examples before
    joint training and after it: columns seed, loss, before, after. Image losses are means over ``noises``.

    Raises CheckpointError where a seed is not trained.
    """
    examples, store = split_examples(corpus, "dev", real_only=config.data.real_only)
    chosen = dev_examples(examples, count)

    def losses_of(model: PhotoChatModel) -> dict[str, float]:
        batch = Collator(model.formatter, store)(chosen)
        with torch.no_grad():
            outputs = [model(batch, temperature=1.0, seed=number) for number in range(noises)]
        return {"text": float(outputs[0].text_loss), "image": fmean(float(o.image_loss) for o in outputs)}

    before = losses_of(ready(build(config)))
    rows = [(seed, name, before[name], value) for seed in seeds
            for name, value in losses_of(load_trained(config, seed)).items()]
    return pd.DataFrame(rows, columns=["seed", "loss", "before", "after"])


def sum_of_gradients(from_text: Tensor, from_photo: Tensor, ratio: float) -> Tensor:
    """What goes back to the logits of captions (N, V1) with ``bridge.gradient_ratio``, of both gradients."""
    z = torch.zeros_like(from_text, requires_grad=True)
    pair = weighted_gradient(z, torch.ones(len(z), dtype=torch.bool), 1.0, ratio)
    gradient, = torch.autograd.grad(pair, z, (from_text, from_photo))
    return gradient


def named_right(folder: Path) -> tuple[int, int]:
    """Of a gallery's gold captions' thing, colour and place, how many the model's captions name, too, and how
    many there are. Raises ResultsError for a gallery that is damaged."""
    right = total = 0
    for row in run_files.read_gallery(folder):
        gold, own = named_values(row["gold"]), named_values(row["caption"] or "")
        right += sum(own.get(name) == value for name, value in gold.items())
        total += len(gold)
    return right, total


def wrong_captions(config: Config, corpus: Path, count: int) -> tuple[plots.Figure, float]:
    """The first ``count`` photos of the training split whose captions are wrong, with these captions and what
    is true, and the share of all its captions that are wrong. Captions are as the configuration trains them,
    or, where it trains right ones, as mini does."""
    data = config.data
    if data.caption_faults == "none":
        mini = PROFILES["mini"].data
        for name in ("caption_faults", "caption_fault_rate"):
            config = replace(config, f"data.{name}", getattr(mini, name))
    examples, store = split_examples(corpus, "train", real_only=data.real_only)
    pairs = {photo.photo_id: (photo.caption, other.caption)
             for one, changed in zip(examples, corpora.training_captions(config.data, examples), strict=True)
             for photo, other in zip(one.response.photos, changed.response.photos, strict=True)}
    wrong = {photo_id: pair for photo_id, pair in pairs.items() if pair[0] != pair[1]}
    shown = list(wrong.items())[:count]
    titles = [f"trained on: “{faulty}”  —  true: {', '.join(_differences(true, faulty))}"
              for _, (true, faulty) in shown]
    note = plots.footer(config.profile, [config.data.seed], f"{len(pairs):,} captions of the training split")
    figure = plots.photo_grid([store.load(photo_id) for photo_id, _ in shown], titles, columns=count,
                              heading="Training captions as they are, and their photos", side=2.2, wrap=34,
                              colours=[plots.VERMILLION] * len(shown), note=note)
    return figure, len(wrong) / len(pairs)


def _differences(true: str, faulty: str) -> list[str]:
    """What a true caption names otherwise than a faulty one; the whole caption if there is no such word."""
    named = named_values(faulty)
    return [value for name, value in named_values(true).items() if named.get(name) != value] or [f"“{true}”"]


def plan(root: Path = results.RESULTS) -> tuple[plots.Markdown, plots.Markdown]:
    """The plans of training at the paper's scale, and which part takes most and which learns most."""
    path = root / "plans" / "paper-v100-32gb.json"
    if not path.is_file():
        missing = plots.Markdown(f"*Not shown: `{path}` is not there yet. `e2e plan --profile paper --device "
                                 "v100-32gb --json` prints it.*")
        return missing, missing
    parts = results.load_json(path)["parts"]
    kinds = ("weights", "gradients", "states", "activations")
    sizes = {part["name"]: sum(part[f"{kind}_gb"] for kind in kinds) for part in parts}
    learnt = {part["name"]: part["learnt"] for part in parts}
    most, learner = max(sizes, key=sizes.__getitem__), max(learnt, key=learnt.__getitem__)
    share = learnt[learner] / sum(learnt.values())
    answer = (f"Most memory is taken by *{most}*, {sizes[most]:.1f} of {sum(sizes.values()):.1f} GiB; "
              f"{share:.0%} of all that is learnt are weights of *{learner}*.")
    return plots.Markdown(readme.plans("paper", root)), plots.Markdown(answer)


def hours(root: Path = results.RESULTS) -> tuple[plots.Markdown, list[dict[str, Any]]]:
    """Hours of an epoch of the paper's profile by corpus and number of devices, and the rows of the file."""
    path = root / "cost.json"
    if not path.is_file():
        return plots.Markdown(f"*Not shown: `{path}` is not there yet. `e2e cost` makes it.*"), []
    rows = [row for row in results.load_json(path)["rows"] if row["profile"] == "paper"]
    table = [{"corpus": row["corpus"], "examples": row["examples"],
              **{f"{each['devices']} × {row['device']}": f"{each['hours']:.1f}" for each in row["rows"]}}
             for row in rows]
    some = rows[0]
    note = ("Hours of an epoch, worked out and not measured: operations as counted, at "
            f"{some['utilisation']:.0%} of {some['peak_tflops']:g} TFLOP/s, which is assumed")
    return plots.markdown(pd.DataFrame(table), note), rows


def per_device(root: Path = results.RESULTS) -> plots.Markdown:
    """What each of several devices needs and sends in training with the paper's profile, and its steps."""
    rows = [row for row in _cost(root).get("rows", ())
            if row["profile"] == "paper" and row["examples"] == "dialogues"]
    if not rows or "memory_gb" not in rows[0]["rows"][0]:
        return plots.Markdown(NO_COST.format(root / "cost.json"))
    first = rows[0]["rows"]
    kinds = {"memory of each, GiB": [f"{each['memory_gb']:.1f}" for each in first],
             "gradients each sends in a step, GiB": [f"{each['traffic_gb']:.1f}" for each in first],
             **{f"steps in an epoch of {row['corpus']}": [f"{each['steps']:,.0f}" for each in row["rows"]]
                for row in rows}}
    devices = [f"{each['devices']} × {rows[0]['device']}" for each in first]
    table = [{"": kind, **dict(zip(devices, texts, strict=True))} for kind, texts in kinds.items()]
    note = ("Worked out and not measured; whole dialogues for examples. Each device takes the profile's "
            "batch, so that a step has as many times the examples")
    return plots.markdown(pd.DataFrame(table), note)


def what_breaks(root: Path = results.RESULTS) -> tuple[plots.Markdown, plots.Markdown]:
    """What MMDialog needs of what there may be too little of, by number of devices, and which of it gives out
    first."""
    record = _cost(root).get("growth")
    if not record:
        missing = plots.Markdown(NO_COST.format(root / "cost.json"))
        return missing, missing
    found, frame = record["mmdialog"], pd.DataFrame(record["mmdialog"]["needs"])
    frame["times"] = frame.need / frame.limit
    worst = frame.loc[frame.groupby("devices").times.idxmax()]
    said = [f"on {row.devices} {row.what.partition(',')[0]}, {row.times:.1f} times what there is"
            for row in worst.itertuples() if row.times > 1]
    enough = [str(row.devices) for row in worst.itertuples() if row.times <= 1]
    answer = f"What gives out first: {'; '.join(said) or 'nothing'}."
    answer += f" On {' and '.join(enough)} there is enough of all." if enough else ""
    return plots.markdown(_needs(frame, record["device"]), (
        f"MMDialog: {found['dialogues']:,} dialogues, {found['photos']:,} photos, {record['epochs']} epochs. "
        f"Measured on {record['made_up_dialogues']:,} made-up dialogues: a process keeps "
        f"{record['bytes_per_dialogue']:,} bytes of each, {found['host_gb']:.1f} GiB in all, and each of its "
        f"{record['workers']} loaders comes to keep as much; reading takes {found['minutes_to_read']:.0f} "
        f"minutes. Assumed: {record['photo_bytes'] / 1000:.0f} kB a photo, and what there is"
    )), plots.Markdown(answer)


def _needs(frame: pd.DataFrame, device: str) -> pd.DataFrame:
    """A row per thing that is needed, a column per number of devices, and what there is."""
    texts = frame.assign(text=frame.need.map("{:,.1f}".format))
    wide = texts.pivot(index="what", columns="devices", values="text").loc[frame.what.unique()]
    there = frame.drop_duplicates("what").set_index("what").limit.map("{:,.0f}".format)
    wide = wide.rename(columns=lambda count: f"{count} × {device}").assign(**{"there is": there})
    return wide.rename_axis(index="", columns=None).reset_index()


NO_COST = "*Not shown: `{}` does not have it yet. `e2e cost` makes it.*"


def _cost(root: Path) -> dict[str, Any]:
    path = root / "cost.json"
    return results.load_json(path) if path.is_file() else {}
