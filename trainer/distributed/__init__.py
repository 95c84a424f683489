"""The processes of a run: one World of sums and barriers, and a heartbeat that names who died."""
