"""From logits to laws: the only place where decoding turns logits into probabilities or picks a token.

``warp`` applies every sampling parameter to every node of a draft tree along the node's own path, for plain
decoding (N = 1), for verification and for draft models alike. What it returns, ``Warped``, is the law of each
node; temperature 0 is the law that puts everything on the most likely token (the lowest id among equals).

Order, which is transformers': logit bias, repetition penalty, presence and frequency penalty, bad words, min
tokens, row processors, temperature, top-k, top-p, min-p, typical-p. vLLM differs in two places that can be
seen: it applies bad words and min tokens before the logit bias (no difference in the result, a forbidden
token stays forbidden) and min-p before top-p, so that its top-p counts the probability that min-p has left.

Results of a row are a function of that row and node alone: batch mates, other nodes and the number of either
do not change a bit of them (on a CPU; GPU reductions may differ in the last bits from one batch size to
another)."""

from __future__ import annotations

from outrider.sampling.law import TopLogprobs, Warped, top_logprobs
from outrider.sampling.process import paths_of, warp
from outrider.sampling.rows import RowSampling, dead_end, processor_failed

__all__ = ["RowSampling", "TopLogprobs", "Warped", "dead_end", "paths_of", "processor_failed", "top_logprobs", "warp"]
