"""Photos that were drawn: next to the gold ones, as training goes on, and in a chat."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from e2e_lib.config import Data
from e2e_lib.corpora import DATA, folder_of
from e2e_lib.data.dialogue import SharedPhoto, Turn
from e2e_lib.data.examples import split_examples, subsample
from e2e_lib.data.photo_input import open_photo
from e2e_lib.data.photos import PhotoStore
from e2e_lib.evaluation.minichat import wrong_attributes
from e2e_lib.report.plots import BLUE, STYLES, VERMILLION, Figure, Html, chat_html, footer, photo_grid
from e2e_lib.repro.files import ResultsError
from e2e_lib.repro.run_files import RUNS, keyed, read_done, read_gallery, seed_folder


def corpus_of(profile: str, seed: int, runs: Path = RUNS, data: Path = DATA) -> Path:
    """The corpus that a finished run was trained on. Raises ResultsError."""
    folder = seed_folder(runs, profile, "end_to_end", seed)
    if (done := read_done(folder)) is None:
        again = f"e2e train --profile {profile} --seeds {seed}"
        raise ResultsError(f"{folder}: no finished run is there; `{again}` makes one")
    settings = {f.name: done["config"]["data"][f.name] for f in fields(Data)}  # an older run may have others
    return folder_of(Data(**settings), data)


def gallery(answers: Mapping[str, Sequence[dict[str, Any]]], corpus: Path, profile: str, seed: int,
            count: int = 12, columns: int = 6) -> Figure:
    """Gold photos, and what each system drew from its own caption, for every k-th test response that is due.

    They have the test set's order, and failures their true share. Of a corpus with scenes, photos are due
    where the scene is known, and titles say what is wrong; "right": in thing, colour and place.
    """
    store = PhotoStore(corpus / "photos")
    rows_of = {system: keyed(list(rows)) for system, rows in answers.items()}
    first = next(iter(rows_of.values()))
    common = set.intersection(*map(set, rows_of.values()))
    due = [(key, k) for key, row in first.items() if key in common for k in range(len(row["gold_photo_ids"]))]
    due = [(key, k) for key, k in due if _scene(first[key], k)] or due
    cells: list[tuple[Any, str, str]] = []  # photo, title, the title's colour
    for key, k in subsample(due, count):
        gold = first[key]
        photo_id = gold["gold_photo_ids"][k]
        cells.append((store.load(photo_id), f"{_kind(store, photo_id)}: {gold['gold_captions'][k]}", "black"))
        for system, row in ((system, rows[key]) for system, rows in rows_of.items()):
            scene, drawn = _scene(row, k), k < len(row["images"])
            wrong = ", ".join(wrong_attributes(scene)) if scene else ""
            verdict = f"wrong {wrong}" if wrong else "right" if scene else "drawn"
            verdict = verdict if drawn else "no photo"
            who = f"{STYLES[system][0]}, " if len(answers) > 1 else ""
            caption = row["captions"][k] if k < len(row["captions"]) else "shares no photo"
            title = f"{who}{verdict}: {caption}"
            cells.append((row["images"][k] if drawn else None, title, VERMILLION if wrong else BLUE))
    note = footer(profile, [seed], f"{min(count, len(due))} of {len(due)} test photos, evenly spaced")
    images, titles, colours = ([cell[i] for cell in cells] for i in range(3))
    return photo_grid(images, titles, columns=columns, colours=colours, note=note,
                      heading="Gold photos, and what was drawn from a model's own caption")


def _kind(store: PhotoStore, photo_id: str) -> str:
    """What a gold photo is called: one that was drawn, because it could not be fetched, says so."""
    return "gold (drawn)" if store.is_drawn(photo_id) else "gold"


def _scene(row: Mapping[str, Any], k: int) -> dict[str, Any] | None:
    """What an answer's gold photo number ``k`` shows (``MiniChatScores.annotate``), if that is known."""
    scenes = {scene["photo_id"]: scene for scene in row.get("scenes", ())}
    return scenes.get(row["gold_photo_ids"][k])


def gallery_over_epochs(profile: str, seed: int, corpus: Path, runs: Path = RUNS, most: int = 4) -> Figure:
    """The same dev chats answered before training and after (at most ``most``) epochs, with gold photos."""
    folder = seed_folder(runs, profile, "end_to_end", seed) / "gallery"
    folders = sorted(folder.glob("epoch-*"), key=lambda path: int(path.name.removeprefix("epoch-")))
    if len(folders) > most + 1:  # the first and the last are among them
        folders = [folders[round(i * (len(folders) - 1) / most)] for i in range(most + 1)]
    pages = [read_gallery(path) for path in folders]
    store = PhotoStore(corpus / "photos")
    cells: list[tuple[Any, str]] = []  # photo, title
    chats = pages[0][:min(map(len, pages))] if pages else []
    for i, gold in enumerate(chats):
        photo_id = gold["photo_id"]
        cells.append((store.load(photo_id), f"{_kind(store, photo_id)}: {gold['gold']}"))
        for path, rows in zip(folders, pages, strict=True):
            when = "before" if path.name == "epoch-0" else path.name.replace("-", " ")
            cells.append((rows[i]["image"], f"{when}: {rows[i]['caption'] or 'shares no photo'}"))
    images, titles = ([cell[i] for cell in cells] for i in range(2))
    return photo_grid(images, titles, columns=len(folders) + 1,
                      heading="The same dev chats, before and during joint training",
                      note=footer(profile, [seed], f"{len(chats)} dev chats"))


def example_chat(answers: Sequence[dict[str, Any]], corpus: Path, profile: str, seed: int) -> Html:
    """The first test context with a photo whose reply should share one too, and what the model answered."""
    examples, store = split_examples(corpus, "test")
    rows = keyed([row for row in answers if row["images"]])
    for example in examples:
        row, me = rows.get((example.dialogue_id, example.index)), example.response.speaker
        if row and example.response.photos and any(turn.photos for turn in example.context):
            turns = [Turn(int(turn.speaker == me), turn.text, turn.photos) for turn in example.context]
            photos = {photo.photo_id: store.load(photo.photo_id) for turn in turns for photo in turn.photos}
            photos |= {f"drawn {k}": open_photo(image) for k, image in enumerate(row["images"])}
            drawn = (SharedPhoto(f"drawn {k}", caption) for k, caption in enumerate(row["captions"]))
            turns.append(Turn(1, row["text"], tuple(drawn)))
            note = footer(profile, [seed], f"1 of {len(answers)} responses; the last turn is the model's own")
            return chat_html(turns, photos.__getitem__, names=("User", "Assistant"), note=note)
    note = footer(profile, [seed], f"{len(answers)} test responses")
    return Html(f"<p>In no test chat with a photo did the model share another ({note}).</p>")
