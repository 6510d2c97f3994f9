"""Proved lower bounds of the number of labels whose relabelling can flip a prediction."""
