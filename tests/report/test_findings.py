"""The sentences on what was found follow made-up results, whichever way these go."""

import json
from itertools import combinations

import pytest

from e2e_lib.report.faults_figures import MAIN
from e2e_lib.report.findings import CONTROLS, MAPS, findings, listed, relations_in_words

METRICS = ("bleu1", "bleu2", "rougeL", "is", "fid", "scene_accuracy", "caption_accuracy", "details")
SYSTEMS = ("end_to_end", "end_to_end_aligned", "pipeline", "divter")


def scores(values):
    return {metric: {"mean": value, "std": 0.1, "n": 3} for metric, value in values.items()}


def pair(system, than, metric, difference, p=0.001, **more):
    return {"system": system, "than": than, "metric": metric, "difference": difference, "low": difference - 1, "high": difference + 1,
            "p": p, "p_corrected": p, "by_seed": [difference], **more}


def comparison_of(pairs, **more):
    return {"profile": "mini", "seeds": [0, 1, 2], "examples": 9, "dialogues": 4, "pairs": pairs, "numbers": {"minichat": 1},
            "higher_is_better": {metric: metric != "fid" for metric in METRICS},
            "provenance": {"config": {"data": {"name": "minichat", "caption_faults": "random", "caption_fault_rate": 0.6}}}, **more}


class Results:
    """results/mini in a folder of its own: at first, every system is level with every other one, at 0.5."""

    def __init__(self, root):
        self.root, self.folder = root, root / "mini"
        self.folder.mkdir()
        self.values = {system: dict.fromkeys(METRICS, 0.5) for system in SYSTEMS}
        self.pairs = {(one, other, metric): pair(one, other, metric, 0.0, 1.0) for one, other in combinations(SYSTEMS, 2) for metric in METRICS}

    def differ(self, one, other, metric, difference, p=0.001):
        self.pairs[one, other, metric] = pair(one, other, metric, difference, p)

    def write(self, name, content):
        (self.folder / f"{name}.json").write_text(json.dumps(content))

    def sentences(self):
        systems = {name: scores(values) for name, values in self.values.items()}
        self.write("summary", {"profile": "mini", "systems": systems, "runs": ["end_to_end-seed0.json"], "test": {"examples": 9},
                               "numbers": {"minichat": 1}})
        self.write("comparison", comparison_of([*self.pairs.values()]))
        return findings("mini", self.root)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_a_sentence_says_in_what_a_system_is_ahead_level_and_behind(results):
    for metric in ("bleu1", "bleu2"):
        results.differ("end_to_end_aligned", "pipeline", metric, 2.0)
    results.differ("end_to_end_aligned", "divter", "bleu1", 2.0)
    results.differ("end_to_end_aligned", "pipeline", "fid", 0.5)  # of FID, less is better
    results.differ("end_to_end_aligned", "divter", "fid", -0.5)
    results.values["end_to_end_aligned"]["bleu1"] = 21.5
    first = results.sentences().splitlines()[0]
    assert first.startswith("1. **Trained on wrong captions** (each of thing, colour and place is another one with probability 0.6")
    assert "is ahead of both baselines in BLEU-1 (21.50; pipeline 0.500, Divter 0.500);" in first
    assert "ahead of the pipeline and not told apart from Divter in BLEU-2 (" in first
    assert "ahead of Divter and behind the pipeline in FID\\* (" in first
    assert "not told apart from either baseline in ROUGE-L (" in first and "details" not in first


def test_what_a_system_is_ahead_in_comes_first(results):
    for other in ("pipeline", "divter"):
        results.differ("end_to_end_aligned", other, "bleu1", -2.0)
        results.differ("end_to_end_aligned", other, "scene_accuracy", 0.2)
    first = results.sentences().splitlines()[0]
    assert first.index("ahead of both baselines in scene accuracy") < first.index("not told apart from either baseline in BLEU-2")
    assert first.index("not told apart from either baseline in BLEU-2") < first.index("behind both baselines in BLEU-1")


def test_a_difference_counts_from_either_side_and_only_below_the_level(results):
    del results.pairs["end_to_end_aligned", "pipeline", "bleu1"]
    results.pairs["turned"] = pair("pipeline", "end_to_end_aligned", "bleu1", -2.0)
    results.differ("end_to_end_aligned", "pipeline", "bleu2", 2.0, p=0.05)
    results.differ("end_to_end_aligned", "pipeline", "rougeL", -2.0, p=0.0499)
    first = results.sentences().splitlines()[0]
    assert "ahead of the pipeline and not told apart from Divter in BLEU-1 (" in first
    assert "not told apart from either baseline in BLEU-2 (" in first
    assert "not told apart from Divter and behind the pipeline in ROUGE-L (" in first


