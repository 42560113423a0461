"""Whether a worker's reply answers what it was asked; pure, and believing nothing.

Invariant: a reply that passes is about this request, prompt by prompt, under this version, and every completion in
it could have been sampled as asked; of any other, the reason is named.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cluster.wire import CompletionReply, GenerateReply, GenerateRequest, ScoreReply, prompt_fingerprint

ROUNDING = 1e-4
"""A log-probability may be above 0 by as much as a float32 log-softmax is off."""


def complaint_about(reply: GenerateReply, request: GenerateRequest, vocabulary: int) -> str | None:
    """Why this is no answer to the request, or None."""
    if reply.request_id != request.request_id:
        return f"answers request {reply.request_id}, not {request.request_id}"
    if request.policy_version is not None and reply.policy_version != request.policy_version:
        return f"sampled version {reply.policy_version}, not {request.policy_version}"
    if len(reply.groups) != len(request.prompts):
        return f"returned {len(reply.groups)} groups for {len(request.prompts)} prompts"
    stops = frozenset(request.stop_ids)
    for place, (group, prompt) in enumerate(zip(reply.groups, request.prompts, strict=True)):
        if group.prompt != prompt_fingerprint(prompt):
            return f"answered another prompt in place {place}"
        if len(group.completions) != request.group_size:
            return f"returned {len(group.completions)} completions of a prompt, not {request.group_size}"
        for completion in group.completions:
            if wrong := _wrong_with(completion, request, stops, vocabulary):
                return wrong
    return None


def _wrong_with(
    completion: CompletionReply, request: GenerateRequest, stops: Collection[int], vocabulary: int
) -> str | None:
    ids, draw = completion.token_ids, request.draw
    if max(ids) >= vocabulary:
        return f"returned token {max(ids)} of a vocabulary of {vocabulary}"
    if len(ids) > draw.max_tokens:
        return f"returned {len(ids)} tokens where {draw.max_tokens} is the most"
    if wrong := _wrong_logprobs(completion.logprobs, len(ids)):
        return wrong
    if any(token in stops for token in ids[:-1]):
        return "went on after a stop token"
    if (completion.finish_reason == "stop") != (ids[-1] in stops):
        return f"says {completion.finish_reason!r} of a completion that ends with token {ids[-1]}"
    if completion.finish_reason == "length" and len(ids) < draw.max_tokens:
        return f"cut a completion at {len(ids)} of {draw.max_tokens} tokens"
    if completion.finish_reason == "stop" and len(ids) <= draw.min_tokens < draw.max_tokens:
        return f"stopped at {len(ids)} tokens, before min_tokens {draw.min_tokens}"
    return None


def _wrong_logprobs(logprobs: Sequence[float], tokens: int) -> str | None:
    if len(logprobs) != tokens:
        return f"returned {len(logprobs)} log-probabilities of {tokens} tokens"
    # JSON knows no NaN, and the wire types refuse what a lenient parser would take for one.
    if max(logprobs) > ROUNDING:
        return f"returned a log-probability of {max(logprobs):g}, which is above 0"
    return None


def complaint_about_score(reply: ScoreReply, tokens: int, version: int) -> str | None:
    """Why this is no answer to a `ScoreRequest` of so many tokens, or None."""
    if reply.policy_version != version:
        return f"scored with version {reply.policy_version}, not {version}"
    return _wrong_logprobs(reply.logprobs, tokens - 1)
