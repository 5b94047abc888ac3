"""Curves of joint training (section 2.5), from its logs: losses, dev scores, temperature, gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from e2e_lib.report import plots

Logs = Mapping[int, Sequence[Mapping[str, Any]]]  # the lines of each seed's log, of run_files.read_logs

# Figure: its panels, each with a title, a unit and its lines: logged keys with a label and a colour.
PANELS: dict[str, list[tuple[str, str, dict[str, tuple[str, str]]]]] = {
    "losses": [("Text loss (Eq. 2), mean of each epoch", "nats per token",
                {"text_loss": ("text", plots.BLUE)}),
               ("Image loss (Eq. 12), mean of each epoch", "mean squared error of the noise",
                {"image_loss": ("image", plots.VERMILLION)})],
    "dev": [("Dev BLEU-2 (higher is better)", "BLEU-2, 0-100", {"bleu2": ("BLEU-2", plots.BLUE)}),
            ("Dev FID (lower is better)", "FID, own features", {"fid": ("FID", plots.VERMILLION)})],
    "temperature": [("Temperature of the Gumbel-softmax (Eq. 5)", "τ", {"temperature": ("τ", plots.PURPLE)})],
    "gradient_norms": [("Gradient norms", "Euclidean norm (log)", {
        "gradient_language": ("language model", plots.BLUE),
        "gradient_perceptron": ("perceptron", plots.GREEN),
        "gradient_unet": ("image generator (UNet)", plots.ORANGE),
        "gradient_language_from_image": ("language model, from the image loss alone", plots.VERMILLION)})],
}


def curve_frame(logs: Logs, kind: str, labels: Mapping[str, str]) -> pd.DataFrame:
    """One row per seed, epoch and key (of ``labels``) in the logs' lines of a ``kind`` ("step" or "dev").

    Columns: seed, epoch, line (the key's label), value, mean (over seeds; NaN where one has no value).
    """
    rows = [{"seed": seed, "epoch": line["epoch"], "line": label, "value": line[key]}
            for seed, lines in logs.items() for line in lines if line["kind"] == kind
            for key, label in labels.items() if line.get(key) is not None]
    frame = pd.DataFrame(rows, columns=["seed", "epoch", "line", "value"])
    return _with_means(frame, len(logs))


def _with_means(frame: pd.DataFrame, seeds: int) -> pd.DataFrame:
    values = frame.groupby(["line", "epoch"]).value
    return frame.assign(mean=values.transform("mean").where(values.transform("count") == seeds))


def epoch_means(frame: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """The ``curve_frame`` of steps with each seed's values averaged over an epoch, which stand at its middle:
    single batches differ by how hard they are. ``seeds`` is how many there should be."""
    keys = ["seed", "epoch", "line"]
    means = frame.assign(epoch=frame.epoch // 1 + 0.5).groupby(keys, sort=False, as_index=False).value.mean()
    return _with_means(means, seeds)


def _draw_ends(ax: Axes, ends: pd.DataFrame, last: float) -> None:
    """The losses of the same examples before training, and after it with their sd over seeds."""
    if ends.empty:
        return
    after = ends.after.std() if len(ends) > 1 else 0.0
    ax.errorbar([0, last], [ends.before.mean(), ends.after.mean()], [0, after], marker="D", linestyle=":",
                color=plots.BLACK, capsize=3, label="the same dev examples, before and after")
    ax.legend(frameon=False, fontsize=8)


def curves(name: str, logs: Logs, profile: str, ends: pd.DataFrame | None = None) -> plots.Figure:
    """A figure of ``PANELS``: thin lines for seeds, a thick one for their mean; log axes leave out zeros.

    Of losses, lines are the ``epoch_means``, and dots single batches. ``ends`` are the losses of the same
    examples before and after: columns seed, loss (a line's label), before, after.
    """
    kind, panels, logarithmic = "dev" if name == "dev" else "step", PANELS[name], name == "gradient_norms"
    lines = [line for of_seed in logs.values() for line in of_seed if line["kind"] == kind]
    n = f"{lines[0]['n'] if lines else 0} dev responses" if kind == "dev" else \
        f"{max((line['step'] + 1 for line in lines), default=0)} training steps"
    batches = " · dots: single batches" if name == "losses" else ""
    note = f"{plots.footer(profile, list(logs), n)} · thick: mean over seeds{batches}"
    figure = plots.Figure(9 if len(panels) > 1 else 7, 3.4, note)
    axes = figure.subplots(1, len(panels), squeeze=False).ravel()
    for ax, (title, unit, keys) in zip(axes, panels, strict=True):
        frame = curve_frame(logs, kind, {key: label for key, (label, _) in keys.items()})
        frame = frame[frame.value > 0] if logarithmic else frame
        plots.style_axes(ax, title, "epoch", unit)
        if frame.empty:
            plots.annotate_empty(ax, "nothing was logged")
            continue
        ax.set_yscale("log" if logarithmic else "linear")
        if name == "losses":
            sns.scatterplot(frame, x="epoch", y="value", hue="line", palette=dict(keys.values()), s=9,
                            alpha=0.4, linewidth=0, legend=False, ax=ax)
            frame = epoch_means(frame, len(logs))
        style = {"x": "epoch", "hue": "line", "style": "line", "palette": dict(keys.values()), "ax": ax,
                 "markers": kind == "dev"}
        sns.lineplot(frame, y="value", units="seed", estimator=None, alpha=0.4, linewidth=0.8, legend=False,
                     **style)
        sns.lineplot(frame.drop_duplicates(["line", "epoch"]), y="mean", linewidth=2, errorbar=None,
                     legend="auto" if len(keys) > 1 else False, **style)
        if ends is not None:
            _draw_ends(ax, ends[ends.loss.isin(frame.line)], frame.epoch.max() + 0.5)
        if kind == "dev":
            ax.set_xticks(sorted(frame.epoch.unique()))
        if logarithmic:  # once a softmax has settled, what is left of a gradient is rounding
            ax.set_ylim(max(ax.get_ylim()[0], 1e-8 * ax.get_ylim()[1]))
            ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16))
    return figure
