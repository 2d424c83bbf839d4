"""The order of merges in a sentencepiece vocabulary, which gives scores instead."""

from collections.abc import Mapping, Sequence


def merges_by_score(scores: Mapping[str, float]) -> Sequence[tuple[str, str]]:
    """Every pair of tokens that makes a token, the best score first.

    sentencepiece merges the pair whose result scores best, the leftmost of equals. Here
    each pair has a rank, so the ways to write one token are put in an order too: long
    beginnings first, since runs of one character grow from the left.
    """
    pairs = [
        (score, size, text[:size], text[size:])
        for text, score in scores.items()
        for size in range(1, len(text))
        if text[:size] in scores and text[size:] in scores
    ]
    pairs.sort(key=lambda pair: pair[:2], reverse=True)
    return [(left, right) for _, _, left, right in pairs]
