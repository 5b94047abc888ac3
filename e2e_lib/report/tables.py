"""The tables of results as pandas frames (``table_files`` writes them).

Tables to be read have texts for cells: "19.16 ± 0.91" (mean ± sample standard deviation over seeds), "–"
where there is no score. A CSV has the numbers as they are. Ours and the paper's never share a table.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from e2e_lib import corpora
from e2e_lib.config import Data
from e2e_lib.evaluation.scores import INCEPTION_METRICS, METRICS, Metric
from e2e_lib.report.plots import MAP_STYLES, STYLES, Markdown, footer, markdown
from e2e_lib.repro.results import ResultsError, is_outdated, version_note

# In the paper's order.
SYSTEMS = {name: STYLES[name][0] for name in ("divter", "pipeline", "end_to_end", "end_to_end_aligned")}
ORDER = [*SYSTEMS, "none", *MAP_STYLES]  # of rows; what is not named here follows by name
# How systems on other terms are marked, `<system>.<term>` in results (see experiments.other_terms).
TERMS = {"clean": "right captions", "clean_ratio_1": "right captions, a gradient as long as the text's",
         "control": "shuffled words", "told_more": "captions that tell more",
         "early_stopping": "best epoch on dev"}
OWN = "own"  # among columns: all that only the corpus of the results has
COLUMNS = {"main": ("bleu1", "bleu2", "rougeL", "rougeL_whitespace", "is", "fid", "inception_is",
                    "inception_fid"),
           "further": (OWN, "intent_f1", "caption_bleu"),
           "terms": ("bleu1", "bleu2", "rougeL", "is", "fid", "scene_accuracy", "caption_accuracy",
                     "details"),
           "faults": ("caption_accuracy", "scene_accuracy", "is", "fid", "bleu2", "rougeL", "details"),
           "ablations": ("scene_accuracy", "fid", "caption_bleu", "bleu2", "rougeL")}
FAULT_COLUMNS = ("kind", "rate", "start", "caption", "map")
LEVEL = 0.05  # who is said to be ahead has a p-value below it, after Holm's correction


def system_label(name: str) -> str:
    """What a system, or a system on other terms, is called in tables; a variant has its own name."""
    system, _, term = name.partition(".")
    return SYSTEMS.get(system, name) if not term or system not in SYSTEMS else (
        f"{SYSTEMS[system]}, {TERMS.get(term, term)}")


def mean_and_sd(mean: float | None, sd: float | None = None, digits: int | None = None) -> str:
    """ "mean ± sd", or "mean", or "–" for none; ``digits``: by default 3 from -2 to 2, and 2 elsewhere."""
    if mean is None or math.isnan(mean):
        return "–"
    digits = digits if digits is not None else 3 if abs(mean) < 2 else 2  # "z" below: no "-0.000"
    return f"{mean:z.{digits}f}" + ("" if sd is None or math.isnan(sd) else f" ± {sd:.{digits}f}")


def metrics_of(content: Mapping[str, Any]) -> dict[str, Metric]:
    """How the scores of the corpus are shown that a summary, differences or a run are of, those by Inception
    where it has any. Its name stands in their configuration, or among their "numbers". Raises ConfigError
    for a corpus that is not there."""
    config = content.get("provenance", {}).get("config", {})
    numbers = content.get("numbers", {})
    name = config.get("data", {}).get("name") or next(filter(numbers.get, corpora.CORPORA), Data().name)
    scored = {key for entries in content.get("systems", {}).values() for key in entries}
    return corpora.metrics_of(Data(name=name)) | {
        key: metric for key, metric in INCEPTION_METRICS.items() if key in scored}


def scores(summary: Mapping[str, Any], metrics: Iterable[str] = ()) -> pd.DataFrame:
    """One row per system (or variant) and metric of what ``results.summarise`` returns, NaN without a score.

    ``metrics`` may have ``OWN``; those that the corpus does not have are left out; by default it is all.
    Columns: system, metric (labels), mean, sd (sample standard deviation over seeds), seeds (their number).
    Systems have the paper's order, variants that of their maps; all others follow by name.
    """
    known, rows, systems = metrics_of(summary), [], summary["systems"]
    own = [key for key in known if key not in METRICS | INCEPTION_METRICS]
    metrics = [key for name in metrics or known for key in (own if name == OWN else [name]) if key in known]
    for name in [name for name in dict.fromkeys([*ORDER, *sorted(systems)]) if name in systems]:
        entries = systems[name]
        seeds = max((entry["n"] for entry in entries.values()), default=0)
        for key in metrics:
            entry = entries.get(key, {"mean": None, "std": None})
            rows.append((system_label(name), known[key].label, entry["mean"], entry["std"], seeds))
    frame = pd.DataFrame(rows, columns=["system", "metric", "mean", "sd", "seeds"])
    return frame.astype({"mean": float, "sd": float})


def score_table(frame: pd.DataFrame, rows: str = "system", columns: str = "metric") -> pd.DataFrame:
    """The ``scores`` as texts: a row per system and a column per metric, or the other way round."""
    texts = frame.assign(text=list(map(mean_and_sd, frame["mean"], frame.sd)))
    wide = texts.pivot(index=rows, columns=columns, values="text")
    return wide.loc[frame[rows].unique(), frame[columns].unique()].rename_axis(columns=None).reset_index()


def of_term(terms: Mapping[str, Any], term: str) -> dict[str, Any]:
    """Of ``terms.json``: the summary of the systems on one of TERMS, by their plain names."""
    systems = {name.removesuffix(f".{term}"): entries for name, entries in terms["systems"].items()
               if name.endswith(f".{term}")}
    return {**terms, "systems": systems}


def fault_scores(faults: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``faults.json``: one row per condition, map and metric, as ``scores``, the condition in the columns
    kind, rate, start and caption."""
    known, rows = metrics_of(faults), []
    for row in faults["rows"]:
        condition = (row["kind"], row["rate"], row["start"], row["caption_source"])
        for key in COLUMNS["faults"]:
            entry = row["scores"].get(key, {"mean": None, "std": None})
            rows.append((*condition, row["mapping"], known[key].label, entry["mean"], entry["std"],
                         len(row["seeds"])))
    columns = [*FAULT_COLUMNS, "metric", "mean", "sd", "seeds"]
    return pd.DataFrame(rows, columns=columns).astype({"mean": float, "sd": float})


