"""What a trainer and a worker say to each other: the types of every route, and nothing else.

Invariant: unknown keys are refused on both sides, numbers are finite, and a reply repeats what it answers
(``request_id``, the prompts' fingerprints, the policy version), so a mix-up shows where it happens.

Routes, all below ``/v1`` and all behind the bearer token::

    GET  /info                              -> Info
    GET  /health                            -> Health
    POST /generate         GenerateRequest  -> GenerateReply
    POST /score            ScoreRequest     -> ScoreReply
    POST /weights/{version}        Manifest -> Stored     what is about to be sent
    PUT  /weights/{version}/{file}    bytes -> Stored     one file of it
    POST /weights/{version}/complete        -> Stored     check all of it, and take it in
    POST /activate         ActivateRequest  -> Activated
    GET  /metrics                           -> Prometheus' text format

Every error is a `Problem` with the status that HTTP has for it: 401 no or a wrong token, 404 no such version or file,
409 not now (another version is active, base not held), 413 too large, 422 not what the type asks for, 429 too many
failed logins, 503 the engine is not up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

API = 1
"""Version of this page; a worker and a trainer of different ones do not talk."""
PREFIX = f"/v{API}"
MAX_PROMPTS = 4096
MAX_PROMPT_TOKENS = 1 << 20
MAX_COMPLETIONS = 4096
MAX_FILES = 4096
MAX_TOKEN = 1 << 31

EngineKind = Literal["vllm", "vllm-metal", "mlx"]
WeightKind = Literal["adapter", "full", "delta"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\.[A-Za-z0-9_-]{1,20}){1,3}$")]
"""A plain name with an ending: no separator, no leading dot, so it can name nothing outside of its folder."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]
TokenId = Annotated[int, Field(ge=0, lt=MAX_TOKEN)]
Version = Annotated[int, Field(ge=0, lt=1 << 53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Typed, frozen, unknown keys and numbers that are not finite refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class Problem(Message):
    """What went wrong, in one sentence that names the thing, the value and the way out."""

    error: str


class Features(Message):
    """What an engine can do, probed rather than believed."""

    adapters: bool
    """Loads a PEFT adapter in place."""
    full_weights: Literal["in_place", "restart"]
    """How it takes whole new weights."""
    score: bool
    """Gives log-probabilities of a text that it has not sampled (`ScoreRequest`)."""
    filters: bool
    """Its log-probabilities are those after temperature and filters; otherwise sample at temperature 1, unfiltered."""
    batch: bool
    """Samples all prompts of a request as one batch, whose composition a run's bits depend on."""


class Load(Message):
    """What an engine is doing."""

    running: int = Field(ge=0)
    """Requests being answered."""
    waiting: int = Field(ge=0)
    """Requests held back."""
    tokens_per_second: Finite = Field(ge=0)
    """Sampled, over the last half minute."""


class ModelFingerprint(Message):
    """What two models must have in common for ids and adapters of one to mean the same to the other."""

    config: Sha256
    """Of the shape in config.json; see `cluster.fingerprint`."""
    tokenizer: Sha256
    """Of tokenizer.json."""


class Info(Message):
    """Who a worker is."""

    api: int
    engine: EngineKind
    versions: dict[str, str]
    """Of python, the engine and what it stands on."""
    features: Features
    model: ModelFingerprint
    policy_version: Version
    """What is sampled from now; 0 is the model that the worker was started with."""
    holds: tuple[Version, ...]
    """Versions whose weights are here, whole."""
    max_tokens: int = Field(gt=0)
    """Longest prompt and completion together."""
    load: Load


class Health(Message):
    """Whether it can sample."""

    state: Literal["starting", "ready", "activating", "restarting", "failed"]
    policy_version: Version
    restarts: int = Field(ge=0)
    """Of the engine, since the worker was started."""
    seconds_in_state: Finite = Field(ge=0)
    detail: str = ""
    """The engine's last words where it has failed."""


class Draw(Message):
    """How tokens are drawn; as `mlx_sumrl.rollouts.types.Sampling`."""

    temperature: Finite = Field(default=1.0, ge=0)
    top_p: Finite = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(gt=0, le=MAX_PROMPT_TOKENS)
    min_tokens: int = Field(default=0, ge=0, le=MAX_PROMPT_TOKENS)


class GenerateRequest(Message):
    """Prompts, each to be answered ``group_size`` times."""

    request_id: RequestId
    prompts: tuple[Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)], ...] = (
        Field(min_length=1, max_length=MAX_PROMPTS)
    )
    group_size: int = Field(gt=0, le=MAX_COMPLETIONS)
    draw: Draw
    seed: int = Field(ge=0, lt=1 << 63)
    """The same request with the same seed, version and engine is answered the same."""
    stop_ids: tuple[TokenId, ...] = Field(max_length=64)
    """Any of these ends a completion, and no other does."""
    policy_version: Version | None = None
    """Held while it is being activated, refused with 409 where another is active; None takes what there is."""


