"""Curves of joint training (section 2.5), from its logs: losses, dev scores, temperature, gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns

from e2e_lib.report import plots

Logs = Mapping[int, Sequence[Mapping[str, Any]]]  # the lines of each seed's log, of run_files.read_logs

# Figure: its panels, each with a title, a unit and its lines: logged keys with a label and a colour.
PANELS: dict[str, list[tuple[str, str, dict[str, tuple[str, str]]]]] = {
    "losses": [("Text loss of single batches (Eq. 2)", "nats per token", {"text_loss": ("text", plots.BLUE)}),
               ("Image loss of single batches (Eq. 12)", "mean squared error of the noise",
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
    values = frame.groupby(["line", "epoch"]).value
    return frame.assign(mean=values.transform("mean").where(values.transform("count") == len(logs)))


def curves(name: str, logs: Logs, profile: str) -> plots.Figure:
    """A figure of ``PANELS``: thin lines for seeds, a thick one for their mean; log axes leave out zeros."""
    kind, panels, logarithmic = "dev" if name == "dev" else "step", PANELS[name], name == "gradient_norms"
    lines = [line for of_seed in logs.values() for line in of_seed if line["kind"] == kind]
    n = f"{lines[0]['n'] if lines else 0} dev responses" if kind == "dev" else \
        f"{max((line['step'] + 1 for line in lines), default=0)} training steps"
    note = plots.footer(profile, list(logs), n) + " · thick: mean over seeds"
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
        style = {"x": "epoch", "hue": "line", "style": "line", "palette": dict(keys.values()), "ax": ax,
                 "markers": kind == "dev"}
        sns.lineplot(frame, y="value", units="seed", estimator=None, alpha=0.4, linewidth=0.8, legend=False,
                     **style)
        sns.lineplot(frame.drop_duplicates(["line", "epoch"]), y="mean", linewidth=2, errorbar=None,
                     legend="auto" if len(keys) > 1 else False, **style)
        if kind == "dev":
            ax.set_xticks(sorted(frame.epoch.unique()))
        if logarithmic:  # once a softmax has settled, what is left of a gradient is rounding
            ax.set_ylim(max(ax.get_ylim()[0], 1e-8 * ax.get_ylim()[1]))
            ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.16))
    return figure
