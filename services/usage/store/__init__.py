"""Every SQL statement of the usage room."""

# They find every row by an index, and are planned once for any number of values: at the sizes of a
# test or a young house the planner would rather read the table, and go on doing so when it has
# grown. Where one index has to serve, a LATERAL query with that index's order has the planner take
# it: of tables without rows every index seems to cost the same, even read from end to end.
PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
