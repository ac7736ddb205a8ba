"""What torch.compile is asked for: the blocks of a model, and a step of decoding as a whole."""

from collections.abc import Callable

import torch

from lab.fast.cache import read_tokens


def compile_model(model) -> None:
    """Compile a model's blocks, and `read_tokens` for its cache. Neither is compiled again for each new shape."""
    for block in model.h:
        block.compile(dynamic=True)
    model.read_tokens = compiled_step()


def compiled_step() -> Callable:
    """`read_tokens`, compiled.

    The numbers of rows and columns change from round to round. These dimensions are marked, so that no compilation
    takes them for constants. There is one for a single row and one for several, each when all columns of the cache are
    in use and when they are not: four in all."""
    compiled = torch.compile(read_tokens)

    def read(model, tokens, at, kv, mask):
        tokens = tokens.clone()  # they may be a view of more, which would be a case of its own
        for x, dimensions in ((tokens, 0), (at, 0), (mask, 1), *((x, (0, 3)) for x in kv)):
            torch._dynamo.maybe_mark_dynamic(x, dimensions)
        return compiled(model, tokens, at, kv, mask)

    return read
