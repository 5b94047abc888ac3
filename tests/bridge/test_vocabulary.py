import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import tokenizer

from e2e_lib.bridge.alignment import word_spans
from e2e_lib.bridge.vocabulary import dense_matrix, distinct, normalized_tokens, static_piece


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_each_token_is_left_once_in_each_set(rows):
    ids = torch.tensor([[token for token, _ in row] for row in rows])
    members = torch.tensor([[[counts for _, counts in row]] for row in rows])
    left = distinct(members, ids)
    for row, kept in zip(rows, left[:, 0].tolist(), strict=True):
        chosen = [token for (token, _), keep in zip(row, kept, strict=True) if keep]
        assert sorted(chosen) == sorted({token for token, counts in row if counts})
        assert all(counts for (_, counts), keep in zip(row, kept, strict=True) if keep)


@given(st.sets(st.integers(0, 8), min_size=1), st.sets(st.integers(0, 10), min_size=1))
def test_the_dense_matrix_is_eq_10_and_has_rank_one(a, b):
    matrix = dense_matrix(torch.tensor(sorted(a)), torch.tensor(sorted(b)), 9, 11)
    assert all(matrix[i, j] == (i in a and j in b) for i in range(9) for j in range(11))
    assert torch.linalg.matrix_rank(matrix) == 1


@given(st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=200, deadline=None)
def test_words_are_what_split_finds(captions):
    spans, real = word_spans(captions)
    for caption, row, keep in zip(captions, spans.tolist(), real.tolist(), strict=True):
        assert [caption[first:last] for (first, last), k in zip(row, keep, strict=True) if k] == caption.split()


def test_static_pieces_look_the_same_on_both_sides_and_leave_special_tokens_out():
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    found = static_piece(source, target)
    looks = normalized_tokens(source), normalized_tokens(target)
    by_term = [{term: looks[side][token] for token, term in zip(tokens.tolist(), terms.tolist(), strict=True)}
               for side, (tokens, terms) in enumerate(((found.source, found.source_term), (found.target, found.target_term)))]
    assert by_term[0] == by_term[1] and len(by_term[0]) == found.count > 20
    assert not set(found.source.tolist()) & set(source.all_special_ids)
    assert "dog" in by_term[0].values() or "the" in by_term[0].values()
