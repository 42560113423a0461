"""What a run leaves for others to load, below export/: each folder with its model card."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from mlx_sumrl.config import RunConfig, SftRunConfig
from mlx_sumrl.data.prompting import write_prompting
from mlx_sumrl.policy.export import export_adapter, export_model, export_peft
from mlx_sumrl.policy.gguf import check_gguf, export_gguf
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.json_files import write_json
from mlx_sumrl.reporting.model_card import KINDS, Kind, facts_of, write_card
from mlx_sumrl.reporting.provenance import FILE, provenance_of
from mlx_sumrl.reporting.run_folder import RunFolder

STEP = "exported.json"


def begin(policy: Policy, config: RunConfig | SftRunConfig, run: RunFolder, rows: dict[str, int]) -> None:
    """Before training: what will be asked of the export is possible (`UserError` otherwise), and what the policy is
    made from is written down; ``rows`` are those used of ``train`` and ``evaluation``."""
    if config.export.gguf:
        check_gguf(policy.folder, policy.config, unpacked=_unpacked(policy, config))
    run.write_json(FILE, provenance_of(config.policy, config.data, rows).to_json())


def export(policy: Policy, config: RunConfig | SftRunConfig, run: Path, step: int) -> list[Path]:
    """Write what the options ask for below ``run``/export, ``step`` being the policy's; the folders written."""
    options, folder = config.export, run / "export"
    if options.adapter and policy.options.tuning != "full":
        export_adapter(policy, folder / "adapter")
        if policy.options.tuning == "lora":
            export_peft(policy, folder / "peft")
    if options.fused or options.gguf:
        export_model(policy, folder / "model", _unpacked(policy, config))
        if isinstance(config, RunConfig):
            write_prompting(folder / "model", config.data, config.length, config.answer)
        else:
            write_prompting(folder / "model", config.data, config.length, None, config.masking.reasoning)
    if options.gguf:
        export_gguf(folder / "model", folder / "gguf", config.data.system)
    write_json(run / STEP, {"step": step})
    return write_cards(config, run, step)


def write_cards(config: RunConfig | SftRunConfig, run: Path, step: int) -> list[Path]:
    """Write the cards of all that lies below ``run``/export, from what the run has measured by now; its folders."""
    facts = facts_of(config, run, step)
    found = exports(run)
    for kind, path in found.items():
        write_card(path, kind, facts)
    return list(found.values())


def exports(run: Path) -> dict[Kind, Path]:
    """What lies below ``run``/export."""
    return {kind: run / "export" / kind for kind in KINDS if (run / "export" / kind).is_dir()}


def exported_step(run: Path) -> int | None:
    """The step of the policy that lies below ``run``/export; None where none does."""
    try:
        return int(json.loads((run / STEP).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def how_to_share(run: Path) -> str:
    """The command that sends an export to others."""
    return f"share it: python -m recipes.export --run {shlex.quote(str(run))} --push OWNER/NAME"


def _unpacked(policy: Policy, config: RunConfig | SftRunConfig) -> bool:
    """Whether a quantised base is written as it was trained."""
    return policy.is_quantized and isinstance(config, SftRunConfig) and config.export.dequantize
