"""What was found, in sentences that follow the numbers of ``results/``: who is ahead, and in what.

"Ahead" and "behind" have p < 0.05 after Holm's correction, "not told apart" has not. A sentence whose results
are not there is left out, so that none says more than was measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2e_lib.config import CHANGED_WITH
from e2e_lib.evaluation.scores import Metric
from e2e_lib.report import tables
from e2e_lib.report.faults_figures import CONDITIONS, MAIN, RIVALS
from e2e_lib.report.pairs import Rows, between, in_condition
from e2e_lib.repro.files import ResultsError
from e2e_lib.repro.results import load_json, read_summary

METRICS = ("bleu1", "bleu2", "rougeL", "is", "fid", "scene_accuracy")
BASELINES = {"pipeline": "the pipeline", "divter": "Divter"}
ALIGNED, PAPER = "end_to_end_aligned", "end_to_end"
# What the aligned map is compared with in the experiment.
MAPS = {"none": "no gradient from the photo", "sentence": "the paper's map (Eq. 10)",
        "aligned_shuffled": "its control, which has another word's embedding for each word",
        "aligned_random": "a control that shuffles them anew for every batch"}
CONTROLS = ("aligned_shuffled", "aligned_random")  # of which the second may not have been trained
ORDER = AHEAD, LEVEL, BEHIND = ("ahead of", "not told apart from", "behind")


def findings(profile: str, root: Path) -> str:
    """The findings of a profile as a numbered list, and what they were measured on.

    Raises ResultsError where the systems have not been compared yet.
    """
    summary, comparison = read_summary(profile, root), load_json(root / profile / "comparison.json")
    terms, faults = (load_json(path) if path.is_file() else None
                     for path in (root / profile / f"{name}.json" for name in ("terms", "faults")))
    sentences = [(on_the_profiles_captions(summary, comparison), comparison),
                 (terms and on_right_captions(terms), terms), (terms and early_stopping(terms), terms),
                 (faults and experiment(faults, terms), faults), (details(summary, comparison), comparison),
                 (limits(summary, comparison), comparison)]
    told = [(text, content) for text, content in sentences if text]
    said = [f"{number}. {text}" for number, (text, _) in enumerate(told, 1)]
    rule = (f"Ahead, behind: p < {tables.LEVEL} after Holm's correction, for these training seeds on other "
            "dialogues; not told apart: all else. In brackets: means over seeds. Of FID\\* less is better, "
            "of all else more.")
    numbers = [(listed([str(number) for number, (_, its) in enumerate(told, 1) if its is content]), content)
               for content in (comparison, terms, faults)]
    measured = [f"{own}: {tables.comparison_footer(content)}{fewer_seeds(content)}."
                for own, content in numbers if own and content]
    return "\n".join(said) + "\n\n" + " ".join([rule, *measured])


def fewer_seeds(content: Mapping[str, Any]) -> str:
    """What to add to a footer of the experiment, some of whose conditions may have fewer seeds."""
    fewest = min((len(row["seeds"]) for row in content.get("rows", ())), default=len(content["seeds"]))
    return f" · {fewest} seeds in some conditions" if fewest < len(content["seeds"]) else ""


def relation(pairs: Rows, higher: Mapping[str, bool], one: str, other: str, metric: str) -> str | None:
    """How ``one`` stands to ``other`` in a metric; None where the two were not compared in it."""
    row = between(pairs, higher, one, other, metric)
    if row is None:
        return None
    return LEVEL if row["better"] is None else AHEAD if row["better"] == one else BEHIND


def standing(content: Mapping[str, Any], one: str, others: Mapping[str, str],
             metrics: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
    """The metrics by how ``one`` stands to each of the ``others`` in them, those without a pair left out."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for metric in metrics:
        found = tuple(relation(content["pairs"], content["higher_is_better"], one, other, metric)
                      for other in others)
        if all(found):
            groups.setdefault(tuple(map(str, found)), []).append(metric)
    return groups


