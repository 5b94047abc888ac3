"""The command line: ``e2e COMMAND``; ``e2e --help`` lists the commands, ``e2e COMMAND --help`` their options.

``results/``, ``runs/``, ``data/`` and ``figures/`` are those of the current folder. Heavy imports stand
inside commands, so that help and mistakes show at once.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from e2e_lib import config as configuration
from e2e_lib import data_commands, model_commands
from e2e_lib.config import MAX_SEED, Config, ConfigError

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("--seeds", "--variants")  # options that take several values: --seeds 0 1 2

Profile = Annotated[str, Option(help="smoke, mini, smol, small or paper")]
Settings = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="a setting; repeatable")]
Seeds = Annotated[list[int] | None,
                  Option(min=0, max=MAX_SEED, help="one run each  [default: 0 1 2; smoke: 0]")]
WarmupSeed = Annotated[int, Option(min=0, max=MAX_SEED, help="seed of the batches")]
FiveSeeds = Annotated[list[int] | None,
                      Option(min=0, max=MAX_SEED, help="one run each  [default: 0 1 2 3 4; smoke: 0]")]
Launch = Annotated[int, Option(min=1, help="processes of this machine that train together")]
System = Annotated[str | None, Option(help="end_to_end, pipeline or divter")]
Fresh = Annotated[bool, Option("--fresh", help="do everything again instead of keeping what is done")]
Out = Annotated[Path | None, Option(help="folder for the parts  [default: runs/pretraining/PROFILE/parts]")]
Baselines = Annotated[bool, Option("--baselines", help="the baselines' own parts, from the shipped ones")]
Variants = Annotated[list[str], Option(help="groups, or single variants by name")]
Publish = Annotated[bool, Option("--publish", help="put the executed notebooks into notebooks/")]
Notebook = Annotated[str | None, Argument(help="one by number or name, such as 03  [default: all]")]
Parameters = Annotated[list[str] | None, Option("-p", metavar="KEY=VALUE",
                                                help="a parameter of the one notebook; repeatable")]
Captions = Annotated[Path, Option(help="a file of one caption per line, or JSON lines")]
Tokenizer = Annotated[str | None, Option(help="hub id, folder or pip:PACKAGE  [default: Llama's; CLIP's]")]
Accelerator = Annotated[str, Option("--device", help="such as v100-32gb; an unknown one names them all")]
Processes = Annotated[int, Option(min=1, help="that train together, each on a device of its own")]
AsJson = Annotated[bool, Option("--json", help="one JSON object instead of a table")]
Name = Annotated[str | None, Option(help="results/vocabularies/NAME.json  [default: by the tokenizers]")]


class Terminated(SystemExit):
    """The system asks the process to end: as after an interruption, what is half done is cleaned up."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raises Terminated where SIGTERM or SIGHUP would end the process at once."""
    def end(number: int, _: Any) -> None:
        raise Terminated(128 + number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may handle signals
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP)
               if in_main_thread and signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class Commands(TyperGroup):
    """All commands: errors meant for a user become one message on stderr and exit code 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        option, values, repeated = "", 0, list[str]()
        for word in args:
            if word.startswith("-"):
                option, values = word, 0
            else:
                values += 1
                repeated += [option] * (option in LISTS and values > 1)  # --seeds 0 1 is --seeds 0 --seeds 1
            repeated.append(word)
        return super().parse_args(ctx, repeated)

    def invoke(self, ctx: Any) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except (KeyboardInterrupt, Terminated) as stop:
            typer.echo("\ninterrupted; what is done is kept: the same command goes on from there", err=True)
            raise typer.Exit(int(getattr(stop, "code", 130))) from None
        except Exception as error:
            if not type(error).__module__.startswith("e2e_lib."):  # the package's own errors say what to do
                raise
            typer.echo(f"\ne2e {ctx.invoked_subcommand}: {error}", err=True)
            raise typer.Exit(1) from None


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, rich_markup_mode=None,
                  pretty_exceptions_enable=False, epilog="Begin with: e2e reproduce --profile smoke")


app.add_typer(data_commands.app, name="data")


@app.callback()
def quiet_libraries() -> None:
    """A chat partner that reads and draws photos, trained as one model."""
    # Progress bars and warnings of the hub are noise for parts this small.
    for name in ("HF_HUB_VERBOSITY", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # FID takes eigenvalues of many small matrices: threads only wait for each other there.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def load(profile: str, settings: list[str] | None, system: str | None = None, corpus: bool = True) -> Config:
    """The configuration of a command. Raises ConfigError, also where a ``corpus`` it needs is not there."""
    config = configuration.load(profile, [*(settings or []), *([f"model.system={system}"] if system else [])])
    if corpus:
        from e2e_lib import corpora
        corpora.check(config.data)
        corpora.check_scorable(config)
    return config


def seeds_of(seeds: list[int] | None, profile: str, count: int = 3) -> list[int]:
    """The seeds of a command, by default those of the profile. Raises ConfigError for one given twice."""
    if twice := [seed for seed in seeds or () if (seeds or []).count(seed) > 1]:
        raise ConfigError(f"--seeds: {twice[0]} is given twice, and each seed is one run")
    return seeds or list(range(1 if profile == "smoke" else count))


def require_root() -> None:
    """Raises ConfigError unless the current folder is the root of the repository, of this one if it runs
    from one."""
    def is_root(folder: Path) -> bool:
        return all((folder / name).exists() for name in ("pyproject.toml", "e2e_lib", "notebooks"))

    if not is_root(Path.cwd()) or is_root(ROOT) and Path.cwd().resolve() != ROOT:
        where = f"go there first: cd {ROOT}" if is_root(ROOT) else "go to the root of a clone of it first"
        raise ConfigError(f"this command reads the repository, and {Path.cwd()} is not its root; {where}")


@app.command()
def reproduce(profile: Profile = "mini", settings: Settings = None, seeds: Seeds = None,
              fresh: Fresh = False) -> None:
    """Data, joint training, scores, figures and notebooks; goes on from where it was."""
    require_root()
    config = load(profile, settings)
    from e2e_lib.reproduce import reproduce
    reproduce(config, seeds_of(seeds, profile), say, fresh)


@data_commands.app.callback(invoke_without_command=True)
def data(ctx: typer.Context, profile: Profile = "mini", settings: Settings = None) -> None:
    """Make the corpus of a profile, or bring a published one here."""
    if ctx.invoked_subcommand:
        return
    config = load(profile, settings)
    from e2e_lib.corpora import prepare
    prepare(config, say)


@app.command()
def pretrain(profile: Profile = "mini", settings: Settings = None, out: Out = None,
             baselines: Baselines = False) -> None:
    """Make the pretrained parts from scratch (about two hours, and two more for --baselines)."""
    config = load(profile, settings)
    from e2e_lib.models.hub import WEIGHTS
    from e2e_lib.pretraining import parts
    if baselines:
        parts.pretrain_baselines(config, say, WEIGHTS / "mini", out)
    else:
        parts.pretrain(config, say, out)


@app.command()
def warmup(profile: Profile = "smol", settings: Settings = None, seed: WarmupSeed = 0) -> None:
    """The perceptron's projection alone, for a language model that it does not lead to yet."""
    config = load(profile, settings)
    from e2e_lib.training.warmup import warm_up
    say(f"--set model.projection={warm_up(config, seed, say)}")


