"""The reference codec: NumPy alone, one module a chapter of ``spec/wcodec.md``.

============== ======= ==========================================================
module         chapter
============== ======= ==========================================================
container      4       header, index records, tensor records, footer: the only parser
planes         5       dtypes, word maps, planes and nibble pairs
tiles          6       matrix view, segments, tiles, the order of elements
prediction     7       NONE, LEFT, TOP, AVG, PLANAR
entropy        9       frequency tables and interleaved rANS
segments       10      segment records: planes, raw, constant, patches
checksums      11      CRC-32 and its combination
plan           14      what an encoder chooses, deterministically
============== ======= ==========================================================
"""
