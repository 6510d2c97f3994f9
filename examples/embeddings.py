"""A logistic regression on embeddings: the encoder stays as it is, the labels of the last layer are audited."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from mlflow_relabel_audit import Auditor

# The encoder, a stand-in for a pretrained one: a small network trained on the digits 0 to 6. What its hidden
# layer makes of an image is the image's embedding; `SentenceTransformer.encode(texts)` would take its place.
images, digit = load_digits(return_X_y=True)
images = images / 16.0
network = MLPClassifier((48,), max_iter=600, random_state=0).fit(images[digit <= 6], digit[digit <= 6])


def encode(pictures):
    return np.maximum(pictures @ network.coefs_[0] + network.intercepts_[0], 0.0)


# The task: tell an 8 from a 9, which the encoder has never seen.
task = digit >= 8
vectors, labels = encode(images[task]), np.where(digit[task] == 9, "nine", "eight")
X_train, X_test, y_train, y_test = vectors[:250], vectors[250:], labels[:250], labels[250:]
model = LogisticRegression(C=0.1, max_iter=1000).fit(X_train, y_train)

# Rows are named by the image they came from, so that every table leads back to it.
names = np.array([f"image-{i}" for i in np.flatnonzero(task)])
auditor = Auditor(model, X_train, y_train, row_ids=names[:250])
result = auditor.robustness(X_test, y_test, row_ids=names[250:])
print(f"median k: {result.summary['k_median']:.0f} of {len(y_train)} labels")
columns = ["row_id", "label", "predicted", "probability", "k_lower", "k"]
print(result.predictions.sort_values("k")[columns].head().to_string(index=False))

# Sure, and yet resting on few labels: what a probability alone does not show.
sure = result.predictions[(result.predictions["probability"] - 0.5).abs() > 0.4]
print("\nthe most fragile of the sure ones:")
print(sure.sort_values("k")[columns].head(3).to_string(index=False))
