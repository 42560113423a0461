"""METEOR by hand and against nltk called directly; and what happens where WordNet is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from nltk.translate.meteor_score import meteor_score, single_meteor_score

from mlx_sumrl.metrics.meteor import meteor, meteor_tokens


def test_tokens():
    assert meteor_tokens("Don't stop, Émile!") == ["don", "'", "t", "stop", ",", "émile", "!"]
    assert meteor_tokens("他在iPhone上说：好") == ["他", "在", "iphone", "上", "说", "：", "好"]  # noqa: RUF001


@pytest.mark.usefixtures("wordnet")
def test_by_hand():
    # Five of five words in one chunk: F = 1, penalty .5 * (1/5)^3.
    assert meteor("the cat sat down quietly", "The cat sat down quietly") == pytest.approx(1 - 0.5 / 125)
    # a-b-d of a b c d and a b x d e: P = 3/4, R = 3/5, two chunks.
    precision, recall = 3 / 4, 3 / 5
    f_mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert meteor("qa qb qc qd", "qa qb qx qd qe") == pytest.approx(f_mean * (1 - 0.5 * (2 / 3) ** 3))
    assert meteor("", "words") == 0.0
    assert meteor("words", "") == 0.0


@pytest.mark.usefixtures("wordnet")
def test_synonyms_and_stems_match():
    # One chunk of two: auto is a lemma of car's first synset, and driving stems to drive.
    assert meteor("car driving", "auto drive") == pytest.approx(1 - 0.5 / 8)


@pytest.mark.usefixtures("wordnet")
def test_equals_nltk_on_tokens_split_by_hand():
    text = ["two", "people", "'", "s", "plan", "is", "to", "exercise", "their", "arms", "today", "."]
    reference = ["#", "person1", "#", "persuades", "jimmy", "into", "working", "out", "on", "arms", "."]
    expected = meteor_score([reference], text)
    assert 0 < expected < 1
    assert meteor("Two people's plan is to exercise their arms today.",
                  "#Person1# persuades Jimmy into working out on arms.") == expected  # fmt: skip


@pytest.mark.usefixtures("wordnet")
def test_threads_get_what_one_thread_gets(dialogues):
    pairs = [(row["dialogue"][:200], row["summary"]) for row in dialogues]
    alone = [meteor(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: meteor(*pair), pairs * 3)) == alone * 3


SCORE = """
import sys
import nltk.data
if sys.argv[1] == "nowhere":
    nltk.data.path[:] = []
from mlx_sumrl.config import LengthConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation import score
from mlx_sumrl.rollouts.types import Completion, Group
from concurrent.futures import ThreadPoolExecutor
group = Group(Example("r", (1,), "p", "d", "a car"), (Completion((1, 0), (0.0, 0.0), "stop", 0, "an auto"),))
def once(_):
    found = score([group], LengthConfig())
    return found.summary["meteor"], found.rows[0].metrics["meteor"], found.meteor_missing
with ThreadPoolExecutor(4) as pool:
    answers = set(pool.map(once, range(4)))
assert len(answers) == 1, answers
print(*answers.pop(), sep="\\n")
"""


def in_a_fresh_process(where: str, nltk_data: str) -> list[str]:
    """Score in a process that has never loaded WordNet: from four threads at once."""
    process = subprocess.run(
        [sys.executable, "-c", SCORE, where],
        env={**os.environ, "NLTK_DATA": nltk_data},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return process.stdout.splitlines()


def test_without_wordnet_there_is_no_meteor_but_a_reason_and_a_remedy(tmp_path):
    summary, row, reason = in_a_fresh_process("nowhere", str(tmp_path))
    assert summary == row == "None"
    assert reason.startswith("METEOR is left out because the WordNet corpus is not on this machine")
    assert "python -m nltk.downloader wordnet" in reason
    assert "NLTK_DATA" in reason


def test_a_damaged_archive_is_a_reason_too(tmp_path):
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_bytes(b"not an archive")
    summary, _, reason = in_a_fresh_process("nowhere", str(tmp_path))
    assert summary == "None"
    assert reason.startswith("METEOR is left out because the WordNet corpus")


def test_first_use_from_several_threads_with_wordnet(shared):
    summary, row, reason = in_a_fresh_process("there", str(shared / "nltk_data"))
    # car = auto by WordNet, a and an do not match: P = R = 1/2, one chunk of one match, penalty one half.
    assert float(summary) == float(row) == pytest.approx(0.5 * 0.5)
    assert reason == "None"


def test_nltk_data_set_after_import_is_seen(shared, monkeypatch, wordnet):
    import nltk.data

    from mlx_sumrl.metrics.meteor import missing_wordnet

    folder = str(shared / "nltk_data")
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("NLTK_DATA", folder)
    assert missing_wordnet() is None
    assert nltk.data.path == [folder]


@pytest.mark.usefixtures("wordnet")
def test_what_is_remembered_changes_nothing_on_500_pairs(shared):
    """Summaries against references, related and not, with nltk asked directly: each word stemmed and looked up anew."""
    with (shared / "data" / "dialogsum.validation.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    pairs = [
        (f"{rows[(at + away) % len(rows)]['summary']} {rows[at]['dialogue'][:150]}", rows[at]["summary"])
        for at in range(250)
        for away in (0, 1)
    ]
    assert len(pairs) == 500
    expected = [
        single_meteor_score(meteor_tokens(reference), meteor_tokens(text)) for text, reference in pairs
    ]
    for _ in range(2):
        assert [meteor(*pair) for pair in pairs] == pytest.approx(expected, abs=1e-12)


def test_wordnet_is_found_without_being_loaded(shared, monkeypatch, tmp_path):
    import nltk.data

    from mlx_sumrl.metrics import meteor
    from mlx_sumrl.metrics.meteor import wordnet_is_there

    monkeypatch.setattr(meteor, "wordnet", None)  # whatever is asked of it
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert not wordnet_is_there()
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_bytes(b"not an archive")
    assert not wordnet_is_there()
    (tmp_path / "corpora" / "wordnet").mkdir()  # as it lies unpacked
    assert wordnet_is_there()
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setenv("NLTK_DATA", str(shared / "nltk_data"))
    assert wordnet_is_there()
