"""What the encoder chooses: geometry, modes, coders, tables. Spec: chapter 14 (informative). A
decoder needs none of it.
"""
