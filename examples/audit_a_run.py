"""Log a model with plain MLflow, then audit its run by id; the reports go back to the run."""

import mlflow
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_relabel_audit import audit

# Wine, as a table with numbers, a category and an id: is it of the first cultivar?
features, cultivar = load_wine(return_X_y=True, as_frame=True)
strength = pd.cut(features["alcohol"], [0, 12.5, 13.5, 20], labels=["light", "medium", "strong"]).astype(str)
numbers = ["color_intensity", "hue", "magnesium", "malic_acid"]
wine = features[numbers].assign(strength=strength, first=(cultivar == 0).astype(int), bottle=features.index)
train, test = train_test_split(wine, test_size=0.3, random_state=0)
train.to_parquet("wine_train.parquet", index=False)
test.to_parquet("wine_test.parquet", index=False)

columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["strength"]))
model = make_pipeline(columns, LogisticRegression())
model.fit(train[[*numbers, "strength"]], train["first"])

mlflow.set_experiment("wine")
with mlflow.start_run() as run:
    mlflow.sklearn.log_model(model, name="model")

result = audit(
    run_id=run.info.run_id,
    train_data="wine_train.parquet",
    target="first",
    eval_data="wine_test.parquet",
    id_column="bottle",
)
print(f"median k: {result.summary['k_median']:.0f} of {len(train)} labels")
print(f"report: {result.report_location}")
