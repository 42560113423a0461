"""Random rows of prompt and completion, for property tests: groups of any size, in any order."""

from __future__ import annotations

from hypothesis import strategies as st

from mlx_sumrl.policy.packing import Row

VOCABULARY = 290
"""Token ids below it are drawn; the tiny families have ten more."""


@st.composite
def grouped_rows(
    draw: st.DrawFn,
    groups: int = 3,
    group_size: int = 5,
    prompt: int = 12,
    completion: int = 14,
) -> list[Row]:
    """Rows of at most this many groups, completions in each, and tokens; at least 1 of each. Shuffled.

    The ids follow from a seed: hypothesis shrinks lengths, not tokens.
    """
    generator = draw(st.randoms(use_true_random=False, note_method_calls=False))

    def ids(length: int) -> tuple[int, ...]:
        return tuple(generator.randrange(VOCABULARY) for _ in range(length))

    rows: list[Row] = []
    for _ in range(draw(st.integers(1, groups))):
        own = ids(draw(st.integers(1, prompt)))
        for length in draw(st.lists(st.integers(1, completion), min_size=1, max_size=group_size)):
            rows.append((own, ids(length)))
    return draw(st.permutations(rows))
