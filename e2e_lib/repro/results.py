"""Reading and writing ``results/``.

``results/<profile>/runs/<system>-seed<k>.json`` holds one run, ``results/<profile>/summary.json`` mean and
spread over runs, ``results/published/`` the paper's own numbers. ``root`` is the folder ``results``.
"""

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import PROFILES, SYSTEMS, ConfigError, check_seed, with_defaults
from e2e_lib.repro import files
from e2e_lib.repro.files import ResultsError
from e2e_lib.repro.run_files import NUMBER
from e2e_lib.versions import versions

RESULTS = Path("results")
MANIFEST = Path(__file__).parents[1] / "weights" / "mini" / "manifest.json"  # of the parts that ship now
# Folders of runs, and the command that makes each.
COMMANDS = {"runs": "reproduce", "ablations": "ablate", "faults": "ablate --variants faults",
            "terms": "ablate --variants terms", "tuning": "ablate --variants tuning"}

# What must stand in the files of results/ (see `files.find_problem`), and the commands that make them.
RUN = {"profile": str, "system": str, "seed": int, "metrics": {"n?": {"*": NUMBER}},
       "provenance": {"config": {}, "numbers?": {"*": int}, "weights?": {}}}
_SCORES = {"*": {"mean": NUMBER, "std": NUMBER | None, "n": int}}
_SUMMARY = {"profile": str, "systems": {"*": _SCORES},
            "runs": [str], "test": {"*": NUMBER}, "numbers?": {"*": int}}
_DIFFERENCES = {"profile": str, "seeds": [int], "examples": int, "dialogues": int, "numbers?": {"*": int},
                "higher_is_better": {"*": bool},
                "pairs": [{"system": str, "than": str, "metric": str, "difference": NUMBER, "low": NUMBER,
                           "high": NUMBER, "p": NUMBER, "p_corrected": NUMBER, "by_seed": [NUMBER]}]}
_INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
_PROPAGATION = {"profile": str, "photos": int, "arguments": {"shares": [NUMBER], "seeds": [int]},
                "systems": {"*": {"accuracy": [_INTERVAL], "slope": _INTERVAL}}}
_GOLD_FID = {"profile": str, "photos": int, "drawn_anew": NUMBER, "arguments": {"seeds": [int]},
             "systems": {"*": {"*": [NUMBER | None]}}}
_GRADIENTS = {"captions": list, "arguments": {"settings": {"profile": str}},
              "rows": [{"mapping": str, "estimator": str, "temperature": NUMBER}]}
_STEPS = {"threads": int, "arguments": {"rounds": int},
          "rows": [{"mapping": str, "over_none": NUMBER, "std": NUMBER}]}
_REPRODUCE = {"transcript": [str], "cpu_count": int, "device": str, "wall_seconds": NUMBER,
              "peak_memory_bytes": int}
_CONDITION = {"kind": str, "rate": NUMBER, "start": str, "caption_source": str}
_FAULTS = {"profile": str, "seeds": [int], "higher_is_better": {"*": bool}, "numbers?": {"*": int},
           "rows": [{**_CONDITION, "mapping": str, "seeds": [int], "scores": {"*": {"mean": NUMBER}}}],
           "pairs": [{**_CONDITION, **_DIFFERENCES["pairs"][0]}]}  # type: ignore[index]
_TUNING = {"profile": str, "seeds": [int], "split": str, "test": {"*": NUMBER},
           "rows": [{"system": str, "settings": {}, "scores": _SCORES}]}
_REPLACEMENTS = {"rows": list, "correlation": NUMBER, "same_sign": NUMBER,
                 "correlation_by_caption": {"mean": NUMBER},
                 "arguments": {"captions": int, "noises": int, "seed": int}}
_ONE_WORD = {"caption": str, "written": str, "true": str, "words": [str], "exact": [NUMBER],
             "said": {"*": [NUMBER]}, "numbers": {"*": int}, "photo_id": str,
             "arguments": {"seed": int, "noises": int}}
