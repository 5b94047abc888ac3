"""Scores of drawn photos as a set: Inception Score, FID and KID, computed by torch-fidelity (§3.1.3)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from e2e_lib.evaluation.fidelity import torch_fidelity

_EXTRACTOR = "scene-reader"
_FEATURES, _LOGITS = "features", "thing"


class SceneClassifier(Protocol):
    """What the scene reader must offer here; every torch module with these two methods will do."""

    def features(self, photos: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to (B, F)."""

    def __call__(self, photos: Tensor) -> Mapping[str, Tensor]:
        """(B, 3, H, W) uint8 to logits (B, number of values) for each attribute, "thing" among them."""

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class _Photos(Dataset[Tensor]):
    """torch-fidelity wants items of bare tensors, where TensorDataset gives tuples."""

    def __init__(self, photos: Tensor) -> None:
        self.photos = photos.cpu()

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return self.photos[index]


class _ReaderFeatures(torch_fidelity.FeatureExtractorBase):
    def __init__(self, name: str, features_list: list[str], scene_reader: SceneClassifier, **_: Any) -> None:
        super().__init__(name, features_list)
        # In a tuple the reader is no submodule, so torch-fidelity's requires_grad_(False) and eval() do not reach it.
        self.reader = (scene_reader,)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return _FEATURES, _LOGITS

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return _LOGITS if metric == "isc" else _FEATURES

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        (reader,) = self.reader
        weight = next(reader.parameters(), None)
        photos = photos if weight is None else photos.to(weight.device)
        found = {_FEATURES: reader.features(photos), _LOGITS: reader(photos)[_LOGITS]}
        return tuple(found[name].double() for name in self.features_list)


torch_fidelity.register_feature_extractor(_EXTRACTOR, _ReaderFeatures)


def _check_photos(name: str, photos: Tensor) -> None:
    if photos.dtype != torch.uint8 or photos.ndim != 4 or photos.shape[1] != 3:
        raise ValueError(f"{name} photos: expected a uint8 tensor of shape (N, 3, H, W), got {photos.dtype} {tuple(photos.shape)}")
    if len(photos) < 2:
        raise ValueError(f"{name} photos: expected at least 2, got {len(photos)}; a set of fewer has no spread to compare")


def _check_inception_weights(path: Path) -> None:
    advice = ("expected torch-fidelity's weights-inception-2015-12-05-6726825d.pth (from its release page, v0.2.0); "
              "download it again, or leave the Inception scores out")
    if not path.is_file():
        raise ValueError(f"Inception weights {path}: no such file; {advice}")
    try:
        # torch-fidelity unpickles whatever the file holds; this reads tensors only, and refuses everything else first.
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"Inception weights {path}: not a file of weights, or damaged; {advice}") from error
    if not isinstance(weights, Mapping) or "Mixed_7c.branch_pool.conv.weight" not in weights or "fc.weight" not in weights:
        raise ValueError(f"Inception weights {path}: these are another network's weights; {advice}")


def _scores(drawn: Tensor, gold: Tensor, kid_subsets: int, seed: int, **extractor: Any) -> dict[str, float]:
    n, m = len(drawn), len(gold)
    # torch's data loader draws a number from the global generator; whoever is training meanwhile must not notice.
    with torch.random.fork_rng(devices=[]):
        found = torch_fidelity.calculate_metrics(
            input1=_Photos(drawn), input2=_Photos(gold), isc=True, fid=True, kid=True,
            isc_splits=max(1, min(10, n // 10)), kid_subsets=kid_subsets, kid_subset_size=min(1000, n, m), rng_seed=seed % 2**32,
            cuda=False, save_cpu_ram=True, cache=False, verbose=False, **extractor,
        )
    return {
        "is": found[torch_fidelity.KEY_METRIC_ISC_MEAN], "is_std": found[torch_fidelity.KEY_METRIC_ISC_STD],
        "fid": found[torch_fidelity.KEY_METRIC_FID],
        "kid": found[torch_fidelity.KEY_METRIC_KID_MEAN], "kid_std": found[torch_fidelity.KEY_METRIC_KID_STD],
    }


def image_scores(drawn: Tensor, gold: Tensor, reader: SceneClassifier, *, kid_subsets: int = 50, seed: int = 0,
                 inception_weights: Path | None = None) -> dict[str, float | int]:
    """IS of the drawn photos, and FID and KID between drawn and gold ones (§3.1.3), seen through the scene reader.

    ``drawn`` (N, 3, H, W) and ``gold`` (M, 3, H, W) are uint8; N and M may differ. The photos are not resized for the
    reader. Its features and its logits for ``thing`` take the place of Inception's, so these numbers compare systems
    with each other, **never** with the paper's. Returns, all unscaled:

    - ``is``, ``is_std``: mean and spread over 10 splits (fewer under 100 photos: N // 10, at least 1). From 1 (every photo
      looks the same, or none is clear) to the number of things, 14; higher is better.
    - ``fid``: from 0 (up to rounding), lower is better. FID is biased upwards, the more the fewer photos, and by how
      much depends on the model: show N beside it, compare only at equal N, and read it together with KID. With no
      more photos than the reader has features its covariance has not full rank.
    - ``kid``, ``kid_std``: mean and spread over ``kid_subsets`` random subsets of min(1000, N, M) photos from either side; lower is
      better. Unbiased, so slightly below 0 for sets that are alike. With N = M ≤ 1000 every subset is the whole set, and the
      spread says nothing.
    - ``image_n``, ``image_n_gold``: N and M.

    With ``inception_weights`` (torch-fidelity's own weights file) also ``inception_is``, ``inception_is_std``, ``inception_fid``,
    ``inception_kid``, ``inception_kid_std``: the usual ones, with torch-fidelity's TensorFlow-like bilinear resizing to 299 pixels;
    about 6-10 photos a second on a CPU. They never mix with the reader's.

    The same call gives the same numbers (``seed`` is taken modulo 2**32); the global random state and the reader's mode
    stay as they were. Raises ValueError when photos have another shape or type, a side has fewer than 2, ``kid_subsets``
    is below 1, or the weights file is missing, damaged or another network's.
    """
    _check_photos("drawn", drawn)
    _check_photos("gold", gold)
    if kid_subsets < 1:
        raise ValueError(f"kid_subsets: expected at least 1, got {kid_subsets}")
    if inception_weights is not None:
        _check_inception_weights(inception_weights)
    modes = [(module, module.training) for module in reader.modules()]
    try:
        for module, _ in modes:
            module.training = False
        scores: dict[str, float | int] = dict(_scores(drawn, gold, kid_subsets, seed, feature_extractor=_EXTRACTOR, scene_reader=reader))
    finally:
        for module, mode in modes:
            module.training = mode
    if inception_weights is not None:
        inception = _scores(drawn, gold, kid_subsets, seed, feature_extractor="inception-v3-compat",
                            feature_extractor_weights_path=str(inception_weights))
        scores |= {f"inception_{name}": value for name, value in inception.items()}
    return {**scores, "image_n": len(drawn), "image_n_gold": len(gold)}
