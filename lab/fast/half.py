"""Half precision: when it is used, and the head in it."""

import torch

ROWS = 4096  # words at a time, so that no second matrix in float32 is needed


def product_dtype(W: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products with W: autocast's, where that is enabled."""
    kind = W.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else W.dtype


class Centred(torch.autograd.Function):
    """W - W.mean(dim=0), rounded to a half precision. W (V, C) gets the gradient of the result as it is.

    That is right for every function that ignores a constant added to all V logits, as a softmax does: the gradients of
    its words sum to zero, so nothing is left for the mean."""

    @staticmethod
    def forward(ctx, W, dtype):
        ctx.dtype, mean = W.dtype, W.mean(dim=0)
        out = torch.empty_like(W, dtype=dtype)
        for rows, rounded in zip(W.split(ROWS), out.split(ROWS)):
            rounded.copy_(rows - mean)
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype), None


def centred(W: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A head (V, C), centred over the words before it is rounded to `dtype`: see `Centred`."""
    return Centred.apply(W, dtype)
