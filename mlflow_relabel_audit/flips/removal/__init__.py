"""Training rows whose removal flips a prediction, for comparison."""
