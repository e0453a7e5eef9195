"""Every SQL statement of the usage room."""

# They find every row by an index, and are planned once: at the sizes of a test or a young house the
# planner would rather read the table, and go on doing so when it has grown.
PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
