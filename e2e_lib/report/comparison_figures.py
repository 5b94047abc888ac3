"""The comparison's figures, from the JSON files that `e2e reproduce` and `e2e compare` write into ``results/<profile>/``, and from the test answers
of all systems: notebooks 05 and 06."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from e2e_lib.data.examples import subsample
from e2e_lib.report.figures import CAUSES, CORE, causes, wrong
from e2e_lib.report.plots import BLUE, GREY, STYLES, VERMILLION, Figure, Markdown, footer, photo_grid, style_axes, table
from e2e_lib.report.tables import SYSTEMS
from e2e_lib.repro.results import METRICS, mean_and_std, spread
from e2e_lib.repro.run_files import keyed


def differences_figure(found: Mapping[str, Any], metrics: Sequence[str] = (), lines: int = 2,
                       named: Callable[[str], tuple[str, str]] = STYLES.__getitem__) -> Figure:
    """Of ``comparison.json`` and its like: a panel a metric (all by default), in ``lines`` lines, with a row a pair, the difference and its
    95 % interval, grey where that holds zero; a tick is one seed's difference. ``named`` gives the label and the colour of what is compared."""
    metrics = metrics or list(dict.fromkeys(pair["metric"] for pair in found["pairs"]))
    columns = -(-len(metrics) // lines)
    most = max(sum(pair["metric"] == metric for pair in found["pairs"]) for metric in metrics)
    below = footer(found["profile"], found["seeds"], f"{found['examples']:,} answers in {found['dialogues']} dialogues") + \
        f" · {found['draws']:,} bootstrap draws of dialogues · ticks: single seeds"
    figure = Figure(10, lines * (1.46 + 0.28 * most), below)
    panels = figure.subplots(lines, columns, squeeze=False)
    for number, ax in enumerate(panels.flat):
        if number >= len(metrics):
            ax.axis("off")
            continue
        pairs = [pair for pair in found["pairs"] if pair["metric"] == metrics[number]]
        for place, pair in enumerate(pairs):
            apart = pair["low"] > 0 or pair["high"] < 0
            reach = [[max(0, pair["difference"] - pair["low"])], [max(0, pair["high"] - pair["difference"])]]
            colour = named(pair["system"])[1] if apart else GREY
            ax.errorbar(pair["difference"], place, xerr=reach, marker="o", capsize=3, color=colour)
            ax.plot(pair["by_seed"], [place + 0.28] * len(pair["by_seed"]), "|", markersize=4, color=colour)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.locator_params(axis="x", nbins=4)
        name, better, _ = METRICS[metrics[number]]
        style_axes(ax, name, "worse ← → better" if better == "higher" else "better ← → worse", "")
        labels = [f"{named(pair['system'])[0]} − {named(pair['than'])[0]}" for pair in pairs]
        ax.set_yticks(range(len(pairs)), labels if number % columns == 0 else [""] * len(pairs), fontsize=8)
        ax.set_ylim(len(pairs) - 0.5, -0.5)
    return figure


def fid_figure(found: Mapping[str, Any]) -> Figure:
    """Of ``comparison.json``: FID against the number of photos, mean and standard deviation over random subsets."""
    figure = Figure(6, 3.4, footer(found["profile"], found["seeds"][:1], "as on the axis, 20 random subsets each"))
    ax = figure.subplots()
    for system, rows in found["fid_by_number"].items():
        ax.errorbar([row["n"] for row in rows], [row["mean"] for row in rows], yerr=[row["std"] for row in rows], marker="o", capsize=3,
                    color=STYLES[system][1], label=SYSTEMS[system])
    style_axes(ax, "The fewer photos, the higher FID*", "N photos on either side", "FID*, lower is better")
    ax.set_ylim(0)
    ax.legend(frameon=False, fontsize=8)
    return figure


def propagation_figure(found: Mapping[str, Any]) -> Figure:
    """Of ``propagation.json``: scene accuracy against the share of wrong words, with 95 % bands; what the captions still name beside it."""
    asked = found["asked"]
    figure = Figure(7, 3.8, footer(found["profile"], asked["seeds"], f"{found['photos']} test photos, 95 % bands over photos"))
    ax = figure.subplots()
    for name, rows in found["systems"].items():
        colour, style = STYLES[name][1] if name in STYLES else "black", "--" if name == "caption" else "-"
        label = "named by the caption itself" if name == "caption" else f"{SYSTEMS[name]}, slope {rows['slope']['mean']:.2f}"
        ax.plot(asked["shares"], [row["mean"] for row in rows["accuracy"]], marker="o", linestyle=style, color=colour, label=label)
        low, high = ([row[key] for row in rows["accuracy"]] for key in ("low", "high"))
        ax.fill_between(asked["shares"], low, high, color=colour, alpha=0.12, linewidth=0)
    style_axes(ax, "Wrong words make wrong photos", "share of the caption's words replaced", "thing, colour and place right")
    ax.set_ylim(0, 1.02)
    ax.legend(frameon=False, fontsize=8)
    return figure


def slopes_table(found: Mapping[str, Any]) -> Markdown:
    """Of ``propagation.json``: each system's slope with its 95 % interval."""
    rows = [[SYSTEMS.get(name, "named by the caption itself"), f"{entry['slope']['mean']:.3f}",
             f"[{entry['slope']['low']:.3f}, {entry['slope']['high']:.3f}]", f"{entry['accuracy'][0]['mean']:.3f}"]
            for name, entry in found["systems"].items()]
    return table(["system", "slope: accuracy lost from no wrong word to all", "95 % interval", "accuracy with no wrong word"], rows)


def _direction(found: Mapping[str, Any], pair: Mapping[str, Any], one: str) -> int:
    """1 if a positive difference of the pair speaks for ``one`` of it, else -1."""
    return (1 if pair["system"] == one else -1) * (1 if found["higher_is_better"][pair["metric"]] else -1)


def _seeds_ahead(found: Mapping[str, Any], pair: Mapping[str, Any], one: str) -> str:
    ahead = sum(_direction(found, pair, one) * difference > 0 for difference in pair["by_seed"])
    return f"{SYSTEMS[one]} ahead in {ahead} of {len(pair['by_seed'])} seeds"


def gold_fid_table(found: Mapping[str, Any]) -> Markdown:
    """Of ``gold_fid.json``: FID of photos that a system drew from gold captions, before and after training, and from its own; and what MiniChat's
    own drawing of the same scenes has."""
    rows = [[SYSTEMS[name], *(spread(mean_and_std(fids[kind]), ".3f") for kind in ("before", "from_gold", "from_own"))]
            for name, fids in found["systems"].items()]
    rows.append(["MiniChat itself, the same scenes", f"{found['drawn_anew']:.3f}", "–", "–"])
    headings = ["FID* of photos drawn by", "from gold captions, before training", "from gold captions, trained", "from own captions, trained"]
    seeds = found["asked"]["seeds"]
    return Markdown(f"{table(headings, rows)}\n\nProfile {found['profile']}; mean ± "
                    f"standard deviation over seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; N: {found['photos']} gold photos.")


def verdicts(found: Mapping[str, Any], one: str, other: str) -> Markdown:
    """Of ``comparison.json``: a line a metric, which of two systems is ahead, and whether that is beyond chance."""
    lines = []
    for pair in (pair for pair in found["pairs"] if (pair["system"], pair["than"]) == (one, other)):
        ahead = one if _direction(found, pair, one) * pair["difference"] > 0 else other
        said = f"{pair['difference']:+.3f}, 95 % [{pair['low']:+.3f}, {pair['high']:+.3f}], corrected p {pair['p_corrected']:.3f}".replace("-", "−")
        apart = pair["low"] > 0 or pair["high"] < 0
        lines.append(f"- **{METRICS[pair['metric']][0]}**: {f'{SYSTEMS[ahead]} ahead' if apart else 'no difference beyond chance'} "
                     f"({said}; {_seeds_ahead(found, pair, one)})")
    return Markdown("\n".join(lines) or "- nothing was compared")


def missed(found: Mapping[str, Any], one: str = "end_to_end") -> list[str]:
    """Of ``comparison.json``: where a system is not ahead of another with an interval that excludes zero, as "metric, beside system: …"."""
    out = []
    for pair in found["pairs"]:
        if one in (pair["system"], pair["than"]):
            if min(_direction(found, pair, one) * pair[bound] for bound in ("low", "high")) <= 0:
                other = pair["than"] if pair["system"] == one else pair["system"]
                out.append(f"{METRICS[pair['metric']][0]}, beside {SYSTEMS[other]}: {_seeds_ahead(found, pair, one)}")
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


def chats_figure(answers: Mapping[str, Sequence[dict[str, Any]]], store: Any, count: int, profile: str, seed: int) -> Figure:
    """The same test chats drawn by every system beside the gold photo: every k-th response of which it is known what it should show."""
    found = {name: keyed(rows) for name, rows in answers.items()}
    first = next(iter(found.values()))
    due = [key for key, row in first.items() if row["scene"] and all(key in rows for rows in found.values())]
    images: list[Any] = []
    titles: list[str] = []
    colours: list[str] = []
    for key in subsample(due, count):
        images.append(store.load(first[key]["gold_photo_id"]))
        titles.append(f"gold: {first[key]['gold_caption']}")
        colours.append("black")
        for name, rows in found.items():
            errors, row = wrong(rows[key]), rows[key]
            verdict = "no photo" if row["image"] is None else f"wrong {', '.join(errors)}" if errors else "right"
            images.append(row["image"])
            titles.append(f"{STYLES[name][0]}, {verdict}: {row['caption'] or 'shares none'}")
            colours.append(VERMILLION if errors else BLUE)
    shown = min(count, len(due))
    return photo_grid(images, titles, columns=1 + len(found), colours=colours, side=1.75, wrap=32,
                      heading="The same test chats, drawn by every system from its own caption",
                      note=footer(profile, [seed], f"{shown} of {len(due)} test photos, subsample spaced"))


def causes_of(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> dict[str, dict[str, Counter[str]]]:
    """``figures.causes`` for each system, all seeds together."""
    return {name: {part: sum((causes(rows)[part] for rows in seeds.values()), Counter[str]()) for part in CORE} for name, seeds in answers.items()}


def causes_figure(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]], profile: str) -> Figure:
    """For every system, what share of thing, colour and place is right, and who made the errors."""
    counts = causes_of(answers)
    seeds = sorted({seed for rows in answers.values() for seed in rows})
    most = max(sum(found[CORE[0]].values()) for found in counts.values())
    figure = Figure(9.6, 2.9, footer(profile, seeds, f"{most} test photos a system, all seeds together"))
    for ax, (name, found) in zip(np.atleast_1d(figure.subplots(1, len(counts), sharey=True)), counts.items(), strict=True):
        left = np.zeros(len(CORE))
        for cause, colour in CAUSES.items():
            share = np.array([found[part][cause] / max(1, sum(found[part].values())) for part in CORE])
            ax.barh(CORE, share, left=left, color=colour, label=cause)
            left += share
        ax.set_xlim(0, 1)
        style_axes(ax, STYLES[name][0], "share of gold photos", "")
    ax.invert_yaxis()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def cause_totals(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> dict[str, Counter[str]]:
    """How often thing, colour and place of a system's photos are right or wrong, and by whose fault, all three and all seeds together."""
    return {name: sum(found.values(), Counter[str]()) for name, found in causes_of(answers).items()}


def causes_table(answers: Mapping[str, Mapping[int, Sequence[dict[str, Any]]]]) -> Markdown:
    """The ``cause_totals`` as a table."""
    rows = [[STYLES[name][0], total.total(), *(total[cause] for cause in CAUSES)] for name, total in cause_totals(answers).items()]
    return table(["system", "verdicts (N)", *(cause for cause in CAUSES)], rows)
