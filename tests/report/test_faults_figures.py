"""The experiment with wrong captions, told: whichever way it falls, and where a part of it is not measured yet."""

import json

import numpy as np
import pytest

from e2e_lib.data.minichat.corpus import read_scenes
from e2e_lib.report import faults_figures, plots, results_figures
from e2e_lib.report.faults_figures import CORE, KINDS, MAIN, OWN, RIVALS

SCORES = {"none": 0.5, "sentence": 0.52, "static_piece": 0.6, "span": 0.55, "aligned": 0.8, "aligned_shuffled": 0.4}
ALL = {"before": 0.45, **SCORES, "aligned_random": 0.49}


def record_of(scores, conditions=(MAIN,), p=0.001, seeds=(0, 1)):
    """A faults.json in which every metric has these scores; each map is compared with each one before it."""
    rows, pairs, maps = [], [], list(scores)
    for condition in conditions:
        for k, name in enumerate(maps):
            entry = {"mean": scores[name], "std": 0.01, "n": len(seeds)}
            label = "{kind}_{rate:g}_{start}_{caption_source}_".format_map(condition) + name
            rows.append({**condition, "mapping": name, "label": label, "seeds": [*seeds],
                         "scores": {"caption_accuracy": entry, "scene_accuracy": entry}, "things": {}})
            for other in maps[:k]:
                d = scores[name] - scores[other]
                pairs += [{**condition, "system": name, "than": other, "metric": metric, "difference": d, "low": d - 0.02,
                           "high": d + 0.03, "p": p / 3, "p_corrected": p, "by_seed": [d] * len(seeds)}
                          for metric in ("caption_accuracy", "scene_accuracy")]
    return {"profile": "mini", "seeds": [*seeds], "rows": rows, "pairs": pairs, "test": {"scenes": 389},
            "higher_is_better": {"caption_accuracy": True, "scene_accuracy": True}}


@pytest.mark.parametrize(("changed", "p", "sentence"), [
    ({}, 0.001, "The picture corrects the words"),
    ({"sentence": 0.81}, 0.001, "The picture corrects the words, and Eq. 10 is not behind"),
    ({"aligned_shuffled": 0.81}, 0.001, "The aligned map helps, but so does its control: nothing is learnt about words"),
    ({"aligned_shuffled": 0.81, "sentence": 0.82}, 0.001, "Any gradient helps: the control and Eq. 10 do as well"),
    ({"none": 0.9}, 0.001, "The picture does not correct the words here"),
    ({}, 0.05, "The picture does not correct the words here"),  # ahead, and by chance for all that is known
])
def test_the_answer_is_what_the_differences_say(changed, p, sentence):
    record = record_of(SCORES | changed, p=p)
    assert faults_figures.outcome(record, MAIN) == sentence
    page = faults_figures.answer(record, MAIN)
    assert page.startswith(f"**{sentence}.** Caption accuracy: ") and "**aligned 0.800** (seeds 0, 1)" in page
    title = faults_figures.correction_figure(record).alternative_text()
    assert title.startswith(f"{sentence}: 80% right with the aligned map") and "profile mini · N = 389 scenes" in title


def test_a_map_that_is_not_ahead_of_what_was_before_keeps_words_and_corrects_none():
    assert faults_figures.outcome(record_of({"before": 0.6, **SCORES}), MAIN) == faults_figures.CORRECTS
    assert faults_figures.outcome(record_of({"before": 0.85, **SCORES}), MAIN) == faults_figures.KEEPS
    assert faults_figures.outcome(record_of({"before": 0.85, **SCORES, "sentence": 0.81}), MAIN) == f"{faults_figures.KEEPS}, and Eq. 10 is not behind"
    assert faults_figures.outcome(record_of({"before": 0.85, **SCORES, "none": 0.9}), MAIN) == "The picture does not correct the words here"


def test_a_difference_is_turned_to_the_side_that_is_asked_for():
    record = record_of(SCORES)  # the control comes after the aligned map, so it is the control minus the map that is kept
    found = faults_figures.difference(record, MAIN, "aligned", "aligned_shuffled", "caption_accuracy")
    assert [found[key] for key in ("difference", "low", "high")] == pytest.approx([0.4, 0.37, 0.42]) and found["ahead"]
    record["higher_is_better"]["caption_accuracy"] = False
    assert not faults_figures.difference(record, MAIN, "aligned", "none", "caption_accuracy")["ahead"]
    assert faults_figures.difference(record, {**MAIN, "rate": 0.2}, "aligned", "none", "caption_accuracy") is None


