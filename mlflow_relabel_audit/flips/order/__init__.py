"""The estimate pass: for every prediction, the training labels in the order of their influence."""