def fault_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The ``fault_scores`` as texts, a row per condition and map, a column per metric."""
    texts = frame.assign(text=list(map(mean_and_sd, frame["mean"], frame.sd)))
    index = [*FAULT_COLUMNS, "seeds"]
    wide = texts.pivot(index=index, columns="metric", values="text")
    order = frame[index].drop_duplicates().apply(tuple, axis=1)
    wide = wide.loc[list(order), frame.metric.unique()].rename_axis(columns=None).reset_index()
    return wide.astype({"rate": str, "seeds": str})


def score_numbers(frame: pd.DataFrame, index: Sequence[str] = ("system",)) -> pd.DataFrame:
    """The ``scores`` as numbers: a row per system, with its number of seeds and two columns per metric; of
    ``fault_scores``, a row per value of FAULT_COLUMNS."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in frame.to_dict("records"):
        of = {name: row[name] for name in index}
        line = rows.setdefault(tuple(of.values()), {**of, "seeds": row["seeds"]})
        line |= {row["metric"]: row["mean"], f"{row['metric']} sd": row["sd"]}
    return pd.DataFrame(rows.values())


def summary_footer(summary: Mapping[str, Any]) -> str:
    """Profile, test items and seeds of a summary, and whether it was made by earlier parts or code."""
    seeds = sorted({int(run.removesuffix(".json").rpartition("-seed")[2]) for run in summary["runs"]})
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in summary["test"].items())
    earlier = "trained from earlier parts than now ship" if is_outdated(summary) else ""
    parts = [footer(summary["profile"], seeds, counts), earlier, version_note(summary)]
    return " · ".join(filter(None, parts))


