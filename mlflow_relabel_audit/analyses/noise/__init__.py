"""Wrong training labels: how likely each is, how many there are, what correcting them buys, what more would do."""
