"""Audit a model in memory: no MLflow, no files."""

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train, y_train)

auditor = Auditor(model, X_train, y_train)
result = auditor.robustness(X_test, y_test)
print(f"median k: {result.summary['k_median']:.0f} of {len(y_train)} labels")

fragile = result.predictions.sort_values("k").head(3)
print(fragile[["row_id", "label", "predicted", "probability", "k_lower", "k", "k_paper"]].to_string(index=False))

# Which labels those are, for the most fragile one.
row = fragile["row_id"].iloc[0]
labels = result.flip_sets[result.flip_sets["row_id"] == row]
print(labels[["rank", "train_id", "train_label", "new_label", "influence"]].to_string(index=False))
