"""What the scene classifier says of photos, and the features that FID* and KID* compare."""

import torch
from model_helpers import MIXED

from e2e_lib.data.minichat.scenes import ATTRIBUTES
from e2e_lib.data.photos import square
from e2e_lib.evaluation.scene_classifier import FEATURES, SceneClassifier, load_scene_classifier


@torch.no_grad()
def test_a_scene_is_the_likeliest_value_of_each_attribute_whatever_the_batch(shipped):
    classifier = load_scene_classifier()
    assert isinstance(classifier, SceneClassifier) and not classifier.training
    logits = classifier(square(MIXED, 64))
    expected = [{name: values[int(logits[name][i].argmax())] for name, values in ATTRIBUTES.items()} for i in range(len(MIXED))]
    assert classifier.predict(MIXED) == classifier.predict(MIXED, batch_size=3) == expected and classifier.predict([]) == []


@torch.no_grad()
def test_features_are_those_of_the_attributes_with_a_mean_square_of_1(shipped):
    classifier = load_scene_classifier()
    features, logits = classifier.extract(MIXED)
    thing = classifier.heads["thing"]
    assert features.shape == (len(MIXED), FEATURES) and torch.allclose(features.square().mean(1), torch.ones(len(MIXED)))
    assert torch.allclose(logits, classifier(square(MIXED, 64))["thing"], atol=1e-6)
    for one, other in zip(features, logits, strict=True):  # before they were scaled, they gave the logits
        scaled = thing.weight @ one
        length = ((other - thing.bias) @ scaled) / (scaled @ scaled)
        assert length > 0 and torch.allclose(thing.bias + length * scaled, other, atol=1e-5)
