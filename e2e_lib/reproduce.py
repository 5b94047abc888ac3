"""Whole experiments in one call each: data, training, scores, figures and notebooks. What is done is kept."""

import hashlib
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import SYSTEMS, Config, overrides_of, replace
from e2e_lib.corpora import Echo, named, prepare
from e2e_lib.experiments import comparison, propagation
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.models.hub import WEIGHTS
from e2e_lib.report import results_figures, table_files, tables
from e2e_lib.repro import notebooks, results
from e2e_lib.repro.files import sha256, write_json
from e2e_lib.repro.provenance import ResourceMonitor, clock, provenance_record
from e2e_lib.repro.run_files import RUNS
from e2e_lib.training.loop import train
from e2e_lib.versions import versions

NOTEBOOKS = ("00_quickstart", "01_data", "02_straight_through_gumbel", "03_vocabulary_matrix",
             "04_joint_training", "05_baselines", "06_results")
NOTEBOOK_SECONDS = 600


def reproduce(config: Config, seeds: Sequence[int], echo: Echo = print, fresh: bool = False) -> None:
    """Runs every stage in order; an interrupted run goes on from where it was, unless it is ``fresh``.
    Raises ConfigError for a profile that cannot run yet, NotebookFailed, and whatever a stage raises."""
    folder = results.RESULTS / config.profile
    if fresh:
        for outdated in (RUNS / config.profile, folder / "runs", folder / "notebooks"):
            shutil.rmtree(outdated, ignore_errors=True)
    transcript: list[str] = []

    def record(line: str) -> None:
        transcript.extend(line.splitlines())
        echo(line)

    with ResourceMonitor() as cost:
        stage = stages(4 + 2 * len(SYSTEMS) * len(seeds), record)
        stage("data")
        prepare(config, echo)
        record(train_and_compare(config, seeds, stage, echo))
        stage("figures")
        results_figures.draw_all(config.profile, seeds)
        stage("notebooks")
        run_numbered_notebooks(config, seeds, echo)
    record(f"All done in {clock(cost.wall_seconds)}, at most {cost.peak_memory_bytes / 1e9:.1f} GB of memory."
           f" Scores: {folder}/summary.json. Figures: figures/{config.profile}/."
           f" Notebooks: {folder}/notebooks/.")
    provenance = provenance_record(config, seeds=seeds)
    write_json(folder / "reproduce.json", {
        **cost.as_dict(), "profile": config.profile, "seeds": list(seeds),
        **{key: provenance["platform"][key] for key in ("cpu_count", "device")},
        "versions": provenance["versions"], "git": provenance["git"], "transcript": transcript})


def stages(count: int, echo: Echo) -> Echo:
    """A function that announces one stage of ``count`` after another, with the time since now."""
    start, numbers = time.monotonic(), itertools.count(1)
    return lambda title: echo(f"== stage {next(numbers)} of {count}: {title} "
                              f"(elapsed {clock(time.monotonic() - start)})")


def train_and_compare(config: Config, seeds: Sequence[int], stage: Echo, echo: Echo) -> str:
    """Trains and scores every system with every seed, then compares them; returns the scores as text."""
    for system in SYSTEMS:
        settings = replace(config, "model.system", system)
        for seed in seeds:
            stage(f"{system}, training, seed {seed}")
            train(settings, seed, echo)
            stage(f"{system}, test scores, seed {seed}")
            evaluate(settings, seed, echo)
    stage("summary, differences and tables")
    summary = results.summarise(config.profile, seeds=seeds)
    comparison.compare_systems(config, seeds, SYSTEMS, echo)
    table_files.write_tables(config.profile, echo=echo)
    if named(config.data.name).knows_scenes:
        propagation.propagate(config, seeds, SYSTEMS, echo, photos=8 if config.profile == "smoke" else 48)
    return score_lines(summary)


def compare(config: Config, seeds: Sequence[int], echo: Echo) -> None:
    """Trains, scores and compares every system; where a corpus can draw its scenes anew, also measures FID of
    photos from gold captions."""
    knows_scenes = named(config.data.name).knows_scenes
    stage = stages(1 + 2 * len(SYSTEMS) * len(seeds) + int(knows_scenes), echo)
    lines = train_and_compare(config, seeds, stage, echo)
    if knows_scenes:
        stage("FID of photos from gold captions")
        propagation.gold_fid(config, seeds, SYSTEMS, echo)
    echo(lines)


def run_numbered_notebooks(config: Config, seeds: Sequence[int], echo: Echo, fresh: bool = False, *,
                           name: str | None = None, parameters: Mapping[str, Any] = {}) -> list[Path]:
    """Runs the numbered notebooks, or the one called ``name``, which may then have ``parameters`` of its own;
    keeps those whose inputs are unchanged. Returns the executed copies. Raises NotebookError before anything
    has run, and NotebookFailed."""
    inputs = {"numbers": repr(versions()), "corpus": str(named(config.data.name).version),
              "settings": hashlib.sha256(repr(config).encode()).hexdigest(),
              **{part: sha256(WEIGHTS / part / "manifest.json") for part in ("mini", "mini-baselines")}}
    common = {"profile": config.profile, "seeds": list(seeds), "overrides": overrides_of(config)}
    if twice := [key for key in parameters if key in common]:
        raise notebooks.NotebookError(f"parameter {twice[0]!r}: profile, seeds and overrides are options of "
                                      "the command: --profile, --seeds and --set")
    if parameters and name is None:
        raise notebooks.NotebookError("parameters are those of one notebook: name it, such as "
                                      "`e2e notebooks 02 -p draws=4000`")
    names = NOTEBOOKS if name is None else (notebooks.find_notebook(name, NOTEBOOKS),)
    return notebooks.run_notebooks(
        [Path("notebooks") / f"{stem}.ipynb" for stem in names],
        results.RESULTS / config.profile / "notebooks", parameters=common | dict(parameters), inputs=inputs,
        timeout_s=NOTEBOOK_SECONDS, fresh=fresh, echo=echo)


def score_lines(summary: Mapping[str, Any], rows: str = "metric", columns: str = "system") -> str:
    """The scores of ``results.summarise`` as a table of text: mean ± standard deviation over seeds."""
    table = tables.score_table(tables.scores(summary), rows, columns)
    return f"{table.to_string(index=False)}\n{tables.summary_footer(summary)}"
