"""The CPU backend: loops compiled by numba, named as the modules of `wcodec.reference` that say the
same in NumPy.

From the outside in:

- `backend` is the class, `threads` shares segments out, `coding` calls kernels.
- What kernels take: `jobs`, `job_records`, `kinds`, `tables`, `arguments`, `scratch`.
- Kernels: `segments` for any segment, `contexts` for those with contexts, `common_encoding` and
  `common_decoding` for the common kinds. `differences` by itself.
- Their parts, plain loops: `planes`, `rans`, `rans_loops`, `prediction`, `checksums`, `crc32`,
  `arrays`.
- Native functions, in LLVM IR: `words`, `split`, `merge`, `rans_vectors`, `prediction_vectors`,
  `transforms`; `ir` has their instructions.
- `compiling` says how all this is compiled, `cache` where that is kept, `cpu` what the CPU is
  called.
"""
