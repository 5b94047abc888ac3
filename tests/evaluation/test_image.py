import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from inception_file import NarrowInception, save_inception
from torch import nn

from e2e_lib.evaluation import image
from e2e_lib.evaluation.fidelity import FeatureExtractorInceptionV3, metric_isc
from e2e_lib.evaluation.image import PhotoFeatures, features_of, fid, inception_score, inception_scores, kid

CLASSES = 14


class TinyExtractor(nn.Module):
    """Random features and logits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.head = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, CLASSES)

    def extract(self, photos):
        hidden = torch.stack([torch.tanh(self.conv(photo[None].float() / 127.5 - 1)).flatten(2).std(-1)[0] * 3
                              for photo in photos])
        return hidden, 10 * self.head(hidden)


class PixelExtractor:
    """Reads the class from the value of the first pixel, with certainty."""

    def extract(self, photos):
        values = torch.stack([photo[0, 0, 0].long() for photo in photos])
        return values[:, None].float().repeat(1, 2), 60.0 * nn.functional.one_hot(values, CLASSES)


def photos(n: int, seed: int, top: int = 256) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.randint(1, top, (n, 3, 1, 1), generator=generator)
    return list((torch.rand(n, 3, 12, 12, generator=generator) * contrast).to(torch.uint8))


def extracted(n: int, seed: int, top: int = 256, model: int = 0) -> PhotoFeatures:
    return features_of(photos(n, seed, top), TinyExtractor(model))


def closed_form_fid(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


def naive_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD under (x·y / d + 1)³, pair by pair."""
    def mean(xs, ys, same):
        pairs = [(u @ v / len(u) + 1) ** 3 for i, u in enumerate(xs) for j, v in enumerate(ys) if not (same and i == j)]
        return sum(pairs) / len(pairs)
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def naive_inception_scores(logits: np.ndarray, splits: int) -> list[float]:
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return [float(np.exp(np.mean([np.sum(row * np.log(row / part.mean(0))) for row in part]))) for part in np.split(p, splits)]


@pytest.mark.parametrize("model", [0, 1])
def test_fid_and_kid_equal_closed_form_and_naive_estimate(model):
    drawn, gold = extracted(40, 1, model=model), extracted(40, 2, top=128, model=model)
    x, y = drawn.features.numpy(), gold.features.numpy()
    assert fid(drawn, gold) == pytest.approx(closed_form_fid(x, y), rel=1e-6) and fid(drawn, gold) > 0.01
    assert kid(drawn, gold)[0] == pytest.approx(naive_kid(x, y), rel=1e-6)


def test_inception_score_of_one_split_equals_its_formula():
    drawn = extracted(15, 3)
    mean, std = inception_score(drawn)
    (expected,) = naive_inception_scores(drawn.logits.numpy(), splits=1)
    assert mean == pytest.approx(expected, rel=1e-6) and mean > 1.01 and std == 0


def test_inception_score_has_a_split_for_every_ten_photos():
    drawn = extracted(40, 5)
    shuffled = drawn.logits.numpy()[np.random.RandomState(image.SEED).permutation(40)]
    expected = naive_inception_scores(shuffled, splits=4)
    assert inception_score(drawn) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-6)


@pytest.mark.parametrize("n", [2, 9, 10, 57, 99, 100, 233])
def test_photos_are_split_as_torch_fidelity_splits_them(n):
    drawn = PhotoFeatures(torch.zeros(n, 1), torch.randn(n, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64))
    theirs = metric_isc.isc_features_to_metric(drawn.logits, max(1, min(10, n // 10)), rng_seed=image.SEED)
    assert inception_score(drawn) == pytest.approx(tuple(theirs.values()), rel=1e-12)


def test_a_photo_stays_in_its_split_when_others_are_left_out():
    """What is left out of one split changes that one alone, and little: as in the formula of the splits without it."""
    drawn = extracted(40, 5)
    kept = torch.arange(40) != 7
    fewer = drawn.take(kept.nonzero()[:, 0])
    parts = [drawn.logits[kept & (drawn.splits == split)].numpy() for split in range(4)]
    assert sorted(map(len, parts)) == [9, 10, 10, 10] and len(fewer) == 39
    expected = [naive_inception_scores(part, 1)[0] for part in parts]
    assert inception_score(fewer) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-6)
    assert not torch.equal(PhotoFeatures(fewer.features, fewer.logits).splits, fewer.splits)


def test_inception_score_runs_from_1_to_the_number_of_classes():
    each = list(torch.arange(CLASSES, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4))
    assert inception_score(features_of(each, PixelExtractor()))[0] == pytest.approx(CLASSES)
    assert inception_score(features_of(each[:1] * CLASSES, PixelExtractor()))[0] == pytest.approx(1)


def test_a_set_is_no_distance_from_itself():
    drawn = extracted(60, 6)
    assert fid(drawn, drawn) == pytest.approx(0, abs=1e-6)
    assert kid(drawn, drawn)[0] < 1e-6  # unbiased, and so a little below zero


def test_the_same_photos_give_the_same_numbers():
    drawn, gold = extracted(50, 7), extracted(30, 8)
    assert kid(drawn, gold) == kid(drawn, gold) and kid(drawn, gold)[1] > 0
    assert inception_score(drawn) == inception_score(drawn)


def test_features_do_not_depend_on_batches_and_photos_may_differ_in_size():
    rows = photos(image.BATCH + 3, 9)
    whole = features_of([*rows, torch.zeros((3, 20, 9), dtype=torch.uint8)], TinyExtractor())
    assert len(whole) == image.BATCH + 4 and whole.features.dtype == torch.float64
    torch.testing.assert_close(features_of(rows[-2:], TinyExtractor()).features, whole.features[-3:-1])
    assert torch.equal(whole.take(torch.tensor([2, 2])).logits, whole.logits[[2, 2]])
    assert len(features_of([], TinyExtractor())) == 0


def test_nothing_around_is_changed(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    extractor = TinyExtractor()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), list(warnings.filters)
    drawn = features_of(photos(20, 9), extractor)
    inception_score(drawn), fid(drawn, drawn), kid(drawn, drawn)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1].tolist(), random.getstate(), list(warnings.filters)) == state[1:]
    assert all(weight.requires_grad for weight in extractor.parameters())
    assert not list(tmp_path.iterdir())  # no cache of features
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("photo, message", [
    (torch.zeros(3, 4, 4), r"photo 1: expected a uint8 tensor of shape \(3, H, W\), got torch.float32 \(3, 4, 4\)"),
    (torch.zeros((4, 4, 3), dtype=torch.uint8), r"photo 1: .*\(4, 4, 3\)"),
])
def test_bad_photos_are_named(photo, message):
    with pytest.raises(ValueError, match=message):
        features_of([photos(1, 0)[0], photo], TinyExtractor())


