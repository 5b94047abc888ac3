"""Notebook 06's own answers say what its numbers say; the last exercises' solutions pass their checks."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from e2e_lib.data.minichat.chats import HELD_OUT
from e2e_lib.data.minichat.scenes import PLACES
from e2e_lib.lessons import nb06_results as lesson
from e2e_lib.lessons import trained
from e2e_lib.lessons.claims import confirm
from e2e_lib.report import minichat_figures, tables
from e2e_lib.repro.results import ResultsError

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"

SYSTEMS = ("end_to_end_aligned", "end_to_end", "pipeline", "divter")


def summary(**means):
    """Systems with a mean of every metric given, best to worst in the order of SYSTEMS."""
    systems = {name: {metric: {"mean": best + k * step, "std": 0.1, "n": 3} for metric, (best, step) in means.items()}
               for k, name in enumerate(SYSTEMS)}
    return {"profile": "mini", "systems": systems, "runs": ["divter-seed0.json"], "test": {"examples": 9}, "numbers": {"minichat": 1}}


def pair(system, than, difference, p, metric="scene_accuracy"):
    return {"system": system, "than": than, "metric": metric, "difference": difference, "low": difference - 0.1,
            "high": difference + 0.1, "p": p, "p_corrected": p, "by_seed": [difference]}


def differences(*pairs):
    return {"profile": "mini", "seeds": [0], "examples": 9, "dialogues": 3, "pairs": [*pairs], "numbers": {"minichat": 1},
            "higher_is_better": {"scene_accuracy": True, "fid": False}}


def answer(drawn, caption, gold=None):
    """A row of test answers with one photo that was due."""
    scene = {"photo_id": "x", "gold": gold or drawn or met_and_unmet()[0], "drawn": drawn, "named": None}
    return {"scenes": [scene], "captions": [caption] if caption else []}


def met_and_unmet():
    """A scene of a triple that training has, and one of a held-out triple."""
    thing, colour, place = sorted(HELD_OUT)[0]
    met = {"thing": "kite", "colour": "red", "number": 1, "size": "big", "time": "day",
           "place": next(place for place in PLACES if ("kite", "red", place) not in HELD_OUT)}
    return met, {**met, "thing": thing, "colour": colour, "place": place}


def test_the_best_mean_is_the_largest_or_of_fid_the_smallest():
    text = lesson.best_means(summary(bleu1=(20.0, -1.0), fid=(0.2, 0.1), scene_accuracy=(0.5, 0.1)))
    assert "BLEU-1: End-to-end, aligned" in text and "FID\\*: End-to-end, aligned" in text and "scene accuracy: Divter" in text
    assert "ROUGE" not in text


def test_the_answer_on_other_terms_follows_the_signs():
    on_terms = {f"{name}.{term}": entries for term in ("clean", "early_stopping")
                for name, entries in summary(scene_accuracy=(0.9, -0.1))["systems"].items()}
    for term in ("control", "clean_ratio_1"):
        on_terms[f"end_to_end_aligned.{term}"] = {"scene_accuracy": {"mean": 0.4, "std": 0.1, "n": 3}}
    terms = {**summary(), "systems": on_terms, **differences(
        pair("end_to_end_aligned.clean", "pipeline.clean", 0.01, 0.9),
        pair("end_to_end_aligned.clean_ratio_1", "pipeline.clean", -0.2, 0.001),
        pair("end_to_end_aligned.early_stopping", "pipeline.early_stopping", 0.2, 0.001),
        pair("end_to_end_aligned.control", "end_to_end_aligned", -0.4, 0.001))}
    text = lesson.terms_in_words(terms)
    assert "with right captions, the aligned map is not told apart from the pipeline and not compared with the paper's map" in text
    assert "with right captions, a gradient as long as the text's, the aligned map is behind the pipeline" in text
    assert "with best epoch on dev, the aligned map is ahead of the pipeline" in text
    assert "the control with shuffled words is behind it" in text
    assert lesson.scores_on_terms(terms).count("| system") == 4
    assert "End-to-end, aligned, shuffled words" in lesson.differences_on_terms(terms)


def test_where_the_aligned_system_is_behind_on_other_terms_is_listed():
    behind = pair("end_to_end_aligned.clean", "pipeline.clean", -0.2, 0.001)
    rows = [behind, pair("end_to_end_aligned.control", "end_to_end_aligned", -0.4, 0.001), pair("end_to_end.clean", "end_to_end_aligned.clean", 0.1, 0.9)]
    page = lesson.behind_on_terms(differences(*rows))
    assert page.count("scene accuracy") == 1 and "| Pipeline, right captions " in page
    assert lesson.behind_on_terms(differences(*rows[1:])) == "Nowhere."


def test_settings_that_suit_a_system_better_on_dev_are_named():
    def row(system, settings, accuracy, fid):
        return {"system": system, "settings": settings, "scores": {
            "scene_accuracy": {"mean": accuracy, "std": None, "n": 1}, "fid": {"mean": fid, "std": None, "n": 1}}}

    rows = [row("pipeline", {}, 0.6, 0.5), row("pipeline", {"train.generator_rate": 1.0}, 0.7, 0.6), row("end_to_end", {}, 0.6, 0.5),
            row("end_to_end", {"bridge.gradient_ratio": 3.0}, 0.7, 0.4)]
    tuning = {"profile": "mini", "seeds": [0], "split": "dev", "test": {"examples": 300}, "numbers": {"minichat": 1}, "rows": rows}
    said = lesson.better_settings(tuning)
    assert "FID\\*: End-to-end with gradient_ratio = 3 (0.700; 0.400, instead of 0.600; 0.500). " in said
    assert "FID\\*: none. " in lesson.better_settings({**tuning, "rows": rows[:2]})
    page = tables.tuning_table(tuning)
    assert "| End-to-end | gradient_ratio = 3 " in page and "| Pipeline   | its own " in page and "N = 300 dev examples" in page


@pytest.mark.parametrize(("p", "said"), [(0.2, "0 of 2 differences hold."), (0.01, "1 of 2 differences hold: span behind none in scene accuracy")])
def test_differences_that_hold_are_named(p, said):
    assert said in lesson.kept_differences(differences(pair("span", "none", -0.2, p), pair("word", "none", 0.0, 1.0)))


def test_how_one_system_stands_to_another_is_said_metric_by_metric():
    comparison = differences(pair("end_to_end", "pipeline", 0.2, 0.001), pair("pipeline", "end_to_end", -0.1, 0.001, "fid"))
    assert lesson.how_they_stand(comparison, "end_to_end", "pipeline") == (
        "End-to-end is ahead of Pipeline in scene accuracy; behind Pipeline in FID\\*.")
    assert lesson.how_they_stand(comparison, "end_to_end", "divter") == "End-to-end is not compared with Divter."


def test_the_fall_of_fid_with_gold_captions_is_a_mean_over_seeds():
    fids = {"end_to_end": {"from_own": [0.3, 0.5], "from_gold": [0.1, 0.1]}, "divter": {"from_own": [1.0, 1.0], "from_gold": [0.8, 0.8]},
            "pipeline": {"from_own": [None], "from_gold": [0.1]}}
    assert lesson.with_gold_captions({"systems": fids}) == (
        "With gold captions FID\\* goes from 0.400 to 0.100 (End-to-end), from 1.000 to 0.800 (Divter); it falls most for End-to-end.")


@pytest.mark.parametrize(("low", "begins"), [(-0.4, "Yes. "), (-0.9, "No: ")])
def test_a_line_is_flatter_only_where_the_intervals_do_not_meet(low, begins):
    slopes = {"end_to_end": {"mean": -0.3, "low": low, "high": -0.2}, "pipeline": {"mean": -0.7, "low": -0.8, "high": -0.6}}
    text = lesson.slopes_in_words({"systems": {name: {"slope": slope} for name, slope in slopes.items()}})
    assert text.startswith(begins) and f"End-to-end -0.300 [{low:.3f}, -0.200]" in text and "Pipeline -0.700" in text


def test_a_variant_is_named_only_where_it_differs_by_more_than_both_deviations():
    def systems(**means):
        return {"systems": {name: {"fid": {"mean": mean, "std": 0.1, "n": 3}} for name, mean in means.items()}}
    assert "seeds: no noise (FID\\*)." in lesson.beyond_seeds(systems(none=1.0, span=1.05, no_noise=1.2))
    assert "seeds: none of them." in lesson.beyond_seeds(systems(none=1.0, span=1.05))


def test_held_out_triples_are_compared_by_system_and_a_guess_is_the_most_frequent_value():
    met, unmet = met_and_unmet()
    right, wrong = [answer(met, "", met), answer(unmet, "", unmet)], [answer(met, "", met), answer(None, None, unmet)]
    answers = {"end_to_end": {0: right, 1: right}, "end_to_end_aligned": {0: wrong, 1: right}}
    text = lesson.held_out_in_words(answers)
    assert "from 1.000 to 1.000 (End-to-end), from 1.000 to 0.500 (End-to-end, aligned)" in text and "number 100%" in text
    assert "N = 2 test photos per seed" in lesson.held_out_table(answers, "mini", [0, 1])


def test_the_pipelines_time_is_in_units_of_the_end_to_end_models():
    systems = {name: {"reply_seconds": {"words": seconds}} for name, seconds in (("pipeline", 0.3), ("end_to_end", 0.2))}
    assert "words: 1.50 times" in lesson.longer_replies({"measured": [{"benchmark": "systems", "systems": systems}]})
    with pytest.raises(ResultsError, match="it has no benchmark 'systems'; `make bench` measures"):
        lesson.longer_replies({"measured": []})


def test_the_answers_of_the_committed_results_are_whole_sentences():
    views = {"summary": lesson.best_means, "gold_fid": lesson.with_gold_captions, "propagation": lesson.slopes_in_words,
             "ablations": lesson.beyond_seeds, "benchmarks": lesson.longer_replies, "ablation_differences": lesson.kept_differences}
    for name, view in views.items():
        text = trained.answer("mini", name, view)
        assert text.startswith("**Answer.** ") and text.endswith(".") and "nan" not in text, text


# Exercises

SPACES = {"06_results": lambda: {
    "no_answers": None, "confirm": confirm, "own": {0: [answer(met_and_unmet()[0], ""), answer(None, None)]}, "minichat_figures": minichat_figures, "seeds": [0, 1, 2],
    "runs": [{"system": name, "seed": seed, "metrics": {"scene_accuracy": base + seed * seed / 10}}
             for name, base in (("end_to_end_aligned", 0.5), ("pipeline", 0.1)) for seed in (0, 1, 2)]},
          "05_baselines": lambda: {"confirm": confirm}}
SOLUTIONS = {"06_results": ("06-27", "06-27d", "06-27f"), "05_baselines": ("05-63c",)}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in SOLUTIONS.items() for key in keys])
def test_the_solution_passes_its_check_and_what_is_there_to_begin_with_does_not(name, key, capsys):
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    at = next(i for i, cell in enumerate(cells) if cell.id == key)
    first = next(i for i in range(at, 0, -1) if cells[i - 1].cell_type == "markdown")
    check = "\n".join(cell.source for cell in cells[first:at])
    solution = cells[at].source.partition("Solution</summary>")[2].partition("</details>")[0]
    solution = (re.findall(r"```python\n(.*?)```", solution, re.S) or re.findall(r"`(\w+, \w+ = [^`]+)`", solution))[0]
    space = SPACES[name]()
    exec(check, space)
    assert "✓" not in capsys.readouterr().out
    if "by_seed" in space:  # else the same seeds differ by the same
        space["by_seed"]["pipeline"][1] += 0.05
    exec(solution, space)
    checks = ast.Module([node for node in ast.parse(check).body if isinstance(node, ast.If)], [])
    exec(compile(checks, name, "exec"), space)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("✓") for line in lines)
