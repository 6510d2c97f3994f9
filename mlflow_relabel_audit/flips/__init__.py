"""Which training labels flip a prediction: influence order, verified search, certificate, removal, rankings."""
