"""Checkpoints that follow one another: what has changed, sent and applied."""
