"""The fused kernels: every statistic of a tensor in one pass over its memory, a cache-sized block at a time.

``memory`` copies a block from where the tensor lies; ``bins`` counts its bins; ``block`` sums its powers in float64
about the block's own mean and merges them into the whole; ``units`` keeps the numbers of every unit; ``table`` does
both for a block whose columns are units; ``walk`` goes through the tensor. A block holds elements of one unit or, where
units lie side by side in memory (``(N, D)``, tokens, channels-last), a table of them.

These rooms refuse to know torch, to write to the tensor and to keep its address. They are compiled on first use, per
dtype, by numba.
"""