def test_which_words_are_right_is_told_by_kind_and_which_thing_is_named_too_often():
    record = record_of({"none": 0.5, "sentence": 0.6, "aligned": 0.7})
    none, sentence, aligned = record["rows"]
    for row, values in ((none, (0.5, 0.5, 0.5)), (sentence, (0.9, 0.5, 0.6)), (aligned, (0.7, 0.8, 0.9))):
        row["scores"] |= {f"caption_{word}": {"mean": value, "std": 0.02, "n": 2} for word, value in zip(faults_figures.WORDS, values, strict=True)}
        row["things"] = {"kite": {"named": 0.2, "shown": 0.3}, "lantern": {"named": 0.4 if row is aligned else 0.12, "shown": 0.1}}
    page = faults_figures.words_table(record, MAIN)
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")] == [
        "training goes on with", *(faults_figures.LABELS[name][0] for name in ("none", "sentence", "aligned"))]
    assert "0.800 ± 0.020" in page and "lantern (40%; shown 10%)" in page and "lantern (12%; shown 10%)" in page
    said = faults_figures.words_in_words(record, MAIN)
    assert "thing 0.700 (0.900), colour 0.800 (0.500), place 0.900 (0.600). It names fewer things right." in said
    assert "lantern (40%; shown 10%), aligned; lantern (12%; shown 10%), no gradient from the photo." in said
    sentence["scores"]["caption_thing"]["mean"] = 0.1
    assert "fewer" not in faults_figures.words_in_words(record, MAIN)
    assert faults_figures.words_in_words({**record, "rows": []}, MAIN) == "Not measured yet."


def test_seeds_are_those_of_the_runs_of_this_condition():
    name = "random_0.6_adapted_gold_aligned"
    runs = [{"system": name, "seed": seed, "metrics": {"caption_accuracy": value}} for seed, value in ((0, 0.7), (1, 0.9), (2, 9))]
    frame = faults_figures.score_frame(record_of(SCORES), "caption_accuracy", MAIN, runs).set_index("mapping")
    assert frame.by_seed["aligned"] == [0.7, 0.9] and frame.by_seed["none"] == [None, None]
    assert frame.loc["aligned", ["value", "low", "high"]].tolist() == pytest.approx([0.8, 0.79, 0.81])


def test_every_figure_is_drawn_of_a_part_of_the_experiment_and_says_what_is_missing():
    core = {name: SCORES[name] for name in CORE}
    record = record_of(core, [KINDS["one word left out"], {**MAIN, "rate": 0.2}])
    figures = [faults_figures.correction_figure(record), faults_figures.rates_figure(record),
               faults_figures.conditions_figure(record, KINDS, "kinds", maps=CORE),
               faults_figures.conditions_figure(record, OWN, "own")]
    said = [[text.get_text() for ax in figure.axes for text in ax.texts].count("not measured yet") for figure in figures]
    assert said == [2, 0, 2, 2]
    assert all(len(np.unique(np.frombuffer(figure.to_bytes("png"), np.uint8))) > 9 for figure in figures)
    assert "Not measured yet" in faults_figures.answer(record, MAIN) and faults_figures.outcome(record, MAIN) is None
    assert faults_figures.outcomes(record, KINDS) == (
        "*each colour called the next one*: **not measured yet**; *one word left out*: **The picture corrects the words** (aligned 0.800, no "
        "gradient 0.500, Eq. 10 0.520, the control 0.400); "
        "*another photo's caption*: **not measured yet**.")
    page = faults_figures.differences_table(record, {"left out": (KINDS["one word left out"], "scene_accuracy"),
                                                     "main": (MAIN, "scene_accuracy")})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[2:4]]
    assert rows[0] == ["left out", "+0.300 [+0.280, +0.330], p = 0.001 ✓", "+0.280 [+0.260, +0.310], p = 0.001 ✓",
                       "+0.400 [+0.370, +0.420], p = 0.001 ✓"]
    assert rows[1] == ["main", *["–"] * len(RIVALS)]


def test_a_panel_has_a_dot_for_each_map_and_a_line_where_there_is_no_gradient():
    figure = faults_figures.conditions_figure(record_of(ALL), {"one": MAIN}, "title")
    (ax,) = figure.axes
    dots = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "o"}
    assert [label.get_text() for label in ax.get_yticklabels()] == [label for label, _ in faults_figures.LABELS.values()]
    assert [dots[k] for k in range(len(ALL))] == pytest.approx([ALL[name] for name in faults_figures.LABELS])
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"] == [0.5]


