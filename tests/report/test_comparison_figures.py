"""Notebook 06's figures of the comparison: what is drawn and said, against the numbers that they are made from."""

import numpy as np
from matplotlib.colors import to_hex

from e2e_lib.report import comparison_figures as figures
from e2e_lib.report.plots import BLUE, GREY

PAIRS = [
    {"system": "end_to_end", "than": "pipeline", "metric": "bleu2", "difference": 1.0, "by_seed": [0.9, 1.1], "low": 0.5, "high": 1.5, "p": 0.01, "p_corrected": 0.02},
    {"system": "end_to_end", "than": "pipeline", "metric": "fid", "difference": -0.1, "by_seed": [-0.3, 0.1], "low": -0.2, "high": 0.1, "p": 0.3, "p_corrected": 0.6},
    {"system": "pipeline", "than": "divter", "metric": "bleu2", "difference": 0.2, "by_seed": [0.2, 0.2], "low": -0.1, "high": 0.4, "p": 0.2, "p_corrected": 0.4},
    {"system": "pipeline", "than": "divter", "metric": "fid", "difference": 0.3, "by_seed": [0.2, 0.4], "low": 0.1, "high": 0.5, "p": 0.01, "p_corrected": 0.02},
]
FOUND = {"profile": "smoke", "seeds": [0], "draws": 50, "dialogues": 4, "examples": 30, "pairs": PAIRS,
         "higher_is_better": {"bleu2": True, "fid": False},
         "fid_by_number": {"end_to_end": [{"n": 2, "mean": 3.0, "std": 1.0}, {"n": 4, "mean": 2.0, "std": 0.0}]}}


def test_differences_are_drawn_with_their_intervals_and_grey_where_they_hold_zero():
    figure = figures.differences_figure(FOUND)
    bleu, fid = figure.axes[:2]
    drawn = [container.lines[0] for container in bleu.containers]
    assert [float(line.get_xdata()[0]) for line in drawn] == [1.0, 0.2]
    assert [to_hex(line.get_color()) for line in drawn] == [BLUE.lower(), GREY.lower()]
    assert [line.get_xdata().tolist() for line in bleu.lines if line.get_marker() == "|" and line not in drawn and len(line.get_xdata()) == 2
            and line.get_linestyle() == "None" and line.get_markersize() == 4] == [[0.9, 1.1], [0.2, 0.2]]
    reach = bleu.containers[0].lines[2][0].get_segments()[0]
    assert np.allclose(sorted(reach[:, 0]), [0.5, 1.5])
    assert bleu.get_xlabel() == "worse ← → better" and fid.get_xlabel() == "better ← → worse"
    assert [text.get_text() for text in bleu.get_yticklabels()] == ["End-to-end − Pipeline", "Pipeline − Divter"]
    assert "N = 30 answers in 4 dialogues" in figure._supxlabel.get_text()


def test_verdicts_name_who_is_ahead_only_beyond_chance():
    said = figures.verdicts(FOUND, "end_to_end", "pipeline")
    assert "**BLEU-2**: End-to-end ahead (+1.000" in said and "**FID***: no difference beyond chance (−0.100" in said
    assert "**FID***: Divter ahead" in figures.verdicts(FOUND, "pipeline", "divter")
    assert figures.verdicts(FOUND, "divter", "end_to_end") == "- nothing was compared"
    assert "corrected p 0.600; End-to-end ahead in 1 of 2 seeds)" in said
    assert figures.missed(FOUND) == ["FID*, beside Pipeline: End-to-end ahead in 1 of 2 seeds"]
    assert figures.missed(FOUND, "pipeline") == [f"{pair}: Pipeline ahead in {n} of 2 seeds" for pair, n in (
        ("BLEU-2, beside End-to-end", 0), ("FID*, beside End-to-end", 1), ("BLEU-2, beside Divter", 2), ("FID*, beside Divter", 0))]


def test_curves_are_drawn_from_what_was_measured():
    figure = figures.fid_figure(FOUND)
    assert figure.axes[0].containers[0].lines[0].get_ydata().tolist() == [3, 2]
    one = {"accuracy": [{"mean": 1.0, "low": 0.9, "high": 1.0}, {"mean": 0.5, "low": 0.4, "high": 0.6}],
           "slope": {"mean": -0.67, "low": -0.8, "high": -0.5}}
    found = {"profile": "smoke", "photos": 9, "asked": {"seeds": [0], "shares": [0, 0.75]}, "systems": {"caption": one, "divter": one}}
    lines = figures.propagation_figure(found).axes[0].lines
    assert [line.get_label() for line in lines] == ["named by the caption itself", "Divter, slope -0.67"]
    assert list(lines[1].get_ydata()) == [1.0, 0.5]
    assert "| Divter | -0.670 | [-0.800, -0.500] | 1.000 |" in figures.slopes_table(found)


def test_fid_from_gold_captions_stands_beside_fid_from_own_ones():
    found = {"profile": "smoke", "asked": {"seeds": [0, 1]}, "photos": 7, "drawn_anew": 0.0126,
             "systems": {"divter": {"before": [0.2, 0.2], "from_gold": [0.25, 0.75], "from_own": [1.0, 1.5]}}}
    said = figures.gold_fid_table(found)
    assert "| Divter | 0.200 ± 0.000 | 0.500 ± 0.354 | 1.250 ± 0.354 |" in said and "| MiniChat itself, the same scenes | 0.013 | – | – |" in said
    assert "over seeds 0, 1; N: 7 gold photos" in said


def test_costs_stand_beside_each_other():
    row = {"parameters": 1234567, "trained_parameters": 1000, "reply_seconds": {"words, batch 1": 0.25}, "reply_over_pipeline": {"words, batch 1": 0.8},
           "trained_examples_per_second": 12.3, "memory": {"answering": {"beyond_libraries_bytes": 5e6}, "training": {"beyond_libraries_bytes": 9e6}}}
    found = {"benchmark": "systems", "systems": {name: row for name in figures.SYSTEMS}, "rounds": 3, "tokens_a_reply": 16, "threads": 2, "device": "cpu"}
    said = figures.cost_table({"measured": [{"benchmark": "other"}, found]})
    assert "| weights | 1,234,567 |" in said and "| 0.250 (0.80) |" in said and "answering (MB) | 5 |" in said and "training (MB) | 9 |" in said
    assert "`e2e bench`" in figures.cost_table({})