def relations_in_words(relations: Sequence[str], names: Sequence[str]) -> str:
    """ "ahead of both baselines", or "ahead of Divter and not told apart from the pipeline"."""
    if len(names) == 2 and len(set(relations)) == 1:
        return f"{relations[0]} {'either baseline' if relations[0] == LEVEL else 'both baselines'}"
    kinds = [kind for kind in ORDER if kind in relations]
    return listed([f"{kind} {listed([n for n, r in zip(names, relations, strict=True) if r == kind])}"
                   for kind in kinds])


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" of nothing."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def compared(content: Mapping[str, Any], summary: Mapping[str, Any], one: str, others: Mapping[str, str],
             metrics: Sequence[str] = METRICS) -> str:
    """Where a system stands to others in each metric, with the values of all; "" where nothing is known."""
    known, systems = tables.metrics_of(summary), summary["systems"]
    groups = standing(content, one, others, metrics)
    best_first = sorted(groups, key=lambda relations: sum(ORDER.index(kind) for kind in relations))
    short = [name.removeprefix("the ") for name in others.values()]
    parts = []
    for relations in best_first:
        values = [f"{label(known[metric])} ({value(systems, one, metric)}; "
                  + ", ".join(f"{name} {value(systems, other, metric)}"
                              for name, other in zip(short, others, strict=True)) + ")"
                  for metric in groups[relations]]
        parts.append(f"{relations_in_words(relations, [*others.values()])} in {listed(values)}")
    return "; ".join(parts)


def label(metric: Metric) -> str:
    """A metric's name, whose star is no mark of emphasis."""
    return metric.label.replace("*", "\\*")


def value(systems: Mapping[str, Any], system: str, metric: str) -> str:
    """The mean of a system's scores over seeds, as text; "–" where there is none."""
    return tables.mean_and_sd(systems.get(system, {}).get(metric, {}).get("mean"))


