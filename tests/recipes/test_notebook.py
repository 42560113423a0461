"""recipes/quickstart.ipynb: committed clean, and run from top to bottom by this very interpreter."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlx_sumrl
from mlx_sumrl import notebook as calls
from mlx_sumrl.config import LengthConfig, PolicyConfig, RunConfig
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.tiny import train_tokenizer
from mlx_sumrl.training.stages import CONSTRAINED, CURRICULUM
from mlx_sumrl.training.stopping import text_tokens

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"
PROBE = """
import json, sys
print(json.dumps({
    "executable": sys.executable,
    "library": sys.modules["mlx_sumrl"].__file__,
    "steps": {"sft": SFT_STEPS, "length": LENGTH_STEPS, "quality": QUALITY_STEPS},
    "target": TARGET, "tolerance": TOLERANCE, "held_out": HELD_OUT_POSTS,
    "before": before.summary, "after": after.summary,
    "lengths": [row.length for row in after.rows],
    "references": [post["summary"] for post in held_out_posts],
    "different": len({row.text for row in after.rows}),
    "written": [row.reference for row in after.rows],
    "exported": str(exported),
}))
"""


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def test_committed_clean() -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    nbformat.validate(read())
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where the kernel `python3` is this interpreter whatever is installed."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(
        json.dumps(
            {
                "argv": command,
                "display_name": "Python 3",
                "language": "python",
                "env": {"PYTHONPATH": str(ROOT)},
            }
        )
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no one's startup files
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the notebook makes its own folder
    work = tmp_path / "work"
    work.mkdir()
    return work


def text_of(cell: Any) -> str:
    """Everything a reader sees below a cell."""
    return "".join(
        output["text"] if output["output_type"] == "stream" else output["data"].get("text/plain", "")
        for output in cell["outputs"]
    )


@pytest.mark.slow
def test_runs_from_top_to_bottom(here: Path) -> None:
    book = read()
    book.cells.append(nbformat.v4.new_code_cell(PROBE, id="probe"))
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(here)}}
    )
    client.execute()  # raises where a cell does

    cells = {cell.id: cell for cell in book.cells}
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, cell.id
            assert not [output for output in cell.outputs if output.output_type == "error"]
            complaints = [output.text for output in cell.outputs if output.get("name") == "stderr"]
            # tqdm, which the hub client brings, asks for ipywidgets.
            assert not [text for text in complaints if "IProgress not found" not in text], cell.id
    probe = json.loads(text_of(cells["probe"]))
    assert probe["executable"] == sys.executable
    assert probe["library"] == mlx_sumrl.__file__
    assert not list(here.iterdir()), "the notebook writes to its own folder only"

    assert "600 of 600 rows" in text_of(cells["examples"])
    if importlib.util.find_spec("ipywidgets") is None:  # with it the lines are a widget's
        for cell, stage in (("sft", "sft"), ("grpo", "length"), ("grpo", "quality")):
            steps = probe["steps"][stage]
            assert f"{stage}  step {steps}/{steps}" in text_of(cells[cell])

    check_evaluations(probe)
    check_table(text_of(cells["after"]), probe)
    assert text_of(cells["samples"]).count("  after, ") == 2
    assert len(text_of(cells["use"]).split()) > 10
    exported = Path(probe["exported"])
    assert (exported / "model.safetensors").is_file()
    assert str(exported) in text_of(cells["export"])


def check_evaluations(probe: Mapping[str, Any]) -> None:
    """Numbers in their ranges, and the length was learned."""
    before, after, target = probe["before"], probe["after"], probe["target"]
    for summary in (before, after):
        assert summary["rows"] == probe["held_out"]
        for name in ("within", "exact", "unfinished", "rouge1", "rouge2", "rougeL"):
            assert 0 <= summary[name] <= 1
    assert probe["written"] == probe["references"]
    mean = sum(probe["lengths"]) / len(probe["lengths"])
    assert after["length_mean"] == pytest.approx(mean)
    assert after["within"] > before["within"] + 0.3
    assert abs(after["length_mean"] - target) < abs(before["length_mean"] - target)
    assert after["rougeL"] > 0.3, "words, not noise of the right length"
    assert probe["different"] > after["rows"] / 2, "summaries of the posts, not one that fits all"


def check_table(shown: str, probe: Mapping[str, Any]) -> None:
    """The table says what the evaluations do."""
    for name in ("before", "after"):
        line = re.search(rf"^.*\b{name}\b.*$", shown, re.MULTILINE)
        assert line is not None
        numbers = [float(number) for number in re.findall(r"\d+\.\d", line[0])]
        summary = probe[name]
        expected = [100 * summary["within"], 100 * summary["exact"], summary["length_mean"]]
        assert numbers[:3] == pytest.approx(expected, abs=0.051)


class StandIns:
    """For what needs a network: a real model, its rows, and training it. Keeps what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.splits: list[tuple[str, str]] = []
        self.stages: list[tuple[str, int]] = []
        self.export: str | None = None
        self.config: Any = None
        self.prompts: list[str] = []
        asked = self

        class Trainer:
            def __init__(self, policy: Any, config: RunConfig, **others: Any) -> None:
                asked.config = config

            def phase(self, phase: Any, examples: Any, shortened: Any) -> None:
                assert shortened is examples, "their prompts are what they are"
                asked.stages.append((phase.name, phase.steps))
                asked.prompts.append(examples[0].prompt)

        monkeypatch.setattr(calls, "load_with_options", self.load)
        monkeypatch.setattr(calls, "read_rows", self.rows)
        monkeypatch.setattr(calls, "Trainer", Trainer)
        monkeypatch.setattr(
            calls, "evaluate_sampler", lambda sampler, examples, length, *rest, **others: length
        )
        monkeypatch.setattr(mlx_sumrl, "export_adapter", self.export_adapter, raising=False)
        self.names = {
            name: getattr(mlx_sumrl, name)
            for name in ("evaluate", "load_examples", "load_policy", "train_grpo")
        }

    def load(self, options: PolicyConfig, context: int = 32768) -> Any:
        tokenizer = train_tokenizer([real_section()], 300)
        return SimpleNamespace(
            options=options, tokenizer=tokenizer, context=context, source=options.model, width=896
        )

    def rows(self, name: str, split: str, limit: int | None) -> Rows:
        self.splits.append((name, split))
        return Rows(name, [Row(f"{split}:1", {"prompt": "A post.", "completion": "A summary."})])

    def export_adapter(self, policy: Any, folder: str) -> None:
        self.export = folder