_PUBLISHED = {"source": str, "caption": str, "columns": {"*": str}, "rows": [{}]}
FILES: dict[str, tuple[str, Any]] = {
    "summary": ("e2e reproduce", _SUMMARY), "ablations": ("e2e ablate", _SUMMARY),
    "comparison": ("e2e reproduce", _DIFFERENCES), "ablation_differences": ("e2e ablate", _DIFFERENCES),
    "faults": ("e2e ablate --variants faults", _FAULTS),
    "terms": ("e2e ablate --variants terms", _SUMMARY | _DIFFERENCES),
    "tuning": ("e2e ablate --variants tuning", _TUNING),
    "propagation": ("e2e reproduce", _PROPAGATION), "gold_fid": ("e2e compare", _GOLD_FID),
    "gradients": ("e2e ablate", _GRADIENTS), "steps": ("e2e ablate", _STEPS),
    "replacements": ("e2e ablate", _REPLACEMENTS), "one_word": ("e2e ablate", _ONE_WORD),
    "cost": ("e2e cost", {"rows": list}),
    "polynomial": ("e2e ablate", {"rows": [{"estimator": str, "temperature": NUMBER, "end": NUMBER}]}),
    "benchmarks": ("make bench", {"measured": [{"benchmark": str}]}),
    "reproduce": ("e2e reproduce", _REPRODUCE), "pretraining": ("e2e pretrain", {}),
    "pretraining_baselines": ("e2e pretrain --baselines", {}),
    **dict.fromkeys(("table1", "table2"), ("git restore results/published", _PUBLISHED)),
}


def load_json(path: Path | str) -> dict[str, Any]:
    """The content of a file in ``results/``; a summary has the versions of its runs as "numbers".

    Raises ResultsError naming it if it is missing, damaged or of another shape, and what makes it again."""
    path = Path(path)
    command, shape = FILES.get(path.stem, ("e2e reproduce", {}))
    if path.parent.name in COMMANDS:
        command, shape = f"e2e {COMMANDS[path.parent.name]}", RUN
    elif path.parent.name == "vocabularies":
        command = "e2e vocabularies"
    profile = next((name for name in reversed(path.parts[:-1]) if name in PROFILES), None)
    of_profile = f" --profile {profile}" if profile and command.startswith("e2e ") else ""
    content: dict[str, Any] = files.read_json(path, command + of_profile, shape)
    if shape is RUN:
        try:
            with_defaults(content["provenance"]["config"])
        except ConfigError as error:
            raise ResultsError(f"{path}: {error}; delete the file and make it again with "
                               f"`{command}{of_profile}`") from None
    if shape is _SUMMARY and "numbers" not in content:  # it is older than they are
        folder = path.parent / ("runs" if path.stem == "summary" else path.stem)
        runs = [load_json(folder / name) for name in content["runs"] if (folder / name).is_file()]
        # All had the same; one that has others now was made again since.
        content |= _numbers(next((run for run in runs if version_note(run)), runs[0])) if runs else {}
    return content


def is_up_to_date(path: Path, settings: Mapping[str, Any], echo: Callable[[str], None]) -> bool:
    """Whether ``path`` holds a measurement with these ``settings`` ("arguments"); says so if it does.

    A configuration among them ("settings") that was saved before a setting existed has its default."""
    if not path.is_file():
        return False
    saved, wanted = load_json(path).get("arguments"), json.loads(json.dumps(settings))
    if isinstance(saved, dict) and isinstance(saved.get("settings"), dict) and "settings" in wanted:
        filled = with_defaults(saved["settings"])
        saved["settings"] = {name: filled[name] for name in saved["settings"].keys() & filled.keys()}
    if same := saved == wanted:
        echo(f"{path} is there already")
    return same


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """``{"numbers": the versions that decided a summary, run or measurement}``, {} if it records none."""
    parts = (record, record.get("arguments"), record.get("provenance"))
    return next(({"numbers": part["numbers"]} for part in parts if part and part.get("numbers")), {})