def published_numbers(paper: Mapping[str, Any]) -> pd.DataFrame:
    """The paper's Table 1 or 2, as ``results.published`` reads it, with a column for what follows a ±."""
    names = {key: f"{paper['columns'][key[:-4]]} sd" if key.endswith("_std") else name
             for key, name in paper["columns"].items()}
    return pd.DataFrame([{name: row.get(key) for key, name in names.items()} for row in paper["rows"]])


def published(paper: Mapping[str, Any]) -> pd.DataFrame:
    """The same as texts, with the paper's own digits and its own ±."""
    def printed(row: Mapping[str, Any], key: str) -> str:
        value, sd = row.get(key), row.get(f"{key}_std")
        if isinstance(value, float) and f"{key}_std" not in row:
            return f"{value:.2f}"
        text = f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)
        return text if sd is None else f"{text} ± {sd}"
    columns = {key: name for key, name in paper["columns"].items() if not key.endswith("_std")}
    return pd.DataFrame([{name: printed(row, key) for key, name in columns.items()} for row in paper["rows"]])


def table_1(splits: Mapping[str, Mapping[str, Any]], paper: Mapping[str, Any]) -> pd.DataFrame:
    """The statistics of our splits (``data.statistics``) in the columns of the paper's Table 1."""
    names = {key: name for key, name in paper["columns"].items() if key not in ("dataset", "split")}
    return pd.DataFrame([{"split": split, **{name: row[key] for key, name in names.items()}}
                         for split, row in splits.items()], dtype=object)


