"""The README's numbers, written from results/ between its markers, so that none is typed by hand."""

from pathlib import Path
from typing import Any

from e2e_lib import files
from e2e_lib.results import METRICS, RESULTS, load_json, read_summary, tested, verdict


def results_table(profile: str, root: Path | str = RESULTS) -> str:
    """A Markdown table of the profile's scores: mean ± sample standard deviation, with the number of seeds and test items."""
    summary = read_summary(profile, root)
    systems = summary["systems"]
    lines = ["| metric | " + " | ".join(system.replace("_", "-") for system in systems) + " |", "|---|" + "---|" * len(systems)]
    for key, (name, *_) in METRICS.items():
        lines.append(f"| {name} | " + " | ".join(_cell(scores.get(key)) for scores in systems.values()) + " |")
    seeds = {entry["n"] for scores in systems.values() for entry in scores.values()}
    return "\n".join([*lines, "", f"Mean ± standard deviation over {'/'.join(map(str, sorted(seeds)))} seeds; profile {profile}; "
                      f"N: {tested(summary)}. A star: with the features of MiniChat's scene reader, not Inception's."])


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    digits = 3 if abs(entry["mean"]) < 2 else 2
    return f"{entry['mean']:.{digits}f}" + ("" if entry["std"] is None else f" ± {entry['std']:.{digits}f}")


def ablation_table(profile: str, root: Path | str = RESULTS) -> str:
    """What each vocabulary map is worth: the cosine of its gradient (the paper's estimator, τ = 1) with the true one, scores after joint
    training, and the time of a training step over one without a gradient. Raises ResultsError for missing results."""
    found, truths, steps = (load_json(Path(root) / profile / f"{name}.json") for name in ("ablations", "gradients", "steps"))
    cosines = {row["mapping"]: row for row in truths["rows"] if (row["estimator"], row["temperature"]) == ("gumbel", 1.0)}
    times = {row["mapping"]: {"mean": row["over_none"], "std": row["std"]} for row in steps["rows"]}
    lines = ["| map | cosine with the true gradient | scene accuracy | FID* | caption BLEU-2, cumulative | step time, × none |", "|---|" + "---|" * 5]
    for name, step in times.items():
        scores = found["systems"].get(name, {})
        cells = [cosines.get(name, {}).get("cosine"), *(scores.get(key) for key in ("scene_accuracy", "fid", "caption_bleu")), step]
        lines.append(f"| {name}{' (Eq. 10, the default)' if name == 'sentence' else ''} | " + " | ".join(_cell(cell) for cell in cells) + " |")
    seeds = {scores[key]["n"] for name, scores in found["systems"].items() if name in times for key in ("scene_accuracy", "fid")}
    note = (f"Profile {profile}. Cosine: mean ± standard deviation over {len(truths['captions'])} dev captions of seed {truths['asked']['seed']}. "
            f"Scores: over {'/'.join(map(str, sorted(seeds)))} seeds; N: {tested(found)}. "
            f"Time: median ± standard deviation over {steps['asked']['rounds']} rounds, {steps['threads']} threads.")
    verdicts = []
    for key in ("scene_accuracy", "fid", "caption_bleu"):
        scores = {name: found["systems"][name][key] for name in times if key in found["systems"].get(name, {})}
        verdicts.append("- " + verdict(METRICS[key][0], scores, "none"))
    return "\n".join([*lines, "", note, "", "Beside training with no gradient from the image (*none*), by both standard deviations together:",
                      "", *verdicts])


def transcript(profile: str, root: Path | str = RESULTS) -> str:
    """What the last uninterrupted `make reproduce` printed, its stages and scores, with its time and memory."""
    run = load_json(Path(root) / profile / "reproduce.json")
    return ("```\n" + "\n".join(run["transcript"]) + "\n```\n\n"
            f"That was on {run['cpu_count']} cores ({run['device']}): {run['wall_seconds'] / 60:.1f} minutes, "
            f"at most {run['peak_memory_bytes'] / 1e9:.1f} GB of memory.")


def update(path: Path | str = "README.md", profile: str = "mini", root: Path | str = RESULTS) -> Path:
    """Rewrites the blocks between ``<!-- name:begin -->`` and ``<!-- name:end -->``. Raises ResultsError for missing results and
    ValueError for a missing marker."""
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    for name, block in (("results", results_table(profile, root)), ("ablation", ablation_table(profile, root)),
                        ("reproduce", transcript(profile, root))):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{path}: the markers {begin} and {end} are missing, so its numbers cannot be kept up to date")
        head, rest = text.split(begin, 1)
        text = f"{head}{begin}\n{block}\n{end}{rest.split(end, 1)[1]}"
    return files.write_text(path, text)
