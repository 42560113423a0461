"""What a run has trained, exported again, and sent to others.

    python -m recipes.export --run runs/mine                               # cards anew, what is missing is written
    python -m recipes.export --run runs/mine --checkpoint last --gguf
    python -m recipes.export --run runs/mine --push OWNER/NAME --license apache-2.0
    python -m recipes.export --run runs/mine --push OWNER/NAME --what adapter --private

Without --checkpoint, what is below export/ already is taken as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from mlx_sumrl.config import Room, RunConfig, SftRunConfig, SmallLaptopConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.policy.gguf import check_gguf, export_gguf
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.hub import check_hub, push
from mlx_sumrl.reporting.model_card import PAGE, Kind, card_text, facts_of
from mlx_sumrl.reporting.run_folder import RunFolder, read_record
from mlx_sumrl.training.checkpoints import list_checkpoints, take_policy
from mlx_sumrl.training.preparation import policy_options
from mlx_sumrl.training.seeds import derived_seed
from recipes.exporting import export, exported_step, exports, write_cards

DESCRIPTION = "Export a run's policy again, as others load it, and push it to the Hugging Face hub."
ADAPTER_CONFIG = "adapter_config.json"
BASE_KEYS = ("model", "base_model_name_or_path")
"""Where an adapter's folder says what it was trained on."""


class ExportAgainConfig(Room):
    """Which run, which of its policies, and where to."""

    run: Path
    """Folder of the run."""
    checkpoint: str | None = Field(default=None, pattern=r"^(best|last|\d+)$")
    """Export this policy anew: `best` (lowest held-out loss; of supervised runs), `last`, or the step of a checkpoint
    that is there."""
    gguf: bool = False
    """Write a GGUF file and Ollama's Modelfile too."""
    license: str | None = None
    """Licence for the cards, as `apache-2.0`; the run's own option export.license otherwise."""
    language: str | None = None
    """Language for the cards, as `en`."""
    push: str | None = None
    """OWNER/NAME of a repository on the hub to send a folder to; it is made where it is not there."""
    what: Kind = "model"
    """Which folder is sent."""
    private: bool = False
    """Make the repository private."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.push is None and (self.private or "what" in self.model_fields_set):
            raise ValueError("private and what say how to push: give --push OWNER/NAME too")
        return self


def main(argv: Sequence[str] | None = None) -> None:
    """Check, export what is asked for and not there, write cards, push."""
    asked = parse(ExportAgainConfig, argv, prog="python -m recipes.export", description=DESCRIPTION)
    # The hub first: whoever has no token should know before a model is loaded.
    api = check_hub(asked.push) if asked.push is not None else None
    config, run = RunFolder.open(asked.run, _job_of(asked.run))
    with run:
        given = {name: getattr(asked, name) for name in ("license", "language") if getattr(asked, name)}
        if asked.gguf or asked.what == "gguf":
            given["gguf"] = True
        config = config.model_copy(update={"export": config.export.model_copy(update=given)})
        step = exported(config, run.path, asked.checkpoint)
        for path in write_cards(config, run.path, step):
            print(f"exported {path} (step {step})")
        if asked.push is not None:
            print(f"pushed {asked.what} to {sent(config, run.path, step, asked, api)}")


def exported(config: RunConfig | SftRunConfig, run: Path, checkpoint: str | None) -> int:
    """Write what the options ask for and the folder lacks, or all of it of a ``checkpoint``; the policy's step."""
    step, there = exported_step(run), exports(run)
    options = config.export
    if checkpoint is None and step is not None and "model" in there:
        if options.gguf and "gguf" not in there:
            export_gguf(run / "export" / "model", run / "export" / "gguf", config.data.system)
        return step
    policy, step = policy_of(config, run, checkpoint)
    if options.gguf:
        unpacked = isinstance(config, SftRunConfig) and config.export.dequantize
        check_gguf(policy.folder, policy.config, unpacked)
    export(policy, config, run, step)
    return step


def policy_of(config: RunConfig | SftRunConfig, run: Path, checkpoint: str | None) -> tuple[Policy, int]:
    """The policy of a checkpoint, and its step."""
    steps = [int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")]
    if not steps:
        raise UserError(f"{run} has no checkpoint yet: let it train first, with --resume {run}")
    best = _best_step(run, steps[-1])
    if checkpoint == "best" and best is None:
        raise UserError(
            f"{run} has measured no held-out loss, so none of its checkpoints is the best: take last"
        )
    wanted_best = checkpoint == "best" or (
        checkpoint is None and isinstance(config, SftRunConfig) and config.export.best
    )
    step = best if wanted_best and best is not None else steps[-1]
    if checkpoint is not None and checkpoint.isdigit():
        step = int(checkpoint)
    if step not in steps:
        raise UserError(
            f"--checkpoint {step}: {run} keeps the checkpoints of steps {', '.join(map(str, steps))}; name one of these"
        )
    if isinstance(config, SmallLaptopConfig):
        config = config.on_base(run)
    policy = load_policy(policy_options(config, run), seed=derived_seed(config.seed, "adapters"))
    take_policy(run / "checkpoints" / f"step-{step:06d}", policy)
    return policy, step


def sent(config: RunConfig | SftRunConfig, run: Path, step: int, asked: ExportAgainConfig, api: Any) -> str:
    """Push a folder, its card naming the repository and an adapter no path of this machine; its address there."""
    assert asked.push is not None
    folder = exports(run).get(asked.what)
    if folder is None:
        raise UserError(
            f"{run} has no export/{asked.what}: there are {', '.join(exports(run)) or 'none'}; name one by --what"
        )
    facts = facts_of(config, run, step)
    replaced = {PAGE: card_text(asked.what, facts, asked.push).encode()}
    if (folder / ADAPTER_CONFIG).is_file():
        content = json.loads((folder / ADAPTER_CONFIG).read_text())
        base = facts.provenance.base_hub or facts.provenance.base_model
        content |= {name: base for name in BASE_KEYS if name in content}
        replaced[ADAPTER_CONFIG] = (json.dumps(content, indent=2) + "\n").encode()
    return push(folder, asked.push, asked.private, api, replaced)


def _best_step(run: Path, newest: int) -> int | None:
    """The step of the lowest held-out loss that the newest checkpoint knows of."""
    state = json.loads((run / "checkpoints" / f"step-{newest:06d}" / "state.json").read_text())["state"]
    measured = state.get("evaluations") or []
    return int(min(measured, key=lambda one: one[1])[0]) if measured else None


def _job_of(run: Path) -> type[RunConfig] | type[SftRunConfig]:
    """The kind of run that wrote config.json."""
    options = read_record(run)["options"]
    if "quantize" in options:
        return SmallLaptopConfig
    return SftRunConfig if "masking" in options else RunConfig


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
