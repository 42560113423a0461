"""Every option of the library, one model per room; each default lives here and nowhere else.

A run is described by one `RunConfig`: a YAML file, then command-line options over it
(``--grpo.group_size 16``). Unknown keys are refused. Never imports mlx.
"""

from __future__ import annotations

from mlx_sumrl.config.answer import AnswerConfig
from mlx_sumrl.config.asking import AskingConfig, PriceConfig, RetryConfig
from mlx_sumrl.config.comparison import ComparisonConfig, IntervalConfig, RowTest
from mlx_sumrl.config.data import DataConfig, GrammarConfig
from mlx_sumrl.config.distill import (
    AnswerFilterConfig,
    DistillConfig,
    TeacherSourceConfig,
)
from mlx_sumrl.config.judge import Criterion, JudgeConfig, JudgeRewardConfig, JudgingConfig
from mlx_sumrl.config.long_documents import LongDocumentsConfig
from mlx_sumrl.config.masking import MaskingConfig, ReasoningConfig
from mlx_sumrl.config.named_run import (
    CheckpointConfig,
    CurvesConfig,
    ExportConfig,
    TrackerName,
    TrackingConfig,
)
from mlx_sumrl.config.policy import (
    DEFAULT_DTYPE,
    REFERENCE_BITS,
    Dtype,
    LoraConfig,
    PolicyConfig,
    ReferenceKind,
    TinyModelConfig,
)
from mlx_sumrl.config.prepare import (
    DuplicatesConfig,
    FilterConfig,
    PrepareConfig,
    ReadingConfig,
    SourceConfig,
    SplitConfig,
)
from mlx_sumrl.config.rewards import SENTENCE_WORDS, Credit, GateConfig, RewardConfig, ScoringConfig
from mlx_sumrl.config.rollouts import DEFAULT_LENGTH_UNIT, LengthConfig, LengthUnit, SamplingConfig
from mlx_sumrl.config.room import Room
from mlx_sumrl.config.run import EvaluationConfig, Phase, ReportingConfig, RunConfig
from mlx_sumrl.config.small_laptop import BeforeAfterConfig, QuantizeRoom, SmallLaptopConfig
from mlx_sumrl.config.stages import STEP_METRICS, ConstraintConfig, StageConfig, UntilConfig
from mlx_sumrl.config.structured import Decoding, StructuredConfig
from mlx_sumrl.config.study import StudyConfig
from mlx_sumrl.config.supervised import (
    EarlyStoppingConfig,
    RateRangeConfig,
    SftEvaluationConfig,
    SftExportConfig,
    SftRunConfig,
    SupervisedConfig,
)
from mlx_sumrl.config.training import (
    GrpoConfig,
    OptimizerConfig,
    SftConfig,
    SftOptimizerConfig,
    StoppingConfig,
)

__all__ = [
    "DEFAULT_DTYPE",
    "DEFAULT_LENGTH_UNIT",
    "REFERENCE_BITS",
    "SENTENCE_WORDS",
    "STEP_METRICS",
    "AnswerConfig",
    "AnswerFilterConfig",
    "AskingConfig",
    "BeforeAfterConfig",
    "CheckpointConfig",
    "ComparisonConfig",
    "ConstraintConfig",
    "Credit",
    "Criterion",
    "CurvesConfig",
    "DataConfig",
    "Decoding",
    "DistillConfig",
    "Dtype",
    "DuplicatesConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "ExportConfig",
    "FilterConfig",
    "GateConfig",
    "GrammarConfig",
    "GrpoConfig",
    "IntervalConfig",
    "JudgeConfig",
    "JudgeRewardConfig",
    "JudgingConfig",
    "LengthConfig",
    "LengthUnit",
    "LongDocumentsConfig",
    "LoraConfig",
    "MaskingConfig",
    "OptimizerConfig",
    "Phase",
    "PolicyConfig",
    "PrepareConfig",
    "PriceConfig",
    "QuantizeRoom",
    "RateRangeConfig",
    "ReadingConfig",
    "ReasoningConfig",
    "ReferenceKind",
    "ReportingConfig",
    "RetryConfig",
    "RewardConfig",
    "Room",
    "RowTest",
    "RunConfig",
    "SamplingConfig",
    "ScoringConfig",
    "SftConfig",
    "SftEvaluationConfig",
    "SftExportConfig",
    "SftOptimizerConfig",
    "SftRunConfig",
    "SmallLaptopConfig",
    "SourceConfig",
    "SplitConfig",
    "StageConfig",
    "StoppingConfig",
    "StructuredConfig",
    "StudyConfig",
    "SupervisedConfig",
    "TeacherSourceConfig",
    "TinyModelConfig",
    "TrackerName",
    "TrackingConfig",
    "UntilConfig",
]
