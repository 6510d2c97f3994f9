"""More than two classes: which topic a text is given, how many labels that rests on, and what would make it another."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlflow_relabel_audit import Auditor

TOPICS = {
    "health": "doctor patient drug trial heart diet clinic sleep virus",
    "money": "bank market share profit rate loan price stock fund",
    "sport": "goal match team coach league score season striker",
    "travel": "flight hotel beach train guide island ticket museum tour",
}
EVERYWHERE = ["new", "year", "day", "people", "city", "plan", "after", "before", "report", "big", "small"]


def headlines(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts that borrow a few words from another topic, and their topics."""
    rng = np.random.default_rng(seed)
    topics = rng.choice(list(TOPICS), count)
    texts = []
    for topic in topics:
        other = rng.choice(list(TOPICS))
        words = [*rng.choice(TOPICS[topic].split(), 4), *rng.choice(TOPICS[other].split(), 2)]
        texts.append(" ".join(rng.permutation([*words, *rng.choice(EVERYWHERE, 5)])))
    return texts, topics


texts, topics = headlines(300, seed=0)
model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=5)).fit(texts, topics)
new, truth = headlines(60, seed=1)

auditor = Auditor(model, texts, topics)
result = auditor.robustness(new, truth)
print(f"median k: {result.summary['k_median']:g} of {len(texts)} labels, to any other topic")
print(
    result.predictions[["row_id", "predicted", "flips_to", "probability", "k", "k_lower"]]
    .head(8)
    .to_string(index=False)
)

predicted = result.predictions["predicted"].iloc[0]
print(f"\n{new[0]!r} is {predicted}; labels to change so that it becomes")
for topic in TOPICS:
    if topic != predicted:
        contest = auditor.contest([new[0]], want=topic)
        after = contest.by_class_after[contest.classes.index(topic)]
        print(f"  {topic:>7}: {contest.k}, its probability then {after:.2f}")
