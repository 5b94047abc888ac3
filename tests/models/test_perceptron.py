"""Eq. 3 part by part, for photos of any size."""

import torch
from model_helpers import MIXED

from e2e_lib.data.photos import square


@torch.no_grad()
def test_eq_3_projects_the_queries_into_the_language_model(systems):
    perceptron, photos = systems["end_to_end"].perceptron, square(MIXED, 64)
    queries = perceptron(photos)
    assert queries.shape == (len(MIXED), perceptron.queries, 32)
    for i, photo in enumerate(photos):
        pixels = photo[None] / 127.5 - 1
        patches = perceptron.vision_model(pixel_values=pixels).last_hidden_state
        hidden = perceptron.qformer(query_embeds=perceptron.query_tokens, encoder_hidden_states=patches)
        projection = perceptron.language_projection
        expected = hidden.last_hidden_state[0] @ projection.weight.T + projection.bias
        assert torch.allclose(queries[i], expected, atol=1e-5)
    assert not torch.equal(queries[0], queries[1])


@torch.no_grad()
def test_photos_of_any_size_are_seen_as_squares(systems):
    perceptron = systems["end_to_end"].perceptron
    assert torch.equal(perceptron(MIXED), perceptron(square(MIXED, 64)))
