"""The perceptron's projection to a language model (section 2.3): another one's, a new one, or a kept one."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from e2e_lib.models.perceptron import ImagePerceptron, new_projection
from e2e_lib.repro import files
from e2e_lib.repro.files import CheckpointError

FILE = "projection.safetensors"
MADE_WITH = {"language": str, "perceptron": str, "steps": int, "seed": int}


def fit_projection(perceptron: ImagePerceptron, width: int, source: str = "") -> bool:
    """Gives a perceptron a projection to a language model of ``width``: that in the folder ``source``, its
    own if it leads to this width, or a new one. Returns whether it is new, with random numbers.

    Raises CheckpointError for a folder that is missing, damaged, or of another width.
    """
    own = perceptron.language_projection
    if source:
        trained = load_projection(source, own.in_features, width)
        trained.requires_grad_(own.weight.requires_grad)
        perceptron.language_projection = trained
        return False
    if own.out_features == width:
        return False
    perceptron.language_projection = new_projection(own.in_features, width)
    return True


def save_projection(folder: Path, projection: nn.Linear, made_with: dict[str, Any]) -> Path:
    """Writes a projection, and what it was ``made_with``, as one folder. Raises files.SaveError."""
    with files.atomic_folder(folder) as new:
        save_file({name: tensor.detach().cpu().float().contiguous()
                   for name, tensor in projection.state_dict().items()}, new / FILE)
        files.write_json(new / "projection.json", made_with)
        files.write_json(new / "manifest.json", files.sha256_folder(new))
    return folder


def load_projection(source: str, width_in: int, width_out: int) -> nn.Linear:
    """The projection in a folder, from the Q-Former's width to the language model's.

    Raises CheckpointError where there is none, or one of other widths.
    """
    folder = Path(source).expanduser()
    if not files.recover_folder(folder).is_dir():
        raise CheckpointError(f"projection: there is no folder {source}; make it with `e2e warmup`, or begin "
                              "with a new one: --set model.projection=")
    if FILE not in files.check(folder):
        raise CheckpointError(f"projection: {folder} holds none: {FILE} is missing; make it with "
                              "`e2e warmup`")
    tensors = load_file(folder / FILE)
    made_with = files.read_json(folder / "projection.json", "e2e warmup", MADE_WITH, remove=folder)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != {"weight": (width_out, width_in), "bias": (width_out,)}:
        there = found.get("weight", ("none", "none"))
        raise CheckpointError(
            f"projection: that in {folder} leads from {there[-1]} to {there[0]} numbers, and the perceptron "
            f"and the language model here are {width_in} and {width_out} wide: it was made for "
            f"{made_with['language']} and {made_with['perceptron']}; make another with `e2e warmup`, or "
            "begin with a new one: --set model.projection=")
    projection = new_projection(width_in, width_out)  # whose numbers are replaced
    projection.load_state_dict(tensors)
    return projection
