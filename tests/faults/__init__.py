"""Real jobs to which something happens. ASYNCFEDED_TEST_PUNISH_S makes the random kills last longer."""
