"""BLEU-1, BLEU-2 and ROUGE-L (section 3.1.3) from counts per pair of texts.

A set of pairs is scored from the sum of their counts: the test set and any set resampled from it by the same
function. Captions are no part of a response's text; they are scored as texts of their own.
"""

from collections import Counter
from collections.abc import Sequence

from nltk import ngrams  # type: ignore[import-untyped]
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

COUNTS = 6  # numbers per pair, see ngram_counts


class _WhiteSpace:
    """rouge-score's interface of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


_ROUGE = RougeScorer(["rougeL"], use_stemmer=False)
_ROUGE_WHITE_SPACE = RougeScorer(["rougeL"], tokenizer=_WhiteSpace())


def ngram_counts(hypothesis: str, reference: str) -> list[int]:
    """Of a pair: matches of 1-grams and of 2-grams, their totals in the hypothesis, both lengths in words.
    Words are split at white space, case is kept, a match counts at most as often as the reference has it."""
    ours, theirs = hypothesis.split(), reference.split()
    grams = [(Counter(ngrams(ours, order)), Counter(ngrams(theirs, order))) for order in (1, 2)]
    return [*((mine & gold).total() for mine, gold in grams), *(mine.total() for mine, _ in grams),
            len(ours), len(theirs)]


def bleu(counts: Sequence[float]) -> dict[str, float]:
    """BLEU (0 to 100) of a set of pairs from the sum of their ``ngram_counts``; one reference, no smoothing.

    ``bleu1``, ``bleu2``: brevity penalty × precision of order n **alone**, as the paper's authors compute it.
    ``bleu1_cumulative``, ``bleu2_cumulative``: Papineni et al.'s geometric mean of orders 1 to n. An order
    without a match scores 0. One word has no 2-grams (nltk's ``corpus_bleu`` counts a miss: it is lower)."""
    *grams, our_length, their_length = map(int, counts)
    scores = {}
    for order in (1, 2):
        score = BLEU.compute_bleu(grams[:order], grams[2:2 + order], our_length, their_length,
                                  smooth_method="none", max_ngram_order=order)
        scores[f"bleu{order}"] = score.bp * score.precisions[order - 1]
        scores[f"bleu{order}_cumulative"] = score.score
    return scores


def bleu_signature() -> str:
    """sacrebleu's signature of how ``bleu`` computes."""
    metric = BLEU(max_ngram_order=2, tokenize="none", smooth_method="none", force=True)
    metric.corpus_score([""], [[""]])  # a signature exists only once something was scored
    return str(metric.get_signature())


def rouge_l(hypothesis: str, reference: str) -> float:
    """F1 (0 to 1) of the longest common subsequence of words, without stemming; a set's ROUGE-L is the mean.
    rouge-score lower-cases and takes runs of a-z and 0-9 for words, so text in other scripts scores 0."""
    return _ROUGE.score(reference, hypothesis)["rougeL"].fmeasure


def rouge_l_whitespace(hypothesis: str, reference: str) -> float:
    """The same of words split at white space, case kept, as the paper's authors compute it: the ROUGE-L to
    compare with the paper's Table 2, and with BLEU here, which splits words alike."""
    return _ROUGE_WHITE_SPACE.score(reference, hypothesis)["rougeL"].fmeasure
