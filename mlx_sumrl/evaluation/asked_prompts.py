"""Whether two evaluations asked the same: a hash of what was asked. Never imports mlx."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from mlx_sumrl.config import DataConfig, LengthConfig
from mlx_sumrl.data.example import Example


def prompts_sha256(examples: Sequence[Example], data: DataConfig, length: LengthConfig) -> str:
    """SHA-256, in hex, of the system prompt, the instruction, the length in it, and each example's document and other
    columns that the instruction names, in order.

    The texts and not their tokens, and without the chat template: those are each model's own, and models are to be
    compared. Where a long document is cut for one model and not for another, the hash is the same.
    """
    asked = data.asking_in(length.unit)
    named = sorted(set(re.findall(r"\{([^{}]+)\}", asked.instruction)) - {"document", "target_length"})
    digest = hashlib.sha256()
    for part in (
        [asked.system, asked.instruction, length.target],
        *(
            [
                one.document,
                *(str(one.fields.get(name)) for name in named),
                *([] if one.target is None else [one.target]),
            ]
            for one in examples
        ),
    ):
        digest.update(json.dumps(part, ensure_ascii=False).encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()