def on_the_profiles_captions(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """The aligned system and the baselines, trained on the captions of the profile."""
    if not (found := compared(comparison, summary, ALIGNED, BASELINES)):
        return ""
    data = comparison["provenance"]["config"]["data"]
    kind, rate = data.get("caption_faults", "none"), data.get("caption_fault_rate", 0)
    on = {"none": "**Trained on right captions**",
          "random": "**Trained on wrong captions** (each of thing, colour and place is another one with "
                    f"probability {rate:g}; photos and test set are as they were)"}.get(
              kind, f"**Trained on captions with faults** ({kind.replace('_', ' ')}, {rate:g})")
    return f"{on}, the end-to-end model with the aligned map is {found}."


def on_right_captions(terms: Mapping[str, Any]) -> str:
    """The same systems, trained on captions that are right, and the aligned one with a shorter gradient."""
    others = {f"{name}.clean": text for name, text in BASELINES.items()}
    found = compared(terms, terms, f"{ALIGNED}.clean", others)
    shorter = compared(terms, terms, f"{ALIGNED}.clean_ratio_1", others, ("scene_accuracy",))
    ratio = CHANGED_WITH["model.system", ALIGNED]["bridge.gradient_ratio"]
    also = shorter and (f". With a gradient from the photo as long as the text's, not {ratio:g} times as "
                        f"long (which was chosen on wrong captions), it is {shorter}")
    return found and f"**Trained on right captions**, it is {found}{also}."


def early_stopping(terms: Mapping[str, Any]) -> str:
    """The systems where the dev split, whose captions and photos are right, chooses the epoch."""
    others = {f"{name}.early_stopping": text
              for name, text in {**BASELINES, PAPER: "the paper's map (Eq. 10)"}.items()}
    found = compared(terms, terms, f"{ALIGNED}.early_stopping", others, ("scene_accuracy", "fid"))
    return found and ("**With early stopping**, as in the paper, the dev split, which is right, chooses an "
                      "epoch that has learnt little of the wrong captions. Then the aligned map is "
                      f"{found}.")


def experiment(faults: Mapping[str, Any], terms: Mapping[str, Any] | None) -> str:
    """Whether the photo corrects the words, by the caption accuracy of each map on captions that are wrong.

    What an outcome means is said in ``experiments.faults``."""
    pairs, metric = in_condition(faults["pairs"], MAIN), "caption_accuracy"
    scores = {row["mapping"]: row["scores"] for row in in_condition(faults["rows"], MAIN)}
    stands = {name: relation(pairs, faults["higher_is_better"], "aligned", name, metric) for name in MAPS}
    if stands["aligned_random"] is None:
        del stands["aligned_random"]
    if not all(stands.values()):
        return ""
    texts = {name: f"{MAPS[name]} ({value(scores, name, metric)})" for name in stands}
    words = relations_in_words([str(kind) for kind in stands.values()], [*texts.values()])
    if stands["none"] != AHEAD:
        meaning = {LEVEL: "made no measurable difference", BEHIND: "did harm"}[str(stands["none"])]
        meaning = f"so the photo's gradient {meaning}"
    elif any(stands.get(name, AHEAD) != AHEAD for name in CONTROLS):
        meaning = "so any gradient would have done as well"
    else:
        meaning = "so the photo says which word would have been right"
    return ("**The experiment**: language models adapted to such captions go on learning from them, and the "
            f"generator stays as it is{before(pairs, faults, scores)}. The caption accuracy of the aligned "
            f"map is then {value(scores, 'aligned', metric)}: {words}, {meaning}{price(faults, scores)}"
            f"{elsewhere(faults)}{control(terms)}.")


def before(pairs: Rows, faults: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """The caption accuracy that training goes on from, and how the aligned map's stands to it, where it was
    measured."""
    stands = relation(pairs, faults["higher_is_better"], "aligned", "before", "caption_accuracy")
    if not stands:
        return ""
    accuracy = value(scores, "before", "caption_accuracy")
    return f" (caption accuracy before: {accuracy}, which the aligned map is {stands})"


def price(faults: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """In which scores of the drawn photos the aligned map is behind no gradient, where it is in any."""
    pairs, known = in_condition(faults["pairs"], MAIN), tables.metrics_of(faults)
    worse = [f"{label(known[metric])} ({value(scores, 'aligned', metric)}; {value(scores, 'none', metric)})"
             for metric in ("is", "fid")
             if relation(pairs, faults["higher_is_better"], "aligned", "none", metric) == BEHIND]
    return f". It has a price: it is behind no gradient in {listed(worse)}" if worse else ""


def elsewhere(faults: Mapping[str, Any]) -> str:
    """The same under the other conditions of the experiment: how many, and which ones differ from that."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, condition in CONDITIONS.items():
        pairs = in_condition(faults["pairs"], condition)
        stands = [relation(pairs, faults["higher_is_better"], "aligned", rival, "caption_accuracy")
                  for rival in RIVALS]
        if condition is not MAIN and all(stands):
            groups.setdefault(tuple(map(str, stands)), []).append(f"*{name}*")
    ahead = groups.pop((AHEAD,) * len(RIVALS), [])
    total = len(ahead) + sum(map(len, groups.values()))
    parts = [f"{listed(names)}: {relations_in_words(relations, [*RIVALS.values()])}"
             for relations, names in groups.items()]
    if not ahead and not parts:
        return ""
    exceptions = f", but not under {'; '.join(parts)}" if parts else ""
    return (f". It is ahead of {listed([*RIVALS.values()])} under {len(ahead)} of {total} other "
            f"conditions (notebook 04){exceptions}")


def control(terms: Mapping[str, Any] | None) -> str:
    """How the systems' comparison, which begins from parts that met no wrong caption, stands to its control.
    """
    metric, name = "caption_accuracy", f"{ALIGNED}.control"
    stands = terms and relation(terms["pairs"], terms["higher_is_better"], name, ALIGNED, metric)
    if not terms or not stands:
        return ""
    return (f". In the comparison of 1, from parts that met no wrong caption, the control "
            f"({value(terms['systems'], name, metric)}) is {stands} the aligned map in caption accuracy")


def details(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """Whether the end-to-end system sees what captions leave out."""
    found = compared(comparison, summary, PAPER, BASELINES, ["details"])
    if not found:
        return ""
    aligned = value(summary["systems"], ALIGNED, "details")
    return ("**What captions leave out**: asked what a photo shows and its caption does not tell, the "
            f"end-to-end model with the paper's map (Eq. 10) is {found}"
            + (f"; with the aligned map: {aligned}" if aligned != "–" else "") + ".")


def limits(summary: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """How the paper's own map stands to the pipeline, and what was not measured. Raises ResultsError."""
    found = compared(comparison, summary, PAPER, {"pipeline": BASELINES["pipeline"]})
    if not found:
        raise ResultsError("comparison.json: end_to_end and pipeline are not compared; make it again with "
                           f"`e2e compare --profile {comparison['profile']}`")
    return (f"**With the paper's map** (Eq. 10), the end-to-end model is {found}. Nothing here was measured "
            "on real photos or at the paper's scale.")
