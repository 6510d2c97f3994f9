"""A text classifier, TF-IDF and logistic regression: its fragile predictions, and the labels to look at again."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from mlflow_relabel_audit import Auditor

# Short product reviews, drawn here so that the script runs anywhere; 5 % of the training labels are wrong.
GOOD = ["excellent", "sturdy", "quick", "lovely", "reliable", "bright", "comfortable", "quiet", "generous", "handy"]
BAD = ["broken", "flimsy", "slow", "late", "noisy", "leaking", "dull", "missing", "scratched", "useless"]
THINGS = ["kettle", "lamp", "chair", "radio", "blanket", "charger", "drill", "jacket", "tent", "printer"]
FILLER = ["arrived", "used", "bought", "again", "still", "rather", "really", "quite", "after", "with", "my", "the"]


def review(rng, good):
    words = [*rng.choice(GOOD if good else BAD, 2), *rng.choice(BAD if good else GOOD, rng.integers(0, 3))]
    words += [*rng.choice(THINGS, 1), *rng.choice(FILLER, 5)]
    return " ".join(rng.permutation(words))


rng = np.random.default_rng(0)
truth = rng.integers(0, 2, 800)
texts = np.array([review(rng, good) for good in truth])
X_train, X_test, y_test = texts[:600], texts[600:], truth[600:]
wrong = rng.permutation(600)[:30]
y_train = truth[:600].copy()
y_train[wrong] = 1 - y_train[wrong]

model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10)).fit(X_train, y_train)

auditor = Auditor(model, X_train, y_train)  # takes what the pipeline's fit took: the texts
result = auditor.robustness(X_test, y_test)
print(f"median k: {result.summary['k_median']:.0f} of {len(y_train)} labels")
fragile = result.predictions.sort_values("k").iloc[0]
print(f"\n{X_test[fragile['row_id']]}\nis predicted {fragile['predicted']}; changed labels that flip it:")
for train_id in result.flip_sets.loc[result.flip_sets["row_id"] == fragile["row_id"], "train_id"]:
    print(f"  {y_train[train_id]}  {X_train[train_id]}")

noise = auditor.noise(X_test, y_test)
suspects = noise.suspects["train_id"]
print(f"\n{len(suspects)} labels to look at again, {np.isin(suspects, wrong).sum()} of the {len(wrong)} wrong ones")
print(noise.suspects[["train_id", "label", "suggested_label", "score", "level"]].head().to_string(index=False))
