"""The CPU backend: loops compiled by numba, named as the modules of `wcodec.reference` that say the
same in NumPy.
"""
