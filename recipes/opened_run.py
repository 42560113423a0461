"""A command that makes a run's folder, or goes on with one."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from mlx_sumrl.config.named_run import NamedFolderConfig
from mlx_sumrl.options.command_line import Command
from mlx_sumrl.reporting.run_folder import RunFolder

ConfigT = TypeVar("ConfigT", bound=NamedFolderConfig)


def opened(command: Command[ConfigT], config_type: type[ConfigT]) -> tuple[ConfigT, RunFolder]:
    """A new run's folder, or the one to go on with."""
    if isinstance(command.run, Path):
        return RunFolder.open(command.run, config_type)
    return command.run, RunFolder.create(command.run)
