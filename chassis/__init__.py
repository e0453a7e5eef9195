"""The runtime every room stands on. It knows no room, no table and no business word."""
