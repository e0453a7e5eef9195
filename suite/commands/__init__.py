"""The commands of `finity`, a file per thing they are about."""
