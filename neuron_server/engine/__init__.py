"""The static batch: slots, sampling, who is admitted, and the one thread that runs it."""
