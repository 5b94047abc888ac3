"""What is read of an ablation, and what its figures and verdicts say of made-up numbers."""

import json

import numpy as np
import pytest
from matplotlib.colors import to_hex

from e2e_lib.lessons.nb03_vocabulary import MAPS
from e2e_lib.report import ablation_figures
from e2e_lib.report.comparison_figures import differences_figure
from e2e_lib.report.plots import GREY, PURPLE
from e2e_lib.repro import results
from e2e_lib.repro.results import ResultsError


def entry(mean, std=0.1, n=3):
    return {"mean": mean, "std": std, "n": n}


GRADIENTS = {
    "asked": {"captions": 5, "draws": 64, "seed": 0, "settings": {"profile": "mini"}},
    "rows": [{"mapping": mapping, "estimator": estimator, "temperature": t, "n": 5, "cosine": {"mean": cosine, "std": 0.05},
              "relative_variance": {"mean": 1000.0, "std": 10.0}} for mapping, estimator, t, cosine in (
                  ("sentence", "gumbel", 1.0, 0.1), ("sentence", "gumbel", 0.1, 0.05), ("span", "gumbel", 1.0, 0.6), ("span", "gumbel", 0.1, 0.5),
                  ("all", "reinforce", 1.0, 1.0))]}
ABLATIONS = {"profile": "mini", "test": {"examples": 1234}, "runs": [], "systems": {
    "span": {"scene_accuracy": entry(0.9), "fid": entry(0.3), "caption_bleu": entry(50, 1)},
    "none": {"scene_accuracy": entry(0.5), "fid": entry(0.3), "caption_bleu": entry(51, 1)},
    "weight_0.1": {"scene_accuracy": entry(0.1), "caption_bleu": entry(20, 1)},
    "sentence": {"scene_accuracy": entry(0.6), "fid": entry(0.35), "caption_bleu": entry(52, None, 1)}}}


def test_what_was_measured_is_read_and_what_was_not_is_nothing(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "gradients.json").write_text(json.dumps(GRADIENTS))
    assert ablation_figures.measured("mini", "gradients.json", tmp_path) == GRADIENTS
    assert ablation_figures.measured("mini", "ablations.json", tmp_path) == {}
    assert "`e2e ablate`" in ablation_figures.missing("mini", "ablations.json", "e2e ablate") and "results/mini/ablations.json" in ablation_figures.missing("mini", "ablations.json", "")
    (tmp_path / "mini" / "gradients.json").write_text("{")
    with pytest.raises(ResultsError, match="damaged"):
        ablation_figures.measured("mini", "gradients.json", tmp_path)


