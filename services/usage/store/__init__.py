"""Every SQL statement of the usage room."""
