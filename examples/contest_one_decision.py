"""Contest one decision: which training labels does it rest on, and what if they were otherwise?"""

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlflow_relabel_audit import Auditor

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
y = y.map({0: "malignant", 1: "benign"})
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train, y_train)
auditor = Auditor(model, X_train, y_train, row_ids=X_train.index)

# The decision in question: of those the model gets wrong, the one it is surest of.
everyone = auditor.robustness(X_test, y_test, row_ids=X_test.index).predictions.set_index("row_id")
wrong = everyone[~everyone["correct"]]
patient = wrong["margin"].abs().idxmax()
decision = auditor.contest(X_test.loc[[patient]], row_id=patient, label=y_test[patient])

positive = decision.classes[1]
print(f"patient {patient}: {decision.label}, predicted {decision.predicted}")
print(f"probability of {positive}: {decision.probability:.3f}; with the labels below, {decision.probability_after:.3f}")
print(f"labels to change: {decision.k} of {decision.n_train}, no set of fewer than {decision.k_lower} will do")
print(decision.flip_set[["rank", "train_id", "train_label", "new_label", "influence"]].to_string(index=False))
if decision.removal.found:
    print(f"training rows that would flip it by being left out: {decision.removal.removal_set['train_id'].tolist()}")

fewer = (everyone["k"] < decision.k).mean()
print(f"median k: {everyone['k'].median():.0f}; {fewer:.0%} of the decisions rest on fewer labels than this one")
