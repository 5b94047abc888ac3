"""The command line: `e2e COMMAND`. Every `make` target is one of these calls."""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from e2e_lib import config as configuration

ROOT = Path(__file__).resolve().parents[1]


def say(line: str) -> None:
    print(line, flush=True)


def _config(arguments: argparse.Namespace) -> configuration.Config:
    config = configuration.load(arguments.profile, arguments.set)
    if getattr(arguments, "system", None):
        config = configuration.replace(config, "model.system", arguments.system)
    return config


def _reproduce(arguments: argparse.Namespace) -> None:
    from e2e_lib.reproduce import reproduce
    reproduce(_config(arguments), arguments.seeds, say, arguments.fresh)


def _data(arguments: argparse.Namespace) -> None:
    from e2e_lib.corpora import prepare
    prepare(_config(arguments), say)


def _pretrain(arguments: argparse.Namespace) -> None:
    from e2e_lib.models.hub import WEIGHTS
    from e2e_lib.pretraining.parts import pretrain, pretrain_baselines
    out = Path(arguments.out) if arguments.out else None
    if arguments.baselines:
        pretrain_baselines(_config(arguments), say, WEIGHTS / "mini", out)
    else:
        pretrain(_config(arguments), say, out)


def _train(arguments: argparse.Namespace) -> None:
    from e2e_lib.training.loop import train
    for seed in arguments.seeds:
        train(_config(arguments), seed, say)


def _evaluate(arguments: argparse.Namespace) -> None:
    from e2e_lib.experiments.evaluate import evaluate
    from e2e_lib.repro import results
    from e2e_lib.reproduce import summary_lines
    config = _config(arguments)
    for seed in arguments.seeds:
        evaluate(config, seed, say)
    say(summary_lines(results.summarise(config.profile)))


def _ablate(arguments: argparse.Namespace) -> None:
    from e2e_lib.evaluation.scene_classifier import load_scene_classifier
    from e2e_lib.experiments import ablation
    from e2e_lib.reproduce import summary_lines
    config, seeds = _config(arguments), arguments.seeds
    ablation.names_of(arguments.variants)  # a misspelt name is to be known before hours of training
    say(summary_lines(ablation.ablate(config, seeds, say, arguments.variants)))
    differences = ablation.differences(config, seeds, load_scene_classifier(configuration.SHIPPED), say)
    for path in (differences, ablation.truths(config, seeds[0], say), ablation.step_seconds(config, say), ablation.coins(say)):
        if path:
            say(f"wrote {path}")


def _compare(arguments: argparse.Namespace) -> None:
    from e2e_lib.config import SYSTEMS
    from e2e_lib.evaluation.scene_classifier import load_scene_classifier
    from e2e_lib.experiments import propagation
    from e2e_lib.reproduce import compare, run_all, staged
    config = _config(arguments)
    stage = staged(2 + 2 * len(SYSTEMS) * len(arguments.seeds), say)
    run_all(config, arguments.seeds, stage, say)
    scores = compare(config, arguments.seeds, stage, say)
    stage("FID of photos from gold captions")
    propagation.gold_fid(config, arguments.seeds, SYSTEMS, load_scene_classifier(configuration.SHIPPED), say)
    say(scores)


def _figures(arguments: argparse.Namespace) -> None:
    from e2e_lib.report.figures import draw_all
    for path in draw_all(_config(arguments).profile, arguments.seeds):
        say(str(path))


def _readme(arguments: argparse.Namespace) -> None:
    from e2e_lib.report.readme import update
    say(f"updated {update(ROOT / 'README.md', root=ROOT / 'results')}")


def _notebooks(arguments: argparse.Namespace) -> None:
    from e2e_lib.repro.notebooks import publish
    from e2e_lib.reproduce import run_notebooks
    for outcome in run_notebooks(_config(arguments), arguments.seeds, say, arguments.fresh):
        if arguments.publish:
            say(f"published {publish(outcome.executed, ROOT / 'notebooks' / outcome.executed.name)}")


def _chat(arguments: argparse.Namespace) -> None:
    from PIL import Image, UnidentifiedImageError

    from e2e_lib.inference.chat import ChatPartner
    from e2e_lib.models.systems import build
    config = _config(arguments)
    partner = ChatPartner(build(config), config.inference, arguments.seeds[0], config.data.photo_size)
    say("Say something; `/photo FILE` shares a photo, `/more` lets the partner go on, an empty line ends the chat.")
    shared = 0
    while line := input("you: ").strip():
        try:
            if line == "/more":
                answer = partner.go_on()
            elif line.startswith("/photo "):
                answer = partner.say(photo=Image.open(Path(line[7:].strip()).expanduser()))
            else:
                answer = partner.say(line)
        except (OSError, UnidentifiedImageError, ValueError) as error:
            say(f"(not sent: {error})")
            continue
        say(f"partner: {answer.text}")
        if answer.image:
            shared += 1
            name = Path(f"photo-{shared}.png")
            answer.image.save(name)
            say(f"partner shares {name}: {answer.caption}")


