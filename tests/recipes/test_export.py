"""`recipes.export`: a run's policy written again, and sent to a mock of the hub, which keeps every byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from safetensors.numpy import load_file

from mlx_sumrl.config import TinyModelConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.tiny import make_tiny_model
from mlx_sumrl.reporting.hub import check_hub, push
from recipes.sft import main as train

from .mock_hub import TOKEN, MockHub, running_hub
from .programs import ROOT, SHARED, Ended, Program, tiny_job, write_options


@pytest.fixture
def hub() -> Iterator[MockHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, posts: list[dict[str, str]]) -> Path:
    """A folder with a finished run of four supervised steps; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    tiny = TinyModelConfig(vocabulary=320, hidden_size=32, layers=1, heads=2, context=256)
    model = make_tiny_model(folder / "small", tiny, [post["document"] for post in posts], 0)
    (folder / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts[:12]))
    options = {
        "name": "try",
        "runs_dir": str(folder / "runs"),
        "policy": {"model": str(model), "dtype": "float32", "lora": {"rank": 2}},
        "data": {
            "train": str(folder / "posts.jsonl"),
            "evaluation": str(folder / "posts.jsonl"),
            "evaluation_rows": 3,
            "instruction": "Sum up.\n\n{document}",
            "max_prompt_tokens": 48,
        },
        "sft": {"steps": 4, "batch_size": 2},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"every": 2, "samples": 0},
        "checkpoint": {"every": 1, "keep": 3},
    }
    train(["--config", write_options(folder, options)])
    return folder


@pytest.fixture
def supervised(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained / "runs" / "try", tmp_path / "runs" / "try"))


