"""Scores of response texts: BLEU-1, BLEU-2 and ROUGE-L (§3.1.3).

Photo captions are no part of a response's text here: take them out first (or score them alone, as captions).
All scores run from 0 to 100, higher is better.
"""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU


def _check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    # A lone string is a sequence of strings too, and would be scored letter by letter.
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise ValueError(f"{name}: expected a list of texts, got one string; put it in a list")
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"expected as many hypotheses as references, at least one of each; got {len(hypotheses)} hypotheses "
                         f"and {len(references)} references")
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{row}]: expected a string, got {text!r}; use an empty string for a response without text")


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """BLEU-1 and BLEU-2 of a whole corpus, one reference each (§3.1.3), split at white space, case kept, no smoothing.

    Two readings of "BLEU-2" are in use, and both are returned:

    - ``bleu1``, ``bleu2``: brevity penalty × the n-gram precision of order n **alone**, as the paper's authors compute it.
    - ``bleu1_cumulative``, ``bleu2_cumulative``: Papineni et al.'s, brevity penalty × the geometric mean of the
      precisions of orders 1..n, from sacrebleu; ``sacrebleu_signature`` says how. For n = 1 the two are the same.

    An order without any match scores 0. Texts may be empty: an empty hypothesis only lengthens the brevity penalty, an
    empty reference only adds words that match nothing. A hypothesis of one word has no 2-grams and adds none (nltk's
    ``corpus_bleu`` counts one that cannot match, so its BLEU-2 is lower where there are such hypotheses).
    Raises ValueError when the lists are empty or differ in length.
    """
    _check_pairs(hypotheses, references)
    # force: text split at white space on purpose would otherwise be taken for a forgotten detokenization
    metrics = [BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True) for order in (1, 2)]
    first, second = (metric.corpus_score(list(hypotheses), [list(references)]) for metric in metrics)
    return {
        "bleu1": first.bp * first.precisions[0],
        "bleu2": second.bp * second.precisions[1],
        "bleu1_cumulative": first.score,
        "bleu2_cumulative": second.score,
        "sacrebleu_signature": str(metrics[1].get_signature()),
    }


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L: the mean over pairs of the sentence F1 of the longest common subsequence (§3.1.3), 0 to 100.

    From rouge-score, **without stemming** (``use_stemmer=False``). It lower-cases and keeps only runs of a-z and 0-9 as
    words, so text in other scripts scores 0. A pair where either side has no words scores 0, even if both have none.
    Raises ValueError when the lists are empty or differ in length.
    """
    _check_pairs(hypotheses, references)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    scores = [scorer.score(reference, hypothesis)["rougeL"].fmeasure for hypothesis, reference in zip(hypotheses, references, strict=True)]
    return 100 * sum(scores) / len(scores)