def real_section() -> str:
    return str(next(cell.source for cell in read().cells if cell.id == "real"))


def test_the_code_for_a_real_model_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last section runs with stand-ins for what needs a network: its names and options are real ones."""
    block = re.search(r"```python\n(.*?)```", real_section(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    asked = StandIns(monkeypatch)
    names: dict[str, Any] = asked.names
    exec(compile(block[1], "real", "exec"), names)

    assert asked.splits == [("mlabonne/smoltldr", "train"), ("mlabonne/smoltldr", "validation")]
    first, last = ((stage["name"], stage["steps"]) for stage in CURRICULUM["stages"])
    assert asked.stages == [first, ("stopping", CURRICULUM["stopping"]["steps"]), last]
    assert ["64 tokens" in prompt for prompt in asked.prompts] == [True] * 3
    assert asked.export == "reddit-adapter"
    config = asked.config
    assert (config.length.target, config.length.tolerance) == (
        names["after"].target,
        names["after"].tolerance,
    )
    assert config.policy.tuning == "lora"
    # Rooms that are given lie over the recipe's, and do not take their place.
    assert (config.grpo.prompts_per_step, config.grpo.beta) == (8, CURRICULUM["grpo"]["beta"])
    assert config.sampling.temperature == CURRICULUM["sampling"]["temperature"]
    assert config.optimizer.schedule == CURRICULUM["optimizer"]["schedule"]
    assert config.optimizer.learning_rate == pytest.approx(2e-3 * (256 / 896) ** 0.5)
    assert (tmp_path / "runs" / "reddit" / "config.json").is_file()


def test_what_cannot_be_taught_when_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full tuning takes the stage without it; too little context for its texts is refused, with a way out."""
    monkeypatch.chdir(tmp_path)
    asked = StandIns(monkeypatch)
    policy = asked.load(PolicyConfig(model="a/model"))
    examples = asked.names["load_examples"](
        "mlabonne/smoltldr", policy, document_column="prompt", reference_column="completion"
    )
    asked.names["train_grpo"](asked.load(PolicyConfig(model="a/model", tuning="full")), examples)
    without = [(stage["name"], stage["steps"]) for stage in CONSTRAINED["stages"]]
    assert asked.stages == without

    longest = max(len(example.prompt_ids) for example in examples)
    taught = text_tokens(LengthConfig())
    tight = asked.load(PolicyConfig(model="a/model"), context=longest + taught - 1)
    asked.stages.clear()
    with pytest.raises(UserError, match="the texts that stopping is learned from") as error:
        asked.names["train_grpo"](tight, examples, sampling={"max_tokens": taught - 3})
    assert f"max_prompt_tokens={longest - 1}, or give stopping=None" in str(error.value)
    assert asked.stages == []
    asked.names["train_grpo"](tight, examples, sampling={"max_tokens": taught - 3}, stopping=None)
    assert asked.stages == without
