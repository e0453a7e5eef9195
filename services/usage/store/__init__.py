"""Every SQL statement of the usage room."""

# They find every row by an index, and are planned once for any number of values: at the sizes of a
# test or a young house the planner would rather read the table, and go on doing so when it has
# grown. It would still read an empty table's index from end to end, for all values at once, and
# does not learn that it filled until the next ANALYZE. So a row is found by `= ANY (ARRAY[x])`,
# which no order of an index helps, and not by `= x`; from a partial index, or where another one has
# the column too, by a LATERAL query in the order of the right one. tests/usage/test_plans.py.
PLANNER = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
