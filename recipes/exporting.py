"""What a run leaves for others to load, below export/."""

from __future__ import annotations

from pathlib import Path

from mlx_sumrl.config import AnswerConfig, DataConfig, ExportConfig, LengthConfig, ReasoningConfig
from mlx_sumrl.data.prompting import write_prompting
from mlx_sumrl.policy.export import export_adapter, export_model, export_peft
from mlx_sumrl.policy.policy import Policy


def export(
    policy: Policy,
    folder: Path,
    options: ExportConfig,
    data: DataConfig,
    length: LengthConfig,
    *,
    dequantize: bool = False,
    answer: AnswerConfig | None = None,
    reasoning: ReasoningConfig | None = None,
) -> list[Path]:
    """Write what ``options`` ask for into ``folder``; the folders written. `export_model` says what ``dequantize``
    does, `write_prompting` what ``answer`` and ``reasoning`` are for."""
    exported = []
    if options.adapter and policy.options.tuning != "full":
        exported.append(export_adapter(policy, folder / "adapter"))
        if policy.options.tuning == "lora":
            exported.append(export_peft(policy, folder / "peft"))
    if options.fused:
        exported.append(export_model(policy, folder / "model", dequantize))
        write_prompting(exported[-1], data, length, answer, reasoning)
    return exported
