"""What a simulated worker can do wrong, and a reply with one thing wrong about it."""

from __future__ import annotations

from typing import Any, Literal

from cluster.wire import prompt_fingerprint

STOP = 2
"""The simulated vocabulary's stop token."""
VOCABULARY = 1000
Fault = Literal[
    "error", "unavailable", "conflict", "hang", "close", "truncate", "ids", "count", "groups", "nan", "positive",
    "short", "version", "prompt", "swap", "stop", "request", "garbage", "late",
]  # fmt: skip


def spoiled(fault: Fault, reply: dict[str, Any]) -> dict[str, Any]:
    """The reply with this wrong about it."""
    groups = reply["groups"]
    one = groups[0]["completions"][0]
    match fault:
        case "ids":
            one["token_ids"][0] = VOCABULARY
        case "count":
            groups[-1]["completions"].append(one)
        case "groups":
            groups.append(groups[0])
        case "nan":
            one["logprobs"][-1] = float("nan")
        case "positive":
            one["logprobs"][0] = 0.5
        case "short":
            one["logprobs"].pop()
        case "version":
            reply["policy_version"] += 1
        case "prompt":
            groups[0]["prompt"] = prompt_fingerprint([1, 2, 3])
        case "swap":
            # Of a single prompt there is nothing to swap with: then it is another's.
            groups[0]["prompt"], groups[-1]["prompt"] = groups[-1]["prompt"], prompt_fingerprint([4])
        case "stop":
            one["token_ids"][0] = STOP
        case "request":
            reply["request_id"] = "another"
    return reply