def test_a_sentence_without_its_results_is_left_out(results):
    text = results.sentences()
    assert [line.split("**")[1] for line in text.splitlines() if line[:1].isdigit()] == [
        "Trained on wrong captions", "What captions leave out", "With the paper's map"]
    assert text.count("\n1. ") + text.startswith("1. ") == 1 and "\n3. " in text and "N = 9 answers in 4 dialogues" in text
    results.pairs = {key: row for key, row in results.pairs.items() if "end_to_end_aligned" not in key}
    assert "Trained on" not in results.sentences()
    results.pairs = {key: row for key, row in results.pairs.items() if "pipeline" not in key}
    with pytest.raises(ValueError, match="end_to_end and pipeline are not compared; make it again with `e2e compare --profile mini`"):
        results.sentences()


def test_details_and_the_papers_map_are_told_with_their_values(results):
    results.differ("end_to_end", "pipeline", "details", 0.5)
    results.differ("end_to_end", "divter", "details", 0.5)
    results.values["end_to_end"]["details"], results.values["end_to_end_aligned"]["details"] = 0.95, 0.93
    text = results.sentences()
    assert "is ahead of both baselines in detail questions (0.950; pipeline 0.500, Divter 0.500); with the aligned map: 0.930." in text
    assert "(Eq. 10), the end-to-end model is not told apart from the pipeline in BLEU-1 (0.500; pipeline 0.500)" in text


def terms_of(pairs):
    labels = [*(f"{system}.{term}" for term in ("clean", "early_stopping") for system in SYSTEMS), "end_to_end_aligned.control", "end_to_end_aligned.clean_ratio_1"]
    systems = {name: scores(dict.fromkeys(METRICS, 0.25)) for name in labels}
    return comparison_of(pairs) | {"systems": systems, "runs": ["divter.clean-seed0.json"], "test": {}, "command": "e2e ablate"}


def test_right_captions_have_a_sentence_of_their_own(results):
    results.write("terms", terms_of([pair("end_to_end_aligned.clean", f"{other}.clean", "bleu2", -3.0) for other in ("pipeline", "divter")]))
    assert "\n2. **Trained on right captions**, it is behind both baselines in BLEU-2 (0.250; pipeline 0.250, Divter 0.250).\n" in results.sentences()


def test_a_shorter_gradient_on_right_captions_is_told_where_it_was_trained(results):
    pairs = [pair(f"end_to_end_aligned.{term}", f"{other}.clean", "scene_accuracy", difference)
             for term, difference in (("clean", -3.0), ("clean_ratio_1", 3.0)) for other in ("pipeline", "divter")]
    results.write("terms", terms_of(pairs))
    line = results.sentences().split("\n2. ")[1].partition("\n")[0]
    assert "is behind both baselines in scene accuracy" in line
    assert "as long as the text's, not 3 times as long (which was chosen on wrong captions), it is ahead of both baselines in scene" in line


def test_early_stopping_has_a_sentence_of_its_own_and_names_the_papers_map(results):
    ours, theirs = "end_to_end_aligned.early_stopping", "end_to_end.early_stopping"
    pairs = [pair(ours, f"{other}.early_stopping", "scene_accuracy", 3.0) for other in ("pipeline", "divter")]
    results.write("terms", terms_of([*pairs, pair(theirs, ours, "scene_accuracy", 0.1, 0.9)]))
    text = results.sentences()
    assert "2. **With early stopping**" in text and ("Then the aligned map is ahead of the pipeline and Divter and not told apart from the paper's map "
                                                     "(Eq. 10) in scene accuracy (0.250;") in text
    assert "1, 3 and 4: profile mini · N = 9 answers in 4 dialogues" in text and " 2: profile mini · N = 9 answers in 4 dialogues" in text


