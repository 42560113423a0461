"""Long texts cut and read whole: what is compared, on a few real rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import long_documents
from mlx_sumrl.config import DataConfig

SHARED = Path(__file__).parents[2].parent / "shared"


def test_end_to_end(capsys: pytest.CaptureFixture[str]) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the shared folder with summarizer-5m and scitldr beside the checkout")
    data = SHARED / "data" / "scitldr.train.jsonl"
    given = ["--model", str(SHARED / "models" / "summarizer-5m"), "--data", str(data), "--json"]
    assert long_documents.main([*given, "--texts", "2", "--joined", "4", "--lengths", "300"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["texts"], report["joined"], report["prompt"]) == (2, 4, 384)
    told = {one["way"]: one for one in report["asked"]["300"]["told"]}
    assert told["cut, as long"]["tokens"] == pytest.approx(told["long"]["tokens"], abs=5)
    assert told["long"]["tokens"] > 2 * told["cut"]["tokens"], "the summaries of all chunks"
    gain = report["asked"]["300"]["gain"]
    recalls = [told[way]["recalls"]["rouge1_recall"] for way in ("cut, as long", "long")]
    assert gain["mean"] == pytest.approx(recalls[1] - recalls[0])
    assert gain["low"] <= gain["mean"] <= gain["high"]


def test_joined_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"document": f"d{n}", "summary": f"s{n}"}) + "\n" for n in range(5)))
    first, second = long_documents.joined(str(path), DataConfig(), 2, 9)  # the fifth has no second
    assert (first.text, first.references) == ("d0\n\nd1", "s0\ns1")
    assert (second.text, second.references) == ("d2\n\nd3", "s2\ns3")
