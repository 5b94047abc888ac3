"""Eq. 3 part by part, for photos of any size."""

import torch
from model_helpers import MIXED

from e2e_lib.data.photos import square


@torch.no_grad()
def test_eq_3_projects_the_queries_of_photos_of_any_size_into_the_language_model(systems):
    perceptron = systems["end_to_end"].perceptron
    queries, projection = perceptron(MIXED), perceptron.language_projection
    assert queries.shape == (len(MIXED), perceptron.queries, 32) and not torch.equal(queries[0], queries[1])
    for i, photo in enumerate(square(MIXED, 64)):
        patches = perceptron.vision_model(pixel_values=photo[None] / 127.5 - 1).last_hidden_state
        hidden = perceptron.qformer(query_embeds=perceptron.query_tokens, encoder_hidden_states=patches)
        expected = hidden.last_hidden_state[0] @ projection.weight.T + projection.bias
        assert torch.allclose(queries[i], expected, atol=1e-5)
