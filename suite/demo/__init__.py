"""The story `finity demo` tells against the running suite: JSON in, real usage, a refusal."""