@app.command()
def train(profile: Profile = "mini", settings: Settings = None, seeds: Seeds = None,
          system: System = None, launch: Launch = 1) -> None:
    """Training alone, of one system."""
    config, seeds = load(profile, settings, system), seeds_of(seeds, profile)
    if launch > 1:
        from e2e_lib.training import processes
        options = [word for setting in settings or [] for word in ("--set", setting)]
        processes.launch(launch, ["train", "--profile", profile, "--system", config.model.system, *options,
                                  "--seeds", *map(str, seeds)])
        return
    from e2e_lib.training.loop import train
    for seed in seeds:
        train(config, seed, say)


@app.command()
def evaluate(profile: Profile = "mini", settings: Settings = None, seeds: Seeds = None,
             system: System = None) -> None:
    """Score trained runs on the test split."""
    config = load(profile, settings, system)
    from accelerate import PartialState

    from e2e_lib.experiments.evaluate import evaluate
    from e2e_lib.repro import results
    from e2e_lib.reproduce import score_lines
    from e2e_lib.training.processes import together
    with together():
        for seed in seeds_of(seeds, profile):
            evaluate(config, seed, say)
        if PartialState().is_main_process:
            say(score_lines(results.summarise(profile)))


@app.command()
def compare(profile: Profile = "mini", settings: Settings = None, seeds: FiveSeeds = None) -> None:
    """Train and score all systems with five seeds; differences with intervals, and tables."""
    config = load(profile, settings)
    from e2e_lib.reproduce import compare
    compare(config, seeds_of(seeds, profile, 5), say)


