"""Directories of models, in either form: encoded, decoded, verified. Spec: hub.md."""
