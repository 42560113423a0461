"""Rows to fine-tune on, tokenised once: whoever is measured reads the same ids from one file.

Rows are dialogues with a person's summary, in the columns id, dialogue and summary. Never imports mlx by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_sumrl.config import DataConfig, TinyModelConfig
from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.examples import load_examples
from mlx_sumrl.data.grammar import make_posts
from mlx_sumrl.data.sources import read_rows
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from mlx_sumrl.policy.policy import Policy

SHARED = Path(__file__).parents[2] / "shared"
DATA, MODEL = SHARED / "data" / "dialogsum.train.jsonl", SHARED / "models" / "summarizer-5m"
PROMPT_TOKENS, ANSWER_TOKENS = 384, 128
"""A longer prompt loses the end of its dialogue; a row with a longer answer is left out."""
SPARE = 1.2
"""Rows read for each one needed, since some are left out."""


@dataclass(frozen=True)
class SupervisedRow:
    """A prompt and the answer that is learnt, its stop token included."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    reference: str
    """The answer as text."""

    @property
    def tokens(self) -> int:
        """Of prompt and answer, without any padding."""
        return len(self.prompt_ids) + len(self.answer_ids)


def source(data: Path | None, model: Path | None) -> tuple[Path, Path]:
    """The rows' file and the model's folder, those of ``../shared`` where none is given. Raises `UserError`."""
    data, model = data or DATA, model or MODEL
    for path, what in ((data, "file"), (model, "folder")):
        if not path.exists():
            raise UserError(
                f"there is no {what} {path}: name rows with the columns id, dialogue and summary by --data FILE, "
                "and a model that has a chat template by --model FOLDER"
            )
    return data, model


def made_source(folder: Path, rows: int) -> tuple[Path, Path]:
    """Made-up rows, and a tiny random model with a tokenizer for them."""
    from mlx_sumrl.policy.tiny import make_tiny_model

    posts, _ = make_posts(rows, 0, seed=0)
    data = folder / "rows.jsonl"
    lines = [{"id": post["id"], "dialogue": post["document"], "summary": post["summary"]} for post in posts]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = [text for line in lines for text in line.values()]
    return data, make_tiny_model(folder / "tiny", TinyModelConfig(hidden_size=64, layers=2), texts, seed=0)


def tokenised(data: Path, policy: Policy, needed: int) -> list[SupervisedRow]:
    """The first usable rows, asked as the model was. Raises `UserError` when there are fewer than ``needed``."""
    config = DataConfig(
        document_column="dialogue",
        reference_column="summary",
        instruction="Summarize the conversation.\n\n{document}",
        max_prompt_tokens=policy.room_for_prompt(PROMPT_TOKENS, ANSWER_TOKENS),
    )
    read = read_rows(str(data), limit=round(SPARE * needed))
    examples = load_examples(read, config, policy.tokenizer, target_length=1).examples
    rows = [
        SupervisedRow(
            example.prompt_ids,
            answer_ids(policy.tokenizer, example.reference, policy.stop_id),
            example.reference,
        )
        for example in examples
    ]
    usable = [row for row in rows if len(row.answer_ids) <= ANSWER_TOKENS][:needed]
    if len(usable) < needed:
        raise UserError(
            f"{data} has {len(usable)} rows that can be used among its first {len(read.rows)}, and {needed} are "
            "needed: name a longer file by --data FILE, or ask for fewer --batches"
        )
    return usable


def write(path: Path, rows: Sequence[SupervisedRow]) -> Path:
    """One JSON file for all workers."""
    path.write_text(json.dumps([asdict(row) for row in rows]))
    return path


def read(path: str) -> list[SupervisedRow]:
    """What `write` wrote."""
    return [
        SupervisedRow(tuple(row["prompt_ids"]), tuple(row["answer_ids"]), row["reference"])
        for row in json.loads(Path(path).read_text())
    ]
