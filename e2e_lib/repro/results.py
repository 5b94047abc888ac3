"""The only writer and reader of ``results/``.

``results/<profile>/runs/<system>-seed<k>.json`` holds one run, ``results/<profile>/summary.json`` their mean and
spread, and ``results/published/`` the paper's own numbers. Paths are relative to the repository root: from elsewhere
(a notebook's folder, say), pass ``root``.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import with_defaults
from e2e_lib.repro import files

RESULTS = Path("results")

# The scores that are shown, in order: name, which way is better, what it is. A star: by the features of MiniChat's scene reader.
METRICS: dict[str, tuple[str, str, str]] = {
    "bleu1": ("BLEU-1", "higher", "share of the reply's words that the gold reply has too, times a penalty for short replies (0-100)"),
    "bleu2": ("BLEU-2", "higher", "the same for pairs of neighbouring words, of order 2 alone, as the authors' code counts it (0-100)"),
    "bleu2_cumulative": ("BLEU-2, cumulative", "higher", "Papineni's own: the geometric mean of orders 1 and 2 (0-100)"),
    "rougeL": ("ROUGE-L", "higher", "F1 of the longest common subsequence of words, a mean over replies, no stemming (0-100)"),
    "caption_bleu": ("caption BLEU-2, cumulative", "higher", "written against gold captions; no caption counts as an empty one (0-100)"),
    "details": ("detail questions", "higher", "share of right answers to what the photo shows and its caption leaves out (0-1)"),
    "intent_f1": ("intent F1", "higher", "does it share a photo where the gold reply does (0-1)"),
    "scene_accuracy": ("scene accuracy", "higher", "share of thing, colour and place that are drawn right; no photo is all wrong (0-1)"),
    "is": ("IS*", "higher", "clear and varied things, by the scene reader's opinion (1-14)"),
    "fid": ("FID*", "lower", "distance between drawn and gold photos' features; biased upwards, the more the fewer photos"),
    "kid": ("KID*", "lower", "a distance like FID without the bias from N; may fall slightly below 0"),
}


class ResultsError(ValueError):
    """A results file is missing, damaged or does not belong with the others; the message names it and says what to do."""


def load_json(path: Path | str) -> Any:
    """The decoded content of a JSON file. Raises ResultsError naming the file if it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file, looked for from the folder {Path.cwd().name!r}; results are made by `e2e reproduce` "
                           "and found from the repository root, or wherever `root` says") from None
    except OSError as error:
        raise ResultsError(f"{path}: the file cannot be read ({error.strerror}); check its permissions") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ResultsError(f"{path}: the file is damaged, it is not readable JSON ({error}); delete it and make it again") from error


