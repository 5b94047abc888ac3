"""Scores of drawn photos as a set: Inception Score, FID and KID, by torch-fidelity (section 3.1.3).

They see photos through a feature extractor. Each corpus brings its own, so these scores compare systems on
one corpus, **never** with the paper. Inception's have names of their own, ``inception_fid`` and so on, and
need a file of weights that nothing here fetches. Axes: N photos, F features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from e2e_lib.evaluation.fidelity import FeatureExtractorInceptionV3, metric_fid, metric_isc, metric_kid
from e2e_lib.repro.files import sha256

BATCH = 64  # photos per call of a feature extractor
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity calls its file
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SEED = 0  # of the order in which IS splits photos, and of KID's subsets


class FeatureExtractor(Protocol):
    """A classifier of photos."""

    def extract(self, photos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """N photos, uint8 (3, H, W) of any size, to features (N, F) and class logits (N, K)."""


@dataclass(frozen=True)
class PhotoFeatures:
    """``features`` (N, F), which FID and KID compare, and class ``logits`` (N, K) for IS; float64.

    ``splits`` (N,): which split of a test set's photos each is in for IS; by default ``splits_of``."""

    features: Tensor
    logits: Tensor
    splits: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.splits is None:
            object.__setattr__(self, "splits", splits_of(len(self.features)))

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Tensor) -> "PhotoFeatures":
        """Those of the photos ``rows`` (M,), which may repeat. Each stays in its split: were the rest split
        anew, IS without one dialogue would change more by that than by the dialogue."""
        return PhotoFeatures(self.features[rows], self.logits[rows], self.splits[rows])


def splits_of(photos: int) -> Tensor:
    """The split (N,) of each photo: of 10 (of N // 10, at least 1, below 100 photos), as torch-fidelity
    splits the photos after shuffling them."""
    count, splits = max(1, min(10, photos // 10)), np.empty(photos, dtype=np.int64)
    place = np.random.RandomState(SEED).permutation(photos)
    splits[place] = (count * np.arange(1, photos + 1) - 1) // max(1, photos)  # from i N // 10 on is split i
    return torch.from_numpy(splits)


@torch.no_grad()
def features_of(photos: Sequence[Tensor], extractor: FeatureExtractor) -> PhotoFeatures:
    """The features of N photos, uint8 (3, H, W) each. Raises ValueError for anything else."""
    for row, photo in enumerate(photos):
        if photo.dtype != torch.uint8 or photo.ndim != 3 or photo.shape[0] != 3:
            raise ValueError(f"photo {row}: expected a uint8 tensor of shape (3, H, W), got {photo.dtype} "
                             f"{tuple(photo.shape)}")
    if not len(photos):
        return PhotoFeatures(*torch.zeros((2, 0, 1), dtype=torch.float64))
    parts = [extractor.extract(photos[first:first + BATCH]) for first in range(0, len(photos), BATCH)]
    features, logits = (torch.cat(side).double().cpu() for side in zip(*parts, strict=True))
    if not features.ndim == logits.ndim == 2 or not len(features) == len(logits) == len(photos):
        raise ValueError(f"{type(extractor).__name__}.extract gave {[*features.shape]} and {[*logits.shape]} "
                         f"for {len(photos)} photos; expected features (N, F) and class logits (N, K)")
    return PhotoFeatures(features, logits)


def _check_number(**sides: PhotoFeatures) -> None:
    for name, photos in sides.items():
        if len(photos) < 2:
            raise ValueError(f"{name} photos: expected at least 2, got {len(photos)}; fewer have no spread")


def inception_score(photos: PhotoFeatures) -> tuple[float, float]:
    """IS, from 1 (all look the same, or none is clear) to K; higher is better. Mean and standard deviation
    over the photos' splits, which ``splits_of`` gives them. Raises ValueError below 2 photos."""
    _check_number(drawn=photos)
    scores = [metric_isc.isc_features_to_metric(photos.logits[photos.splits == split], 1, shuffle=False)
              for split in photos.splits.unique()]
    means = [score[metric_isc.KEY_METRIC_ISC_MEAN] for score in scores]
    return float(np.mean(means)), float(np.std(means))


def fid(drawn: PhotoFeatures, gold: PhotoFeatures) -> float:
    """FID, from 0 (up to rounding); lower is better. Biased upwards, the more the fewer photos, and by how
    much depends on the model: show N, compare at equal N, read KID too. Raises ValueError below 2 photos."""
    _check_number(drawn=drawn, gold=gold)
    statistics = [metric_fid.fid_features_to_statistics(side.features) for side in (drawn, gold)]
    return metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[metric_fid.KEY_METRIC_FID]


def kid(drawn: PhotoFeatures, gold: PhotoFeatures) -> tuple[float, float]:
    """KID, unbiased, so slightly below 0 for sets that are alike; lower is better. Mean and standard
    deviation over 50 random subsets of min(N, M, 1000) photos. Raises ValueError below 2 photos."""
    _check_number(drawn=drawn, gold=gold)
    scores = metric_kid.kid_features_to_metric(
        drawn.features, gold.features, kid_subsets=50, kid_subset_size=min(1000, len(drawn), len(gold)),
        rng_seed=SEED, verbose=False)
    return scores[metric_kid.KEY_METRIC_KID_MEAN], scores[metric_kid.KEY_METRIC_KID_STD]


def check_inception(weights: Path) -> None:
    """Raises ValueError unless the file holds torch-fidelity's weights of Inception, whose scores alone
    compare with others'. Nothing else is loaded, either: torch-fidelity unpickles what it is given."""
    try:
        found = sha256(weights)
        problem = f"another file, or a damaged one (SHA-256 {found[:8]}…, not {INCEPTION_SHA256[:8]}…)"
    except OSError as error:
        found, problem = "", "no such file" if not weights.exists() else f"unreadable ({error.strerror})"
    if found != INCEPTION_SHA256:
        raise ValueError(f"Inception weights {weights}: {problem}; expected torch-fidelity's "
                         f"{INCEPTION_WEIGHTS} (from its release page, v0.2.0); "
                         "download it again, or leave the Inception scores out")


class InceptionExtractor:
    """Inception with torch-fidelity's ``weights`` and TensorFlow's resizing. Raises ValueError for others."""

    def __init__(self, weights: Path) -> None:
        check_inception(weights)
        self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"],
                                                   feature_extractor_weights_path=str(weights))

    def extract(self, photos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        features, logits = zip(*(self.network(photo[None]) for photo in photos), strict=True)
        return torch.cat(features), torch.cat(logits)  # (N, 2048), (N, 1008)


def inception_scores(drawn: Sequence[Tensor], gold: Sequence[Tensor],
                     weights: Path) -> dict[str, float | None]:
    """The usual scores, by Inception, of photos, uint8 (3, H, W) each: ``inception_is`` and so on; None each
    below two photos of a side. About 6-10 photos per second on a CPU. Raises ValueError as
    ``InceptionExtractor`` and ``features_of`` do."""
    extractor = InceptionExtractor(weights)
    if min(len(drawn), len(gold)) < 2:
        return dict.fromkeys(f"inception_{name}" for name in ("is", "is_std", "fid", "kid", "kid_std"))
    ours, theirs = features_of(drawn, extractor), features_of(gold, extractor)
    (mean, std), (kid_mean, kid_std) = inception_score(ours), kid(ours, theirs)
    return {"inception_is": mean, "inception_is_std": std, "inception_fid": fid(ours, theirs),
            "inception_kid": kid_mean, "inception_kid_std": kid_std}
