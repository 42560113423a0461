"""The caps on cost and tokens, held from before a request is sent. Never imports mlx.

Invariant: what was spent and what every request under way may cost at worst stay together within the caps, so that
no order of answers goes beyond them. The worst case is a token for each byte of the prompt, room for the chat
template, and all of `max_tokens`; where a server ever counted more, so much is added to each later one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mlx_sumrl.config import AskingConfig
from mlx_sumrl.endpoint.ledger import Spent

TEMPLATE_TOKENS = 256
"""Room for what a chat template, and a system prompt of its own, put around the messages."""


class CapReachedError(Exception):
    """The next request might go beyond a cap; its message says which."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is held for a request under way."""

    worst: Spent
    """The most it should cost."""
    base: tuple[int, int]
    """Prompt and completion tokens of that, without what was added because a server counted more."""


class Budget:
    """What may still be spent. `reserve` before a request, `settle` once after it."""

    def __init__(self, config: AskingConfig, past: Spent, excess: tuple[int, int] = (0, 0)) -> None:
        """`past`: spent already, with what may have been; `excess`: see `Ledger.excess`."""
        self._config = config
        self._past = past
        self._prompt = self._completion = 0  # of this run, spent and held: integers, so that nothing drifts
        self._under_way = 0
        self._excess = excess
        self._changed = asyncio.Condition()

    def worst(self, prompt_bytes: int) -> Held:
        """The worst case of a request whose messages have so many bytes of UTF-8."""
        base = (prompt_bytes + TEMPLATE_TOKENS, self._config.max_tokens)
        prompt, completion = (tokens + more for tokens, more in zip(base, self._excess, strict=True))
        return Held(Spent(prompt, completion, self._config.price.of(prompt, completion)), base)

    async def reserve(self, prompt_bytes: int) -> Held:
        """Hold the worst case of a request; waits while requests under way may yet leave room for it.

        Raises:
            CapReachedError: there is no room, and nothing under way that could leave any.
        """
        async with self._changed:
            while over := self._over((held := self.worst(prompt_bytes)).worst):
                if not self._under_way:
                    cost = f", cost {held.worst.cost:.2g}" if held.worst.cost else ""
                    raise CapReachedError(
                        f"{over} is reached (the next request may take {held.worst.tokens:,} tokens{cost})"
                    )
                await self._changed.wait()
            self._prompt += held.worst.prompt_tokens
            self._completion += held.worst.completion_tokens
            self._under_way += 1
            return held

    async def settle(self, held: Held, actual: Spent) -> None:
        """A request is over: `actual` takes the place of what was held."""
        async with self._changed:
            self._prompt += actual.prompt_tokens - held.worst.prompt_tokens
            self._completion += actual.completion_tokens - held.worst.completion_tokens
            self._under_way -= 1
            self._excess = (
                max(self._excess[0], actual.prompt_tokens - held.base[0]),
                max(self._excess[1], actual.completion_tokens - held.base[1]),
            )
            self._changed.notify_all()

    def _over(self, more: Spent) -> str:
        """Which cap so much more would go beyond, in words; empty for none."""
        config = self._config
        prompt, completion = self._prompt + more.prompt_tokens, self._completion + more.completion_tokens
        tokens = self._past.tokens + prompt + completion
        if config.max_total_tokens is not None and tokens > config.max_total_tokens:
            return f"max_total_tokens {config.max_total_tokens:,}"
        cost = self._past.cost + config.price.of(prompt, completion)
        if config.max_cost is not None and cost > config.max_cost:
            return f"max_cost {config.max_cost:g}"
        return ""