class CompletionReply(Message):
    """One answer, exactly as sampled, the stop token included."""

    token_ids: tuple[TokenId, ...] = Field(min_length=1)
    logprobs: tuple[Finite, ...]
    """Of each id under the distribution that it was drawn from."""
    finish_reason: Literal["stop", "length"]


class GroupReply(Message):
    """All answers to one prompt."""

    prompt: Sha256
    """`prompt_fingerprint` of the prompt that was answered."""
    completions: tuple[CompletionReply, ...]


class GenerateReply(Message):
    """One group for each prompt, in the order of the request."""

    request_id: str
    policy_version: Version
    groups: tuple[GroupReply, ...]


class ScoreRequest(Message):
    """A text whose log-probabilities are asked for: the canary."""

    token_ids: tuple[TokenId, ...] = Field(min_length=2, max_length=MAX_PROMPT_TOKENS)
    policy_version: Version | None = None


class ScoreReply(Message):
    """log p of every token but the first, at temperature 1, unfiltered."""

    policy_version: Version
    logprobs: tuple[Finite, ...]


class WeightFile(Message):
    """One file of a version."""

    bytes: int = Field(ge=0, lt=1 << 50)
    sha256: Sha256


def _with_names(files: dict[str, WeightFile]) -> dict[str, WeightFile]:
    if not files:
        raise ValueError("a version needs at least one file")
    return files


class Manifest(Message):
    """What a version is made of, told before it is sent."""

    kind: WeightKind
    """`adapter`: a PEFT folder. `full`: safetensors of all weights, laid out as Hugging Face has them.
    `delta`: what turns the full weights of ``base`` into this version's; see `cluster.delta`."""
    files: Annotated[dict[FileName, WeightFile], AfterValidator(_with_names), Field(max_length=MAX_FILES)]
    base: Version | None = None
    """Of a delta."""
    fingerprint: Sha256 | None = None
    """Of a delta: what the full weights must have in the end; see `cluster.delta`."""


class Stored(Message):
    """How far a version has come."""

    version: Version
    missing: tuple[FileName, ...]
    """Files that have not arrived, whole."""
    complete: bool
    """Checked, taken in, ready to be activated."""


class ActivateRequest(Message):
    """Sample from this version from now on."""

    version: Version
    abort_after_s: Finite = Field(default=120.0, ge=0)
    """New requests are held; running ones may take this long before they are aborted."""
    after: tuple[RequestId, ...] = Field(default=(), max_length=MAX_PROMPTS)
    """Requests that were sent before this, on other connections, and are to be answered before it."""


class Activated(Message):
    """Done: every request from now on is answered by this version."""

    version: Version
    seconds: Finite
    aborted: int = Field(ge=0)
    """Requests that were cut off."""


def prompt_fingerprint(token_ids: Sequence[int]) -> str:
    """sha256 of the ids as decimal numbers with spaces between."""
    return hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()
