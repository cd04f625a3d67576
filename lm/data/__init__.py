"""Text for training: sources, tokenizers, memory-mapped tokens, rows in an order that is pure arithmetic.

`prepare(DataOptions)` is the door; what it returns needs no other part of the house.
"""

from lm.data.batches import Batch, Batches
from lm.data.options import DataOptions
from lm.data.prepare import Prepared, Progress, Validation, prepare
from lm.data.tokenizers import Tokenizer, declared_vocab_size, load_tokenizer

__all__ = [
    "Batch",
    "Batches",
    "DataOptions",
    "Prepared",
    "Progress",
    "Tokenizer",
    "Validation",
    "declared_vocab_size",
    "load_tokenizer",
    "prepare",
]
