"""TensorBoard: event files in tensorboard/ of the run's folder. Never imports mlx.

Written with the package tensorboard alone, which has everything but a writer of scalars; torch's is not needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_sumrl.reporting.trackers.tracker import STAGE, numbers

FOLDER = "tensorboard"


class TensorBoardTracker:
    """One event file per process. Each row is on disk before the next one."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self._writer: Any = None
        self._config: Mapping[str, Any] = {}
        self._stage: str | None = None
        self._began = False

    def start(self, config: Mapping[str, Any], name: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._config = config
        self._writer = EventFileWriter(str(self.folder))

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not self._began:
            self._begin(step)
        stage = metrics.get(STAGE)
        if isinstance(stage, str) and stage != self._stage:
            self._stage = stage
            self._text(STAGE, stage, step)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(metrics).items()]
        self._write(step, summary=Summary(value=values))
        self._writer.flush()

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin(self, step: int) -> None:
        """TensorBoard forgets what earlier processes wrote of this step and later ones, which come again."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._write(step, session_log=SessionLog(status=SessionLog.START))
        options = json.dumps(self._config, indent=2, ensure_ascii=False)
        self._text("options", "".join(f"    {line}\n" for line in options.splitlines()), step)
        self._began = True

    def _text(self, tag: str, text: str, step: int) -> None:
        """Markdown in the tab of texts."""
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode("utf-8")], tensor_shape=shape)
        metadata = create_summary_metadata(display_name=tag, description="")
        self._write(step, summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
