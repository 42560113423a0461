"""``nodes.yaml``: what it may say, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.nodes import NodesConfig, WorkerNode, read_nodes, token_of
from mlx_sumrl.errors import UserError


def written(folder: Path, text: str) -> Path:
    path = folder / "nodes.yaml"
    path.write_text(text)
    return path


def test_plain_urls_and_named_workers(tmp_path: Path) -> None:
    text = """
        workers:
          - http://192.168.1.12:8500
          - {url: "https://mini-3.local:8500/", name: mini-3, token_file: own.token}
        token_file: all.token
        max_staleness: 2
        """
    nodes = read_nodes(written(tmp_path, text))
    first, second = nodes.all_workers()
    assert (first.url, first.name) == ("http://192.168.1.12:8500", "192.168.1.12:8500")
    assert (second.url, second.name) == ("https://mini-3.local:8500", "mini-3")
    assert first.token_file == tmp_path / "all.token"
    assert second.token_file == tmp_path / "own.token"
    assert nodes.max_staleness == 2
    assert nodes.publish_every == 1


def test_hosts_are_workers_too(tmp_path: Path) -> None:
    shared = "listen: '0.0.0.0:8500', engine: mlx, model: m, token_file: there, directory: /d"
    text = (
        f"hosts: [{{host: mini-2, {shared}}}, {{host: 'fe80::1', name: six, trainer_token_file: own, {shared}}}]\n"
        "token_file: t\n"
    )
    first, second = read_nodes(written(tmp_path, text)).all_workers()
    assert (first.url, first.name) == ("http://mini-2:8500", "mini-2")
    assert first.token_file == tmp_path / "t"
    assert (second.url, second.name) == ("http://[fe80::1]:8500", "six")
    assert second.token_file == tmp_path / "own"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "workers is empty; name at least one"),
        ("workers: [mini-2:8500]", "'mini-2:8500' is no worker's address; write it as http://HOST:PORT"),
        ("workers: ['http://user:secret@mini-2']", "is no worker's address"),
        ("workers: ['http://mini-2:99999']", "is no worker's address"),
        ("workers: ['http://mini-2/v1']", "is no worker's address"),
        ("workers: [http://a, http://a]", "two workers have the name 'a'"),
        (
            "workers: [{url: http://a, name: x}, {url: http://a, name: y}]",
            "two workers have the url 'http://a'",
        ),
        ("workers: [{url: http://a, name: 'mini 2'}]", "'mini 2' cannot name a worker"),
        (
            "workers: [http://a]\npublish_every: 4",
            "set max_staleness to at least 3, or publish_every to at most 2",
        ),
        ("workers: [http://a]\nreturn_at_most_s: 0.1", "is below return_after_s"),
        (
            "workers: [http://a]\nmax_stalenes: 1",
            "unknown option max_stalenes (value 1); did you mean max_staleness?",
        ),
        ("workers: [{url: http://a, nam: b}]", "unknown option workers.0.nam (value 'b'); did you mean"),
        ("workers: [http://a]\nmax_staleness: -1", "max_staleness is -1"),
        ("hosts: [{host: a}]", "hosts.0.directory is missing"),
    ],
)
def test_what_is_refused_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        read_nodes(written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "nodes.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("every", "staleness", "well"), [(1, 0, True), (2, 0, False), (2, 1, True), (4, 3, True)]
)
def test_staleness_covers_what_publish_every_makes(every: int, staleness: int, well: bool) -> None:
    given: dict[str, Any] = {"workers": ["http://a"], "publish_every": every, "max_staleness": staleness}
    if well:
        assert NodesConfig.model_validate(given).publish_every == every
    else:
        with pytest.raises(ValidationError, match="max_staleness 0 refuses"):
            NodesConfig.model_validate(given)


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "token"

    def of(content: str) -> str | None:
        file.write_text(content)
        return token_of(WorkerNode(url="http://a", name="a", token_file=file))

    assert token_of(WorkerNode(url="http://a", name="a")) is None
    assert of(" word \n") == "word"
    for content in ("", "two words", "a\nb", "wörd"):
        with pytest.raises(UserError, match="of worker a") as caught:
            of(content)
        assert not content or content not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        token_of(WorkerNode(url="http://a", name="a", token_file=file))