def test_estimators_stand_in_their_cells():
    ax = ablation_figures.estimators_figure(GRADIENTS, "cosine", "t").axes[0]
    drawn = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(drawn, [[0.1, 0.05, np.nan], [0.6, 0.5, np.nan], [np.nan, np.nan, 1.0]], rtol=1e-6)
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["0.10\n± 0.05", "0.05\n± 0.05", "", "0.60\n± 0.05", "0.50\n± 0.05", "", "", "", "1.00\n± 0.05"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sentence (Eq. 10)", "span", "no map needed"]
    logged = ablation_figures.estimators_figure(GRADIENTS, "relative_variance", "t", log=True)
    assert np.nanmax(np.ma.filled(logged.axes[0].images[0].get_array(), np.nan)) == pytest.approx(3)
    still = {**GRADIENTS, "rows": [{**row, "relative_variance": {"mean": 0.0, "std": 0.0}} for row in GRADIENTS["rows"]]}
    ax = ablation_figures.estimators_figure(still, "relative_variance", "t", log=True).axes[0]  # an argmax has none, and zero no logarithm
    assert np.isnan(np.ma.filled(ax.images[0].get_array(), np.nan)).all() and ax.texts[0].get_text() == "0\n± 0"
    assert "N = 5 captions" in logged.get_supxlabel() and "± 10" in logged.axes[0].texts[0].get_text()


def test_variants_stand_in_order_with_their_spread():
    figure = ablation_figures.variants_figure(ABLATIONS)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["none", "sentence (Eq. 10)", "span", "weight 0.1"]
    means = [container.lines[0].get_xdata()[0] for container in figure.axes[0].containers]
    assert means == [0.5, 0.6, 0.9, 0.1]
    assert len(figure.axes[1].containers) == 3  # one has no FID
    assert "1,234 examples" in figure.get_supxlabel() and "1, 3 seed(s)" in figure.get_supxlabel() and "earlier" not in figure.get_supxlabel()
    assert "earlier parts" in ablation_figures.variants_figure({**ABLATIONS, "shipped": "of others"}).get_supxlabel()


def test_a_verdict_asks_for_more_than_both_spreads():
    found = {"base": entry(1.0, 0.1), "near": entry(1.19, 0.1), "far": entry(1.21, 0.1), "below": entry(0.5, 0.3)}
    assert results.verdict("score", found, "base") == "score: base 1.000 ± 0.100; of 3 others, apart from it are far (1.210 ± 0.100), below (0.500 ± 0.300)."
    assert "none differs from it by more than its spread" in results.verdict("score", {key: found[key] for key in ("base", "near")}, "base")
    assert "none differs" in results.verdict("score", {"base": entry(1, None, 1), "far": entry(9)}, "base")  # a single run has no spread
    assert results.verdict("score", found, "gone") == "score: gone was not measured."


def test_verdicts_are_of_the_numbers_read():
    said = ablation_figures.gradient_verdicts(GRADIENTS)
    assert "apart from it is span (0.600 ± 0.044)" in said  # 1.96 · 0.05 / √5
    assert "(map span): gumbel, τ = 1 0.600 ± 0.044; of 1 others, apart from it is gumbel, τ = 0.1 (0.500 ± 0.044)" in said


DIFFERENCES = {
    "profile": "mini", "seeds": [0], "draws": 50, "dialogues": 4, "examples": 30, "higher_is_better": {"fid": False, "bleu2": True}, "pairs": [
        {"system": name, "than": than, "metric": metric, "difference": difference, "by_seed": [difference], "low": difference - 0.1, "high": difference + 0.1,
         "p": 0.01, "p_corrected": 0.02} for name, than, metric, difference in (
             ("span", "none", "fid", -0.2), ("span_gumbel", "none", "fid", 0.3), ("sentence", "none", "bleu2", 0.05), ("weight_0.1", "sentence", "bleu2", -0.4))]}


def test_lines_say_which_variants_are_apart_in_which_direction():
    assert ablation_figures.difference_lines(DIFFERENCES) == [
        "FID*, 2 beside *none*: span better (−0.200 [−0.300, −0.100], corrected p 0.02); span gumbel worse (+0.300 [+0.200, +0.400], corrected p 0.02).",
        "BLEU-2, 1 beside *sentence (Eq. 10)*: weight 0.1 worse (−0.400 [−0.500, −0.300], corrected p 0.02).",
        "In 1 of 3 groups, every interval holds zero."]
    assert ablation_figures.difference_lines(DIFFERENCES, ["span"]) == [
        "FID*, 1 beside *none*: span better (−0.200 [−0.300, −0.100], corrected p 0.02).", "In 0 of 1 groups, every interval holds zero."]


def test_a_gradient_is_compared_with_the_same_training_without():
    def pair(name, than, p):
        return {**DIFFERENCES["pairs"][0], "system": name, "than": than, "p_corrected": p}

    pairs = [pair("span", "none", 0.01), pair("word", "none", 0.5), pair("weight_100", "weight_100_none", 0.9), pair("weight_100_none", "none", 0.01),
             pair("no_noise", "sentence", 0.01)]
    line = ablation_figures.gradient_line({**DIFFERENCES, "pairs": pairs})
    assert "of 3 differences from the same training without it, **1** holds after correction for all 5: FID*, span better (−0.200 [" in line
    assert "of 1 differences" in ablation_figures.gradient_line({**DIFFERENCES, "pairs": pairs[1:2]}) and "**0** hold after" in \
        ablation_figures.gradient_line({**DIFFERENCES, "pairs": pairs[1:2]})


def test_differences_of_variants_are_drawn_with_their_names_and_colours():
    figure = differences_figure(DIFFERENCES, ("fid", "bleu2"), 1, ablation_figures.named)
    assert len(figure.axes) == 2 and [len(ax.containers) for ax in figure.axes] == [2, 2]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["span − none", "span gumbel − none"]
    colours = [to_hex(container.lines[0].get_color()) for ax in figure.axes for container in ax.containers]
    assert colours == [MAPS["span"][1].lower()] * 2 + [GREY.lower(), PURPLE.lower()]


def test_costs_are_the_benchmarks():
    row = {"benchmark": "bridge", "sizes": {"V1": 32000, "tokens_a_caption": 9.5}, "device": "cpu", "rounds": 3,
           "maps": {"span": {"speedup_vs_sparse": 123.4, "total_speedup_vs_sparse": 45.6, "over_floor": 1.05}}}
    said = ablation_figures.cost_table({"measured": [{"benchmark": "other"}, row]})
    assert "123 times" in said and "46 times" in said and "1.05 times" in said and "V1 = 32,000" in said
    assert "`e2e bench`" in ablation_figures.cost_table({"measured": []}) and "`e2e bench`" in ablation_figures.cost_table({})
