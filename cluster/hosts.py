"""The machines on which the launcher starts workers: `hosts` of a ``nodes.yaml``.

Invariant: nothing that is read here can be taken for an option by ssh, or for more than one word by a shell.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from cluster.wire import EngineKind
from mlx_sumrl.config import Room

WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:%-]{0,252}")
"""A host or user name: no leading dash, no separator."""
LISTEN = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.%]+\]):(?P<port>[0-9]{1,5})")


class HostConfig(Room):
    """One machine, reached by the system's ssh, and the worker that runs on it."""

    host: str
    """Its name or address, as ssh knows it."""
    user: str | None = None
    """As ssh's own config has it otherwise."""
    port: int | None = Field(default=None, gt=0, lt=1 << 16)
    """Of ssh."""
    directory: str
    """Checkout of this project over there, from the root (`/`)."""
    python: str = ".venv/bin/python"
    """Its interpreter, from the root or from `directory`."""
    engine: EngineKind
    """What samples."""
    model: str
    """Model folder over there, from the root or from `directory`, or a hub id."""
    vllm: str | None = None
    """vLLM's executable, for the engines `vllm` and `vllm-metal`."""
    listen: str
    """ADDRESS:PORT that the worker listens on."""
    token_file: str
    """File over there that holds the bearer token."""
    trainer_token_file: Path | None = None
    """File here with the same token; the shared one otherwise. The launcher does not look at it."""
    name: str = ""
    """What messages call it; the host otherwise."""
    options: tuple[str, ...] = ()
    """More words for `python -m cluster.worker`, as `[--dtype, float32]`."""
    free_gb: float = Field(default=10.0, ge=0)
    """Disk space that must be left over there, for versions of the weights."""

    @field_validator("host", "user")
    @classmethod
    def _word(cls, value: str | None) -> str | None:
        if value is not None and not WORD.fullmatch(value):
            raise ValueError(f"{value!r} is no name that ssh can be given")
        return value

    @field_validator("directory", "python", "model", "vllm", "token_file", "options")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        for text in value if isinstance(value, tuple) else (value,):
            if text is not None and (not text or not text.isprintable()):
                raise ValueError(f"{text!r} is empty or has characters that cannot be seen")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        match = LISTEN.fullmatch(self.listen)
        if match is None or not 0 < int(match["port"]) < 1 << 16:
            raise ValueError(f"listen {self.listen!r} is not ADDRESS:PORT; write 0.0.0.0:8700")
        if not self.directory.startswith("/"):
            raise ValueError(f"directory {self.directory!r} must begin at the root: /opt/mlx_sumrl")
        for name in ("python", "model", "token_file"):
            if getattr(self, name).startswith(("-", "~")):
                raise ValueError(f"{name} {getattr(self, name)!r} must begin at the root or in `directory`")
        if self.engine != "mlx" and self.vllm is None:
            raise ValueError(f"engine {self.engine} needs `vllm`, the path of its executable over there")
        if self.vllm is not None and not self.vllm.startswith("/"):
            raise ValueError(f"vllm {self.vllm!r} must begin at the root")
        return self

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or self.host

    @property
    def listen_port(self) -> int:
        """The worker's."""
        return int(self.listen.rpartition(":")[2])

    def worker_command(self) -> list[str]:
        """The worker's words, to be run in `directory`."""
        command = [self.python, "-m", "cluster.worker", "--model", self.model, "--engine", self.engine]
        command += ["--vllm", self.vllm] if self.vllm is not None else []
        return [*command, "--listen", self.listen, "--token-file", self.token_file, *self.options]