def test_an_extractor_that_gives_something_else_is_named():
    class Wrong:
        def extract(self, photos):
            return torch.zeros(len(photos), 2, 2), torch.zeros(1, 5)

    with pytest.raises(ValueError, match=r"Wrong.extract gave \[3, 2, 2\] and \[1, 5\] for 3 photos; expected features \(N, F\)"):
        features_of(photos(3, 0), Wrong())


def test_fewer_than_two_photos_have_no_score():
    one, more = extracted(1, 0), extracted(4, 1)
    with pytest.raises(ValueError, match="drawn photos: expected at least 2, got 1"):
        fid(one, more)
    with pytest.raises(ValueError, match="gold photos: expected at least 2, got 1"):
        kid(more, one)
    with pytest.raises(ValueError, match="drawn photos: expected at least 2, got 0"):
        inception_score(features_of([], TinyExtractor()))


def test_inceptions_scores_are_by_the_weights_in_the_file_and_have_names_of_their_own(tmp_path, monkeypatch):
    weights = tmp_path / "inception.pth"
    monkeypatch.setattr(image, "INCEPTION_SHA256", save_inception(weights))
    monkeypatch.setattr(image, "FeatureExtractorInceptionV3", NarrowInception)
    seen, real = [], image.features_of
    monkeypatch.setattr(image, "features_of", lambda *given: seen.append(real(*given)) or seen[-1])
    drawn, gold = photos(3, 11), photos(3, 12, top=99)
    scores = inception_scores(drawn, gold, weights)
    assert list(scores) == [f"inception_{name}" for name in ("is", "is_std", "fid", "kid", "kid_std")]
    plain, head = FeatureExtractorInceptionV3("plain", ["2048"], str(weights)), torch.load(weights)["fc.weight"]
    (features,) = plain(gold[1][None])
    ours, theirs = seen
    assert torch.allclose(theirs.features[1], features[0, :2].double()) and not torch.allclose(ours.features[1], theirs.features[1])
    assert torch.allclose(theirs.logits[1], (features @ head.T)[0].double(), rtol=1e-4, atol=1e-4)
    assert scores["inception_fid"] == pytest.approx(closed_form_fid(ours.features.numpy(), theirs.features.numpy()), rel=1e-3)
    (expected,) = naive_inception_scores(ours.logits.numpy(), splits=1)
    assert scores["inception_is"] == pytest.approx(expected, rel=1e-6) and expected > 1.0001
    assert set(inception_scores(drawn[:1], gold, weights).values()) == {None}  # no spread, no score


def test_bad_inception_weights_are_named(tmp_path):
    def load(name):
        image.InceptionExtractor(tmp_path / name)

    with pytest.raises(ValueError, match="missing.pth: no such file.*weights-inception"):
        load("missing.pth")
    with pytest.raises(ValueError, match="unreadable .Is a directory.*download it again"):
        load(".")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="page.pth: another file, or a damaged one .SHA-256 ........…, not 6726825d…"):
        load("page.pth")
    torch.save(subprocess.Popen, tmp_path / "code.pth")  # a pickle that would name something to run
    with pytest.raises(ValueError, match="code.pth: another file"):
        load("code.pth")
    assert image.INCEPTION_SHA256[:8] in image.INCEPTION_WEIGHTS  # whose name, as of all that torch.hub fetches, holds it


@pytest.mark.parametrize("real", [True, False])
def test_importing_torch_fidelity_leaves_torchvision_as_it_was(real, tmp_path):
    """Whether torchvision is loaded already, or not installed; transformers, which asks for it, still imports."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("REAL = True")
    code = f"""
import sys, torch
if {real}:
    sys.path.insert(0, sys.argv[1])
    import torchvision
from e2e_lib.evaluation.fidelity import metric_fid
loaded = {{name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}}
assert list(loaded) == ["torchvision"] * {real}, loaded
assert all(module.REAL for module in loaded.values())
if not {real}:
    from transformers import LlamaForCausalLM
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
