"""A run that ``e2e export`` wrote, taken in again.

An export is a folder with one folder per part, each called as the setting that names the part's source
(``model.language``, ...), ``README.md`` and ``export.json``: what it was made from, and the SHA-256 of every
file of the parts. A part that the run did not train is only named there.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from e2e_lib.config import Bridge, Config, load, replace, with_defaults
from e2e_lib.models.adapter_files import load_adapter, read_adapter
from e2e_lib.models.systems import PhotoChatModel, build, ready
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import seeded

FILE = "export.json"
MADE_BY = "e2e export RUN DIR"
ADAPTER, MERGED, WHOLE, NAMED = "adapter", "merged", "whole", "named"  # how a part is in an export
SHAPE: dict[str, Any] = {"run": {"profile": str, "system": str, "seed": int, "epoch": int}, "config": {},
                         "parts": {"*": {"as": str, "from": str}}, "files": {"*": str}}


def configuration(saved: Any) -> Config:
    """A configuration that was saved as ``dataclasses.asdict`` gives it. Raises ConfigError."""
    full = with_defaults(saved)
    config = load(str(full.pop("profile")))
    settings = {f"{section}.{key}": value for section, part in full.items() for key, value in part.items()}
    # The system first, with which others may change.
    for key in sorted(settings, key=lambda key: key != "model.system"):
        config = replace(config, key, settings[key])
    return config


def file_hashes(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every file in the folders of ``parts``, by its path relative to ``folder``."""
    return {f"{part}/{name}": value for part in sorted(parts)
            for name, value in files.sha256_folder(folder / part).items()}


def read_export(folder: Path) -> dict[str, Any]:
    """What an export's ``export.json`` holds, once all files of its parts are verified.

    Raises CheckpointError for a folder that is no export, and for one in which a file of a part is missing,
    is another one than was written, or was added; files.ResultsError for an export.json that is damaged.
    """
    if not (folder / FILE).is_file():
        raise CheckpointError(f"there is no export at {folder}: {FILE} is missing; `{MADE_BY}` makes one of "
                              "a trained run")
    export: dict[str, Any] = files.read_json(folder / FILE, MADE_BY, SHAPE, remove=folder)
    written, found = export["files"], file_hashes(folder, export["parts"])
    for name in sorted(found.keys() | written.keys()):
        if found.get(name) != written.get(name):
            problem = ("is missing" if name not in found else "was added" if name not in written
                       else f"is not what was written (its SHA-256 differs from {FILE})")
            raise CheckpointError(f"the export at {folder} is damaged: {name} {problem}; delete the folder "
                                  f"and make it again with `{MADE_BY}`")
    return export


def load_exported(folder: Path | str, overrides: Iterable[str] = ()) -> tuple[PhotoChatModel, Config]:
    """An exported run's system, ready to answer, and its configuration, with ``overrides`` as
    ``config.load`` takes them.

    Raises CheckpointError for an export, or a part that it only names, which is missing or damaged,
    files.ResultsError for a damaged export.json, and ConfigError for a setting that is not allowed.
    """
    folder = Path(folder).expanduser().resolve()
    export = read_export(folder)
    parts, config = export["parts"], configuration(export["config"])
    # Answers pass no bridge, whose word list may be gone.
    config = dataclasses.replace(config, bridge=Bridge(mapping="none"))
    changes = {"model.projection": ""}  # which is the perceptron's own now
    for part, row in parts.items():
        changes[f"model.{part}"] = (row["from"] if row["as"] == NAMED else str(folder / part)
                                    if row["as"] != ADAPTER else read_adapter(folder / part)[0])
    if parts.get("generator", {}).get("as") == MERGED:
        changes["model.unet_lora"] = "0"
    for key, value in changes.items():
        config = replace(config, key, value)
    for override in overrides:
        key, _, value = override.partition("=")
        config = replace(config, key.strip(), value.strip())
    with seeded(0, "new weights"):  # of factors that change nothing, where LoRA was merged
        model = build(config)
    for part in parts:
        if parts[part]["as"] == ADAPTER:
            load_adapter(model.language, folder / part, part)
    return ready(model), config
