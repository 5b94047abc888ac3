"""The README's numbers, written from results/ between its markers, so that none is typed by hand."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib.report import ablation_figures, tables
from e2e_lib.repro import files
from e2e_lib.repro.results import RESULTS, load_json, outdated, read_summary, tested


def results_table(profile: str, root: Path | str = RESULTS) -> str:
    """A Markdown table of the profile's scores: mean ± sample standard deviation, with the number of seeds and test items."""
    summary = read_summary(profile, root)
    scores = tables.by_metric(summary)
    text = f"{_markdown(list(scores), scores.to_numpy())}\n\n{tables.note(summary)} {tables.legend(scores)}"
    path = Path(root) / profile / "comparison.json"
    return f"{text}\n\n{differences(load_json(path))}" if path.is_file() else text


def differences(comparison: Mapping[str, Any]) -> str:
    """Of ``comparison.json``: a line for each pair of systems, whom the 95 % intervals of the differences favour in which metrics."""
    lines = []
    for (one, other), rows in tables.differences_numbers(comparison).groupby(["system", "than"], sort=False):
        said = [f"{favoured} in {', '.join(of['metric'])}" for favoured, of in rows.groupby("in favour of", sort=False)]
        lines.append(f"- {one} beside {other}: {'; '.join(said)}")
    return "\n".join([f"Whom the 95 % intervals of the differences favour ({comparison['draws']:,} paired bootstrap draws of "
                      f"{comparison['dialogues']} test dialogues; `results/{comparison['profile']}/comparison.json`):", "", *lines])


def _markdown(headings: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    return "\n".join(["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings), *("| " + " | ".join(row) + " |" for row in rows)])


def ablation_table(profile: str, root: Path | str = RESULTS) -> str:
    """What each vocabulary map is worth: the cosine of its gradient (the paper's estimator, τ = 1) with the true one, scores after joint
    training, and the time of a training step over one without a gradient. Raises ResultsError for missing results."""
    found, truths, steps = (load_json(Path(root) / profile / f"{name}.json") for name in ("ablations", "gradients", "steps"))
    cosines = {row["mapping"]: row for row in truths["rows"] if (row["estimator"], row["temperature"]) == ("gumbel", 1.0)}
    times = {row["mapping"]: {"mean": row["over_none"], "std": row["std"]} for row in steps["rows"]}
    rows = []
    for name, step in times.items():
        scores = found["systems"].get(name, {})
        cells = [cosines.get(name, {}).get("cosine"), *(scores.get(key) for key in ("scene_accuracy", "fid", "caption_bleu")), step]
        rows.append([f"{name}{' (Eq. 10, the default)' if name == 'sentence' else ''}", *map(tables.cell, cells)])
    seeds = {entry["n"] for name, scores in found["systems"].items() if name in times for entry in scores.values()}
    note = (f"Profile {profile}. Cosine: mean ± standard deviation over {len(truths['captions'])} dev captions of seed {truths['asked']['seed']}. "
            f"Scores: over {'/'.join(map(str, sorted(seeds)))} seeds; N: {tested(found)}. "
            f"Time: median ± standard deviation over {steps['asked']['rounds']} rounds, {steps['threads']} threads.{outdated(found)}")
    compared = load_json(Path(root) / profile / "ablation_differences.json")
    verdicts = [f"- {line}" for line in ablation_figures.difference_lines(compared)]
    headings = ["map", "cosine with the true gradient", "scene accuracy", "FID*", "caption BLEU-2, cumulative", "step time, × none"]
    return "\n".join([f"{ablation_figures.gradient_line(compared)}", "", _markdown(headings, rows), "", note, "",
                      "Every map and estimator beside the same training with no gradient from the image (*none*), other ingredients beside the "
                      f"paper's way (*sentence*): differences with their 95 % intervals ({compared['draws']:,} paired bootstrap draws of "
                      f"{compared['dialogues']} test dialogues, {len(compared['pairs'])} differences, of which chance puts one in "
                      "twenty apart; of these training seeds, not of seeds to come):",
                      "", *verdicts])


def transcript(profile: str, root: Path | str = RESULTS) -> str:
    """The stages of the last uninterrupted `make reproduce`, with its time and memory; its scores are left out, which are the table's."""
    run = load_json(Path(root) / profile / "reproduce.json")
    lines = [line for line in run["transcript"] if line.startswith(("== ", "All done"))]
    return ("```\n" + "\n".join(lines) + "\n```\n\n"
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
