"""The CPU backend: loops compiled for the CPU at hand, out of LLVM IR that numba has made.

Modules are named as those of `wcodec.reference` that say the same in NumPy.

From the outside in:

- `backend` is the class, `threads` shares segments out, `coding` calls kernels.
- What kernels take: `jobs`, `job_records`, `kinds`, `tables`, `arguments`, `scratch`.
- Kernels: `segments` for any segment, `contexts` for those with contexts, `common_encoding` and
  `common_decoding` for the common kinds. `differences` by itself.
- Their parts, plain loops: `planes`, `rans`, `rans_loops`, `prediction`, `checksums`, `crc32`,
  `arrays`.
- Native functions, in LLVM IR: `words`, `split`, `merge`, `rans_vectors`, `prediction_vectors`,
  `transforms`; `ir` has their instructions.
- `kernels` says what these are. `machine_code` compiles and loads them, out of the LLVM IR in
  ``kernels.xz``, which `compiling` makes by numba, of all in `catalogue`.
- `cpu` says what the CPU is called.
"""