def differences(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """One row per pair and metric of ``comparison.json`` or ``ablation_differences.json``: system minus than.

    "low" and "high" bound the 95 % interval; "better" is the one that is ahead, of these training seeds, with
    a p-value below 0.05 after Holm's correction, or "neither"; "seeds ahead" counts the training seeds in
    which "system" scores better.
    """
    known, rows = metrics_of(comparison), []
    for pair in comparison["pairs"]:
        sign = 1 if comparison["higher_is_better"][pair["metric"]] else -1
        one, other = (system_label(pair[side]) for side in ("system", "than"))
        ahead = one if sign * pair["difference"] > 0 else other
        better = ahead if pair["p_corrected"] < LEVEL else "neither"
        rows.append([one, other, known[pair["metric"]].label,
                     *(pair[key] for key in ("difference", "low", "high", "p", "p_corrected")),
                     better, sum(sign * value > 0 for value in pair["by_seed"]), len(pair["by_seed"])])
    columns = "system,than,metric,difference,low,high,p,p (Holm),better,seeds ahead,seeds".split(",")
    return pd.DataFrame(rows, columns=columns)


def difference_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The ``differences`` as texts, the interval in one column and the corrected p-value alone."""
    ahead = frame["seeds ahead"].astype(str) + " of " + frame.seeds.astype(str)
    texts = frame[["difference", "low", "high"]].map(lambda value: f"{value:+z.3f}".replace("-", "−"))
    return frame[["system", "than", "metric"]].assign(**{
        "difference": texts.difference, "95 % interval": "[" + texts.low + ", " + texts.high + "]",
        "p (Holm)": frame["p (Holm)"].map(lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}"),
        "better": frame.better, "seeds ahead": ahead})


def comparison_footer(comparison: Mapping[str, Any]) -> str:
    """Profile, N, seeds and rule of the intervals of a comparison; and what makes it again, if the rule was
    another than now."""
    n = f"{comparison['examples']:,} answers in {comparison['dialogues']:,} dialogues"
    rule = "intervals: jackknife over dialogues"
    if "draws" in comparison:  # version 1
        rule = f"intervals: percentiles of {comparison['draws']:,} bootstrap samples of dialogues"
    parts = [footer(comparison["profile"], comparison["seeds"], n), rule, intervals_note(comparison)]
    return " · ".join(filter(None, parts))


def intervals_note(content: Mapping[str, Any]) -> str:
    """``results.version_note`` of differences, or of other intervals, older ones of which have no version."""
    numbers = content.get("numbers") or content.get("arguments", {}).get("numbers", {})
    return version_note({**content, "numbers": {"intervals": 1, **numbers}})


def difference_groups(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``ablation_differences.json``: how many differences there are by group, and how many hold."""
    frame = differences(comparison)
    from_photo = frame.than.str.endswith("none") & ~frame.system.str.endswith("none")
    group = ("compared with " + frame.than).mask(from_photo, "a gradient from the photo, compared with none")
    counts = pd.DataFrame({"variants": group, "differences": 1, "p (Holm) < 0.05": frame.better != "neither",
                           "95 % interval excludes 0": (frame.low > 0) | (frame.high < 0)})
    return counts.groupby("variants", sort=False).sum().reset_index()


def slopes_table(propagation: Mapping[str, Any]) -> pd.DataFrame:
    """Of ``propagation.json``: each system's slope with its 95 % interval."""
    return pd.DataFrame([{
        "system": SYSTEMS.get(name, "named by the caption itself"),
        "slope of a straight line: accuracy by share of wrong words": entry["slope"]["mean"],
        "95 % interval": "[{low:z.3f}, {high:z.3f}]".format_map(entry["slope"]),
        "accuracy with no wrong word": entry["accuracy"][0]["mean"]}
        for name, entry in propagation["systems"].items()])


def gold_fid_table(gold_fid: Mapping[str, Any]) -> Markdown:
    """Of ``gold_fid.json``: FID from gold captions before and after training, and from own captions."""
    kinds = {"before": "from gold captions, before training", "from_gold": "from gold captions, trained",
             "from_own": "from own captions, trained"}
    found = {name: {kind: pd.Series(fids[kind], dtype=float) for kind in kinds}  # None: too few photos
             for name, fids in gold_fid["systems"].items()}
    means = {SYSTEMS[name]: {label: mean_and_sd(fids[kind].mean(), fids[kind].std(), 3)
                             for kind, label in kinds.items() if fids[kind].notna().any()}
             for name, fids in found.items()}
    anew = mean_and_sd(gold_fid["drawn_anew"], digits=3)
    means["MiniChat itself, the same scenes"] = {kinds["before"]: anew}
    frame = pd.DataFrame(means).T.fillna("–").rename_axis("FID* of photos drawn by").reset_index()
    note = footer(gold_fid["profile"], gold_fid["arguments"]["seeds"], f"{gold_fid['photos']} gold photos")
    return markdown(frame, " · ".join(filter(None, [note, version_note(gold_fid)])))


def tuning_table(tuning: Mapping[str, Any]) -> Markdown:
    """Of ``tuning.json``: a row per system and settings, its own first, with its scores on dev."""
    known, rows = metrics_of(tuning), []
    for row in tuning["rows"]:
        entries = {known[key].label: row["scores"][key] for key in COLUMNS["terms"]
                   if key in known and key in row["scores"]}
        rows.append({"system": SYSTEMS[row["system"]], "settings": settings_label(row["settings"]),
                     **{name: mean_and_sd(entry["mean"], entry["std"]) for name, entry in entries.items()}})
    note = footer(tuning["profile"], tuning["seeds"], f"{tuning['test']['examples']:,} dev examples")
    return markdown(pd.DataFrame(rows), " · ".join(filter(None, [note, version_note(tuning)])))


def settings_label(settings: Mapping[str, Any]) -> str:
    """ "gradient_ratio = 3", or "its own" for none that differ from a system's own."""
    return ", ".join(f"{key.partition('.')[2]} = {value:g}" if isinstance(value, float) else
                     f"{key.partition('.')[2]} = {value}" for key, value in settings.items()) or "its own"


def benchmark(benchmarks: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One benchmark of ``benchmarks.json``. Raises ResultsError where it has none of that name."""
    for row in benchmarks["measured"]:
        if row["benchmark"] == name:
            return row
    raise ResultsError(f"benchmarks.json: it has no benchmark {name!r}; `make bench` measures all of them")


def bridge_cost(benchmarks: Mapping[str, Any]) -> Markdown:
    """What the bridge costs at the paper's size, of ``benchmarks.json``. No sum of matrices does what the
    aligned map does, so that torch.sparse has nothing to compare it with."""
    bench = benchmark(benchmarks, "bridge")

    def times(row: Mapping[str, Any], key: str, digits: int) -> str:
        return f"{row[key]:.{digits}f} times" if key in row else "–"

    rows = [{"map": ", ".join([MAP_STYLES[name.split()[0]][0], *name.split()[1:]]),
             "the transfer faster than torch.sparse": times(row, "speedup_vs_sparse", 0),
             "with the softmax, in all": times(row, "total_speedup_vs_sparse", 0),
             "seconds, compared with the Gumbel-softmax alone": times(row, "over_floor", 2),
             "its memory": times(row, "peak_over_floor", 2),
             "seconds, compared with copying the bytes it must move": times(row, "over_copy", 1)}
            for name, row in [*bench["maps"].items(), *bench["aligned"].items()]]
    sizes = ", ".join(f"{key} = {value:,}" for key, value in bench["sizes"].items() if isinstance(value, int))
    note = f"{sizes}; device {bench['device']}; medians of up to {bench['rounds']} rounds"
    return markdown(pd.DataFrame(rows), note)


def systems_cost(benchmarks: Mapping[str, Any]) -> Markdown:
    """What each system costs, of ``benchmarks.json``: a row per quantity, a column per system."""
    bench, columns = benchmark(benchmarks, "systems"), {}
    for name, label in SYSTEMS.items():
        if name not in bench["systems"]:
            continue
        row = bench["systems"][name]
        columns[label] = {"weights": row["parameters"],
                          "weights that training changes": row["trained_parameters"]}
        for case, seconds in row["reply_seconds"].items():
            ratio = row["reply_over_pipeline"][case]
            columns[label][f"reply in seconds (× the pipeline's): {case}"] = f"{seconds:.3f} ({ratio:.2f})"
        columns[label]["training examples per second"] = f"{row['trained_examples_per_second']:.1f}"
        for task, memory in row["memory"].items():
            megabytes = memory["beyond_libraries_bytes"] / 1e6
            columns[label][f"peak memory beyond the libraries, {task} (MB)"] = f"{megabytes:.0f}"
    note = (f"medians of {bench['rounds']} rounds; {bench['tokens_per_reply']} tokens per reply; "
            f"{bench['threads']} threads, device {bench['device']}")
    return markdown(pd.DataFrame(columns, dtype=object).rename_axis("").reset_index(), note)


def pretraining_table(reached: Mapping[str, Any]) -> pd.DataFrame:
    """What the shipped parts reach on unseen data, of ``pretraining.json``."""
    gold, everything = reached["drawn_from_gold"], reached["drawn_from_everything"]
    parts = (("autoencoder", {"PSNR (dB)": reached["autoencoder_psnr_db"]}, "autoencoder_psnr_db"),
             ("scene classifier, real photos", reached["scene_reader"], "scene_reader"),
             ("photo → words through the perceptron", reached["perceptron"], "perceptron"),
             ("drawn from gold captions, triples met", gold["seen"], "drawn_from_gold"),
             ("drawn from gold captions, triples held out", gold["unseen"], "drawn_from_gold"),
             ("drawn from captions that name everything", everything, "drawn_from_everything"))
    rows = [{"part": label, **values, "N": reached["n"][key]} for label, values, key in parts]
    return pd.DataFrame(rows)[["part", *reached["scene_reader"], "PSNR (dB)", "N"]]
