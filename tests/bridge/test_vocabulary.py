import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import tokenizer

from e2e_lib.bridge.vocabulary import distinct, normalized_tokens, static_piece


@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=5, max_size=5), min_size=1,
                max_size=4))
def test_each_token_stays_once_per_set(rows):
    ids = torch.tensor([[token for token, _ in row] for row in rows])
    members = torch.tensor([[[member for _, member in row]] for row in rows])
    for row, remaining in zip(rows, distinct(members, ids)[:, 0].tolist(), strict=True):
        tokens = [token for (token, _), keep in zip(row, remaining, strict=True) if keep]
        assert sorted(tokens) == sorted({token for token, member in row if member})
        assert all(member for (_, member), keep in zip(row, remaining, strict=True) if keep)


def test_an_id_that_no_token_has_looks_like_nothing():
    class Holes:
        all_special_tokens = ["<s>"]

        def get_vocab(self):
            return {"<s>": 0, "▁Dog": 1, "far</w>": 5}

        def convert_ids_to_tokens(self, ids):
            by_id = {i: token for token, i in self.get_vocab().items()}
            return [by_id.get(i) for i in ids]

    assert normalized_tokens(Holes()) == ["", "dog", "", "", "", "far"]
    static = static_piece(Holes(), Holes())
    assert static.terms == 2 and sorted(static.source_ids.tolist()) == [1, 5] == sorted(static.target_ids.tolist())


def test_static_pieces_are_the_same_text_on_both_sides_and_leave_special_tokens_out():
    source, target = tokenizer("sentencepiece"), tokenizer("clip")
    static = static_piece(source, target)
    texts = [{term: normalized_tokens(side)[token] for token, term in zip(ids.tolist(), terms.tolist(), strict=True)}
             for side, ids, terms in ((source, static.source_ids, static.source_terms),
                                      (target, static.target_ids, static.target_terms))]
    assert texts[0] == texts[1] and len(texts[0]) == static.terms > 20
    assert not set(static.source_ids.tolist()) & set(source.all_special_ids)
    assert "dog" in texts[0].values() or "the" in texts[0].values()
