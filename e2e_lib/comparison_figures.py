"""The comparison's figures, from the JSON files that `e2e reproduce` and `e2e compare` write into ``results/<profile>/``: notebook 06."""

from collections.abc import Callable, Mapping
from typing import Any

from e2e_lib.results import METRICS
from e2e_lib.show import BLUE, GREEN, GREY, PURPLE, Markdown, Plot, dress, note_of, table
from e2e_lib.tables import SYSTEMS

COLOURS = {"divter": GREEN, "pipeline": PURPLE, "end_to_end": BLUE}


def differences_figure(found: Mapping[str, Any]) -> Plot:
    """Of ``comparison.json``: a panel a metric, a row a pair of systems, the difference with its 95 % interval; grey where that holds zero."""
    metrics = list(dict.fromkeys(pair["metric"] for pair in found["pairs"]))
    columns = -(-len(metrics) // 2)
    note = note_of(found["profile"], found["seeds"], f"{found['examples']:,} answers in {found['dialogues']} dialogues") + \
        f" · {found['draws']:,} bootstrap draws of dialogues"
    figure = Plot(10, 4.6, note)
    panels = figure.subplots(2, columns, squeeze=False)
    for number, ax in enumerate(panels.flat):
        if number >= len(metrics):
            ax.axis("off")
            continue
        pairs = [pair for pair in found["pairs"] if pair["metric"] == metrics[number]]
        for place, pair in enumerate(pairs):
            apart = pair["low"] > 0 or pair["high"] < 0
            reach = [[max(0, pair["difference"] - pair["low"])], [max(0, pair["high"] - pair["difference"])]]
            ax.errorbar(pair["difference"], place, xerr=reach, marker="o", capsize=3, color=COLOURS[pair["system"]] if apart else GREY)
        ax.axvline(0, color="black", linewidth=0.8)
        name, better, _ = METRICS[metrics[number]]
        dress(ax, name, "worse ← → better" if better == "higher" else "better ← → worse", "")
        named = [f"{SYSTEMS[pair['system']]} − {SYSTEMS[pair['than']]}" for pair in pairs]
        ax.set_yticks(range(len(pairs)), named if number % columns == 0 else [""] * len(pairs), fontsize=8)
        ax.set_ylim(len(pairs) - 0.5, -0.5)
    return figure


def fid_figure(found: Mapping[str, Any]) -> Plot:
    """Of ``comparison.json``: FID against the number of photos, mean and standard deviation over random subsets."""
    figure = Plot(6, 3.4, note_of(found["profile"], found["seeds"][:1], "as on the axis, 20 random subsets each"))
    ax = figure.subplots()
    for system, rows in found["fid_by_number"].items():
        ax.errorbar([row["n"] for row in rows], [row["mean"] for row in rows], yerr=[row["std"] for row in rows], marker="o", capsize=3,
                    color=COLOURS[system], label=SYSTEMS[system])
    dress(ax, "The fewer photos, the higher FID*", "N photos on either side", "FID*, lower is better")
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=8)
    return figure


def propagation_figure(found: Mapping[str, Any]) -> Plot:
    """Of ``propagation.json``: scene accuracy against the share of wrong words, with 95 % bands; what the captions still name beside it."""
    asked = found["asked"]
    figure = Plot(7, 3.8, note_of(found["profile"], asked["seeds"], f"{found['photos']} test photos, 95 % bands over photos"))
    ax = figure.subplots()
    for name, rows in found["systems"].items():
        colour, style = COLOURS.get(name, "black"), "--" if name == "caption" else "-"
        label = "named by the caption itself" if name == "caption" else f"{SYSTEMS[name]}, slope {rows['slope']['mean']:.2f}"
        ax.plot(asked["shares"], [row["mean"] for row in rows["accuracy"]], marker="o", linestyle=style, color=colour, label=label)
        low, high = ([row[key] for row in rows["accuracy"]] for key in ("low", "high"))
        ax.fill_between(asked["shares"], low, high, color=colour, alpha=0.12, linewidth=0)
    dress(ax, "Wrong words make wrong photos", "share of the caption's words replaced", "thing, colour and place right")
    ax.set_ylim(0, 1.02)
    ax.legend(frameon=False, fontsize=8)
    return figure


