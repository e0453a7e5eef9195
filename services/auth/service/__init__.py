"""The use cases of the auth room, a module for each resource; each opens its one transaction."""
