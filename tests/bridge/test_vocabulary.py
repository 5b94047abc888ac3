import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from e2e_lib.bridge.vocabulary import dense_matrix, members


@st.composite
def token_rows(draw):
    vocabulary = draw(st.integers(1, 12))
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    cells = st.lists(st.lists(st.integers(0, vocabulary - 1), min_size=length, max_size=length), min_size=rows, max_size=rows)
    marks = st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows)
    return vocabulary, draw(cells), draw(marks)


@given(token_rows())
@settings(max_examples=100, deadline=None)
def test_members_are_the_set_of_the_tokens_that_count(case):
    vocabulary, ids, valid = case
    found = members(torch.tensor(ids), torch.tensor(valid), vocabulary)
    assert found.shape == (len(ids), vocabulary)
    for row, tokens, marks in zip(found.tolist(), ids, valid, strict=True):
        said = {token for token, counts in zip(tokens, marks, strict=True) if counts}
        assert row == [1.0 if token in said else 0.0 for token in range(vocabulary)]


@given(token_rows(), token_rows())
@settings(max_examples=50, deadline=None)
def test_the_dense_matrix_is_eq_10_written_out_and_has_rank_one(source, target):
    (v1, ids1, valid1), (v2, ids2, valid2) = source, target
    a = members(torch.tensor(ids1), torch.tensor(valid1), v1)[0]
    b = members(torch.tensor(ids2), torch.tensor(valid2), v2)[0]
    matrix = dense_matrix(a, b)
    in_a = {t for t, counts in zip(ids1[0], valid1[0], strict=True) if counts}
    in_b = {t for t, counts in zip(ids2[0], valid2[0], strict=True) if counts}
    for i in range(v1):
        for j in range(v2):
            assert matrix[i, j] == (1.0 if i in in_a and j in in_b else 0.0)
    assert torch.linalg.matrix_rank(matrix) == (1 if in_a and in_b else 0)
