"""The reference codec: NumPy alone, one module for each chapter of ``spec/wcodec.md``.

============ ========= ============================================================================
module       chapter   holds
============ ========= ============================================================================
container    4         header, index, footer; `read_index` is the only parser of files
records      4.3..4.5  the bodies of index records
planes       5         dtypes, word maps, planes and nibble pairs
tiles        6         matrix view, segments, tiles, the order of elements
prediction   7         NONE, LEFT, TOP, AVG, PLANAR
transforms   8         DCT-II and ADST by lifting
tables       9.1       frequency tables and context maps
rans         9.2, 9.3  interleaved rANS
contexts     9.4       which table codes a symbol
segments     10        the columns of a segment table, and where the parts of a record lie
decoding     10        segment records to words: start here
encoding     10        words to segment records
checksums    11        CRC-32 and its combination
differences  12.5      differences from a base, content hashes
operands     14.1      streams that kernels multiply by
============ ========= ============================================================================

What an encoder chooses is in `wcodec.planner` (chapter 14).
"""
