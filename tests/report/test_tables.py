import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from e2e_lib import corpora, versions
from e2e_lib.evaluation.scores import METRICS, Metric
from e2e_lib.report import tables
from e2e_lib.repro.results import ResultsError, load_json, published

RESULTS = Path(__file__).resolve().parents[2] / "results"


def score(mean, std=0.5, n=3):
    return {"mean": mean, "std": std, "n": n}


def summary(**systems):
    return {"profile": "mini", "systems": systems, "test": {"examples": 1234, "gold_photos": 56},
            "runs": ["divter-seed1.json", "end_to_end-seed0.json", "weight_0.1-seed0.json"]}


def pair(metric, low, high, system="end_to_end", than="pipeline", p=0.02):
    """A difference in the middle of its interval; ``p`` is corrected."""
    middle = (low + high) / 2
    return {"system": system, "than": than, "metric": metric, "difference": middle, "by_seed": [middle, -middle, middle],
            "low": low, "high": high, "p": p / 2, "p_corrected": p}


def comparison(*pairs):
    return {"profile": "mini", "seeds": [0, 1, 2], "draws": 2000, "dialogues": 300, "examples": 3546,
            "pairs": list(pairs), "higher_is_better": {"bleu1": True, "fid": False, "details": True}}


@pytest.mark.parametrize(("arguments", "text"), [
    ((1.5, None), "1.500"), ((31.256, 0.5), "31.26 ± 0.50"), ((0.2064, 0.5), "0.206 ± 0.500"), ((None, None), "–"),
    ((float("nan"), float("nan")), "–"), ((-0.0004, 0.005), "0.000 ± 0.005"), ((-0.0006, 0.005), "-0.001 ± 0.005"),
    ((-2.5, float("nan")), "-2.50"), ((0.129, 0.0081, 2), "0.13 ± 0.01")])
def test_a_mean_is_written_with_its_standard_deviation(arguments, text):
    assert tables.mean_and_sd(*arguments) == text


def test_systems_have_the_papers_order_and_missing_scores_a_dash():
    found = summary(end_to_end={"bleu1": score(31.256), "fid": score(0.2064)}, divter={"bleu1": score(1.5, None, 1)},
                    retrieval={}, span={}, none={})
    frame = tables.scores(found, ("bleu1", "fid"))
    assert tables.score_table(frame).to_numpy().tolist() == [
        ["Divter", "1.500", "–"], ["End-to-end", "31.26 ± 0.50", "0.206 ± 0.500"], ["none", "–", "–"], ["span", "–", "–"],
        ["retrieval", "–", "–"]]
    turned = tables.score_table(frame, "metric", "system")
    assert list(turned) == ["metric", "Divter", "End-to-end", "none", "span", "retrieval"]
    assert turned["metric"].tolist() == ["BLEU-1", "FID*"]
    assert tables.score_numbers(frame).to_csv(index=False).splitlines()[:3] == [
        "system,seeds,BLEU-1,BLEU-1 sd,FID*,FID* sd", "Divter,1,1.5,,,", "End-to-end,3,31.256,0.5,0.2064,0.5"]
    assert tables.summary_footer(found) == "profile mini · N = 1,234 examples, 56 gold photos · seeds 0, 1"


def test_the_main_table_has_the_systems_and_metrics_of_the_papers_table_2():
    paper = published(2, RESULTS)
    assert [name for name in tables.SYSTEMS if name != "end_to_end_aligned"] == [row["system"] for row in paper["rows"] if row["dataset"] == "DialogCC"]
    ours = [key for key in tables.COLUMNS["main"] if key != "rougeL_whitespace" and not key.startswith("inception_")]  # which stand beside others
    assert ours == [key for key in paper["columns"] if key not in ("dataset", "label", "is_std")]


