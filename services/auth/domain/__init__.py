"""The rules of accounts and sessions; no input, no output, standard library only."""
