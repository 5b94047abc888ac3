"""Notebook 06's own answers say what its numbers say."""

import pytest

from e2e_lib.lessons import nb06_results as lesson

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


def test_the_best_mean_is_the_largest_or_of_fid_the_smallest():
    text = lesson.best_means(summary(bleu1=(20.0, -1.0), fid=(0.2, 0.1), scene_accuracy=(0.5, 0.1)))
    assert "BLEU-1: End-to-end, aligned" in text and "FID\\*: End-to-end, aligned" in text and "scene accuracy: Divter" in text
    assert "ROUGE" not in text


def test_the_answer_on_other_terms_follows_the_signs():
    on_terms = {f"{name}.{term}": entries for term in ("clean", "early_stopping")
                for name, entries in summary(scene_accuracy=(0.9, -0.1))["systems"].items()}
    on_terms["end_to_end_aligned.control"] = {"scene_accuracy": {"mean": 0.4, "std": 0.1, "n": 3}}
    terms = {**summary(), "systems": on_terms, **differences(
        pair("end_to_end_aligned.clean", "pipeline.clean", 0.01, 0.9),
        pair("end_to_end_aligned.early_stopping", "pipeline.early_stopping", 0.2, 0.001),
        pair("end_to_end_aligned.control", "end_to_end_aligned", -0.4, 0.001))}
    text = lesson.terms_in_words(terms)
    assert "with right captions, it is not told apart from the pipeline" in text
    assert "with best epoch on dev, it is ahead of the pipeline" in text
    assert "the control with shuffled words is behind it" in text
    assert lesson.scores_on_terms(terms).count("| system") == 3
    assert "End-to-end, aligned, shuffled words" in lesson.differences_on_terms(terms)


@pytest.mark.parametrize(("p", "said"), [(0.2, "0 of 2 differences hold."), (0.01, "1 of 2 differences hold: span behind none in scene accuracy")])
def test_differences_that_hold_are_named(p, said):
    assert said in lesson.kept_differences(differences(pair("span", "none", -0.2, p), pair("word", "none", 0.0, 1.0)))
