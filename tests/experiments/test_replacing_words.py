"""What the gradient predicts of another word, against loops of its own, and what is written of it."""

import json

import pytest
import torch
from trained_runs import save_trained

from e2e_lib.bridge import aligned
from e2e_lib.bridge.alignment import encode_with_offsets
from e2e_lib.data.collate import Collator
from e2e_lib.experiments import replacing_words
from e2e_lib.experiments.gradient_alignment import image_losses
from e2e_lib.models.systems import build
from e2e_lib.repro.randomness import generator


@pytest.fixture(scope="module")
def case(config, examples):
    rows, store = examples
    model = build(config).eval()
    example = next(e for e in rows if e.response.photos and not e.response.text)
    return model, Collator(model.formatter, store)([example])


def test_the_first_order_by_loops(case):
    model, batch = case
    caption, images = batch.captions[0], model.generator
    slopes = torch.randn(images.max_length, images.text_encoder.config.hidden_size, generator=generator("slopes"))
    spelling = aligned.spelling(model.tokenizer, images.tokenizer)
    found = replacing_words.first_order(model, spelling, caption, slopes)
    source, _ = encode_with_offsets(model.tokenizer, [caption], special=False)
    target, _ = encode_with_offsets(images.tokenizer, [caption], special=True, length=images.max_length)
    table = images.text_encoder.get_input_embeddings().weight
    words = spelling.embeddings(table, found)
    shares = [[int(a[0] < b[1] and b[0] < a[1]) for b in source.spans[0].tolist()] for a in target.spans[0].tolist()]
    for t in range(source.input_ids.shape[1]):
        expected = torch.zeros(len(words))
        for at, row in enumerate(shares):
            if row[t]:
                expected += words @ slopes[at] / sum(row)
        assert torch.allclose(found[t], expected, atol=1e-5)


def test_one_word_is_replaced_at_a_time_and_the_loss_is_computed_again(case):
    model, batch = case
    caption = batch.captions[0]
    spelling = aligned.spelling(model.tokenizer, model.generator.tokenizer)
    rows = replacing_words.replacements(model, spelling, batch, words=2, noises=2, rng=generator("one"))
    assert rows and {row["caption"] for row in rows} == {caption} and len(rows) == 2 * len({row["position"] for row in rows})
    for row in rows:
        changed = [word.strip(",") for word in caption.split()]
        assert row["word"] in changed and row["other"] != row["word"]
    row = next(row for row in rows if [word.strip(",") for word in caption.split()].count(row["word"]) == 1)
    other = caption.replace(row["word"], row["other"], 1)
    losses, _ = image_losses(model, batch, [caption, other], 2, generator("one"))
    assert row["exact"] == pytest.approx(float(losses[1] - losses[0]), abs=1e-6)


def test_agreement_by_hand():
    rows = [{"caption": "a", "predicted": p, "exact": e} for p, e in ((1, 2), (2, 4), (-1, -2))]
    rows += [{"caption": "b", "predicted": p, "exact": -p} for p in (1, 2, 3)]
    found = replacing_words.agreement(rows)
    assert found["correlation_by_caption"] == {"mean": pytest.approx(0), "std": pytest.approx(2**0.5), "n": 2}
    assert found["same_sign"] == 0.5


def test_a_measurement_is_kept(config, tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    save_trained(config)
    lines = []
    path = replacing_words.measure(config, 0, lines.append, captions=2, words=1, noises=1)
    record = json.loads(path.read_text())
    assert len({row["caption"] for row in record["rows"]}) == 2 and "correlation" in record
    replacing_words.measure(config, 0, lines.append, captions=2, words=1, noises=1)
    assert "replacements.json is there already" in lines[-1]
