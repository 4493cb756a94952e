"""Between the networks and the coder: the integer tables and fixed-point numbers that decide probabilities."""