def test_the_papers_numbers_are_as_printed():
    paper = published(2, RESULTS)
    table, numbers = tables.published(paper), tables.published_numbers(paper)
    assert list(table) == ["dataset", "model", "BLEU-1", "BLEU-2", "ROUGE-L", "IS", "FID"] and len(table) == 7
    assert table.loc[3].tolist() == ["PhotoChat", "end-to-end", "12.08", "2.94", "11.00", "14.47 ± 0.94", "75.88"]
    assert numbers.loc[3].tolist() == ["PhotoChat", "end-to-end", 12.08, 2.94, 11.0, 14.47, 0.94, 75.88]
    first = published(1, RESULTS)
    assert tables.published(first).iloc[0].tolist()[:4] == ["PhotoChat", "train", "10,286", "130,459"]
    ours = tables.table_1({"test": {key: 7 for key in first["columns"]}}, first)
    assert ours.iloc[0].tolist() == ["test"] + [7] * (len(first["columns"]) - 2)


@pytest.mark.parametrize(("metric", "low", "high", "p", "better"), [
    ("bleu1", 0.5, 1.5, 0.02, "End-to-end"), ("bleu1", -1.5, -0.5, 0.049, "Pipeline"), ("bleu1", -0.5, 0.6, 1.0, "neither"),
    ("fid", 0.5, 1.5, 0.02, "Pipeline"), ("fid", -1.5, -0.5, 0.02, "End-to-end"),
    ("bleu1", 0.5, 1.5, 0.05, "neither"), ("fid", 0.5, 1.5, 0.14, "neither")])  # intervals alone would name one
def test_who_is_better_depends_on_which_way_is_better_and_on_the_corrected_p(metric, low, high, p, better):
    found = comparison(pair(metric, low, high, p=p))
    assert tables.differences(found).better.tolist() == [better]
    assert tables.difference_groups(found)["p (Holm) < 0.05"].tolist() == [int(better != "neither")]


def test_differences_are_signed_with_their_interval_and_count_seeds():
    frame = tables.differences(comparison(pair("bleu1", 0.5, 1.5), pair("fid", -0.25, 0.125, "divter", "span", 0.4)))
    assert frame.iloc[1].tolist() == ["Divter", "span", "FID*", -0.0625, -0.25, 0.125, 0.2, 0.4, "neither", 2, 3]
    assert tables.difference_table(frame).to_numpy().tolist() == [
        ["End-to-end", "Pipeline", "BLEU-1", "+1.000", "[+0.500, +1.500]", "0.020", "End-to-end", "2 of 3"],
        ["Divter", "span", "FID*", "−0.062", "[−0.250, +0.125]", "0.400", "neither", "2 of 3"]]
    tiny = tables.difference_table(tables.differences(comparison(pair("bleu1", -0.0004, 0.0003, p=0.0004))))
    assert tiny.iloc[0, 3:6].tolist() == ["+0.000", "[+0.000, +0.000]", "< 0.001"]


def test_another_corpus_has_rows_of_its_own_scores_and_none_of_minichats(monkeypatch):
    class Own:
        metrics = {"charm": Metric("charm", "higher", "how charming")}

    monkeypatch.setitem(corpora.CORPORA, "letters", dataclasses.replace(corpora.CORPORA["minichat"], scores=Own))
    found = summary(divter={"bleu1": score(1.5), "charm": score(0.5)}) | {"numbers": {"letters": 3, "scoring": 1}}
    assert tables.scores(found).metric.tolist() == [*(metric.label for metric in METRICS.values()), "charm"]
    assert tables.scores(found, tables.COLUMNS["further"]).metric.tolist() == ["charm", "intent F1", "caption BLEU-2, cumulative"]
    assert "scene accuracy" not in tables.scores(found, tables.COLUMNS["ablations"]).metric.tolist()
    measured = comparison(pair("charm", 0.5, 1.5)) | {
        "higher_is_better": {"charm": True}, "provenance": {"config": {"data": {"name": "letters"}}}}
    assert tables.differences(measured)[["metric", "better"]].to_numpy().tolist() == [["charm", "End-to-end"]]
    assert "detail questions" in tables.scores(summary(divter={})).metric.tolist()  # MiniChat's, where nothing is said


