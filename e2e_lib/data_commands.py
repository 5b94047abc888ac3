"""``e2e data …``: a profile's corpus, and the way from a published corpus's own files to one (section 3.1.1).

Each command goes on from where it was and ends with a report in words, or, with ``--json``, as one object.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from e2e_lib.config import MAX_SEED, ConfigError

ROOT = Path(__file__).resolve().parents[1]
Echo = Callable[[str], None]
Corpus = Annotated[str, typer.Argument(metavar="NAME", help="photochat or dialogcc")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a built corpus")]
Json = Annotated[bool, Option("--json", help="the report as one JSON object, and progress on stderr")]
Redact = Annotated[bool, Option("--redact", help="report nothing that people wrote, and no address")]
PhotoTurns = Annotated[str, Option(help="what a photo does to a run of turns by one speaker, which the paper "
                                   "does not say: left_out, end_runs or in_runs")]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def _outputs(as_json: bool) -> tuple[Echo, Callable[[Any], None]]:
    """Where progress goes, and what ends a command with its report (an object, or the words for it)."""
    def progress(line: str) -> None:
        typer.echo(line, err=as_json)

    def report(value: Any) -> None:
        if as_json:
            typer.echo(json.dumps(value, ensure_ascii=False))
    return progress, report


@contextlib.contextmanager
def _interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Says what is kept when the command is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        typer.echo(f"\ninterrupted: {kept()}", err=True)
        code = getattr(stop, "code", 130)
        raise typer.Exit(code if isinstance(code, int) else 130) from None


@app.command()
def get(name: Corpus, out: Annotated[Path, Option(help="folder for the files")]) -> None:
    """Fetch the official files of a published corpus."""
    from e2e_lib.download.official import get as fetch_files
    with _interruptible(lambda: f"what came is kept in {out}, and the same command goes on from there"):
        manifest = fetch_files(name, out, typer.echo)
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    typer.echo(f"{len(manifest['files'])} files, {total:,} bytes, recorded in {out / 'manifest.json'}")
    typer.echo("Licences, as they are stated (the statements differ):")
    for line in manifest["licences"]:
        typer.echo(f"  {line}")
    typer.echo(f"Next: e2e data build {name} --source {out} --out data/{name}")


@app.command()
def build(
        name: Corpus, source: Annotated[Path, Option(help="folder of the corpus's own files")],
        out: Annotated[Path, Option(help="folder for the dialogues")],
        captions: Annotated[str, Option(help="PhotoChat's captions: labels, authors or full")] = "labels",
        photo_turns: PhotoTurns = "left_out",
        skip_bad: Annotated[bool, Option("--skip-bad", help="leave out rows that cannot be used")] = False,
        schema: Annotated[bool, Option("--schema", help="say which fields the files have, also of files that "
                                       "the folder was built from before")] = False,
        as_json: Json = False, redact: Redact = False) -> None:
    """Read a published corpus, check it and write it as dialogues."""
    from e2e_lib.sources.build import build as build_corpus
    from e2e_lib.sources.build import kept_in
    progress, report = _outputs(as_json)
    with _interruptible(lambda: kept_in(out)):
        made = build_corpus(name, source, out, progress, captions=captions, skip_bad=skip_bad,
                            photo_turns=photo_turns, redact=redact, schema=schema)
    for split, row in made.items():
        for what in ("set_aside", "repaired"):
            for reason, count in row[what].items():
                progress(f"{split}: {what.replace('_', ' ')}: {count:,} for {reason}")
    _show_table_1(name, made, progress)
    progress(f"written to {out}. Next: e2e data photos {out}")
    report(made)


@app.command()
def photos(
        folder: Annotated[Path | None, typer.Argument(metavar="DIR",
                                                      help="folder of a built corpus")] = None,
        listed: Annotated[Path | None, Option("--list", metavar="FILE", help='JSON lines with "photo_id" and '
                                              '"url", instead of a corpus')] = None,
        out: Annotated[Path | None, Option(help="folder for the photos  [default: DIR/photos]")] = None,
        size: Annotated[int, Option(min=0, max=4096, help="keep JPEG of so many pixels on the shorter side "
                                    "instead of the original bytes")] = 0,
        retry: Annotated[list[str] | None, Option(metavar="failed|STATUS", help="try again what failed and "
                                                  "may pass, or what has a status; repeatable")] = None,
        second_source: Annotated[str | None, Option(metavar="URL", help="where a photo of Open Images is "
                                                    'asked for by its {photo_id}; "" for nowhere')] = None,
        seconds: Annotated[float, Option(min=0.1, max=3600, help="deadline of a photo")] = 30.0,
        ray: Annotated[str | None, Option(metavar="ADDRESS", help="fetch on the Ray cluster whose head is at "
                                          "HOST:PORT, or auto; its nodes share the folder's file system, and "
                                          "you trust its network")] = None,
        allow_loopback: Annotated[bool, Option("--allow-loopback", help="this machine's own addresses too")]
        = False, as_json: Json = False, redact: Redact = False) -> None:
    """Fetch the photos of a corpus, or of a list; what failed and why is in their index."""
    from e2e_lib.download import photos as download
    from e2e_lib.download.client import Limits
    from e2e_lib.download.cluster import connected
    from e2e_lib.download.report import kept_in, report_lines
    from e2e_lib.repro.files import complete_files
    progress, report = _outputs(as_json)
    if (folder is None) == (listed is None) or listed is not None and out is None or out == Path():
        raise ConfigError("expected the folder of a built corpus, or --list FILE and --out DIR")
    source, target = (listed, out) if folder is None else (folder / "photos.jsonl", out or folder / "photos")
    assert source is not None and target is not None  # as was just asked
    if folder is not None:
        complete_files(folder)
    asked = download.OPEN_IMAGES if second_source is None else second_source
    limits = Limits(seconds=seconds, allow_loopback=allow_loopback)
    with _interruptible(lambda: f"{kept_in(target)}; the same command goes on from there"), \
            connected(ray) if ray is not None else contextlib.nullcontext() as run:
        made = download.fetch(download.read_list(source, redact), target, progress, size=size, redact=redact,
                              retry=retry or (), second_source=asked, limits=limits, run=run)
    for line in report_lines(made):
        progress(line)
    report(made)


@app.command()
def draw(
        folder: Folder,
        model: Annotated[str, Option(metavar="ID_OR_PATH", help="a text-to-image pipeline of diffusers, by "
                                     "hub id or folder; or minichat, the small generator that comes along")],
        steps: Annotated[int | None, Option(min=1, max=1000, help="denoising steps  [default: the model's "
                                            "own]")] = None,
        guidance_scale: Annotated[float | None, Option(min=0, max=100, help="classifier-free guidance  "
                                                       "[default: the model's own]")] = None,
        size: Annotated[int | None, Option(min=8, max=4096, help="a photo's side in pixels  [default: the "
                                           "model's own]")] = None,
        batch_size: Annotated[int, Option(min=1, max=1024, help="photos drawn at once")] = 4,
        seed: Annotated[int, Option(min=0, max=MAX_SEED)] = 0, as_json: Json = False) -> None:
    """Draw the photos that could not be fetched from their captions, marked as drawn."""
    from e2e_lib.experiments import missing_photos as missing
    progress, report = _outputs(as_json)
    with _interruptible(lambda: f"{missing.kept_in(folder)}; the same command goes on from there"):
        how = missing.Drawing(model, steps, guidance_scale, size, batch_size, seed)
        made = missing.draw_missing(folder, how, progress)
    for line in missing.report_lines(made):
        progress(line)
    report(made)


@app.command()
def stats(folder: Folder, photo_turns: PhotoTurns = "left_out",
          real_only: Annotated[bool, Option("--real-only", help="only dialogues all of whose photos were "
                                            "fetched")] = False,
          as_json: Json = False) -> None:
    """Table 1 of a built corpus, with the paper's row below each of ours, and a row for all splits together.

    In the report, also as one object, that row is called "total", as in the paper. It has a photo of several
    splits as one distinct image, where the paper's is the sum of its splits.
    """
    from e2e_lib.sources.stats import statistics
    progress, report = _outputs(as_json)
    name, made = statistics(folder, photo_turns, real_only)
    _show_table_1(name, made, progress)
    for split, row in made.items():
        counts = {"dialogues left out": row["left_out"], "rows set aside": sum(row["set_aside"].values()),
                  **{f"photos {status}": count for status, count in row["photos"].items()}}
        progress(f"{split}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    report(made)


def _show_table_1(name: str, rows: dict[str, Any], echo: Echo) -> None:
    from e2e_lib.data.statistics import beside_paper
    from e2e_lib.repro import results
    roots = [root for root in (results.RESULTS, ROOT / results.RESULTS) if (root / "published").is_dir()]
    paper = results.published(1, roots[0])["rows"] if roots else []
    dataset = {"photochat": "PhotoChat", "dialogcc": "DialogCC"}.get(name, name)
    table = beside_paper(rows, paper, dataset)
    echo("Table 1, turns in which photos are shared left out; in brackets, the difference from the paper:")
    cells = [[name.replace("_", " ") for name in table[0]], *(list(row.values()) for row in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        echo("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(line, widths, strict=True))))
