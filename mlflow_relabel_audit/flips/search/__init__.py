"""The verified search: the smallest set of an order whose refit flips the prediction."""