def is_up_to_date(path: Path, asked: Mapping[str, Any], echo: Callable[[str], None]) -> bool:
    """Whether the measurement at ``path`` stands and is what is ``asked`` now, which it holds under that name; if so, says it."""
    kept = path.is_file() and load_json(path).get("asked") == json.loads(json.dumps(asked))
    if kept:
        echo(f"{path} is there already")
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _run_problem(run: Any, profile: str, name: str) -> str | None:
    """What is wrong with a run read from the file ``name``, or None."""
    if not isinstance(run, dict):
        return f"expected an object, found {type(run).__name__}"
    kinds = {"profile": str, "system": str, "seed": int, "metrics": dict, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(run.get(key), kind) or isinstance(run[key], bool):
            return f"field {key!r}: expected {kind.__name__}, found {run.get(key)!r:.60}"
    if not re.fullmatch(r"[a-z][a-z0-9_.]*", run["system"]):
        return f"field 'system': expected lower-case letters, digits, underscores and dots, found {run['system']!r}"
    if run["seed"] < 0:
        return f"field 'seed': expected 0 or more, found {run['seed']}"
    if run["profile"] != profile:
        return f"it is a run of profile {run['profile']!r}, expected {profile!r}"
    if name != f"{run['system']}-seed{run['seed']}.json":
        return f"it holds the run {run['system']}-seed{run['seed']}, which its name does not say"
    if not isinstance(run["provenance"].get("config"), dict):
        return "field 'provenance.config': expected the run's resolved configuration (see e2e_lib.provenance.stamp)"
    for key, value in run["metrics"].items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"metric {key!r} is {value}, which is no result; use None for a metric that could not be computed"
    return None


def write_run(profile: str, system: str, seed: int, metrics: Mapping[str, Any], provenance: Mapping[str, Any],
              root: Path | str = RESULTS, folder: str = "runs") -> Path:
    """Writes one run into ``folder`` ("runs", or "ablations" for variants of a system) and returns its file.

    ``metrics`` maps names to numbers; its entry ``"n"``, if there, is an object of counts of the test set. Other values
    (a signature, a list) are kept but not summarised. ``provenance`` is what ``provenance.stamp`` returns.
    Raises ResultsError for a value that is not a result (NaN, a name with odd characters) and files.SaveError.
    """
    path = Path(root) / profile / folder / f"{system}-seed{seed}.json"
    run = {"profile": profile, "system": system, "seed": seed, "metrics": dict(metrics), "provenance": dict(provenance)}
    if problem := _run_problem(run, profile, path.name):
        raise ResultsError(f"{path} was not written: {problem}")
    try:
        return files.write_json(path, run)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{path} was not written: a value in it cannot be kept as JSON ({error})") from error


def read_runs(profile: str, root: Path | str = RESULTS, folder: str = "runs") -> list[dict[str, Any]]:
    """All runs of a profile, by system and seed; none is an empty list. Raises ResultsError naming a file that is not a sound run."""
    runs = []
    for path in (Path(root) / profile / folder).glob("*.json"):
        run = load_json(path)
        if problem := _run_problem(run, profile, path.name):
            raise ResultsError(f"{path}: {problem}; delete the file and make the run again with `e2e reproduce --profile {profile}`")
        runs.append(run)
    return sorted(runs, key=lambda run: (run["system"], run["seed"]))


def _without_seeds(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The configuration as one flat mapping of dotted names, the seeds left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _without_seeds(value, f"{prefix}{key}.")
        elif key not in ("seed", "seeds"):
            flat[prefix + key] = value
    return flat


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['system']}-seed{run['seed']}.json"


def _check_alike(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises ResultsError unless two runs of a system have the same configuration, but for the seed."""
    one, two = (_without_seeds(with_defaults(run["provenance"]["config"])) for run in (first, other))
    missing = object()
    differing = sorted(key for key in one.keys() | two.keys() if one.get(key, missing) != two.get(key, missing))
    if differing:
        said = "; ".join(f"{key} is {one.get(key, 'absent')!r} there and {two.get(key, 'absent')!r} here" for key in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ResultsError(f"{_name(other)} was made with another configuration than {_name(first)}: {said}{more}. "
                           "Runs are only averaged over seeds: make one of them again, or move it away")


def _check_version(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises ResultsError unless two runs, of whatever systems, were scored by the same code and began from the same shipped parts."""
    for what, found in (("scored by another version of the code than", lambda run: run["provenance"].get("numbers")),
                        ("trained from other shipped parts than", lambda run: run["provenance"].get("weights", {}).get("shipped"))):
        if found(first) != found(other):
            raise ResultsError(f"{_name(other)} was {what} {_name(first)}; make it again with "
                               f"`e2e evaluate --profile {other['profile']}`, or move one of them away")


def mean_and_std(values: Sequence[float]) -> dict[str, float | int | None]:
    """ "mean", sample standard deviation "std" (None for a single value) and number "n"."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def summarise(profile: str, root: Path | str = RESULTS, folder: str = "runs", seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Averages a profile's runs over ``seeds`` (by default over all there are), writes ``summary.json`` (``ablations.json`` for the folder
    "ablations") and returns its content::

        {"profile": "mini", "systems": {"end_to_end": {"bleu1": {"mean": …, "std": …, "n": 3}, …}, …},
         "runs": ["end_to_end-seed0.json", …], "test": {"dialogues": 500, …}}

    Every numeric metric that all runs of a system have is there. ``std`` is the sample standard deviation (n - 1), null for a single run, of
    which no spread is known. ``shipped`` is the hash of the parts that the runs began from, and ``test`` is their common ``metrics["n"]``.
    Raises ResultsError where there is no run, where runs of a system differ in more than the seed, where runs were scored by different
    versions of the code or began from different shipped parts, or where test sets differ in size.
    """
    runs = [run for run in read_runs(profile, root, folder) if seeds is None or run["seed"] in seeds]
    if not runs:
        raise ResultsError(f"{Path(root) / profile / folder}: no runs to summarise; make them with `e2e reproduce --profile {profile}`")
    by_system: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        group = by_system.setdefault(run["system"], [])
        group.append(run)
        _check_alike(group[0], run)
        _check_version(runs[0], run)
        if run["metrics"].get("n") != runs[0]["metrics"].get("n"):
            raise ResultsError(f"{_name(run)} was tested on {run['metrics'].get('n')}, {_name(runs[0])} on {runs[0]['metrics'].get('n')}: "
                               "scores of different test sets are not comparable; make one of them again, or move it away")
    systems = {}
    for system, group in by_system.items():
        names = [key for key in group[0]["metrics"] if all(_is_number(run["metrics"].get(key)) for run in group)]
        systems[system] = {key: mean_and_std([run["metrics"][key] for run in group]) for key in names}
    summary = {"profile": profile, "systems": systems, "runs": [_name(run) for run in runs], "test": runs[0]["metrics"].get("n") or {}}
    if shipped := runs[0]["provenance"].get("weights", {}).get("shipped"):
        summary["shipped"] = shipped
    files.write_json(Path(root) / profile / ("summary.json" if folder == "runs" else f"{folder}.json"), summary)
    return summary


def tested(summary: Mapping[str, Any]) -> str:
    """What a summary's scores were computed on, counted: "3,546 examples, 688 gold photos"."""
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in summary["test"].items())


def outdated(summary: Mapping[str, Any]) -> str:
    """A sentence if a summary's runs began from other parts than those that ship now, an empty text if not, or if that is not known."""
    manifest = Path(__file__).parents[1] / "weights" / "mini" / "manifest.json"
    if summary.get("shipped") in (None, files.sha256(manifest)):
        return ""
    return " Trained from the parts that shipped before the present ones, so to be compared within this table only."


def read_summary(profile: str, root: Path | str = RESULTS) -> dict[str, Any]:
    """The summary that ``summarise`` wrote. Raises ResultsError if it is missing or damaged."""
    return load_json(Path(root) / profile / "summary.json")


def published(table: int, root: Path | str = RESULTS) -> dict[str, Any]:
    """The paper's own Table 1 or 2: ``{"source", "caption", "columns": {key: heading}, "rows": [{…}, …]}``.

    Rows of Table 2 have the metric names of ``summarise``; ``is_std`` is the paper's ±, null where it gives none.
    Raises ResultsError for another table, or where the file is missing or damaged.
    """
    if table not in (1, 2):
        raise ResultsError(f"the paper has Tables 1 and 2, not {table!r}")
    return load_json(Path(root) / "published" / f"table{table}.json")


def write_vocabularies(name: str, found: Mapping[str, Any], root: Path | str = RESULTS) -> Path:
    """Saves a survey of two vocabularies (``bridge.survey``). Raises ResultsError for a name that is not a plain file name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ResultsError(f"name {name!r}: expected lower-case letters, digits, dots, dashes and underscores")
    path = Path(root) / "vocabularies" / f"{name}.json"
    files.write_json(path, dict(found))
    return path


def spread(entry: Mapping[str, Any], form: str = ".2f") -> str:
    """ "mean ± standard deviation", the latter left out where a single run has none."""
    return format(entry["mean"], form) + (f" ± {entry['std']:{form}}" if entry["std"] is not None else "")


def verdict(name: str, found: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """A sentence: whose mean is apart from the reference's by more than both standard deviations together. Of single runs, nobody's is."""
    if reference not in found:
        return f"{name}: {reference} was not measured."
    base = found[reference]
    reach = {key: math.inf if None in (entry["std"], base["std"]) else entry["std"] + base["std"] for key, entry in found.items()}
    apart = [f"{key} ({spread(entry, '.3f')})" for key, entry in found.items() if abs(entry["mean"] - base["mean"]) > reach[key]]
    said = f"apart from it {'are' if len(apart) > 1 else 'is'} {', '.join(apart)}" if apart else "none differs from it by more than its spread"
    return f"{name}: {reference} {spread(base, '.3f')}; of {len(found) - 1} others, {said}."
