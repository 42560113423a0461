"""`Policy`: a model, its tokenizer, and which of its weights are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_sumrl.config import REFERENCE_BITS, PolicyConfig, ReferenceKind
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.reference import QuantizedReference

Weights = dict[str, mx.array]


@dataclass
class Policy:
    """The model being trained.

    Invariant: ``weights()`` are exactly the arrays that the optimiser moves and a checkpoint holds; everything
    else about the model is as it was loaded.
    """

    model: nn.Module
    tokenizer: Any
    """A Hugging Face tokenizer."""
    config: dict[str, Any]
    """The model's config.json, reconciled with what mlx-lm reads."""
    folder: Path
    """Where it was loaded from."""
    options: PolicyConfig
    stop_ids: frozenset[int]
    """Ids that end a completion."""
    stop_id: int
    """The one that supervised training puts at the end of an answer."""
    context: int | None = None
    """Most tokens of prompt and completion together, where the config says."""
    reconciled: bool = False
    """Whether the folder's own config.json would be misread by mlx-lm; an adapter then needs the fused export."""
    splits_otherwise: bool = False
    """Whether transformers' AutoTokenizer splits texts by other rules than the folder's tokenizer.json."""
    source: str = ""
    """What the user called it: a folder or a hub id."""
    reference: Weights | QuantizedReference | None = field(default=None, repr=False)
    """The reference: its trainable weights, or those of full training in few bits, or None for the model as it was
    loaded with its adapters off."""

    @property
    def vocabulary(self) -> int:
        """V, the number of logits."""
        return int(self.config["vocab_size"])

    @property
    def width(self) -> int:
        """D, the size of a hidden state."""
        return int(self.config["hidden_size"])

    @property
    def adapters_are_new(self) -> bool:
        """Whether there are adapters, and they change nothing yet: B is 0 until the first update."""
        halves = [array for name, array in self.weights().items() if name.endswith(".lora_b")]
        return bool(halves) and not any(mx.any(half != 0).item() for half in halves)

    @property
    def is_quantized(self) -> bool:
        """Whether the model keeps matrices as packed codes."""
        return mlx_internals.is_quantized(self.model)

    def weights(self) -> Weights:
        """The trainable weights by name."""
        return mlx_internals.named_arrays(self.model.trainable_parameters())

    def set_weights(self, weights: Weights) -> None:
        """Replace trainable weights by name; an unknown name or another shape raises ValueError."""
        current = self.weights()
        if current.keys() != weights.keys():
            odd = sorted(current.keys() ^ weights.keys())
            raise ValueError(f"weights do not fit the policy: {len(odd)} names differ, the first is {odd[0]}")
        for name, array in weights.items():
            if array.shape != current[name].shape:
                raise ValueError(
                    f"weights do not fit the policy: {name} is {array.shape}, not {current[name].shape}"
                )
        self.model.update(tree_unflatten(list(weights.items())))

    def take_weight(self, name: str) -> mx.array:
        """Hand a trainable weight over; until `set_weight` the model has an empty array in its place."""
        array: mx.array = self.model
        for step in name.split("."):
            array = array[int(step) if isinstance(array, list) else step]
        self.set_weight(name, mx.zeros((0,)))
        return array

    def set_weight(self, name: str, array: mx.array) -> None:
        """Replace one trainable weight by an array of its shape."""
        self.model.update(tree_unflatten([(name, array)]))

    def snapshot(self) -> Weights:
        """A copy of the trainable weights that later steps do not touch."""
        copies = {name: mx.array(array) for name, array in self.weights().items()}
        mx.eval(copies)
        return copies

    def take_reference(self, kind: ReferenceKind) -> None:
        """From now on the reference is the policy as it is now.

        ``kind`` says how it is kept with full tuning: a ``copy`` of the weights, or ``8bit`` or ``4bit``, whose KL
        does not begin at 0 (see `mlx_sumrl.policy.reference`). Adapters, on a quantised base too, are small: of
        them an exact copy is kept whatever ``kind`` is.
        """
        self.reference = None  # the one before goes first, or three models would be in memory
        if kind == "copy" or self.options.tuning != "full":
            self.reference = self.snapshot()
        else:
            self.reference = QuantizedReference.of(self.model, REFERENCE_BITS[kind])

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the model computes what the reference does, without dropout."""
        training = self.model.training
        self.model.eval()
        try:
            if self.reference is None:
                if self.options.tuning == "full":
                    raise RuntimeError("full training has no reference until a snapshot is set")
                with mlx_internals.adapters_off(self.model):
                    yield
            elif isinstance(self.reference, QuantizedReference):
                with self.reference.swapped_in(self.model):
                    yield
            else:
                own = self.weights()
                self.set_weights(self.reference)
                try:
                    yield
                finally:
                    self.set_weights(own)
        finally:
            self.model.train(training)

    def room_for_prompt(self, asked: int, max_tokens: int) -> int:
        """``asked`` prompt tokens, or as many as leave room for ``max_tokens`` more. Raises `UserError` for none."""
        if self.context is None:
            return asked
        left = self.context - max_tokens
        if left < 1:
            raise UserError(
                f"max_tokens {max_tokens} leaves no room for a prompt: {self.source} reads {self.context} tokens in all"
            )
        return min(asked, left)

    def decode(self, token_ids: list[int] | tuple[int, ...]) -> str:
        """Text of sampled ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text