def test_scores_by_inception_have_columns_of_their_own_where_there_are_any():
    own = {"is": score(3.5), "fid": score(0.25)}
    found = summary(end_to_end=own | {"inception_is": score(4.5), "inception_fid": score(30.5)}, divter=own)
    frame = tables.score_table(tables.scores(found, tables.COLUMNS["main"]))
    assert list(frame)[-4:] == ["IS*", "FID*", "IS", "FID"]
    assert frame.to_numpy().tolist()[1][-4:] == ["3.50 ± 0.50", "0.250 ± 0.500", "4.50 ± 0.50", "30.50 ± 0.50"]
    assert frame.to_numpy().tolist()[0][-2:] == ["–", "–"]
    assert "FID" not in tables.scores(found, tables.COLUMNS["further"]).metric.tolist()  # none of the corpus's own
    assert "FID" not in tables.scores(summary(divter=own)).metric.tolist()
    of_photochat = tables.scores(summary(divter=own) | {"numbers": {"photochat": 1}}).metric.tolist()
    assert {"IS", "FID", "KID"} < {*of_photochat} and not any("*" in label for label in of_photochat)


def test_who_made_intervals_by_an_earlier_rule_is_said():
    old = comparison(pair("bleu1", 0.5, 1.5))
    new = {key: value for key, value in old.items() if key != "draws"} | {"numbers": versions.versions("intervals")}
    note = tables.comparison_footer(old)
    assert "percentiles of 2,000 bootstrap samples" in note and "made with intervals version 1" in note
    assert "`e2e compare --profile mini` makes them again" in note
    assert tables.comparison_footer(new) == (
        "profile mini · N = 3,546 answers in 300 dialogues · seeds 0, 1, 2 · intervals: jackknife over dialogues")
    assert "version" not in tables.intervals_note({"arguments": new}) and "version 1" in tables.intervals_note({"arguments": {}})


def test_gradients_are_counted_apart_from_other_ingredients():
    found = comparison(pair("bleu1", 1, 2, "span", "none", 0.01), pair("bleu1", 1, 2, "aligned_gumbel", "aligned_straight_through", 0.5),
                       pair("bleu1", -1, 2, "aligned_straight_through", "none", 0.9), pair("fid", 1, 2, "no_noise", "sentence", 0.04))
    assert tables.difference_groups(found).to_numpy().tolist() == [
        ["a gradient from the photo, compared with none", 2, 1, 1], ["compared with aligned_straight_through", 1, 0, 1],
        ["compared with sentence", 1, 1, 1]]


def test_single_measurements_have_the_committed_numbers():
    gold, propagation, benchmarks, reached = (load_json(RESULTS / "mini" / f"{name}.json") for name in (
        "gold_fid", "propagation", "benchmarks", "pretraining"))
    fids = pd.Series(gold["systems"]["divter"]["from_own"])
    assert f"{fids.mean():.3f} ± {fids.std():.3f} |" in tables.gold_fid_table(gold)
    slope = propagation["systems"]["divter"]["slope"]["mean"]
    assert tables.slopes_table(propagation).set_index("system").loc["Divter"].iloc[0] == slope
    systems = next(row for row in benchmarks["measured"] if row["benchmark"] == "systems")["systems"]
    assert f"{systems['end_to_end']['parameters']:,} |" in tables.systems_cost(benchmarks)
    bridge, shown = (next(row for row in benchmarks["measured"] if row["benchmark"] == "bridge"), tables.bridge_cost(benchmarks))
    assert f"| {bridge['maps']['span']['speedup_vs_sparse']:.0f} times " in shown and "V1 = 32,000" in shown
    line = next(line for line in shown.splitlines() if "aligned, top_k=64" in line)
    assert f"| {bridge['aligned']['aligned top_k=64']['over_floor']:.2f} times " in line and line.count("–") == 2
    assert tables.pretraining_table(reached).set_index("part").loc["autoencoder", "N"] == reached["n"]["autoencoder_psnr_db"]
    with pytest.raises(ResultsError, match="make bench"):
        tables.systems_cost({"measured": []})
