"""Everything in one command: data, training, evaluation, summary, figures and notebooks, each kept once it is done."""

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Sequence

from e2e_lib import config as configuration
from e2e_lib.config import SHIPPED, SYSTEMS, Config
from e2e_lib.corpora import prepare
from e2e_lib.evaluation.scene_classifier import load_scene_classifier
from e2e_lib.experiments import comparison, propagation
from e2e_lib.experiments.evaluate import evaluate
from e2e_lib.models.hub import WEIGHTS
from e2e_lib.report import figures, tables
from e2e_lib.repro import notebooks, results
from e2e_lib.repro.files import sha256, write_json
from e2e_lib.repro.provenance import ResourceMonitor, provenance_record
from e2e_lib.repro.run_files import RUNS
from e2e_lib.training.loop import train
from e2e_lib.versions import versions

NOTEBOOKS = ("00_quickstart", "01_data", "02_straight_through_gumbel", "03_vocabulary_matrix", "04_joint_training", "05_baselines",
             "06_results")
NOTEBOOK_SECONDS = 600
Echo = Callable[[str], None]


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def reproduce(config: Config, seeds: Sequence[int], echo: Echo = print, fresh: bool = False) -> None:
    """Runs every stage in order; what stands already and matches is kept, so that an interrupted run goes on from where it was.

    ``fresh`` removes the profile's runs and results first. Raises ConfigError for a profile that cannot run yet,
    NotebookFailed with the notebook's name, cell and error, and whatever a stage raises.
    """
    if fresh:
        for folder in (RUNS / config.profile, results.RESULTS / config.profile / "runs", results.RESULTS / config.profile / "notebooks"):
            shutil.rmtree(folder, ignore_errors=True)
    transcript: list[str] = []

    def tell(line: str) -> None:
        transcript.extend(line.splitlines())
        echo(line)

    with ResourceMonitor() as measure:
        stage = staged(4 + 2 * len(SYSTEMS) * len(seeds), tell)
        stage("data")
        prepare(config, echo)
        run_all(config, seeds, stage, echo)
        tell(compare(config, seeds, stage, echo))
        stage("figures")
        figures.draw_all(config.profile, seeds)
        stage("notebooks")
        run_notebooks(config, seeds, echo)
    tell(f"All done in {clock(measure.wall_seconds)}, at most {measure.peak_memory_bytes / 1e9:.1f} GB of memory. "
         f"Scores: results/{config.profile}/summary.json. Figures: figures/{config.profile}/. Notebooks: results/{config.profile}/notebooks/.")
    made = provenance_record(config, seeds=seeds)
    write_json(results.RESULTS / config.profile / "reproduce.json", {
        **measure.as_dict(), "profile": config.profile, "seeds": list(seeds), "cpu_count": made["platform"]["cpu_count"],
        "device": made["platform"]["device"], "versions": made["versions"], "git": made["git"], "transcript": transcript})


def staged(stages: int, tell: Echo) -> Echo:
    """A function that announces one stage after another, of so many in all, with the time since now."""
    began, numbers = time.monotonic(), itertools.count(1)
    return lambda title: tell(f"== stage {next(numbers)} of {stages}: {title} (elapsed {clock(time.monotonic() - began)})")


def run_all(config: Config, seeds: Sequence[int], stage: Echo, echo: Echo) -> None:
    """Trains and scores every system with every seed; what is done is found."""
    for system in SYSTEMS:
        made = configuration.replace(config, "model.system", system)
        for seed in seeds:
            stage(f"{system}, training, seed {seed}")
            train(made, seed, echo)
            stage(f"{system}, test scores, seed {seed}")
            evaluate(made, seed, echo)


def compare(config: Config, seeds: Sequence[int], stage: Echo, echo: Echo) -> str:
    """What the systems' runs say together: summary, differences, errors that propagate, tables. Returns the main scores as lines."""
    stage("summary, differences and tables")
    summary, reader = results.summarise(config.profile, seeds=seeds), load_scene_classifier(SHIPPED)
    comparison.compare_systems(config, seeds, SYSTEMS, reader, echo)
    propagation.propagate(config, seeds, SYSTEMS, reader, echo)
    tables.write_tables(config.profile, echo=echo)
    return summary_lines(summary)


def run_notebooks(config: Config, seeds: Sequence[int], echo: Echo, fresh: bool = False) -> list[notebooks.Outcome]:
    """The numbered notebooks, in order, at the profile's size; one that is done and whose inputs stand unchanged is skipped."""
    return notebooks.run_notebooks(
        NOTEBOOKS, profile=config.profile,
        parameters={"profile": config.profile, "seeds": list(seeds), "overrides": configuration.overrides_of(config)}, timeout_s=NOTEBOOK_SECONDS,
        inputs={"numbers": repr(versions()), "settings": hashlib.sha256(repr(config).encode()).hexdigest(),
                **{name: sha256(WEIGHTS / name / "manifest.json") for name in ("mini", "mini-baselines")}},
        fresh=fresh, echo=echo)


def summary_lines(summary: dict) -> str:
    """The main scores as text: mean ± standard deviation over seeds."""
    lines = [f"profile {summary['profile']}, test set {summary['test']}"]
    for system, scores in summary["systems"].items():
        for key, (name, *_) in results.METRICS.items():
            if key in scores:
                spread = "" if scores[key]["std"] is None else f" ± {scores[key]['std']:.3f}"
                lines.append(f"  {system:12s} {name:24s} {scores[key]['mean']:8.3f}{spread}  ({scores[key]['n']} seeds)")
    return "\n".join(lines)
