"""The pages' numbers, written from results/ between their markers, so that none is typed by hand."""

from pathlib import Path

import pandas as pd

from e2e_lib.config import PROFILES
from e2e_lib.data.minichat.corpus import count_triples
from e2e_lib.report import tables
from e2e_lib.report.findings import findings
from e2e_lib.report.plots import markdown
from e2e_lib.repro import files
from e2e_lib.repro.files import ResultsError
from e2e_lib.repro.results import RESULTS, load_json, read_summary


def results_table(profile: str, root: Path) -> str:
    """The scores of a profile, a row per metric, and which system is ahead in each difference."""
    summary = read_summary(profile, root)
    scores = tables.score_table(tables.scores(summary), "metric", "system")
    page = markdown(scores, tables.summary_footer(summary))
    if not (path := root / profile / "comparison.json").is_file():
        return page
    comparison = load_json(path)
    frame = tables.differences(comparison)
    pairs = (frame.system + " − " + frame.than).rename("pair")
    better = frame.assign(pair=pairs).pivot(index="metric", columns="pair", values="better")
    better = better.loc[frame.metric.unique(), pairs.unique()].reset_index()
    rule = (f"Named: the one that is ahead, of these {len(comparison['seeds'])} training seeds, with "
            f"p < {tables.LEVEL} after Holm's correction for all {len(frame)} differences")
    return f"{page}\n\n{markdown(better, f'{rule}. {tables.comparison_footer(comparison)}')}"


def ablation_table(profile: str, root: Path) -> str:
    """What each vocabulary map is worth, and how many differences hold.

    Cosine: of its gradient (the paper's estimator, τ = 1) with the true one. Scores: after joint training.
    Time: of a training step, over one without a gradient. Raises ResultsError for missing results.
    """
    names = ("ablations", "gradients", "steps", "ablation_differences")
    ablations, gradients, steps, comparison = (load_json(root / profile / f"{name}.json") for name in names)
    times = pd.DataFrame(steps["rows"]).set_index("mapping")
    cosines = pd.DataFrame({row["mapping"]: row["cosine"] for row in gradients["rows"]
                            if (row["estimator"], row["temperature"]) == ("gumbel", 1.0)}).T
    cosines = cosines.reindex(times.index)
    scores = tables.scores(ablations, ("scene_accuracy", "fid", "caption_bleu"))
    table = tables.score_table(scores).set_index("system").reindex(times.index).fillna("–")
    cells = list(map(tables.mean_and_sd, cosines["mean"], cosines["std"]))
    table.insert(0, "cosine with the true gradient", cells)
    table["step time, × none"] = list(map(tables.mean_and_sd, times.over_none, times["std"]))
    table = table.rename({"sentence": "sentence (Eq. 10, the default)"}).rename_axis("map").reset_index()
    note = (f"Scores: {tables.summary_footer(ablations)}. Cosine: {len(gradients['captions'])} dev captions, "
            f"seed {gradients['arguments']['seed']}. Time: medians of {steps['arguments']['rounds']} rounds, "
            f"{steps['threads']} threads.")
    groups = markdown(tables.difference_groups(comparison), tables.comparison_footer(comparison))
    return f"{markdown(table, note)}\n\n{groups}"


def held_out(profile: str, root: Path) -> str:
    """How many triples of thing, colour and place MiniChat holds out, counted in the profile's corpus."""
    counts = count_triples(PROFILES[profile].data)
    return (f"{counts['held_out']} of the {counts['all']} triples of thing, colour and place are held out: "
            "no photo of the training or dev\n"
            f"split shows them; {counts['in_test']} of them occur in the test split.")


def transcript(profile: str, root: Path) -> str:
    """The stages of the last uninterrupted `make reproduce`, with its time and memory, without its scores."""
    run = load_json(root / profile / "reproduce.json")
    lines = [line for line in run["transcript"] if line.startswith(("== ", "All done"))]
    return ("```\n" + "\n".join(lines) + "\n```\n\n"
            f"That was on {run['cpu_count']} cores ({run['device']}): {run['wall_seconds'] / 60:.1f} "
            f"minutes, at most {run['peak_memory_bytes'] / 1e9:.1f} GB of memory.")