def version_note(record: Mapping[str, Any]) -> str:
    """Says by which earlier versions of the code (``e2e_lib.versions``) a summary, run or measurement was
    made, and what makes it again; "" where the code has the same versions, or the record none."""
    now = versions()
    earlier = {name: version for name, version in _numbers(record).get("numbers", {}).items()
               if now.get(name, version) != version}
    if not earlier:
        return ""
    variants = "runs" in record and not {*record["systems"]} <= {*SYSTEMS}
    command = f"e2e {'ablate' if variants else 'compare'} --profile {record.get('profile', 'mini')}"
    made_by, code_at = (" and ".join(f"{name} version {by_name[name]}" for name in earlier)
                        for by_name in (earlier, now))
    return (f"made with {made_by}; the code is at {code_at}: `{record.get('command', command)}` "
            "makes them again")


def is_outdated(summary: Mapping[str, Any]) -> bool:
    """Whether a summary's runs are known to begin from other pretrained parts than those that ship now."""
    return summary.get("shipped") not in (None, files.sha256(MANIFEST))


def _problem(run: Any, profile: str, name: str) -> str | None:
    """What is wrong with a run read from the file ``name``, or None."""
    if problem := files.find_problem(run, RUN):
        return problem
    try:
        check_seed(run["seed"])
        with_defaults(run["provenance"]["config"])
    except ConfigError as error:
        return str(error)
    if not re.fullmatch(r"[a-z][a-z0-9_.]*", run["system"]):
        return f"field 'system': expected lower-case letters, digits, dots and _, found {run['system']!r}"
    if (run["profile"], _name(run)) != (profile, name):
        return f"it holds {_name(run)} of profile {run['profile']!r}, expected {name} of profile {profile!r}"
    for key, value in run["metrics"].items():
        if isinstance(value, float) and not math.isfinite(value):
            return f"metric {key!r} is {value}; use None for a metric that could not be computed"
    return None


def write_run(profile: str, system: str, seed: int, metrics: Mapping[str, Any], provenance: Mapping[str, Any],
              root: Path | str = RESULTS, folder: str = "runs") -> Path:
    """Writes one run into ``folder`` ("runs", or "ablations" for variants of a system) and returns its file.

    ``metrics`` maps names to numbers; its entry ``"n"``, if there, holds counts of the test set. Other values
    (a signature, a list) are kept but not summarised. ``provenance`` is what ``provenance_record`` gives.
    Raises ResultsError for what is not a result (NaN, a name with odd characters) and files.SaveError.
    """
    run = {"profile": profile, "system": system, "seed": seed, "metrics": dict(metrics),
           "provenance": dict(provenance)}
    path = Path(root) / profile / folder / _name(run)
    if problem := _problem(run, profile, path.name):
        raise ResultsError(f"{path} was not written: {problem}")
    try:
        return files.write_json(path, run)
    except (TypeError, ValueError) as error:
        raise ResultsError(f"{path} was not written: a value cannot be kept as JSON ({error})") from error


def read_runs(profile: str, root: Path | str = RESULTS, folder: str = "runs") -> list[dict[str, Any]]:
    """All runs of a profile, by system and seed. Raises ResultsError naming a file that is damaged."""
    runs = {path: load_json(path) for path in (Path(root) / profile / folder).glob("*.json")}
    for path, run in runs.items():
        if problem := _problem(run, profile, path.name):
            raise ResultsError(f"{path}: {problem}; delete the file and make the run again with "
                               f"`e2e {COMMANDS[folder]} --profile {profile}`")
    return sorted(runs.values(), key=lambda run: (run["system"], run["seed"]))


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['system']}-seed{run['seed']}.json"


def _shipped(run: Mapping[str, Any]) -> str | None:
    return run["provenance"].get("weights", {}).get("shipped")


def _check_comparable(first: Mapping[str, Any], other: Mapping[str, Any], again: str) -> None:
    """Raises ResultsError unless two runs can stand in one table; the command ``again`` makes them again.

    They may be of earlier versions of the code, but must be of the same."""
    made_of = [{"versions of the code": _numbers(run).get("numbers"), "shipped parts": _shipped(run),
                "test set": run["metrics"].get("n")} for run in (first, other)]
    for what, one in made_of[0].items():
        if one != (two := made_of[1][what]):
            raise ResultsError(f"{_name(other)} and {_name(first)} differ in {what} ({two}, not {one}); "
                               f"make one of them again with `{again}`, or move it away")


