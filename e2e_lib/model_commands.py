"""``e2e chat`` and ``e2e export``: what is done with a trained run."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from e2e_lib import config as configuration
from e2e_lib.config import MAX_SEED, ConfigError

Profile = Annotated[str | None, Option(help="smoke, mini, smol, small or paper  [default: mini]")]
Settings = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="a setting; repeatable")]
Seed = Annotated[int, Option(min=0, max=MAX_SEED, help="seed of the sampled words and photos")]
System = Annotated[str | None, Option(help="one of the systems that are compared, such as pipeline")]
Run = Annotated[int | None,
                Option(min=0, max=MAX_SEED, help="training seed of the run that answers  [default: 0]")]
From = Annotated[Path | None, Option("--from", metavar="DIR", help="answer with a run that `e2e export` "
                                     "wrote, in its own settings but for --set")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, such as "
                                           "runs/mini/end_to_end/seed-0")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")]
Merged = Annotated[bool, Option("--merged", help="the language model whole, its LoRA factors in the weights, "
                                "instead of an adapter")]


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def chat(profile: Profile = None, settings: Settings = None, seed: Seed = 0, system: System = None,
         run: Run = None, export: From = None) -> None:
    """Chat in the terminal with a trained run, or with the shipped parts where there is none."""
    if export is not None and (profile, system, run) != (None, None, None):
        raise ConfigError("--from DIR says itself which run answers; leave out --profile, --system and --run")
    config = configuration.load(profile or "mini", [*([] if export else settings or []),
                                                    *([f"model.system={system}"] if system else [])])
    with contextlib.suppress(KeyboardInterrupt):  # a chat keeps nothing that could go on from there
        from e2e_lib.inference.chat import ChatPartner, chat_in_terminal, chat_settings
        from e2e_lib.models.exported import load_exported
        from e2e_lib.models.systems import build
        from e2e_lib.repro.files import CheckpointError
        from e2e_lib.training.loop import load_trained
        if export is not None:
            model, config = load_exported(export, settings or ())
            weights = f"the export at {export}"
        else:
            try:
                model, weights = load_trained(config, run or 0), f"the trained run of seed {run or 0}"
            except CheckpointError as error:
                if run is not None:
                    raise
                model, weights = build(config), f"the parts as they ship ({error})"
        say(f"{config.model.system} answers with {weights}.")
        chat_in_terminal(ChatPartner(model, chat_settings(config.inference), seed), say)


def export(run: RunFolder, out: Folder, merged: Merged = False) -> None:
    """Write what a run trained as the stock libraries load it: peft, transformers, diffusers."""
    from e2e_lib.training.export import export as write
    say(f"wrote {write(run, out, merged, say)}; `e2e chat --from {out}` answers with it")