@app.command()
def ablate(profile: Profile = "mini", settings: Settings = None, seeds: Seeds = None,
           variants: Variants = ["maps", "estimators", "ingredients"]) -> None:  # noqa: B006
    """Train with every vocabulary map, estimator and ingredient, and measure its gradient (hours). Instead,
    --variants faults trains on captions that are wrong in each way, --variants terms all systems on right
    captions, with a control, and with a captioner that tells more, and --variants tuning tries other settings
    of each system on dev."""
    config, seeds = load(profile, settings), seeds_of(seeds, profile)
    from e2e_lib.experiments import (
        ablation,
        faults,
        gradient_alignment,
        one_word,
        other_terms,
        polynomial,
        replacing_words,
        tuning,
    )
    from e2e_lib.reproduce import score_lines
    experiments = {"faults": faults.faults, "terms": other_terms.compare, "tuning": tuning.tune}
    if len(variants) == 1 and variants[0] in experiments:
        say(f"wrote {experiments[variants[0]](config, seeds, say)}")
        return
    say(score_lines(ablation.ablate(config, seeds, say, variants), "system", "metric"))
    for path in (ablation.differences(config, seeds, say), gradient_alignment.measure(config, seeds[0], say),
                 replacing_words.measure(config, seeds[0], say), one_word.measure(config, seeds[0], say),
                 ablation.step_seconds(config, say), polynomial.measure(say)):
        if path:
            say(f"wrote {path}")


@app.command()
def figures(profile: Profile = "mini", seeds: Seeds = None) -> None:
    """Draw the figures from results/."""
    require_root()
    load(profile, None)
    from e2e_lib.report.results_figures import draw_all
    say("\n".join(map(str, draw_all(profile, seeds_of(seeds, profile)))))


@app.command()
def readme() -> None:
    """Write the numbers of the README and of docs/ from results/."""
    require_root()
    from e2e_lib.report.readme import PAGES, update
    for page in PAGES:
        say(f"updated {update(page)}")


@app.command()
def notebooks(name: Notebook = None, profile: Profile = "mini", settings: Settings = None,
              seeds: Seeds = None, parameters: Parameters = None, fresh: Fresh = False,
              publish: Publish = False) -> None:
    """Run the numbered notebooks headlessly, or one of them."""
    require_root()
    config = load(profile, settings)
    from e2e_lib.repro import notebooks
    from e2e_lib.reproduce import run_numbered_notebooks
    for executed in run_numbered_notebooks(config, seeds_of(seeds, profile), say, fresh, name=name,
                                           parameters=notebooks.read_parameters(parameters or [])):
        if publish:
            say(f"published {notebooks.publish(executed, Path('notebooks') / executed.name)}")


app.command()(model_commands.chat)
app.command()(model_commands.export)


@app.command("config")
def show_config(profile: Profile = "mini", settings: Settings = None) -> None:
    """Every setting of a profile, its value, meaning and range."""
    for row in configuration.table(load(profile, settings, corpus=False)):
        say(f"{row['key']} = {row['value']}\n    {row['meaning']} ({row['allowed']})")


@app.command("plan")
def plan_memory(device: Accelerator, profile: Profile = "paper", settings: Settings = None,
                processes: Processes = 1, as_json: AsJson = False) -> None:
    """Whether training a profile fits a device, and what it takes there; downloads nothing."""
    config = load(profile, settings, corpus=False)
    from e2e_lib.experiments import plan
    planned = plan.plan(config, device, processes)
    say(json.dumps(planned, indent=2) if as_json else "\n".join(plan.lines(planned)))


@app.command()
def cost() -> None:
    """Work out what an epoch takes at the paper's scale, on one device and on many; downloads nothing."""
    require_root()
    from e2e_lib.experiments.cost import measure
    say(f"wrote {measure()}")


@app.command()
def vocabularies(captions: Captions, source: Tokenizer = None, target: Tokenizer = None,
                 name: Name = None) -> None:
    """How two tokenizers disagree about captions, counted."""
    from e2e_lib.experiments.vocabularies import compare
    say(f"wrote {compare(captions, source, target, name, say)}")


app.command()(model_commands.doctor)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without λ and ± is shown "?" in their place
            stream.reconfigure(errors="replace")
    app(prog_name="e2e")


if __name__ == "__main__":
    main()