def slopes_table(found: Mapping[str, Any]) -> Markdown:
    """Of ``propagation.json``: each system's slope with its 95 % interval."""
    rows = [[SYSTEMS.get(name, "named by the caption itself"), f"{entry['slope']['mean']:.3f}",
             f"[{entry['slope']['low']:.3f}, {entry['slope']['high']:.3f}]", f"{entry['accuracy'][0]['mean']:.3f}"]
            for name, entry in found["systems"].items()]
    return table(["system", "slope: accuracy lost from no wrong word to all", "95 % interval", "accuracy with no wrong word"], rows)


def verdicts(found: Mapping[str, Any], one: str, other: str) -> Markdown:
    """Of ``comparison.json``: a line a metric, which of two systems is ahead, and whether that is beyond chance."""
    lines = []
    for pair in (pair for pair in found["pairs"] if (pair["system"], pair["than"]) == (one, other)):
        better = found["higher_is_better"][pair["metric"]]
        ahead = one if (pair["difference"] > 0) == better else other
        said = f"{pair['difference']:+.3f}, 95 % [{pair['low']:+.3f}, {pair['high']:+.3f}], corrected p {pair['p_corrected']:.3f}".replace("-", "−")
        apart = pair["low"] > 0 or pair["high"] < 0
        lines.append(f"- **{METRICS[pair['metric']][0]}**: {f'{SYSTEMS[ahead]} ahead' if apart else 'no difference beyond chance'} ({said})")
    return Markdown("\n".join(lines) or "- nothing was compared")


def missed(found: Mapping[str, Any], one: str = "end_to_end") -> list[str]:
    """Of ``comparison.json``: where a system is not ahead of another with an interval that excludes zero, as "metric, beside system"."""
    out = []
    for pair in found["pairs"]:
        if one in (pair["system"], pair["than"]):
            sign = (1 if pair["system"] == one else -1) * (1 if found["higher_is_better"][pair["metric"]] else -1)
            if min(sign * pair["low"], sign * pair["high"]) <= 0:
                other = pair["than"] if pair["system"] == one else pair["system"]
                out.append(f"{METRICS[pair['metric']][0]}, beside {SYSTEMS[other]}")
    return out


def cost_table(benchmarks: Mapping[str, Any]) -> Markdown:
    """What each system costs, from the benchmarks' file: a row a quantity, a column a system."""
    found = next((row for row in benchmarks.get("measured", ()) if row["benchmark"] == "systems"), None)
    if found is None:
        return Markdown("The systems' cost has not been measured here yet; `e2e bench` does it.")
    rows = {name: found["systems"][name] for name in SYSTEMS}

    def line(what: str, form: str, value: Callable[[Mapping[str, Any]], float]) -> list[str]:
        return [what, *(format(value(row), form) for row in rows.values())]

    lines = [line("weights", ",", lambda row: row["parameters"]), line("weights that training changes", ",", lambda row: row["trained_parameters"])]
    for case in rows["pipeline"]["reply_seconds"]:
        lines.append([f"reply in seconds (× the pipeline's): {case}", *(
            f"{row['reply_seconds'][case]:.3f} ({row['reply_over_pipeline'][case]:.2f})" for row in rows.values())])
    lines.append(line("training examples a second", ".1f", lambda row: row["trained_examples_per_second"]))
    for what in ("answering", "training"):
        lines.append([f"peak memory beyond the libraries, {what} (MB)", *(
            f"{row['memory'][what]['beyond_libraries_bytes'] / 1e6:.0f}" for row in rows.values())])
    listed = table(["", *(SYSTEMS[name] for name in rows)], lines)
    return Markdown(f"{listed}\n\nN: medians of {found['rounds']} rounds; {found['tokens_a_reply']} tokens a reply; {found['threads']} threads, "
                    f"device {found['device']}.")
