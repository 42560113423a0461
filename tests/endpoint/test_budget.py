"""The caps hold for every order in which requests begin and end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.endpoint.budget import TEMPLATE_TOKENS, Budget, CapReachedError, Held
from mlx_sumrl.endpoint.ledger import Spent


def config(**changes: object) -> DistillConfig:
    options = {
        "out": Path("out"),
        "from_ledger": True,
        "max_tokens": 100,
        "price": {"prompt": 3, "completion": 7},
    }
    return DistillConfig.model_validate({**options, **changes})


@settings(deadline=None)  # machines are shared
@given(
    requests=st.lists(st.tuples(st.integers(1, 800), st.floats(0, 1), st.floats(0, 1), st.integers(1, 9))),
    cap=st.integers(0, 8000),
    past=st.integers(0, 1000),
    workers=st.integers(1, 6),
)
def test_never_above_either_cap(
    requests: list[tuple[int, float, float, int]], cap: int, past: int, workers: int
) -> None:
    """Each request ends at some share of its worst case, after some turns of the loop."""
    options = config(max_total_tokens=max(cap, 1), max_cost=0.04)
    budget = Budget(options, Spent(past, 0, past * 3e-6))
    spent = [past, 0]
    waiting = iter(requests)

    async def work() -> None:
        for size, prompt_share, completion_share, turns in waiting:
            try:
                held = await budget.reserve(size)
            except CapReachedError:
                return
            assert held.worst.tokens == size + TEMPLATE_TOKENS + 100
            for _ in range(turns):
                await asyncio.sleep(0)
            actual = [
                round(held.worst.prompt_tokens * prompt_share),
                round(held.worst.completion_tokens * completion_share),
            ]
            spent[0] += actual[0]
            spent[1] += actual[1]
            await budget.settle(held, Spent(*actual, options.price.of(*actual)))

    async def run() -> None:
        await asyncio.gather(*(work() for _ in range(workers)))

    asyncio.run(run())
    assert sum(spent) <= max(cap, past)
    assert spent[0] * 3 + spent[1] * 7 <= 40_000


def test_room_that_is_left_is_used() -> None:
    """Two fit at worst; a third waits for what the first leaves, and gets it."""
    one = 44 + TEMPLATE_TOKENS + 100  # 400 at worst

    async def run() -> list[str]:
        budget = Budget(config(max_total_tokens=2 * one + 50), Spent())
        first, _ = await budget.reserve(44), await budget.reserve(44)
        log: list[str] = []

        async def third() -> Held:
            held = await budget.reserve(44)
            log.append("reserved")
            return held

        task = asyncio.create_task(third())
        for _ in range(5):
            await asyncio.sleep(0)
        log.append("settled")
        await budget.settle(first, Spent(40, 10))
        await task
        return log

    assert asyncio.run(run()) == ["settled", "reserved"]


def test_reached_says_which() -> None:
    async def run(**caps: object) -> str:
        with pytest.raises(CapReachedError) as error:
            await Budget(config(**caps), Spent()).reserve(44)
        return str(error.value)

    assert asyncio.run(run(max_total_tokens=399)) == (
        "max_total_tokens 399 is reached (the next request may take 400 tokens, cost 0.0016)"
    )
    # 300 x 3 and 100 x 7 are 1600 millionths
    assert asyncio.run(run(max_cost=0.00159)).startswith("max_cost 0.00159 is reached")
    asyncio.run(Budget(config(max_cost=0.0016), Spent()).reserve(44))


def test_a_server_that_counts_more_is_believed_from_then_on() -> None:
    async def run() -> None:
        budget = Budget(config(), Spent())
        first, second = await budget.reserve(44), await budget.reserve(44)
        await budget.settle(first, Spent(300 + 50, 100 + 9))
        await budget.settle(second, Spent(300 + 20, 100))
        assert (await budget.reserve(44)).worst.tokens == 400 + 50 + 9

    asyncio.run(run())
