import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from e2e_lib.evaluation import fidelity
from e2e_lib.evaluation.fidelity import torch_fidelity
from e2e_lib.evaluation.image import image_scores

THINGS = 14


class TinyReader(nn.Module):
    """A random scene reader; its dropout would make scores random if it were left in training mode."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.head, self.dropout = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, THINGS), nn.Dropout(0.5)

    def features(self, photos: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.conv(photos.float() / 127.5 - 1))  # (B, 6, h, w)
        return self.dropout(hidden.flatten(2).std(-1) * 3)

    def forward(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"thing": 10 * self.head(self.features(photos)), "colour": photos.new_zeros(len(photos), 8)}


class PixelReader(nn.Module):
    """Reads the thing from the value of the first pixel, with certainty."""

    def features(self, photos: torch.Tensor) -> torch.Tensor:
        return photos.flatten(1)[:, :2].float()

    def forward(self, photos: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"thing": 60.0 * nn.functional.one_hot(photos[:, 0, 0, 0].long(), THINGS)}


def photos(n: int, seed: int, top: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    contrast = torch.randint(1, top, (n, 3, 1, 1), generator=generator)
    return (torch.rand(n, 3, 12, 12, generator=generator) * contrast).to(torch.uint8)


def features(reader: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return reader.eval().features(images).double().numpy()


def closed_form_fid(x: np.ndarray, y: np.ndarray) -> float:
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


def naive_kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD under (x·y / d + 1)³, pair by pair."""
    def mean(xs, ys, same):
        pairs = [(u @ v / len(u) + 1) ** 3 for i, u in enumerate(xs) for j, v in enumerate(ys) if not (same and i == j)]
        return sum(pairs) / len(pairs)
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def naive_inception_scores(reader: nn.Module, images: torch.Tensor, splits: int) -> list[float]:
    with torch.no_grad():
        logits = reader.eval()(images)["thing"].double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return [float(np.exp(np.mean([np.sum(row * np.log(row / part.mean(0))) for row in part]))) for part in np.split(p, splits)]


# Two readers under one registered name, one after the other: neither may see the other's features.
@pytest.mark.parametrize("seed", [0, 1])
def test_fid_and_kid_equal_closed_form_and_naive_estimate(seed):
    reader, drawn, gold = TinyReader(seed), photos(40, 1), photos(40, 2, top=128)
    scores = image_scores(drawn, gold, reader, kid_subsets=1)
    x, y = features(reader, drawn), features(reader, gold)
    assert scores["fid"] == pytest.approx(closed_form_fid(x, y), rel=1e-6)
    assert scores["fid"] > 0.01
    assert scores["kid"] == pytest.approx(naive_kid(x, y), rel=1e-6)


def test_inception_score_of_one_split_equals_its_formula():
    drawn, gold = photos(15, 3), photos(20, 4)
    scores = image_scores(drawn, gold, TinyReader())
    (expected,) = naive_inception_scores(TinyReader(), drawn, splits=1)
    assert scores["is"] == pytest.approx(expected, rel=1e-6)
    assert scores["is"] > 1.01 and scores["is_std"] == 0
    assert (scores["image_n"], scores["image_n_gold"]) == (15, 20)


def test_inception_score_has_a_split_for_every_ten_photos():
    drawn = photos(40, 5)
    scores = image_scores(drawn, drawn, TinyReader(), seed=3)
    shuffled = drawn[torch.from_numpy(np.random.RandomState(3).permutation(40))]
    expected = naive_inception_scores(TinyReader(), shuffled, splits=4)
    assert (scores["is"], scores["is_std"]) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-6)


def test_inception_score_runs_from_1_to_the_number_of_things():
    each = torch.arange(THINGS, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    assert image_scores(each, each, PixelReader())["is"] == pytest.approx(THINGS)
    assert image_scores(each[:1].expand(THINGS, -1, -1, -1), each, PixelReader())["is"] == pytest.approx(1)


def test_a_set_is_no_distance_from_itself():
    drawn = photos(60, 6)
    scores = image_scores(drawn, drawn, TinyReader())
    assert scores["fid"] == pytest.approx(0, abs=1e-6)
    assert scores["kid"] < 1e-6  # unbiased, and so a little below zero


def test_the_same_call_gives_the_same_numbers_and_the_seed_counts():
    drawn, gold, reader = photos(50, 7), photos(30, 8), TinyReader()
    first = image_scores(drawn, gold, reader, seed=5)
    assert image_scores(drawn, gold, reader, seed=5) == first
    assert image_scores(drawn, gold, reader, seed=5 + 2**32) == first
    assert image_scores(drawn, gold, reader, seed=6)["kid"] != first["kid"]
    assert first["kid_std"] > 0


def test_nothing_around_is_changed(capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    reader = TinyReader().train()
    reader.conv.eval()
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate(), list(warnings.filters)
    image_scores(photos(20, 9), photos(20, 10), reader)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1].tolist(), random.getstate(), list(warnings.filters)) == state[1:]
    assert reader.training and reader.dropout.training and not reader.conv.training
    assert all(weight.requires_grad for weight in reader.parameters())
    assert not list(tmp_path.iterdir())  # no cache of features
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("drawn, message", [
    (photos(1, 0), "drawn photos: expected at least 2, got 1"),
    (photos(4, 0)[:0], "drawn photos: expected at least 2, got 0"),
    (photos(4, 0).float(), "drawn photos: expected a uint8 tensor.*float32"),
    (photos(4, 0).permute(0, 2, 3, 1), r"drawn photos: .*\(4, 12, 12, 3\)"),
])
def test_bad_photos_are_named(drawn, message):
    with pytest.raises(ValueError, match=message):
        image_scores(drawn, photos(4, 1), TinyReader())
    with pytest.raises(ValueError, match=message.replace("drawn", "gold")):
        image_scores(photos(4, 1), drawn, TinyReader())


