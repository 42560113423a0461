"""Texts to judge, a prompt read back without the program, and a judge on a simulated server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from mlx_sumrl.config import JudgingConfig
from mlx_sumrl.endpoint.asking import Stop
from mlx_sumrl.endpoint.ledger import Ledger
from mlx_sumrl.judging.judge import LEDGER_IDENTITY, Found, Judge, judging_endpoint
from mlx_sumrl.judging.questions import Inquiry
from mlx_sumrl.judging.rows import JudgedText
from tests.endpoint.simulated_teacher import MODEL, Script, SimulatedTeacher

CRITERIA = ("faithfulness", "coverage", "conciseness", "clarity")


def text(number: int, summary: str | None = None) -> JudgedText:
    return JudgedText(
        f"r{number}", f"Report {number}: the bridge was shut.", summary or f"Bridge {number} shut."
    )


def prompt_of(asked: dict[str, Any]) -> str:
    (message,) = asked["messages"]
    assert message["role"] == "user"
    return str(message["content"])


def parts_of(prompt: str) -> dict[str, str]:
    """The fenced texts by name; each fence is there exactly once, and its mark nowhere else but in the instruction."""
    (mark,) = set(re.findall(r"\[BEGIN TEXT ([0-9a-f]{20})\]", prompt[: prompt.index("[BEGIN TEXT") + 40]))
    names = [
        name for name in ("TEXT", "SUMMARY", "SUMMARY A", "SUMMARY B") if f"[BEGIN {name} {mark}]" in prompt
    ]
    assert prompt.count(mark) == 2 * len(names) + 1
    parts = {}
    for name in names:
        _, _, rest = prompt.partition(f"[BEGIN {name} {mark}]\n")
        parts[name] = rest.partition(f"\n[END {name} {mark}]")[0]
    return parts


def criterion_of(prompt: str) -> str:
    if "Which summary is better" in prompt:
        return "pair"
    asked = re.search(r"How good is the summary's (\w+)\?", prompt.rpartition("[END SUMMARY")[2])
    return asked[1] if asked else "all"


def judge_server(script: Script, **options: Any) -> SimulatedTeacher:
    """The script gets a request's prompt."""
    return SimulatedTeacher(script, told=prompt_of, **options)


def config(server: SimulatedTeacher, **changes: Any) -> JudgingConfig:
    options = {"server": server.url, "model": MODEL, "timeout_s": 30, "retry": {"first_wait_s": 0}}
    return JudgingConfig.model_validate({**options, **changes})


def ask(options: JudgingConfig, ledger: Path, inquiries: list[Inquiry]) -> Found:
    async def run() -> Found:
        with Ledger.open(ledger, LEDGER_IDENTITY) as held:
            async with judging_endpoint(options) as endpoint:
                return await Judge(options, endpoint, held, Stop()).ask(inquiries)

    return asyncio.run(run())


def top(**likely: float) -> list[dict[str, Any]]:
    """``top_logprobs`` of probabilities."""
    import math

    return [{"token": token, "logprob": math.log(value)} for token, value in likely.items()]
