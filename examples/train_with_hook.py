"""One line before training: whatever logistic regression is logged from then on has been audited."""

import mlflow
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import autolog

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

autolog(eval_data=(X_test, y_test), max_predictions=50)

mlflow.set_experiment("hooked")
with mlflow.start_run() as run:
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train, y_train)
    mlflow.sklearn.log_model(model, name="model")

audited = mlflow.get_run(run.info.run_id)
print(f"median k: {audited.data.metrics['relabel_audit/k_median']:.0f} of {len(y_train)} labels")
print(audited.data.tags["relabel_audit.verdict"])
