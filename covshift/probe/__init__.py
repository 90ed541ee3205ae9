"""Active measurements: they run the model themselves, on a batch of their own, and leave everything as it was."""