def pushed(hub: MockHub, folder: Path, *argv: str, token: str | None = TOKEN) -> Ended:
    """The recipe in a process of its own, since the hub's client reads its address and token when it is imported."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = rest | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",  # the mock's storage is plain LFS
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, "-m", "recipes.export", "--run", "runs/try", *argv]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folders_arrive_byte_for_byte(supervised: Path, trained: Path, hub: MockHub, tmp_path: Path) -> None:
    ended = pushed(hub, tmp_path, "--push", "tester/brief", "--license", "mit", "--private")
    assert ended.code == 0, ended
    assert f"pushed model to {hub.url}/tester/brief" in ended.out
    created = {"name": "brief", "organization": "tester", "type": "model"}
    assert [{name: one[name] for name in created} for one in hub.created] == [created]
    assert "private" in json.dumps(hub.created[0])
    local = on_disk(supervised / "export" / "model")
    assert hub.files.keys() == local.keys()
    assert {name for name in local if hub.files[name] != local[name]} == {"README.md"}
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.license == "mit"
    assert "vllm serve tester/brief" in card.text
    assert "vllm serve FOLDER" in local["README.md"].decode()
    # An adapter names its base, but not where that lies on this machine.
    hub.files.clear()
    ended = pushed(hub, tmp_path, "--push", "guild/brief-lora", "--what", "peft")
    assert ended.code == 0, ended
    local = on_disk(supervised / "export" / "peft")
    assert hub.files["adapter_model.safetensors"] == local["adapter_model.safetensors"]
    sent = json.loads(hub.files["adapter_config.json"])
    assert sent == json.loads(local["adapter_config.json"]) | {"base_model_name_or_path": "small"}
    assert str(trained).encode() not in b"".join(hub.files.values())
    assert hub.created[-1].get("visibility") != "private"


@pytest.mark.parametrize(
    ("repository", "token", "role", "words"),
    [
        ("tester/brief", None, "write", ["needs a token", "hf auth login"]),
        ("tester/brief", "hf_wrongTokenThatIsNotPrinted", "write", ["does not know the token"]),
        ("tester/brief", TOKEN, "read", ["may only read"]),
        ("someone/brief", TOKEN, "write", ["of tester", "not someone", "push to tester/brief"]),
        ("brief", TOKEN, "write", ["brief is no name", "OWNER/NAME"]),
        ("tester/a b", TOKEN, "write", ["tester/a b is no name"]),
    ],
)
def test_nothing_is_sent_where_it_may_not(
    repository: str,
    token: str | None,
    role: str,
    words: list[str],
    hub: MockHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.role = role
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(UserError) as refused:
        check_hub(repository, HfApi(endpoint=hub.url, token=token))
    for word in words:
        assert word in str(refused.value)
    assert "hf_" not in str(refused.value)
    assert all(call.startswith("GET ") for call in hub.calls)
    assert check_hub("Guild/brief", HfApi(endpoint=hub.url, token=TOKEN)) if role == "write" else True


def test_a_wrong_token_ends_the_recipe_before_anything(
    hub: MockHub, supervised: Path, tmp_path: Path
) -> None:
    before = on_disk(supervised / "export" / "model")
    ended = pushed(
        hub, tmp_path, "--push", "tester/brief", "--license", "mit", token="hf_wrongTokenNotPrinted"
    )
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert "does not know the token" in ended.err
    assert "hf_wrong" not in ended.err + ended.out
    assert all(call.startswith("GET ") for call in hub.calls)
    assert on_disk(supervised / "export" / "model") == before


def test_a_hub_that_refuses(hub: MockHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    (tmp_path / "README.md").write_text("# Card\n")
    api = check_hub("tester/brief", HfApi(endpoint=hub.url, token=TOKEN))
    for status, words in ((403, "does not let this token write to tester/brief"), (400, "with status 400")):
        hub.refuse_commit = status
        with pytest.raises(UserError, match=words):
            push(tmp_path, "tester/brief", False, api)
    with pytest.raises(UserError, match="check the network"):
        check_hub("tester/brief", HfApi(endpoint="http://127.0.0.1:9", token=TOKEN))  # nobody listens there


def test_another_checkpoint_is_exported_anew(program: Program, supervised: Path) -> None:
    model = supervised / "export" / "model" / "model.safetensors"
    first = model.read_bytes()
    ended = program("export", "--run", "runs/try")
    assert ended.code == 0, ended
    assert model.read_bytes() == first, "nothing is written anew but the cards"
    kept = sorted(int(path.name[5:]) for path in (supervised / "checkpoints").iterdir())
    ended = program("export", "--run", "runs/try", "--checkpoint", str(kept[-2]))
    assert f"export/model (step {kept[-2]})" in ended.out
    other = load_file(model)
    ended = program("export", "--run", "runs/try", "--checkpoint", "last")
    assert "export/model (step 4)" in ended.out
    assert "after step 4" in (supervised / "export" / "adapter" / "README.md").read_text()
    moved = load_file(model)
    assert any((moved[name] != other[name]).any() for name in moved)
    # By hand: the adapter of that checkpoint is what was exported.
    adapter = load_file(supervised / "export" / "adapter" / "adapters.safetensors")
    saved = load_file(supervised / "checkpoints" / "step-000004" / "policy.safetensors")
    assert adapter.keys() == saved.keys()
    assert all((adapter[name] == saved[name]).all() for name in saved)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--run", "runs/try", "--private"], ["give --push OWNER/NAME"]),
        (["--run", "runs/none"], ["runs/none holds no run", "there are runs/try"]),
        (["--run", "runs/try", "--checkpoint", "99"], ["--checkpoint 99", "name one of these"]),
        (["--run", "runs/try", "--checkpoint", "worst"], ["checkpoint"]),
        (["--run", "runs/try", "--gguf"], ["its family is qwen2", "convert_hf_to_gguf.py"]),
    ],
)
def test_mistakes(argv: list[str], words: list[str], program: Program, supervised: Path) -> None:
    ended = program("export", *argv)
    assert ended.code == 2, ended
    for word in words:
        assert word in ended.err


def test_a_grpo_run_too(program: Program, tmp_path: Path) -> None:
    stages = [{"name": "length", "steps": 2, "rewards": [{"kind": "length"}]}]
    changes: dict[str, Any] = {"sft": None, "stages": stages, "export": {"license": "mit", "language": "en"}}
    ended = program("grpo_staged", "--config", write_options(tmp_path, tiny_job(changes)))
    assert ended.code == 0, ended
    folder = tmp_path / "runs" / "job" / "export" / "model"
    card = ModelCard((folder / "README.md").read_text())
    assert (card.data.license, card.data.language) == ("mit", "en")
    assert "| training | posts from mlx_sumrl's own grammar | 40 |" in card.text
    assert card.data.eval_results
    ended = program("export", "--run", "runs/job", "--checkpoint", "last")
    assert "export/model (step 2)" in ended.out
    assert program("export", "--run", "runs/job", "--checkpoint", "best").code == 2


def test_gguf_is_asked_for_before_training(program: Program, tmp_path: Path) -> None:
    stages = [{"name": "length", "steps": 2, "rewards": [{"kind": "length"}]}]
    config = write_options(tmp_path, tiny_job({"sft": None, "stages": stages}))
    ended = program("grpo_staged", "--config", config, "--export.gguf")
    assert ended.code == 2
    assert "its family is qwen2" in ended.err
    assert not (tmp_path / "runs" / "job" / "metrics.jsonl").exists()


def test_a_run_that_ends_in_a_gguf_file(
    program: Program, tmp_path: Path, posts: list[dict[str, str]]
) -> None:
    model = SHARED / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip("no ../shared/models beside the checkout")
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts[:8]))
    argv = ["--policy.model", str(model), "--data.train", "posts.jsonl", "--data.chat_template", "none"]
    argv += ["--sft.steps", "1", "--sft.batch_size", "2", "--policy.dtype", "float32", "--export.gguf"]
    ended = program("sft", *argv)
    assert ended.code == 0, ended
    folder = tmp_path / "runs" / "sft" / "export" / "gguf"
    assert {path.name for path in folder.iterdir()} == {"model-f16.gguf", "Modelfile", "README.md"}
    assert "ollama create sft -f Modelfile" in (folder / "README.md").read_text()