def test_at_least_one_kid_subset():
    with pytest.raises(ValueError, match="kid_subsets.*got 0"):
        image_scores(photos(4, 1), photos(4, 1), TinyReader(), kid_subsets=0)


class SmallInception(torch_fidelity.FeatureExtractorBase):
    """In place of the real one, which has 24 million weights: channel means, scaled by its weights file."""

    def __init__(self, name, features_list, feature_extractor_weights_path, **kwargs):
        super().__init__(name, features_list)
        self.scale = torch.load(feature_extractor_weights_path)["fc.weight"]

    @staticmethod
    def get_provided_features_list():
        return ("means",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "means"

    def forward(self, images):
        return (images.float().mean((2, 3)).double() * self.scale,)


def test_inception_scores_stand_beside_the_readers_under_their_own_names(tmp_path, monkeypatch):
    monkeypatch.setitem(torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY, "inception-v3-compat", SmallInception)
    weights = tmp_path / "inception.pth"
    torch.save({"fc.weight": torch.tensor(0.01), "Mixed_7c.branch_pool.conv.weight": torch.ones(1)}, weights)
    drawn, gold = photos(30, 11), photos(30, 12, top=99)
    alone = image_scores(drawn, gold, TinyReader())
    both = image_scores(drawn, gold, TinyReader(), inception_weights=weights)
    assert both.keys() - alone.keys() == {f"inception_{name}" for name in ("is", "is_std", "fid", "kid", "kid_std")}
    assert alone == {name: both[name] for name in alone}
    x, y = (images.float().mean((2, 3)).double().numpy() * 0.01 for images in (drawn, gold))
    assert both["inception_fid"] == pytest.approx(closed_form_fid(x, y), rel=1e-5)


def test_bad_inception_weights_are_named(tmp_path):
    def scores(path):
        image_scores(photos(4, 1), photos(4, 1), TinyReader(), inception_weights=path)

    with pytest.raises(ValueError, match="missing.pth: no such file.*weights-inception"):
        scores(tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="page.pth: not a file of weights, or damaged"):
        scores(tmp_path / "page.pth")
    torch.save(TinyReader().state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: these are another network's weights"):
        scores(tmp_path / "other.pth")
    torch.save(subprocess.Popen, tmp_path / "code.pth")  # a pickle that would name something to run
    with pytest.raises(ValueError, match="code.pth: not a file of weights"):
        scores(tmp_path / "code.pth")


def loaded_torchvision() -> dict:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchvision"}


@pytest.fixture
def without_torchvision():
    """Takes a loaded torchvision away for one test."""
    before = loaded_torchvision()
    for name in before:
        del sys.modules[name]
    yield
    for name in loaded_torchvision():
        del sys.modules[name]
    sys.modules.update(before)


def test_stand_ins_for_an_absent_torchvision_are_gone_afterwards(without_torchvision):
    sys.modules["torchvision"] = None  # Python's way of saying "cannot be imported"
    with fidelity._torchvision_or_stand_ins():
        from torchvision.datasets import CIFAR10
        assert isinstance(CIFAR10, type)
    assert loaded_torchvision() == {"torchvision": None}


def test_a_torchvision_that_fails_on_import_is_stood_in_for(without_torchvision, tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import extension\nraise RuntimeError('torchvision::nms does not exist')")
    (package / "extension.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with fidelity._torchvision_or_stand_ins():
        import torchvision.transforms.functional
        assert not hasattr(torchvision, "extension")
    assert loaded_torchvision() == {}


def test_a_torchvision_that_works_is_used_and_stays(without_torchvision, tmp_path, monkeypatch):
    for folder in ("datasets", "transforms/functional"):
        (tmp_path / "torchvision" / folder).mkdir(parents=True)
    for folder in (".", "datasets", "transforms", "transforms/functional"):
        (tmp_path / "torchvision" / folder / "__init__.py").write_text("REAL = True")
    monkeypatch.syspath_prepend(tmp_path)
    with fidelity._torchvision_or_stand_ins():
        import torchvision.datasets
        assert torchvision.datasets.REAL
    assert sys.modules["torchvision"].REAL


def test_transformers_still_imports_after_scoring():
    code = """
import sys
from e2e_lib.evaluation import image
sys.path.append(sys.argv[1])
from test_image import TinyReader, photos
assert image.image_scores(photos(4, 1), photos(4, 2), TinyReader())["image_n"] == 4
left = [name for name, module in sys.modules.items() if name.startswith("torchvision") and getattr(module, "__spec__", None) is None]
assert not left, left
from transformers import LlamaForCausalLM
"""
    here = Path(__file__).resolve().parent
    done = subprocess.run([sys.executable, "-c", code, here], cwd=here.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