def _show_config(arguments: argparse.Namespace) -> None:
    for row in configuration.table(_config(arguments)):
        say(f"{row['key']} = {row['value']}\n    {row['meaning']} ({row['allowed']})")


# Which vocabularies `e2e vocabularies` looks at, the first that can be had: hub id or package, and its name in results/vocabularies/.
SOURCES = {"TinyLlama/TinyLlama-1.1B-Chat-v1.0": "llama-2", "pip:mistral-common": "mistral"}
TARGETS = {"openai/clip-vit-large-patch14": "clip", "pip:openai-clip": "clip"}


def _vocabularies(arguments: argparse.Namespace) -> None:
    from e2e_lib.experiments.vocabularies import first_of, read_captions, survey
    from e2e_lib.repro import results
    try:
        captions = read_captions(Path(arguments.captions))
        source, one = first_of([arguments.source] if arguments.source else list(SOURCES))
        target, other = first_of([arguments.target] if arguments.target else list(TARGETS))
        if not arguments.name and not (source in SOURCES and target in TARGETS):
            raise ValueError("with --source or --target of your own, --name says what to call the result, such as --name qwen_clip")
        say(f"{source} beside {target}, on {len(captions)} captions")
        found = survey(one, other, captions)
    except (ValueError, TypeError) as error:
        raise configuration.ConfigError(str(error)) from None
    path = results.write_vocabularies(arguments.name or f"{SOURCES[source]}_{TARGETS[target]}", found)
    say(json.dumps(found, indent=1))
    say(f"wrote {path}")


def _doctor(_: argparse.Namespace) -> None:
    from e2e_lib.models.hub import WEIGHTS
    from e2e_lib.repro import provenance
    from e2e_lib.repro.files import CheckpointError, check
    versions = {"python": sys.version.split()[0], **{name: provenance._version(name) for name in provenance.LIBRARIES}}
    say("\n".join(f"{name:16s} {version or 'MISSING'}" for name, version in versions.items()))
    try:
        for name in ("mini", "mini-baselines"):
            say(f"{'weights':16s} {name}: {len(check(WEIGHTS / name))} files, sound")
    except CheckpointError as error:
        raise CheckpointError(f"the shipped weights are not sound ({error}); check out e2e_lib/weights anew, or make them again with "
                              "`e2e pretrain --profile mini`, and then with --baselines") from None
    say("Ready: `make reproduce` (or `e2e reproduce`) does everything; `make reproduce PROFILE=smoke` is a quick look.")


def _test(arguments: argparse.Namespace) -> None:
    several = ["-n", str(arguments.jobs), "--dist", "worksteal"] if arguments.jobs > 1 else []
    _call([sys.executable, "-m", "pytest", "-q", *several, *arguments.rest])


