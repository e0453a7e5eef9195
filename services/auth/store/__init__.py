"""Every SQL statement of the auth room, a module for each resource."""
