#!/bin/sh
# A CI step: hold a candidate in the registry to a policy; promote it if it passes, stop the pipeline if not.
#
# MLFLOW_TRACKING_URI names the server, with its credentials in MLFLOW_TRACKING_USERNAME and
# MLFLOW_TRACKING_PASSWORD. The rows are needed where the model has not been audited yet.
set -eu

model=${1:?"usage: gate_in_ci.sh NAME [audit options, such as --train-data FILE --target COLUMN]"}
shift

cat >relabel_policy.toml <<'POLICY'
[require]
k_median = ">= 20"                   # labels to change before half of the predictions have flipped
confident_fragile_share = "<= 0.05"  # sure of itself, yet under 1 % of the labels flip it
noise_rate = "<= 0.1"                # labels estimated to be wrong
POLICY

# Exit status: 0 passed and promoted, 1 failed, 2 the request is wrong, 3 the server failed. All but 0 stop here.
mlflow-relabel gate --model-uri "models:/$model@candidate" --policy relabel_policy.toml --promote champion "$@"
echo "deploying models:/$model@champion"
