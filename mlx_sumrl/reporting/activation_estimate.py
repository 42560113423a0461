"""What lives beside weights and gradients while a gradient is computed, in bytes; part of `memory_estimate`.

It follows `mlx_sumrl.policy.packing`, `attention` and `head`, and never imports mlx.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import ceil

from mlx_sumrl.reporting.model_shape import ModelShape

# Fitted to peaks of single phases with mlx 0.32.4 on a CPU: about 150 steps of qwen2 and lfm2 shapes (hidden 64 to
# 512, 2 to 6 layers, 300 to 32,000 tokens of vocabulary), full and LoRA, float32 and bfloat16, with and without
# gradient checkpointing. MLX's own exp on a GPU makes fewer temporaries than the one for CPUs does.
KEPT_SHARE = 0.9
"""Of the arrays that a block would keep for its backward pass if each were kept to the end; see `_Block.kept`."""
PROBABILITY_COPIES = 1.2
CONV_COPIES = 9
"""Of hidden states, what a convolution keeps beside them."""
BLOCK_TEMPORARIES = 7
"""float32 arrays, of hidden states and of the MLP's inner size, while a segment is in the backward pass."""
SCORE_TEMPORARIES = 2.5
FORWARD_TEMPORARIES = 5
"""As `BLOCK_TEMPORARIES`, in the forward pass; and there of scores, with the exponential's own:"""
FORWARD_SCORE_TEMPORARIES = 8
SCORES = 1 << 18
"""Numbers; see `mlx_sumrl.policy.attention`."""
POSITIONS = 192
"""Of a segment at most; see `mlx_sumrl.policy.packing`."""
ALIVE = 8
"""Arrays as large as a tile of the head; this and the next two: see `mlx_sumrl.policy.head`."""
TILE = 2_000_000
"""Bytes."""
NARROWEST = 2048
"""Vocabulary of a tile."""


@dataclass(frozen=True)
class Segment:
    """Rows that run through a block as one array; see `mlx_sumrl.policy.packing`."""

    rows: int
    tokens: int
    """Of each row."""
    before: int = 0
    """Tokens of the prompt that they follow."""

    @property
    def positions(self) -> int:
        return self.rows * self.tokens


@dataclass(frozen=True)
class Layout:
    """A step's rows in micro-batches and segments, all of one length."""

    segments: tuple[Segment, ...]
    """Of one micro-batch."""
    groups: int
    """Of one micro-batch; 1 where its rows are one segment."""
    micro_batches: int
    positions: int
    """Of all micro-batches."""
    completion_tokens: int
    """Of all micro-batches."""

    @classmethod
    def of(
        cls,
        prompt: int,
        completion: int,
        prompts: int,
        group_size: int,
        budget: int,
        share_prompt: bool,
        in_pieces: bool,
    ) -> Layout:
        """As `mlx_sumrl.policy.packing` lays them out."""
        most = POSITIONS if in_pieces else sys.maxsize
        rows, read = prompts * group_size, max(completion - 1, 1)  # a completion's last token is never read
        if not share_prompt or group_size == 1:
            together = min(max(budget // (prompt + read), 1), rows)
            micro_batches, groups = ceil(rows / together), 1
            segments = _cut(together, prompt + read, most)
        else:
            in_part = min(max((budget - prompt) // read, 1), group_size)
            parts = ceil(group_size / in_part)
            groups = min(max(budget // (prompt + group_size * read), 1), prompts)
            micro_batches = prompts * parts if parts > 1 else ceil(prompts / groups)
            shared = _cut(1, prompt, most) + _cut(in_part, read, most, before=prompt)
            segments = shared * groups if in_part > 1 else _cut(1, prompt + read, most)
        positions = micro_batches * sum(segment.positions for segment in segments)
        return cls(segments, groups, micro_batches, positions, rows * completion)

    @property
    def micro_batch_completion_tokens(self) -> int:
        return ceil(self.completion_tokens / self.micro_batches)


def _cut(rows: int, tokens: int, most: int, before: int = 0) -> tuple[Segment, ...]:
    """Rows as segments of like size: several rows each, or pieces of a row one behind the other."""
    if rows > 1 and tokens <= most:
        count = ceil(rows / (most // tokens))
        return tuple(Segment(rows // count + (i < rows % count), tokens, before) for i in range(count))
    count = ceil(tokens / most)
    sizes = [tokens // count + (i < tokens % count) for i in range(count)]
    pieces = tuple(Segment(1, size, before + sum(sizes[:i])) for i, size in enumerate(sizes))
    return pieces * rows


@dataclass(frozen=True)
class Block:
    """What a block of the model needs, on average over attention and convolution blocks."""

    shape: ModelShape
    size: int
    adapters: bool

    def kept(self, segment: Segment) -> float:
        """Bytes between forward and backward pass.

        Hidden states 4 times (read, normalised, and both again before the MLP), the MLP's inner states 4 times (gate,
        up, the sigmoid and the result), queries, keys and values twice, and probabilities.
        """
        shape, positions = self.shape, segment.positions
        attending = shape.attention_layers / shape.layers
        attended = attending * (shape.heads + shape.kv_heads) * shape.head_dim
        plain = 4 * shape.hidden + 4 * shape.intermediate + 2 * attended
        convolved = (1 - attending) * CONV_COPIES * shape.hidden
        # An adapter, in float32, widens what it reads: 5 times hidden states, what attention made, inner states.
        widened = 5 * shape.hidden + shape.heads * shape.head_dim + shape.intermediate
        widened = widened * 4 if self.adapters and self.size < 4 else 0
        seen = attending * PROBABILITY_COPIES * self._scores(segment) * self.size
        return positions * ((KEPT_SHARE * plain + convolved) * self.size + widened) + seen

    def temporaries(self, segment: Segment) -> float:
        """Bytes while the block is differentiated."""
        return self._numbers(segment, BLOCK_TEMPORARIES, SCORE_TEMPORARIES) * 4

    def forward_temporaries(self, segment: Segment) -> float:
        """Bytes while the block is computed and nothing is kept but what it makes."""
        return self._numbers(segment, FORWARD_TEMPORARIES, FORWARD_SCORE_TEMPORARIES) * 4

    def _numbers(self, segment: Segment, wide: float, scores: float) -> float:
        """Arrays of hidden states and of the MLP's inner size, and of as many scores as are made at once."""
        inside = segment.positions * (self.shape.hidden + self.shape.intermediate)
        return wide * inside + scores * min(SCORES, self._scores(segment))

    def _scores(self, segment: Segment) -> float:
        return self.shape.heads * segment.positions * (segment.before + segment.tokens)


@dataclass(frozen=True)
class Head:
    """What the head needs while it is differentiated; see `mlx_sumrl.policy.head`."""

    shape: ModelShape
    budget: int
    """Bytes of an array of tokens x vocabulary."""
    trained: bool
    filtered: bool

    def bytes(self, tokens: int) -> float:
        """For so many completion tokens: tiles of logits, and of the matrix and its gradient in float32."""
        vocab, hidden = self.shape.vocab, self.shape.hidden
        if self.filtered:
            return min(self.budget, ALIVE * 4 * tokens * vocab) + 4 * hidden * vocab
        if self.trained and self.budget >= ALIVE * 4 * max(tokens, hidden) * vocab:  # a single tile
            return 4 * vocab * (ALIVE * tokens + hidden)
        numbers = min(self.budget // ALIVE, TILE) // 4
        wide = min(vocab, max(NARROWEST, numbers // max(tokens, hidden)))
        long = max(1, min(tokens, numbers // wide))
        return 4 * wide * (ALIVE * long + 2 * hidden)
