"""What cannot work is said in one line before any training, with exit code 2; the corrected run then starts."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .programs import VOWELS, Ended, Program, start, tiny_job, write_options

Refused = Callable[..., str]
"""``refused(changed options...)`` is the sentence that a run with them gets."""


def sentence_of(ended: Ended) -> str:
    """The one line on stderr, without ``error:``."""
    assert ended.code == 2, ended
    assert re.fullmatch(r"error: [^\n]+\n", ended.err), ended.err
    assert "Traceback" not in ended.out
    return ended.err.removeprefix("error: ").rstrip()


@pytest.fixture
def options(tiny_model: Path) -> dict[str, Any]:
    """One step of one stage on a folder's model, with LoRA."""
    return {
        "name": "try",
        "policy": {"model": str(tiny_model), "dtype": "float32"},
        "data": {"train": "posts.jsonl", "instruction": "Summarize.\n\n{document}", "max_prompt_tokens": 64},
        "length": {"target": 12},
        "sampling": {"max_tokens": 20},
        "grpo": {"prompts_per_step": 1, "group_size": 2},
        "stages": [{"name": "length", "steps": 1, "rewards": [{"kind": "length"}]}],
        "export": {"fused": False, "adapter": False},
    }


@pytest.fixture
def refused(program: Program, options: dict[str, Any], posts_file: Path, tmp_path: Path) -> Refused:
    """Runs the wrong command, checks what it left, then runs the right one under the same name."""
    assert posts_file == tmp_path / "posts.jsonl"
    config = write_options(tmp_path, options)
    run = tmp_path / "runs" / "try"

    def refuse(*changes: str, config: str = config) -> str:
        ended = program("grpo_staged", "--config", config, *changes)
        sentence = sentence_of(ended)
        left = {path.name for path in run.iterdir()} if run.exists() else set()
        assert left <= {"config.json", ".lock", "base"}
        right = program("grpo_staged", "--config", str(tmp_path / "job.yaml"))
        assert (right.code, right.err) == (0, "")
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
        return sentence

    return refuse


