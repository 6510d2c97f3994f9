"""A tabular pipeline and its groups: whose labels drive whose errors?"""

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlflow_relabel_audit import Auditor

# Loan applications, drawn here. In the training rows, 70 % of the good applicants of the south are put down as
# defaults: a bias in the labels, which the model learns.
rng = np.random.default_rng(0)
count = 3000
loans = pd.DataFrame(
    {
        "income": rng.lognormal(10.3, 0.5, count).round(-2),
        "years_employed": rng.gamma(2.0, 3.0, count).round(1),
        "home": rng.choice(["rented", "owned", "shared"], count),
        "region": rng.choice(["north", "south", "east"], count, p=[0.5, 0.3, 0.2]),
    }
)
score = np.log(loans["income"]) - 10.3 + 0.15 * (loans["years_employed"] - 6) + 0.5 * (loans["home"] == "owned")
default = (rng.logistic(size=count) > 1.5 * score.to_numpy()).astype(int)
train, test, y_test = loans[:2000], loans[2000:], default[2000:]
y_train = default[:2000].copy()
good_south = np.flatnonzero((train["region"] == "south").to_numpy() & (y_train == 0))
biased = rng.choice(good_south, round(0.7 * len(good_south)), replace=False)
y_train[biased] = 1

numbers, words = ["income", "years_employed"], ["home", "region"]
columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), words))
model = make_pipeline(columns, LogisticRegression()).fit(train, y_train)

auditor = Auditor(model, train, y_train)
result = auditor.robustness(test, y_test)
print(f"median k: {result.summary['k_median']:.0f} of {len(train)} labels")

found = auditor.bias(train[["region"]], test, y_test, test[["region"]], result=result)
for finding in found.findings:
    print(f"[{finding.level}] {finding.message}")

# Of the labels behind the errors in each region, the share that comes from the south.
composition = found.groups.query("outcome == 'misclassified' and train_group == 'south' and train_label == '(all)'")
shown = ["eval_group", "n_predictions", "share", "base_rate", "lift", "p_adjusted"]
print(composition[shown].round(3).to_string(index=False))
