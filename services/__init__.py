"""The rooms: one folder per service, all with the plan of ARCHITECTURE.md."""