def faults_of(ahead, **condition):
    condition = {**MAIN, **condition}
    values = {"aligned": 0.8, "none": 0.4, "sentence": 0.41, "aligned_shuffled": 0.6, "aligned_random": 0.59}
    rows = [{**condition, "mapping": name, "seeds": [0], "scores": scores({"caption_accuracy": value})} for name, value in values.items()]
    pairs = [pair(*names, "caption_accuracy", 0.2 if names[0] == "aligned" else -0.2, 0.001 if name in ahead else 0.5, **condition)
             for name in MAPS for names in [(name, "aligned") if name in CONTROLS else ("aligned", name)]]
    return {"profile": "mini", "seeds": [0], "rows": rows, "pairs": pairs, "higher_is_better": {"caption_accuracy": True, "is": True, "fid": False},
            "numbers": {}, "examples": 7, "dialogues": 3}


@pytest.mark.parametrize(("ahead", "words"), [
    (("none", "sentence", *CONTROLS), "which word would have been right"), (("none", "sentence"), "any gradient would have done as well"),
    (("none", "sentence", "aligned_shuffled"), "any gradient would have done as well"), (("sentence",), "made no measurable difference")])
def test_the_experiment_means_what_its_control_allows(results, ahead, words):
    results.write("faults", faults_of(ahead))
    (line,) = [line for line in results.sentences().splitlines() if "The experiment" in line]
    assert words in line and "is then 0.800: " in line and "no gradient from the photo (0.400)" in line and "the paper's map (Eq. 10) (0.410)" in line
    assert line.count("ahead of") == 1 and ("not told apart from" in line) == (len(ahead) < 4)


def test_what_was_before_and_what_it_costs_are_told(results):
    faults = faults_of(MAPS)
    assert "before:" not in results_with(results, faults) and "price" not in results_with(results, faults)
    faults["pairs"].append(pair("aligned", "before", "caption_accuracy", 0.2, **MAIN))
    faults["rows"].append({**MAIN, "mapping": "before", "seeds": [0], "scores": scores({"caption_accuracy": 0.55})})
    for row in faults["rows"]:
        row["scores"] |= scores({"is": 9.0 if row["mapping"] == "aligned" else 11.0, "fid": 0.3})
    faults["pairs"] += [pair("aligned", "none", "is", -2.0, **MAIN), pair("aligned", "none", "fid", -0.1, **MAIN)]
    line = results_with(results, faults)
    assert "(caption accuracy before: 0.550, which the aligned map is ahead of)" in line and "It has a price: it is behind no gradient in IS\\* (9.00; 11.00). " in line + " "


def test_without_the_second_control_the_first_decides(results):
    faults = faults_of(MAPS)
    faults["pairs"] = [row for row in faults["pairs"] if row["system"] != "aligned_random"]
    line = results_with(results, faults)
    assert "which word would have been right" in line and "anew" not in line
    faults["rows"][0]["seeds"], faults["seeds"] = [0], [0, 1]
    results.write("faults", faults)
    assert " · 1 seeds in some conditions." in results.sentences()


def results_with(results, faults):
    results.write("faults", faults)
    (line,) = [line for line in results.sentences().splitlines() if "The experiment" in line]
    return line


def test_the_experiment_is_of_one_condition_and_tells_the_control_from_clean_parts(results):
    results.write("faults", faults_of(MAPS, start="clean"))
    assert "The experiment" not in results.sentences()
    results.write("faults", faults_of(MAPS))
    results.write("terms", terms_of([pair("end_to_end_aligned.control", "end_to_end_aligned", "caption_accuracy", -0.3)]))
    assert "the control (0.250) is behind the aligned map in caption accuracy." in results.sentences()


def test_other_conditions_are_told_by_how_the_aligned_map_stands_there(results):
    whole = faults_of(MAPS)
    for ahead, condition in ((MAPS, {"kind": "systematic"}), (MAPS, {"rate": 0.8}), (("none",), {"start": "clean"}), ((), {"rate": 0.0})):
        other = faults_of(ahead, **condition)
        whole = whole | {key: whole[key] + other[key] for key in ("rows", "pairs")}
    results.write("faults", whole)
    (line,) = [line for line in results.sentences().splitlines() if "The experiment" in line]
    assert line.endswith(". It is ahead of no gradient, Eq. 10 and the control under 2 of 4 other conditions (notebook 04), but not under "
                         "*from clean parts*: ahead of no gradient and not told apart from Eq. 10 and the control; *wrong words at random, "
                         "rate 0*: not told apart from no gradient, Eq. 10 and the control.")


def test_lists_read_as_a_person_writes_them():
    assert [listed(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert relations_in_words(["ahead of"] * 3, ["a", "b", "c"]) == "ahead of a, b and c"
