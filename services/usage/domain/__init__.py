"""The rules of credits and metering; no input, no output, standard library only."""
