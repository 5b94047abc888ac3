"""Notebook 05: the components of the three systems (section 3.1.4), what each system reads of a photo, and
which loss trains which component."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_lib.data.collate import Batch
from e2e_lib.data.examples import Example
from e2e_lib.data.minichat.questions import omitted_attributes
from e2e_lib.data.minichat.scenes import ATTRIBUTES, Scene
from e2e_lib.data.photos import PhotoSource
from e2e_lib.models.captioner import with_captions
from e2e_lib.models.systems import PhotoChatModel
from e2e_lib.report.plots import STYLES, Html, Markdown, image_tag, table

COMPONENTS = ("reads photos", "writes text", "draws photos")


def components(model: Any) -> dict[str, nn.Module]:
    """A system's components by what they do, the ``COMPONENTS``."""
    vision = model.captioner.model if model.captioner else model.perceptron
    return dict(zip(COMPONENTS, (vision, model.language, model.generator), strict=True))


def components_table(models: Mapping[str, Any]) -> Markdown:
    """One row per system and component: its classes, its weights, and how many of them are trained."""
    rows: list[list[Any]] = []
    for name, model in models.items():
        for role, component in components(model).items():
            parts = component.children() if component is model.generator else [component]
            weights = list(component.parameters())
            rows.append([STYLES[name][0], role, " + ".join(type(part).__name__ for part in parts),
                         sum(p.numel() for p in weights), sum(p.numel() for p in weights if p.requires_grad)])
    return table(["system", "component", "class", "weights", "trained"], rows)


def context_tokens(model: PhotoChatModel, example: Example, store: PhotoSource) -> list[tuple[str, bool]]:
    """The tokens that a system reads of an example's context, each with whether it stands for a photo."""
    if model.captioner:
        example, = with_captions([example], model.captioner, store)
    ids = model.formatter.context(example.context, example.response.speaker).ids
    tokens, inside = [], False
    for i, token in zip(ids, model.tokenizer.convert_ids_to_tokens(ids), strict=True):
        inside = inside and i != model.formatter.image_end_id
        tokens.append(("⏎" if token in ("<0x0A>", "\n") else token, inside))
        inside = inside or i == model.formatter.image_start_id
    return tokens


def gold_captions(examples: Iterable[Example]) -> dict[str, str]:
    """The gold captions of all photos in contexts and responses, by photo id, in order."""
    turns = (turn for example in examples for turn in (*example.context, example.response))
    return {photo.photo_id: photo.caption for turn in turns for photo in turn.photos}


def applies(name: str, scene: Scene) -> bool:
    """Whether an attribute applies to a scene: size to single things, number to several, others to all."""
    return name not in ("number", "size") or name in scene.details


def attribute_coverage(scenes: Mapping[str, Scene],
                       captions: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """For each attribute, how many captions (by photo id) give its value, and to how many it applies."""
    counts = {}
    for name in ATTRIBUTES:
        ids = [photo_id for photo_id in captions if applies(name, scenes[photo_id])]
        counts[name] = sum(name not in omitted_attributes(scenes[i], captions[i]) for i in ids), len(ids)
    return counts


def photos_html(photos: Iterable[Image.Image], lines: Iterable[Sequence[str]], note: str) -> Html:
    """Photos with lines of text on their right, two photos per row; a note below."""
    cells = []
    for photo, texts in zip(photos, lines, strict=True):
        body = image_tag(photo, 96) + f'<div>{"<br>".join(map(html.escape, texts))}</div>'
        cells.append(f'<div style="display:flex;align-items:flex-start;gap:8px;width:46%">{body}</div>')
    grid = f'<div style="display:flex;flex-wrap:wrap;gap:12px;font-size:13px">{"".join(cells)}</div>'
    return Html(f'{grid}<p style="color:#777;font-size:80%">{html.escape(note)}</p>')


@torch.no_grad()
def photo_features(model: Any, train: Sequence[Tensor], test: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What a system reads of two sets of photos, uint8 (3, H, W), as features (N, F) of each: query
    embeddings or, where it reads captions, how often each word of the first set's captions occurs."""
    if not model.captioner:
        parts = [[model.perceptron(photos[i:i + 128]).flatten(1) for i in range(0, len(photos), 128)]
                 for photos in (train, test)]
        return torch.cat(parts[0]), torch.cat(parts[1])  # (N, Q·D)
    counts = [[Counter(re.findall(r"\w+", caption)) for caption in model.captioner.generate_captions(photos)]
              for photos in (train, test)]
    words = sorted(set().union(*counts[0]))
    rows = [torch.tensor([[float(count[word]) for word in words] for count in side]) for side in counts]
    return rows[0].view(len(train), -1), rows[1].view(len(test), -1)


def linear_probe(train: Tensor, classes: Tensor, test: Tensor) -> Tensor:
    """Classes (N,) of ``test`` (N, F) by ridge regression of one-hot ``classes`` (M,) on ``train`` (M, F)."""
    mean, scale = train.double().mean(0), train.double().std(0) + 1e-6
    known, unknown = (F.pad((x.double() - mean) / scale, (0, 1), value=1.0) for x in (train, test))
    values, targets = classes.unique(return_inverse=True)  # (K,), (M,)
    penalty = 0.2 * len(train) * torch.eye(known.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(known.T @ known + penalty, known.T @ F.one_hot(targets).double())  # (F+1, K)
    return values[(unknown @ weights).argmax(1)]


def probe_accuracy(features: Mapping[str, tuple[Tensor, Tensor]], train: Sequence[Scene],
                   test: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """The accuracy on ``test`` of a linear probe per attribute and kind of features, fitted on ``train``.

    "N" is the number of test photos that the attribute applies to, "most frequent" the accuracy of always
    predicting the most frequent value of ``train``. An attribute that takes only one value in ``train``, or
    applies to no test photo, is left out.
    """
    accuracy = {}
    for name, values in ATTRIBUTES.items():
        known, unknown = ([i for i, scene in enumerate(scenes) if applies(name, scene)]
                          for scenes in (train, test))
        classes = torch.tensor([values.index(getattr(train[i], name)) for i in known])
        gold = torch.tensor([values.index(getattr(test[i], name)) for i in unknown])
        if len(classes.unique()) < 2 or not unknown:
            continue
        rows: dict[str, float] = {"N": len(unknown)}
        for kind, (of_train, of_test) in features.items():
            predicted = linear_probe(of_train[known], classes, of_test[unknown])
            rows[kind] = (predicted == gold).double().mean().item()
        rows["most frequent"] = (gold == classes.bincount().argmax()).double().mean().item()
        accuracy[name] = rows
    return accuracy


def gradient_norms(model: Any, batch: Batch, seed: int) -> dict[str, dict[str, float | None]]:
    """The norm of each loss's gradient ("text", "image") with respect to each component's trained weights.

    None where no path leads from the loss to the weights; frozen components are left out. Changes no weight.
    """
    output = model(batch, temperature=1.0, seed=seed)
    norms: dict[str, dict[str, float | None]] = {}
    for role, component in components(model).items():
        weights = [p for p in component.parameters() if p.requires_grad]
        if not weights:
            continue
        norms[role] = dict.fromkeys(("text", "image"))
        for name, loss in (("text", output.text_loss), ("image", output.image_loss)):
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
                lengths = [gradient.norm() for gradient in gradients if gradient is not None]
                norms[role][name] = torch.stack(lengths).norm().item() if lengths else None
    return norms
