"""What a file holds, what was chosen for it, and what else there was to choose."""
