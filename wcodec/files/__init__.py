"""Files and checkpoints: read, written, converted, each output whole or not there."""
