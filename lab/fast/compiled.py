"""What torch.compile is asked for: the blocks of a model, and a step of decoding as a whole."""

import torch

from lab.fast.cache import read_tokens


def compile_model(model) -> None:
    """Compile a model's blocks, and `read_tokens` for its cache. Neither is compiled again for each new shape.

    A step has another number of rows and columns in every round. These dimensions are marked, so that no compilation
    takes them for constants. There is one for a single row and one for several, each when all columns of the cache are
    in use and when they are not: four in all."""
    for block in model.h:
        block.compile(dynamic=True)
    compiled = torch.compile(read_tokens)

    def read(model, tokens, at, kv, mask):
        for x, dimensions in ((tokens, 0), (at, 0), (mask, 1), *((x, (0, 3)) for x in kv)):
            torch._dynamo.maybe_mark_dynamic(x, dimensions)
        return compiled(model, tokens, at, kv, mask)

    model.read_tokens = read
