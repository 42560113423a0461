"""Whether files that were sent are weights of this model, asked before any engine sees them.

Invariant: only safetensors whose headers hold, JSON and plain text pass; full weights have exactly the tensors of the
model that the worker was started with, an adapter has pairs of matrices of one rank. What passes is data only.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.fingerprint import config_fingerprint
from cluster.refusal import not_valid
from cluster.safetensors_header import FLOATS, HeaderError, TensorEntry, read_header
from cluster.wire import WeightKind
from mlx_sumrl.errors import UserError

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PLAIN_ENDINGS = {".safetensors", ".json", ".jinja", ".txt", ".md"}
DELTA_ENDINGS = PLAIN_ENDINGS | {".patch", ".delta", ".zlib", ".zst"}
"""A patch is read by `cluster.delta` alone, which checks what it holds."""
BESIDE_WEIGHTS = (".json", ".jinja", ".txt", ".model")
"""Endings of a model folder's own files that full weights are served with."""
LORA_MATRIX = re.compile(r"(?P<module>base_model\.model\..+)\.lora_(?P<side>[AB])\.weight")


def check_names(kind: WeightKind, names: Iterable[str]) -> None:
    """Raises `Refusal` 422 for a file that this kind of weights cannot have, a pickle for one."""
    allowed = DELTA_ENDINGS if kind == "delta" else PLAIN_ENDINGS
    names = set(names)
    for name in sorted(names):
        if Path(name).suffix.lower() not in allowed:
            raise not_valid(
                f"{name} is no file of {kind} weights: safetensors, JSON and plain text are taken, nothing else"
            )
    if kind == "adapter" and not {ADAPTER_WEIGHTS, ADAPTER_CONFIG} <= names:
        raise not_valid(f"an adapter needs {ADAPTER_WEIGHTS} and {ADAPTER_CONFIG}; these are {sorted(names)}")
    if kind == "full" and not any(name.endswith(".safetensors") for name in names):
        raise not_valid("full weights need at least one safetensors file")


@dataclass(frozen=True)
class WeightCheck:
    """What fits one model folder and one engine."""

    model: Path
    max_rank: int
    """Largest rank of an adapter that the engine was started for."""

    def adapter(self, folder: Path) -> None:
        """Raises `Refusal` 422 unless ``folder`` is a PEFT adapter of LoRA matrices."""
        config = _json_object(folder / ADAPTER_CONFIG)
        rank = config.get("r")
        if config.get("peft_type") != "LORA" or type(rank) is not int or rank < 1:
            raise not_valid(f"{ADAPTER_CONFIG} is no LoRA adapter's: peft_type LORA and r are needed")
        if rank > self.max_rank:
            raise not_valid(
                f"the adapter has rank {rank} and this worker takes {self.max_rank}; start it with "
                f"--max-lora-rank {rank}"
            )
        sides: dict[str, set[str]] = {}
        for name, entry in _header(folder / ADAPTER_WEIGHTS).items():
            found = LORA_MATRIX.fullmatch(name)
            if found is None or len(entry.shape) != 2 or entry.dtype not in FLOATS:
                raise not_valid(f"{ADAPTER_WEIGHTS}: {name!a:.100} is no matrix of a LoRA adapter")
            if entry.shape[0 if found["side"] == "A" else 1] != rank:
                raise not_valid(f"{ADAPTER_WEIGHTS}: {name!a:.100} has shape {entry.shape} at rank {rank}")
            sides.setdefault(found["module"], set()).add(found["side"])
        lone = [module for module, found in sides.items() if len(found) < 2]
        if not sides or lone:
            raise not_valid(
                f"{ADAPTER_WEIGHTS} holds no pair of lora_A and lora_B for {lone[:1] or 'anything'}"
            )

    def full(self, folder: Path) -> None:
        """Raises `Refusal` 422 unless ``folder`` holds this model's tensors, all of them and no others.

        A vLLM that is given fewer keeps the old ones for the rest and says so in its log only.
        """
        if (folder / "config.json").is_file():
            try:
                same = config_fingerprint(folder) == config_fingerprint(self.model)
            except UserError as error:
                raise not_valid(str(error)) from None
            if not same:
                raise not_valid("config.json is of a model of another shape than this worker's")
        sent, own = _tensors(folder), _tensors(self.model)
        if self._tied():
            sent.pop("lm_head.weight", None)
            own.pop("lm_head.weight", None)
        if sent.keys() != own.keys():
            odd = sorted(sent.keys() ^ own.keys())
            raise not_valid(
                f"full weights must have the model's own tensors; {len(odd)} differ, the first is {odd[0]!a:.100}"
            )
        for name, entry in sent.items():
            # Sorted, since mlx and Hugging Face keep a convolution's axes in another order.
            if sorted(entry.shape) != sorted(own[name].shape) or entry.dtype not in FLOATS:
                raise not_valid(
                    f"{name!a:.100} is {entry.dtype} {entry.shape}; the model's is {own[name].shape}, of floats"
                )

    def complete_folder(self, folder: Path) -> None:
        """Put the model's own config and tokenizer beside full weights; what was sent of the same name goes.

        The worker's own files decide how a model is run; weights only say with which numbers.
        """
        for path in self.model.iterdir():
            if path.is_file() and path.suffix in BESIDE_WEIGHTS and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)

    def _tied(self) -> bool:
        return bool(_json_object(self.model / "config.json").get("tie_word_embeddings", False))


def _tensors(folder: Path) -> dict[str, TensorEntry]:
    """Of all safetensors files of a folder, by name; one name in two files is refused."""
    found: dict[str, TensorEntry] = {}
    for path in sorted(folder.glob("*.safetensors")):
        entries = _header(path)
        twice = found.keys() & entries.keys()
        if twice:
            raise not_valid(f"{min(twice)!a:.100} is in two files; send each tensor once")
        found |= entries
    return found


def _header(path: Path) -> dict[str, TensorEntry]:
    try:
        return read_header(path)
    except HeaderError as error:
        raise not_valid(f"{error}; send a whole safetensors file") from None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise not_valid(f"{path.name} is not JSON") from None
    if not isinstance(content, dict):
        raise not_valid(f"{path.name} is not a JSON object")
    return content