class Terminal(io.StringIO):
    """Someone sits there and has typed nothing."""

    def isatty(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> str:
        raise AssertionError("waits for the person who waits for it")


def write_rows(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def broken_copy(model: Path, folder: Path, missing: str) -> str:
    shutil.copytree(model, folder)
    (folder / missing).unlink()
    return str(folder)


class TestOptions:
    def test_unknown_on_the_command_line(self, refused: Refused) -> None:
        assert refused("--grpo.group_sze", "4") == (
            "unknown option --grpo.group_sze (value '4'); did you mean --grpo.group_size?"
        )

    def test_unknown_in_the_file(self, refused: Refused, options: dict[str, Any], tmp_path: Path) -> None:
        wrong = write_options(tmp_path, {**options, "grpo": {"group_sze": 4}}, "wrong.yaml")
        assert refused(config=wrong) == (
            f"unknown option grpo.group_sze (value 4) in {wrong}; did you mean grpo.group_size?"
        )

    def test_a_config_file_that_is_not_there(self, refused: Refused) -> None:
        assert refused(config="jobb.yaml") == (
            "the config file jobb.yaml does not exist; did you mean job.yaml?"
        )

    def test_a_group_of_one(self, refused: Refused) -> None:
        sentence = refused("--grpo.group_size", "1")
        assert "grpo.group_size is '1' on the command line" in sentence
        assert "greater than or equal to 2" in sentence

    def test_a_target_that_no_completion_can_reach(self, refused: Refused) -> None:
        # 20 tokens and the stop token are 21; 20 + 5 + the stop token leaves room for the tolerance too.
        assert refused("--length.target", "20") == (
            "length.target 20 can never be reached with sampling.max_tokens 20: "
            "raise it to at least 26 (target, tolerance and the stop token)"
        )

    def test_nothing_to_train_on(self, refused: Refused) -> None:
        sentence = refused("--data.train", "null")
        assert sentence.startswith("data.train is missing: name a .jsonl, .csv or .parquet file")


class TestData:
    def test_a_file_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        sentence = refused("--data.train", "post.jsonl")
        assert sentence.startswith(f"there is no file post.jsonl (looked in {tmp_path}): correct the path")

    def test_held_out_rows_that_are_not_there(self, refused: Refused, tmp_path: Path) -> None:
        """Known before training, not after it."""
        sentence = refused("--data.evaluation", "held_out.jsonl")
        assert sentence.startswith(
            f"there is no file held_out.jsonl (looked in {tmp_path}): correct the path"
        )

    def test_a_wrong_column(self, refused: Refused) -> None:
        sentence = refused("--data.document_column", "post")
        assert sentence == (
            "data.train: posts.jsonl has no column 'post' (data.document_column); "
            "its columns are id, document, summary, brief"
        )

    def test_references_that_are_all_empty(
        self, refused: Refused, posts: list[dict[str, str]], tmp_path: Path
    ) -> None:
        file = write_rows(tmp_path / "empty.jsonl", [{**post, "summary": ""} for post in posts[:5]])
        assert refused("--data.train", file) == (
            "data.train: 5 of 5 rows of empty.jsonl cannot be used: 5 x empty reference "
            "(empty.jsonl:1, empty.jsonl:2, empty.jsonl:3, ...); mend or remove these rows"
        )

    def test_a_document_without_text(
        self, refused: Refused, posts: list[dict[str, str]], tmp_path: Path
    ) -> None:
        file = write_rows(tmp_path / "blank.jsonl", [*posts[:4], {**posts[4], "document": " \n "}])
        sentence = refused("--data.train", file)
        assert "1 of 5 rows of blank.jsonl cannot be used (20.0%; data.max_unusable_share" in sentence
        assert "1 x empty document (blank.jsonl:5)" in sentence
        assert sentence.endswith("mend or remove these rows, or raise data.max_unusable_share")


class TestModel:
    def test_no_folder(self, refused: Refused) -> None:
        assert refused("--policy.model", "./absent") == (
            "there is no model folder ./absent; check policy.model"
        )

    def test_no_weights(self, refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
        model = broken_copy(tiny_model, tmp_path / "bare", missing="model.safetensors")
        sentence = refused("--policy.model", model)
        assert sentence.startswith(f"{model} has no model*.safetensors: point policy.model at a folder with")

    def test_no_chat_template(self, refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
        model = broken_copy(tiny_model, tmp_path / "plain", missing="chat_template.jinja")
        sentence = refused("--policy.model", model)
        assert sentence.startswith(f"the tokenizer of {model} has no chat template")
        assert "set data.chat_template: none" in sentence

    def test_the_way_out_of_no_chat_template(
        self, program: Program, options: dict[str, Any], posts_file: Path, tiny_model: Path, tmp_path: Path
    ) -> None:
        model = broken_copy(tiny_model, tmp_path / "plain", missing="chat_template.jinja")
        config = write_options(tmp_path, options)
        ended = program(
            *("grpo_staged", "--config", config, "--policy.model", model, "--data.chat_template", "none")
        )
        assert (ended.code, ended.err) == (0, "")

    def test_lora_keys_that_match_nothing(self, refused: Refused, tiny_model: Path) -> None:
        assert refused("--policy.lora.keys", "attention.q_proj") == (
            f"policy.lora.keys: 'attention.q_proj' matches no linear layer of {tiny_model} "
            "(did you mean 'self_attn.q_proj'?); its layers are mlp.down_proj, mlp.gate_proj, mlp.up_proj, "
            "self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"
        )

    def test_more_tokens_than_the_model_reads(self, refused: Refused, tiny_model: Path) -> None:
        # 128 are read; 20 of them are the completion's.
        assert refused("--data.max_prompt_tokens", "120") == (
            "data.max_prompt_tokens 120 and sampling.max_tokens 20 make 140 tokens, "
            f"and {tiny_model} reads 128; set --data.max_prompt_tokens 108"
        )

    def test_completions_alone_longer_than_the_model_reads(self, refused: Refused, tiny_model: Path) -> None:
        """Then no prompt is short enough, and to shorten it would be no way out."""
        sentence = refused("--sampling.max_tokens", "128")
        assert f"{tiny_model} reads 128" in sentence
        assert "set --sampling.max_tokens" in sentence
        assert "set --data.max_prompt_tokens" not in sentence

    def test_a_tiny_model_made_by_a_failed_start_is_made_again(
        self, program: Program, options: dict[str, Any], posts_file: Path, tmp_path: Path
    ) -> None:
        """The corrected run has the model that it asks for, not the one that did not fit."""
        tiny = {"vocabulary": 320, "hidden_size": 32, "layers": 1, "heads": 2}
        wrong = {**options, "policy": {"tiny": {**tiny, "context": 64}, "tuning": "full", "dtype": "float32"}}
        ended = program("grpo_staged", "--config", write_options(tmp_path, wrong))
        assert "reads 64; set --data.max_prompt_tokens 44" in sentence_of(ended)
        ended = program(
            "grpo_staged", "--config", write_options(tmp_path, wrong), "--policy.tiny.context", "96"
        )
        assert (ended.code, ended.err) == (0, "")
        config = json.loads((tmp_path / "runs" / "try" / "base" / "config.json").read_text())
        assert config["max_position_embeddings"] == 96


class TestRewards:
    def test_a_file_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        rewards = '[{"kind": "function", "function": "absent.py:vowels"}]'
        assert refused("--stages.0.rewards", rewards) == (
            f"reward function 'absent.py:vowels': there is no file 'absent.py' seen from {str(tmp_path)!r}; "
            "give its path from there, or a full one"
        )

    def test_a_function_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(VOWELS)
        rewards = '[{"kind": "function", "function": "mine.py:consonants"}]'
        assert refused("--stages.0.rewards", rewards) == (
            "reward function 'mine.py:consonants': 'consonants' does not exist there; "
            "the functions of mine.py are: vowels"
        )

    def test_a_function_that_needs_a_column_that_is_not_there(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text("def liked(prompts, completions, votes):\n    return list(votes)\n")
        rewards = '[{"kind": "function", "function": "mine.py:liked"}]'
        assert refused("--stages.0.rewards", rewards) == (
            "reward function 'mine.py:liked' needs 'votes', which is no column of the data; "
            "the columns are id, document, summary, brief"
        )

    def test_waiting_for_a_metric_that_is_not_there(self, refused: Refused) -> None:
        sentence = refused("--stages.0.until", '{"metric": "length/witin", "at_least": 0.9}')
        assert "waits for 'length/witin', which is no metric of its steps" in sentence
        assert "length/within" in sentence


class TestRunFolder:
    def test_a_folder_that_holds_a_run(
        self, program: Program, options: dict[str, Any], posts_file: Path, tmp_path: Path
    ) -> None:
        config = write_options(tmp_path, options)
        assert program("grpo_staged", "--config", config).code == 0
        run = tmp_path / "runs" / "try"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert sentence_of(program("grpo_staged", "--config", config)) == (
            "the folder runs/try already holds a run (metrics.jsonl): choose another --name, "
            "or go on with it by --resume runs/try"
        )
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        assert program("grpo_staged", "--config", config, "--name", "other").code == 0
        assert program("grpo_staged", "--resume", "runs/try").code == 0

    def test_a_folder_without_a_run_cannot_be_resumed(self, program: Program, tmp_path: Path) -> None:
        assert sentence_of(program("grpo_staged", "--resume", "runs/absent")) == (
            "runs/absent holds no run (config.json is missing); start one without --resume"
        )
        assert not (tmp_path / "runs").exists()

    def test_options_beside_resume(self, program: Program) -> None:
        sentence = sentence_of(program("grpo_joint", "--resume", "runs/absent", "--grpo.beta", "0.1"))
        assert "leave out --grpo.beta" in sentence


class TestOtherRecipes:
    def test_evaluate_without_rows(self, program: Program, tiny_model: Path) -> None:
        assert sentence_of(program("evaluate", "--model", str(tiny_model))) == (
            "data.evaluation is missing: name a .jsonl, .csv or .parquet file, or a dataset"
        )

    def test_evaluate_without_a_model(self, program: Program, posts_file: Path) -> None:
        sentence = sentence_of(program("evaluate", "--data.evaluation", posts_file.name))
        assert sentence == "model is missing; set it in the config file or with --model"

    @pytest.mark.parametrize("text", [[], [""], ["  \n"]])
    def test_summarize_without_text(self, text: list[str], program: Program, tiny_model: Path) -> None:
        ended = program("summarize", "--model", str(tiny_model), *text)
        assert sentence_of(ended) == (
            "the given text cannot be used: empty document; give one that can be summarised"
        )
        assert ended.out == ""

    def test_summarize_at_a_terminal(self, program: Program) -> None:
        """It asks for the text instead of waiting in silence, and before it loads a model."""
        ended = program("summarize", "--model", "absent/model", stdin=Terminal())
        assert sentence_of(ended) == ("there is no text: give it as the last argument, or on standard input")


def test_processes_of_their_own(tmp_path: Path) -> None:
    """The same from a real command line, all that is said in one line."""
    write_options(tmp_path, tiny_job())
    commands = {
        "the config file absent.yaml does not exist": ("grpo_staged", "--config", "absent.yaml"),
        "data.train is missing": ("grpo_joint", "--config", "job.yaml", "--data.grammar", "null"),
    }
    processes = {sentence: start(*command, folder=tmp_path) for sentence, command in commands.items()}
    for sentence, process in processes.items():
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert said.startswith(f"error: {sentence}")
        assert said.count("\n") == 1