def _bench(arguments: argparse.Namespace) -> None:
    from e2e_lib.repro.files import write_json
    scripts = sorted((ROOT / "tests" / "benchmarks").glob("bench_*.py"))
    names, flags = ([word for word in arguments.rest if word.startswith("-") == flag] for flag in (False, True))
    chosen = [script for script in scripts if not names or any(name in script.stem for name in names)]
    if not chosen:
        raise configuration.ConfigError(f"no benchmark is called {' or '.join(names)}; there are: "
                                        + ", ".join(script.stem.removeprefix("bench_") for script in scripts))
    measured = []
    for script in chosen:
        done = subprocess.run([sys.executable, str(script), *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        say(done.stdout.strip())
        if done.returncode:
            sys.exit(done.returncode)
        measured.append(json.loads(done.stdout.strip().splitlines()[-1]))
    if len(chosen) == len(scripts):
        write_json(ROOT / "results" / "mini" / "benchmarks.json", {"command": "e2e bench", "cpu_count": os.cpu_count(), "measured": measured})


def _lint(_: argparse.Namespace) -> None:
    _call([sys.executable, "-m", "ruff", "check", "e2e_lib", "tests"])
    _call([sys.executable, "-m", "mypy", "e2e_lib"])


def _clean(_: argparse.Namespace) -> None:
    for name in ("data", "runs", "results/smoke", "figures/smoke", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis"):
        if (ROOT / name).exists():
            say(f"removing {name}")
            shutil.rmtree(ROOT / name)


def _call(command: list[str]) -> None:
    missing = command[1:3] if command[1] == "-m" else []
    if missing and importlib.util.find_spec(missing[1]) is None:
        raise configuration.ConfigError(f"{missing[1]} is not installed; run `make setup`, which installs everything the tests need")
    done = subprocess.run(command, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str, tuple[str, ...]]] = {
    "reproduce": (_reproduce, "data, joint training, scores, figures and notebooks; goes on from where it was", ("config", "seeds", "fresh")),
    "data": (_data, "make the corpus of a profile", ("config",)),
    "pretrain": (_pretrain, "make the pretrained parts from scratch (up to two hours)", ("config", "out", "baselines")),
    "train": (_train, "training alone, of one system", ("config", "seeds", "system")),
    "evaluate": (_evaluate, "score trained runs on the test split", ("config", "seeds", "system")),
    "compare": (_compare, "train and score all three systems with five seeds; differences with intervals, and tables", ("config", "seeds")),
    "ablate": (_ablate, "every vocabulary map, estimator and ingredient: training with it, and its gradient beside the true one (hours)",
               ("config", "seeds", "variants")),
    "figures": (_figures, "draw the figures from results/", ("config", "seeds")),
    "readme": (_readme, "write the README's numbers from results/", ()),
    "notebooks": (_notebooks, "run the numbered notebooks headlessly", ("config", "seeds", "fresh", "publish")),
    "chat": (_chat, "chat with the shipped model in the terminal", ("config", "seeds", "system")),
    "config": (_show_config, "every setting of a profile, its value, meaning and range", ("config",)),
    "vocabularies": (_vocabularies, "how two tokenizers disagree about captions, counted", ("vocabularies",)),
    "doctor": (_doctor, "versions, and whether the shipped weights are sound", ()),
    "test": (_test, "the tests (further arguments go to pytest)", ("jobs", "rest")),
    "bench": (_bench, "the benchmarks, each a ratio against a named alternative", ("rest",)),
    "lint": (_lint, "ruff and mypy", ()),
    "clean": (_clean, "remove data, runs and caches; committed results stay", ()),
}


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(prog="e2e", description="A chat partner that reads and draws photos, trained as one model: data, "
                                          "training, scores and notebooks.", epilog="Begin with: e2e reproduce --profile smoke")
    commands = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, meaning, options) in COMMANDS.items():
        command = commands.add_parser(name, help=meaning, description=meaning)
        if "config" in options:
            command.add_argument("--profile", default="mini", metavar="NAME", help="smoke, mini (default), small or paper")
            command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, e.g. train.epochs=2")
        if "seeds" in options:
            command.add_argument("--seeds", type=int, nargs="+", default=[0] if name == "chat" else None, metavar="N",
                                 help="seeds, one run each (default: 0 1 2, and 0 for smoke)" if name != "compare" else
                                 "seeds, one run of each system each (default: 0 1 2 3 4, and 0 for smoke)")
        if "system" in options:
            command.add_argument("--system", metavar="NAME", help="end_to_end (default), pipeline or divter")
        if "variants" in options:
            command.add_argument("--variants", nargs="+", default=["maps", "estimators", "ingredients"], metavar="NAME",
                                 help="which: maps, estimators, ingredients (all by default), or single ones by name")
        if "fresh" in options:
            command.add_argument("--fresh", action="store_true", help="do everything again instead of keeping what is done")
        if "publish" in options:
            command.add_argument("--publish", action="store_true", help="put the executed notebooks into notebooks/")
        if "out" in options:
            command.add_argument("--out", metavar="FOLDER", help="where the parts go (default: runs/pretraining/PROFILE/parts)")
        if "baselines" in options:
            command.add_argument("--baselines", action="store_true", help="make the parts that only the baselines have, from the shipped ones")
        if "jobs" in options:
            command.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="tests at once (default 2)")
        if "vocabularies" in options:
            command.add_argument("--source", metavar="ID", help="the language model's tokenizer: a hub id, a folder or pip:mistral-common (default: "
                                 "TinyLlama's, which is Llama-2's, or else that package's)")
            command.add_argument("--target", metavar="ID", help="the text encoder's: a hub id, a folder or pip:openai-clip (default: CLIP's)")
            command.add_argument("--captions", required=True, metavar="FILE", help="captions, one a line, or JSON lines")
            command.add_argument("--name", help="results/vocabularies/NAME.json (default: by the tokenizers, such as llama-2_clip)")
        if "rest" in options:
            command.add_argument("rest", nargs=argparse.REMAINDER, metavar="…")
    return main_parser


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if getattr(arguments, "seeds", 0) is None:
        arguments.seeds = list(range(1 if arguments.profile == "smoke" else 5 if arguments.command == "compare" else 3))
    from e2e_lib.data.dialogue import DataError
    from e2e_lib.repro.files import CheckpointError, SaveError
    from e2e_lib.repro.notebooks import NotebookError, NotebookFailed
    from e2e_lib.repro.results import ResultsError
    try:
        COMMANDS[arguments.command][0](arguments)
    except (configuration.ConfigError, CheckpointError, DataError, SaveError, NotebookError, NotebookFailed, ResultsError) as error:
        print(f"\ne2e {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
