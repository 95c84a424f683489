"""Checkpoints that are whole or not there, with checksums, and the settings a run may go on under."""
