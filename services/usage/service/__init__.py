"""The use cases of credits and metering; each opens the one transaction it needs."""
