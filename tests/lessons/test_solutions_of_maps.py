"""The folded solutions of notebooks 03 and 04 pass the checks beside them; what is there to begin with passes none.

Each cell runs with small stand-ins for what the notebook made before it.
"""

import ast
import contextlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

from e2e_lib import config as configuration
from e2e_lib.bridge import reference
from e2e_lib.bridge.caption_bridge import CaptionBridge
from e2e_lib.data.minichat.chats import caption_words
from e2e_lib.experiments import dense_maps
from e2e_lib.lessons import nb03_vocabulary, nb04_joint
from e2e_lib.lessons.claims import confirm, observe
from e2e_lib.models.systems import build
from e2e_lib.report import faults_figures
from e2e_lib.repro.files import CheckpointError
from e2e_lib.repro.randomness import generator

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SENTENCE = "an orange umbrella standing in the garden"


def exercises(name):
    """Of each exercise: its number, the code of its check, and the solution's."""
    cells, found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells, []
    for text, check, after in zip(cells, cells[1:], cells[2:], strict=False):
        title = re.search(r"^\*\*(\d)\. ", text.source, re.M) if text.cell_type == "markdown" else None
        if title:
            solution = after.source.partition("Solution</summary>")[2].partition("</details>")[0]
            code = re.findall(r"```python\n(.*?)```", solution, re.S) or re.findall(r"`(\w+ = [^`]+)`", solution)
            found.append((title[1], check.source, code[0]))
    return found


def run(check, solution, space):
    """Runs an exercise as it is, which prints nothing, then its check with the solution: the lines it prints."""
    def printed(code):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, space)
        return out.getvalue()
    assert printed(check) == ""
    exec(solution, space)
    checks = ast.Module([node for node in ast.parse(check).body if isinstance(node, ast.If)], [])
    return printed(compile(checks, "check", "exec")).splitlines()


@pytest.fixture(scope="module")
def maps_space(config):
    model = build(config).eval()
    source, target = model.tokenizer, model.generator.tokenizer
    length = model.generator.max_length
    table = model.generator.text_encoder.get_input_embeddings().weight.detach().double()
    both = dense_maps.pair(source, target, SENTENCE, length)
    a, b = both.source.input_ids, both.target.input_ids[both.target.token_mask]
    z = torch.randn(len(a), len(source), generator=generator("z"), dtype=torch.float64).requires_grad_()
    maps = dense_maps.maps_of(source, target, caption_words())
    return {"torch": torch, "confirm": confirm, "dense_maps": dense_maps, "reference": reference, "lesson": nb03_vocabulary,
            "CaptionBridge": CaptionBridge, "caption_words": caption_words, "source": source, "target": target, "length": length,
            "sentence": SENTENCE, "both": both, "A": a, "B": b, "E": table, "z": z, "y": z.softmax(-1),
            "M": reference.caption_matrix(a, b, len(source), len(target)), "embedding": torch.nn.Embedding.from_pretrained(table),
            "embedding_gradient": torch.randn(table.shape[1], generator=generator("g"), dtype=torch.float64),
            "gradient": torch.randn(length, table.shape[1], generator=generator("p"), dtype=torch.float64),
            "maps": maps, "aligned": dense_maps.aligned_maps_of(source, target), "many": [], "colours": None,
            "scores": dict.fromkeys(("span", "static_piece", "aligned")), "guess": {}, "note": str, "display": lambda figure: None}


@pytest.mark.parametrize(("number", "check", "solution"), exercises("03_vocabulary_matrix"))
def test_the_solutions_of_03_pass(maps_space, monkeypatch, number, check, solution):
    monkeypatch.setattr(nb03_vocabulary, "score", lambda *of: None)
    monkeypatch.setattr(nb03_vocabulary, "scores_figure", lambda *of: None)
    if number == "3":  # the caption is one for the shipped tokenizers
        maps_space = {**maps_space, "lesson": SimpleNamespace(linked=lambda *of: torch.zeros(1, dtype=torch.bool))}
    lines = run(check, solution, dict(maps_space))
    assert lines and all(line.startswith("✓") for line in lines)


@pytest.mark.parametrize(("number", "check", "solution"), exercises("04_joint_training"))
def test_the_solutions_of_04_pass(number, check, solution):
    def refuse(*of):
        raise CheckpointError("other settings: train.image_loss_weight: 1.0 there, 10.0 here")
    space = {"torch": torch, "confirm": confirm, "observe": observe, "lesson": nb04_joint, "told": faults_figures, "seeds": [0],
             "from_image_alone": lambda mapping, temperature: 1 / temperature, "configuration": configuration,
             "config": configuration.load("smoke", []), "loop": SimpleNamespace(load_trained=refuse)}
    lines = run(check, solution, space)
    assert lines and all(line.startswith("✓") for line in lines)


def test_all_exercises_are_found():
    assert [[number for number, *_ in exercises(name)] for name in ("03_vocabulary_matrix", "04_joint_training")] == [
        ["1", "2", "3", "4", "5"], ["1", "2", "3", "4"]]
