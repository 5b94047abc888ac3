"""``e2e chat``, ``export`` and ``doctor``: what is done with a trained run, and whether parts are sound."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from e2e_lib import config as configuration
from e2e_lib.config import MAX_SEED, Config, ConfigError

Profile = Annotated[str | None, Option(help="smoke, mini, smol, small or paper  [default: mini]")]
Settings = Annotated[list[str] | None, Option("--set", metavar="KEY=VALUE", help="a setting; repeatable")]
Seed = Annotated[int, Option(min=0, max=MAX_SEED, help="seed of the sampled words and photos")]
System = Annotated[str | None,
                   Option(help="one of the systems that are compared, such as pipeline  [default: "
                          "end_to_end_aligned if it is trained, else end_to_end]")]
Run = Annotated[int | None,
                Option(min=0, max=MAX_SEED, help="training seed of the run that answers  [default: 0]")]
From = Annotated[Path | None, Option("--from", metavar="DIR", help="answer with a run that `e2e export` "
                                     "wrote, in its own settings but for --set")]
Web = Annotated[bool, Option("--web", help="a page for the browser instead of the terminal")]
Port = Annotated[int | None, Option(min=1, max=65535, help="of the page  [default: 5006]")]
Host = Annotated[str | None, Option(metavar="NAME", help="address of the page, for all who reach it (with "
                                    "no password)  [default: 127.0.0.1, this machine]")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder, such as "
                                           "runs/mini/end_to_end/seed-0")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")]
Merged = Annotated[bool, Option("--merged", help="the language model whole, its LoRA factors in the weights, "
                                "instead of an adapter")]


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def chat(profile: Profile = None, settings: Settings = None, seed: Seed = 0, system: System = None,
         run: Run = None, export: From = None, web: Web = False, port: Port = None,
         host: Host = None) -> None:
    """Chat, in the terminal or on a page, with a trained run, or the shipped parts where there is none."""
    if export is not None and (profile, system, run) != (None, None, None):
        raise ConfigError("--from DIR says itself which run answers; leave out --profile, --system and --run")
    if not web and (port, host) != (None, None):
        raise ConfigError("--port and --host are the page's; add --web")
    if not (system or export or any("model.system" in setting for setting in settings or [])):
        from e2e_lib.repro.run_files import usual_system
        system = usual_system(profile or "mini", run or 0)
    config = configuration.load(profile or "mini", [*([] if export else settings or []),
                                                    *([f"model.system={system}"] if system else [])])
    with contextlib.suppress(KeyboardInterrupt):  # a chat keeps nothing that could go on from there
        from e2e_lib.window.partners import Partners
        if export is not None:
            answerer, weights, config = _exported(export, settings or [])
        else:
            answerer, weights = _trained_or_shipped(config, run)
        say(f"{config.model.system} answers with {weights}.")
        if web:
            from e2e_lib.window import page
            page.serve(Partners(answerer, config), say, seed, host or page.HOST, port or page.PORT)
        else:
            from e2e_lib.inference.chat import ChatPartner, chat_in_terminal, chat_settings
            chat_in_terminal(ChatPartner(answerer.model, chat_settings(answerer.settings), seed), say)


def _exported(folder: Path, settings: list[str]) -> tuple[Any, str, Config]:
    """An export that answers, what it is, and the configuration of what else can."""
    from e2e_lib.models.exported import load_exported
    from e2e_lib.window.partners import Answerer
    model, config = load_exported(folder, settings)
    name = f"{config.model.system}, exported ({folder.name})"
    others = configuration.load(config.profile, [f"model.system={config.model.system}"])
    return Answerer(name, model, config.inference), f"the export at {folder}", others


def _trained_or_shipped(config: Config, run: int | None) -> tuple[Any, str]:
    """A trained run that answers, or the parts as they ship where none was asked for, and what it is."""
    from e2e_lib.models.systems import build, ready
    from e2e_lib.repro.files import CheckpointError
    from e2e_lib.training.loop import load_trained
    from e2e_lib.window.partners import Answerer, shipped_name, trained_name
    system, settings = config.model.system, config.inference
    try:
        model = load_trained(config, run or 0)
    except CheckpointError as error:
        if run is not None:
            raise
        model = ready(build(config))
        return Answerer(shipped_name(system), model, settings), f"the parts as they ship ({error})"
    return Answerer(trained_name(system, run or 0), model, settings), f"the trained run of seed {run or 0}"


def export(run: RunFolder, out: Folder, merged: Merged = False) -> None:
    """Write what a run trained as the stock libraries load it: peft, transformers, diffusers."""
    from e2e_lib.training.export import export as write
    say(f"wrote {write(run, out, merged, say)}; `e2e chat --from {out}` answers with it")


def doctor() -> None:
    """Versions, and whether the shipped weights are sound."""
    from e2e_lib.models.hub import WEIGHTS
    from e2e_lib.repro.files import CheckpointError, check
    from e2e_lib.repro.provenance import library_versions
    for name, version in library_versions().items():
        say(f"{name:16s} {version or 'MISSING'}")
    try:
        for name in ("mini", "mini-baselines"):
            say(f"{'weights':16s} {name}: {len(check(WEIGHTS / name))} files, sound")
    except CheckpointError as error:
        raise CheckpointError(f"the shipped weights are not sound ({error}); check out e2e_lib/weights anew, "
                              "or run `e2e pretrain --profile mini`, and then with --baselines") from None
    say("Ready: `make reproduce` does everything; `make reproduce PROFILE=smoke` is a quick look.")