def _check_settings(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises ResultsError unless two runs of a system have the same settings but for the seeds."""
    configs = [with_defaults(run["provenance"]["config"]) for run in (first, other)]
    one, two = ({f"{section}.{key}": value for section, settings in config.items() if section != "profile"
                 for key, value in settings.items() if key != "seed"} for config in configs)
    if differences := [f"{key} is {one.get(key)!r} there and {two.get(key)!r} here"
                       for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]:
        raise ResultsError(f"{_name(other)} was made with another configuration than {_name(first)}: "
                           f"{'; '.join(differences[:3])}. Runs are only averaged over seeds: make one of "
                           "them again, or move it away")


def mean_and_std(values: Sequence[float]) -> dict[str, float | int | None]:
    """``{"mean", "std": the sample standard deviation (n - 1), None for a single value, "n"}``."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def summarise(profile: str, root: Path | str = RESULTS, folder: str = "runs",
              seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """Averages a profile's runs over ``seeds`` (default: all), writes and returns ``summary.json``::

        {"profile": "mini", "systems": {"end_to_end": {"bleu1": {"mean": …, "std": …, "n": 3}, …}, …},
         "runs": ["end_to_end-seed0.json", …], "test": {"examples": 500, …}, "shipped": "4470…",
         "numbers": {"scoring": 1, …}}

    with every numeric metric that all runs of a system have (see ``mean_and_std``), the runs' common
    ``metrics["n"]`` as ``test``, the hash of the pretrained parts and the versions of the code that made the
    runs, which may be earlier ones than now (see ``version_note``). "ablations" become ``ablations.json``.
    Raises ResultsError where there is no run and for runs that are not comparable (see the checks above).
    """
    again = f"e2e {COMMANDS[folder]} --profile {profile}"
    runs = [run for run in read_runs(profile, root, folder) if seeds is None or run["seed"] in seeds]
    if not runs:
        raise ResultsError(f"{Path(root) / profile / folder}: no runs to summarise; make them with `{again}`")
    summary = averages(runs, again)
    name = "summary.json" if folder == "runs" else f"{folder}.json"
    files.write_json(Path(root) / profile / name, summary)
    return summary


def averages(runs: Sequence[Mapping[str, Any]], again: str) -> dict[str, Any]:
    """What ``summarise`` returns, of these ``runs`` of a profile; ``again`` is the command that makes them.
    Raises ResultsError for runs that are not comparable."""
    systems: dict[str, Any] = {}
    for system in dict.fromkeys(run["system"] for run in runs):
        group = [run for run in runs if run["system"] == system]
        for run in group:
            _check_settings(group[0], run)
            _check_comparable(runs[0], run, again)
        columns = {metric: [run["metrics"].get(metric) for run in group] for metric in group[0]["metrics"]}
        systems[system] = {metric: mean_and_std(values) for metric, values in columns.items()
                           if all(type(value) in (int, float) for value in values)}
    summary = {"profile": runs[0]["profile"], "systems": systems, "runs": [_name(run) for run in runs],
               "test": runs[0]["metrics"].get("n") or {}}
    summary |= {"shipped": _shipped(runs[0])} if _shipped(runs[0]) else {}
    return summary | _numbers(runs[0])


def read_summary(profile: str, root: Path | str = RESULTS) -> dict[str, Any]:
    """The summary that ``summarise`` wrote. Raises ResultsError if it is missing or damaged."""
    return load_json(Path(root) / profile / "summary.json")


def published(table: int, root: Path | str = RESULTS) -> dict[str, Any]:
    """The paper's own Table 1 or 2: ``{"source", "caption", "columns": {key: heading}, "rows": [{…}, …]}``.

    Rows of Table 2 have the metric names of ``summarise``; ``is_std`` is the paper's ±, null where none is.
    """
    return load_json(Path(root) / "published" / f"table{table}.json")


def write_vocabularies(name: str, comparison: Mapping[str, Any], root: Path | str = RESULTS) -> Path:
    """Saves a comparison of two vocabularies. Raises ResultsError for a name with odd characters."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ResultsError(f"name {name!r}: expected lower-case letters, digits, dots, dashes and _")
    return files.write_json(Path(root) / "vocabularies" / f"{name}.json", comparison)
