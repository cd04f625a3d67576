"""Text for training: sources, tokenizers, memory-mapped tokens, rows in an order that is pure arithmetic.

`lm.data.prepare.prepare(DataOptions)` is the door; what it returns needs no other part of the house.
"""