def test_the_rates_have_a_line_per_map_and_the_share_of_right_words():
    conditions = [{**MAIN, "rate": rate} for rate in (0.0, 0.6)]
    figure = faults_figures.rates_figure(record_of({name: SCORES[name] for name in CORE}, conditions))
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata().tolist() for line in lines] == [[0.0, 0.6]] * len(CORE)
    assert [line.get_ydata().tolist() for line in lines] == [[SCORES[name]] * 2 for name in CORE]
    dotted = next(line for line in figure.axes[0].get_lines() if line.get_linestyle() == ":")
    assert dotted.get_ydata().tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


ONE_WORD = {"caption": "a white ball", "written": "white", "true": "pink", "words": ["pink", "red", "white"], "photo_id": "x",
            "exact": [-0.2, 0.1, 0.0], "said": {"sentence": [-0.1, -0.1, 0.0], "aligned": [-0.3, 0.2, 0.0]},
            "numbers": {"sentence": 1, "aligned": 96}}


def test_the_figure_of_one_word_says_which_word_the_aligned_map_names():
    figure = results_figures.one_word_figure(ONE_WORD, np.zeros((4, 4, 3)), "N")
    assert figure.alternative_text().startswith("One number gets through Eq. 10, and all other words look alike; of all colours the "
                                                "aligned map would put “pink”, the right one")
    frame = results_figures.one_word_frame(ONE_WORD)
    assert frame.index.tolist() == ["exact: put it there", "sentence (Eq. 10): 1 number", "aligned: 96 numbers"]
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == ["-1.00", "+0.50", "0", "-1.00", "-1.00", "0", "-1.00", "+0.67", "0"]
    for said, end in (([0.3, -0.2, 0.0], "“red” (right: “pink”)"), ([0.1, 0.1, 0.0], "“white” (right: “pink”)"),
                      ([0.0, 0.0, 0.0], "no word (right: “pink”)")):
        assert results_figures.one_word_title({**ONE_WORD, "said": {"aligned": said}}).endswith(f"would put {end}")


def test_replacements_have_their_correlation_in_the_title():
    rows = [{"predicted": p, "exact": e} for p, e in ((1, 2), (2, 4), (-1, -2), (1, -1))]
    title = results_figures.replacements_figure(rows, "N").alternative_text()
    assert title.startswith(f"One word replaced at a time: correlation {np.corrcoef([1, 2, -1, 1], [2, 4, -2, -1])[0, 1]:.2f}, "
                            "the same sign in 75%")


def test_both_are_drawn_with_the_other_figures_once_they_are_measured(tmp_path, monkeypatch, corpus):
    photo = next(iter(read_scenes(corpus / "scenes.jsonl")))
    (tmp_path / "smoke").mkdir()
    assert results_figures.measured_figures("smoke", corpus, tmp_path) == {}
    (tmp_path / "smoke" / "one_word.json").write_text(json.dumps(
        {**ONE_WORD, "photo_id": photo, "arguments": {"seed": 3, "noises": 4}}))
    (tmp_path / "smoke" / "faults.json").write_text(json.dumps(record_of(SCORES)))
    figures = results_figures.measured_figures("smoke", corpus, tmp_path)
    assert list(figures) == ["one_number", "picture_corrects"]
    assert "seed 3" in figures["one_number"].alternative_text()
    assert len(figures["one_number"].axes[0].images) == 1 and isinstance(figures["picture_corrects"], plots.Figure)
    (tmp_path / "smoke" / "one_word.json").write_text(json.dumps({**ONE_WORD, "arguments": {"seed": 3, "noises": 4}}))
    (text,) = results_figures.measured_figures("smoke", corpus, tmp_path)["one_number"].axes[0].texts
    assert text.get_text() == "the photo is not in this corpus"



def test_conditions_with_fewer_seeds_are_said_to_have_fewer():
    record, other = record_of(SCORES, seeds=(0, 1, 2)), record_of(SCORES, [KINDS["one word left out"]])
    record |= {key: record[key] + other[key] for key in ("rows", "pairs")}
    several = faults_figures.conditions_figure(record, {"all": MAIN, "left out": KINDS["one word left out"]}, "Two kinds")
    alone = faults_figures.conditions_figure(record, {"all": MAIN}, "One kind")
    assert "seeds 0, 1, 2 · in some conditions only 0, 1 ·" in several.alternative_text()
    assert "in some conditions" not in alone.alternative_text()
