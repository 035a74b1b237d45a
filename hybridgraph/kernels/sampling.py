"""One Triton kernel each for sampling and for the largest logit, by a single program that walks over the vocabulary.

    launch_sample(logits, temperature, uniform, token, token_host, step)

``logits`` [vocab] of any float type; the id goes to ``token`` int64 [1] and to ``token_host[step]``, int64 in
pinned host memory, which the kernel writes over the bus: no copy has to be launched, and the word is there when the
kernel ends.

Any logits, NaN included, give an id of the vocabulary: a decode step reads its row of the embedding.
"""

# mypy: ignore-errors
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192  # logits of a step
NUM_WARPS = 32


def launch_sample(
    logits: Tensor, temperature: float, uniform: float, token: Tensor, token_host: Tensor, step: int
) -> None:
    """Softmax of logits/temperature in float32, inverted at ``uniform`` of [0, 1)."""
    vocab = logits.shape[0]
    blocks = triton.next_power_of_2(triton.cdiv(vocab, BLOCK))
    sample_kernel[(1,)](
        logits,
        temperature,
        uniform,
        token,
        token_host,
        step,
        VOCAB=vocab,
        BLOCK=BLOCK,
        BLOCKS=blocks,
        num_warps=NUM_WARPS,
    )


def launch_greedy(logits: Tensor, token: Tensor, token_host: Tensor, step: int) -> None:
    """The first of the largest logits."""
    greedy_kernel[(1,)](logits, token, token_host, step, VOCAB=logits.shape[0], BLOCK=BLOCK, num_warps=NUM_WARPS)


@triton.jit
def scaled_logits(logits, temperature, cols, VOCAB: tl.constexpr):
    return tl.load(logits + cols, cols < VOCAB, other=float("-inf")).to(tl.float32) / temperature


# Triton would compile kernels of their own for a step of 1 and for multiples of 16: between two tokens.
@triton.jit(do_not_specialize=["step"])
def sample_kernel(
    logits,
    temperature,
    uniform,
    token,
    token_host,
    step,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,  # of BLOCK logits, up to the next power of 2
):
    LAST: tl.constexpr = (VOCAB - 1) // BLOCK
    blocks = tl.arange(0, BLOCKS)
    cols = tl.arange(0, BLOCK)
    tops = tl.full((BLOCKS,), float("-inf"), tl.float32)  # the largest of each block
    sums = tl.zeros((BLOCKS,), tl.float32)  # of exponentials, relative to that
    for block in range(LAST + 1):
        x = scaled_logits(logits, temperature, block * BLOCK + cols, VOCAB)
        top = tl.max(x, 0)
        shift = tl.where(top == float("-inf"), 0.0, top)  # where no id of the block is possible
        tops = tl.where(blocks == block, top, tops)
        sums = tl.where(blocks == block, tl.sum(tl.exp(x - shift), 0), sums)
    top = tl.max(tops, 0)
    cumulative = tl.cumsum(sums * tl.exp(tops - top), 0)
    # Scaled by the last sum, so that every draw below 1 finds a block.
    target = uniform * tl.max(cumulative, 0)
    chosen = tl.min(tl.where(cumulative > target, blocks, LAST), 0)
    before = tl.max(tl.where(blocks < chosen, cumulative, 0.0), 0)
    cols += chosen * BLOCK
    weights = tl.exp(scaled_logits(logits, temperature, cols, VOCAB) - top)
    # The block's own sum may round to just below what it was above: then it is its last possible id.
    first = tl.min(tl.where((before + tl.cumsum(weights, 0) > target) & (weights > 0), cols, VOCAB), 0)
    last = tl.max(tl.where(weights > 0, cols, 0), 0)
    store_token(tl.minimum(first, last), token, token_host, step)


@triton.jit(do_not_specialize=["step"])
def greedy_kernel(logits, token, token_host, step, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)  # of the logits at the same place of every block
    at = cols
    for start in range(0, VOCAB, BLOCK):
        x = scaled_logits(logits, 1.0, start + cols, VOCAB)
        at = tl.where(x > best, start + cols, at)
        best = tl.where(x > best, x, best)
    store_token(tl.min(tl.where(best == tl.max(best, 0), at, VOCAB - 1), 0), token, token_host, step)


@triton.jit
def store_token(choice, token, token_host, step):
    tl.store(token, choice.to(tl.int64))
    tl.store(token_host + step, choice.to(tl.int64))
