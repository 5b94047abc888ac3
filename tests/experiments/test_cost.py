"""Hours and traffic of an epoch, by hand, and operations against a formula."""

import pytest

from e2e_lib.config import ConfigError, load
from e2e_lib.experiments import cost, plan, step_memory
from e2e_lib.experiments.growth import Reading
from e2e_lib.experiments.step_memory import BatchSizes
from e2e_lib.models.meta_parts import build
from e2e_lib.repro.results import load_json


def test_operations_of_the_language_model_are_those_of_its_matrices():
    """Six operations per weight of a matrix and token, forward and backward, where all of it learns."""
    config = load("mini", ["model.image_input=captions"])
    sizes = (BatchSizes(2, 40, 20, 0, 0, 8), BatchSizes(2, 80, 20, 0, 0, 8))
    one, other = (step_memory.step_flops(build(config), config, batch) for batch in sizes)
    layers = [p.numel() for name, p in build(config).language.named_parameters()
              if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    assert other - one == pytest.approx(6 * sum(layers) * 80, rel=0.01)


def test_hours_and_traffic_by_hand():
    config = load("mini")
    assert cost.usual_batch(load("paper", ["train.examples=dialogues"]), cost.size_of("photochat")).tokens == round(1.5 * 8.99 * 20 + 32)
    found = cost.epoch_cost(config, "photochat", "a100-80gb")
    size, batch = cost.size_of("photochat"), found["batch"]
    assert size.dialogues == 10286 and batch["tokens"] == config.data.max_context + config.inference.max_new_tokens
    assert found["batches"] == round(10286 * 2 / config.train.batch_size)
    learnt = sum(p.numel() * 4 for module in build(config).modules().values() for p in module.parameters() if p.requires_grad)
    memory = [row["memory_gb"] for row in found["rows"]]
    assert memory[0] == plan.plan(config, "a100-80gb")["training_gb"] < memory[1] == memory[2] == memory[3]  # DDP's buckets
    for row in found["rows"]:
        seconds = found["tflop_per_batch"] / (312 * 0.3) * found["batches"] / row["devices"]
        assert row["hours"] == pytest.approx(seconds / 3600, rel=1e-3)
        assert row["traffic_gb"] == pytest.approx(2 * learnt * (1 - 1 / row["devices"]) / 2**30)


@pytest.mark.parametrize(("corpus", "device"), [("coco", "v100-32gb"), ("photochat", "abacus")])
def test_what_is_not_known_is_said(corpus, device):
    with pytest.raises(ConfigError, match=f"no cost is known of {corpus} on {device}; known: photochat"):
        cost.epoch_cost(load("mini"), corpus, device)


def test_the_file_has_every_corpus_and_what_a_million_dialogues_need(tmp_path, monkeypatch):
    """With hours that tell forms and corpora apart: what is needed is that of whole dialogues, as the profile trains."""
    monkeypatch.setattr(cost.results, "RESULTS", tmp_path)
    monkeypatch.setattr(cost.growth, "measure", lambda config: Reading(1e-4, 5000.0, 6000.0))
    monkeypatch.setattr(cost.plan, "plan", lambda config, device: {"host_gb": 20.0})
    monkeypatch.setattr(cost, "epoch_cost", lambda config, corpus, device: {
        "profile": config.profile, "corpus": corpus,
        "rows": [{"devices": 1, "hours": len(corpus) * (100 if config.train.examples == "dialogues" else 1) * (1 if config.profile == "paper" else 7)}]})
    record = load_json(cost.measure())
    assert len(record["rows"]) == 12 and {row["corpus"] for row in record["rows"]} == set(cost.CORPORA)
    found = record["growth"]["mmdialog"]
    assert found["host_gb"] == pytest.approx(1_079_117 * 5000 / 2**30) and found["photos"] == 1_530_000
    days, host, photos = found["needs"]
    assert days["need"] == pytest.approx(len("mmdialog") * 100 * 80 / 24, abs=0.01)
    assert host["need"] == pytest.approx(20 + 5 * found["host_gb"], abs=0.01) and photos["need"] == pytest.approx(found["photos_gb"], abs=0.01)
