"""Made-up files in the formats of PhotoChat and DialogCC, of any size: for tests, benchmarks and lessons.

The words mean nothing. Forms, lengths and shares follow what is known of the real files.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = ("look at this we went to the beach yesterday and it was so lovely I think you would like my new "
         "dog he runs all day what are you doing tonight maybe we could cook something together").split()
LABELS = ("Person", "Human face", "Dog", "Cake", "Plate", "Tree", "Boy", "Footwear", "montañas",
          "Baked goods", "\u9ce5")  # bird
PEOPLE = (("nephew", "Reece"), ("mom", "Elle"), ("friend's son", "Azaria"), ("brother", "Darwin"))


def _text(rng: random.Random, low: int = 2, high: int = 16) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def photochat_row(rng: random.Random, number: int, with_id: bool = True) -> dict[str, Any]:
    """A dialogue of PhotoChat: 5 to 20 messages, one of which shares the photo."""
    messages = [{"message": _text(rng), "share_photo": False, "user_id": rng.randint(0, 1)}
                for _ in range(rng.randint(5, 20))]
    messages[rng.randrange(1, len(messages))] = {"message": "", "share_photo": True, "user_id": 0}
    relation, name = rng.choice(PEOPLE)
    people = f"The photo has your {relation} {name}. " if rng.random() < 0.5 else ""
    photo = f"{rng.randrange(10**9):010d}_{rng.getrandbits(40):010x}"
    labels = ", ".join(rng.sample(LABELS, rng.randint(1, 4)))
    row = {"dialogue": messages, "dialogue_id": number,
           "photo_description": f"{people}Objects in the photo: {labels}",
           "photo_url": f"https://farm{rng.randint(1, 8)}.staticflickr.com/{rng.randint(1, 65)}/"
                        f"{rng.randint(1000, 9999)}/{photo}_o.jpg"}
    return {**row, "photo_id": f"train/{rng.getrandbits(64):016x}"} if with_id else row


def dialogcc_row(rng: random.Random, number: int, split: str) -> dict[str, Any]:
    """A dialogue of DialogCC: 5 to 12 entries of two people, photos on one to three of them."""
    speakers = rng.sample(("Kitzie", "Alfonza", "Genevieve", "Dyani"), 2)
    entries: list[dict[str, Any]] = []
    for i in range(rng.randint(5, 12)):
        entries.append({"utterance_idx": i, "utterance": _text(rng), "speaker": speakers[rng.random() < 0.5],
                        "rationale": None, "shared_image": [], "description": None})
    for i in rng.sample(range(len(entries)), rng.randint(1, 3)):
        images = [{"image_url": f"https://i.example.org/{rng.getrandbits(64):016x}/thumb/1.jpg?{'x' * 120}",
                   "caption": _text(rng, 6, 14)} for _ in range(rng.choice((1, 1, 5, 10)))]
        entries[i] |= {"shared_image": images, "rationale": f"To {_text(rng)}", "description": _text(rng)}
        if rng.random() < 0.5:
            entries[i]["utterance"] = ""
    return {"dialogue_id": f"wow:{number}", "dialogue": entries, "split": split}


def write(name: str, folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Writes ``counts[split]`` dialogues of "photochat" or "dialogcc" a split, in the corpus's own layout.
    """
    rng = random.Random(seed)

    def rows(split: str, count: int) -> Iterator[dict[str, Any]]:
        for i in range(count):
            yield photochat_row(rng, i) if name == "photochat" else dialogcc_row(rng, i, split)

    for split, count in counts.items():
        path = folder / split / f"{split}_00.json" if name == "photochat" else folder / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            for i, row in enumerate(rows(split, count)):
                file.write(("[\n" if i == 0 else ",\n") + json.dumps(row))
            file.write("\n]" if count else "[]")
    return folder