def plans(profile: str, root: Path) -> str:
    """What training takes on some devices, and of which parts that of the paper's profile is made. Raises
    ResultsError where there is no plan."""
    made = [load_json(path) for path in sorted((root / "plans").glob("*.json"))]
    if not made:
        raise ResultsError(f"{root / 'plans'}: no plans; `e2e plan --json` prints one")
    totals = {"it has": "device", "training": "training", "answering": "answering",
              "disk for checkpoints": "disk", "host memory": "host"}
    every = pd.DataFrame([{"profile": plan["profile"], "device": plan["device"],
                           "fits": "yes" if plan["fits"] else "no",
                           **{name: f"{plan[f'{key}_gb']:.1f}" for name, key in totals.items()}}
                          for plan in made])
    papers = ("paper", "v100-32gb")
    one = next((plan for plan in made if (plan["profile"], plan["device"]) == papers), made[0])
    sizes = ("weights", "gradients", "states", "activations")
    parts = pd.DataFrame([{"part": part["name"].replace("_", " "), "parameters": f"{part['parameters']:,}",
                           "learnt": f"{part['learnt']:,}",
                           **{name: f"{part[f'{name}_gb']:.2f}" for name in sizes}} for part in one["parts"]])
    batch = one["batch"]
    return "\n\n".join((
        markdown(every, "GiB; `e2e plan --profile … --device …`"),
        markdown(parts, f"GiB at the fullest moment of a training step of {one['profile']} on "
                        f"{one['device']}: {batch['examples']} examples of {batch['tokens']:,} tokens, "
                        f"{batch['context_photos']} photos in contexts, {batch['response_photos']} in "
                        "responses")))


def costs(profile: str, root: Path) -> str:
    """What an epoch takes at the paper's scale. Raises ResultsError where that is not worked out."""
    record = load_json(root / "cost.json")
    rows = []
    for row in record["rows"]:
        on = {f"{each['devices']} × {row['device']}": f"{each['hours']:.1f}" for each in row["rows"]}
        rows.append({"profile": row["profile"], "corpus": row["corpus"], "examples": row["examples"],
                     "TFLOP per batch": f"{row['tflop_per_batch']:.0f}", "batches": f"{row['batches']:,}",
                     **on})
    some = record["rows"][0]
    traffic = ", ".join(f"{each['traffic_gb']:.1f} on {each['devices']}" for each in some["rows"][1:])
    note = ("Hours of an epoch, worked out and not measured: operations as counted, at "
            f"{some['utilisation']:.0%} of {some['peak_tflops']:g} TFLOP/s, which is assumed. Gradients that "
            f"a device sends in a step of profile {some['profile']}: GiB {traffic}")
    return markdown(pd.DataFrame(rows), note)


BLOCKS = {"README.md": {"findings": findings, "results": results_table, "minichat": held_out},
          "reproducing.md": {"reproduce": transcript, "ablation": ablation_table},
          "paper-scale.md": {"plans": plans, "costs": costs}}
PAGES = ("README.md", "docs/reproducing.md", "docs/paper-scale.md")


def update(path: Path | str = "README.md", profile: str = "mini", root: Path | str = RESULTS) -> Path:
    """Rewrites the marked blocks of a page, by its name. Raises ResultsError for missing results and markers.
    """
    path, root = Path(path), Path(root)
    text = path.read_text(encoding="utf-8")
    for name, block in BLOCKS[path.name].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ResultsError(f"{path}: the markers {begin} and {end} are missing; numbers are written "
                               "between them")
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{block(profile, root)}\n{end}{rest.split(end, 1)[1]}"
    return files.write_text(path, text)
