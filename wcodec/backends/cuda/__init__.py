"""The CUDA backend: `backend` plans launches, `runtime` carries them out,
``kernels`` holds the CUDA C++ sources.
"""
