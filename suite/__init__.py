"""
The whole house on one machine: embedded PostgreSQL and Valkey, migrations, every room, the gateway.

Tests and benchmarks use `postgres.EmbeddedPostgres`, `valkey.EmbeddedValkey` and
`stack.Stack`; people use the `finity` command.
"""

import os

# A program started as another user is forked, and gRPC's fork handlers, which this
# package has no use for, crash the child now and then while a channel is at work.
# gRPC reads this once, when it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
