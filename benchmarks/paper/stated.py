"""What the paper states, as far as it is known here; a figure that is not is shown as such, never guessed.

Yang, Xu and Yu, "Relabeling Minimal Training Subset to Flip a Prediction", Findings of EACL 2024.
"""

from __future__ import annotations

NOT_STATED = "not stated here"

FOUND = (0.61, 1.00)
"""Table 2, over all sets and features: share of test points for which Algorithm 1 finds a set."""
FLIPPED = (0.39, 0.87)
"""Table 2: share of test points whose prediction the refit with that set flips."""
FRAGILE = 0.02
"""Abstract: relabelling fewer than 2 % of the training points can always flip a prediction."""
TAG = (0.60, 0.23)
"""Section 3.4, loan: share of the biased rows in the sets of misclassified rows of tag X, and of tag Y."""

QUALITY = {
    "sst-words": (0.79, 0.80, 0.88),
    "sst-embeddings": (0.82, 0.83, 0.91),
    "hate-counts": (0.87, 0.40, 0.81),
    "hate-embeddings": (0.89, 0.63, 0.88),
    "tweet-counts": (0.70, 0.70, 0.75),
    "tweet-embeddings": (0.75, 0.76, 0.84),
    "loan": (0.79, 0.80, 0.88),
}
"""Table 6: accuracy, F1 and area under the curve. Its embeddings are BERT's; its bag of words on SST
averages word vectors."""
