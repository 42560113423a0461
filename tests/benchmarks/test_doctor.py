"""The doctor ends whatever is broken, and tells what blocks training from what does not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import doctor, mlx_probe
from benchmarks.check import Check, output_of, within

FACTS: dict[str, Any] = {
    "version": "0.32.4",
    "device": "Device(cpu, 0)",
    "blas": "libopenblas.so.0",
    "metal": False,
    "cuda": False,
    "info": {},
    "gflops": 160.0,
    "compiled": None,
}


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


class TestWhole:
    def test_this_machine_as_json(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.doctor", "--json"],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=180,
        )
        report = json.loads(done.stdout)
        verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
        assert {
            "chip",
            "memory",
            "python",
            "packages",
            "mlx",
            "mx.compile",
            "disk",
            "hub",
            "WordNet",
        } <= verdicts.keys()
        assert report["ready"] == ("mend" not in verdicts.values())
        assert done.returncode == (0 if report["ready"] else 1)
        assert verdicts["mlx"] in ("ok", "warn")
        assert verdicts["hub"] == "warn"

    @pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warn", 0), ("mend", 1)])
    def test_only_what_must_be_mended_fails(
        self, verdict: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        advice = "pip install 'x[plot]'"
        monkeypatch.setattr(doctor, "examine", lambda: [Check("one", "found [it]", verdict, advice)])
        assert doctor.main([]) == code
        out = capsys.readouterr().out
        for part in ("one", "found [it]", verdict, advice):
            assert part in out
        assert doctor.main(["--json"]) == code
        assert json.loads(capsys.readouterr().out)["ready"] is (code == 0)

    def test_long_values_are_folded_not_cut(self) -> None:
        console = Console(width=60, record=True, file=io.StringIO())
        console.print(doctor.table([Check("python", "/a/" + "b" * 100, "ok")]))
        assert console.export_text().count("b") == 100


class TestNeverHangs:
    WAITING = Check("slow", "no answer", "warn", "wait")

    def test_work_that_does_not_end(self) -> None:
        start = time.monotonic()
        assert within(0.2, lambda: time.sleep(30) or self.WAITING, self.WAITING) is self.WAITING
        assert time.monotonic() - start < 5

    def test_work_that_fails_says_why(self) -> None:
        def fail() -> Check:
            raise OSError("name not known\nmore")

        assert within(5, fail, self.WAITING) == Check("slow", "name not known", "warn", "wait")

    def test_a_hub_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import httpx

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(doctor, "HUB_SECONDS", -0.8)
        monkeypatch.setattr(httpx, "head", lambda *_, **__: time.sleep(30))
        check = doctor.hub()
        assert (check.verdict, check.found) == ("warn", "https://huggingface.co does not answer")

    def test_an_mlx_that_hangs_or_crashes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert mlx_probe.mlx_facts(seconds=0.01) == {"error": "no answer within 0 s"}
        monkeypatch.setattr(sys, "executable", "/bin/false")
        assert mlx_probe.mlx_facts() == {"error": "ended with code 1"}
        monkeypatch.setattr(sys, "executable", "/no/such/python")
        assert "error" in mlx_probe.mlx_facts()

    def test_a_command_that_is_not_there(self) -> None:
        assert output_of(["no-such-command"]) == ""
        assert output_of(["false"]) == ""
        assert output_of(["echo", "4096"]) == "4096"


class TestMlx:
    def test_all_is_well(self) -> None:
        checks = by_name(mlx_probe.mlx_checks(FACTS))
        assert {check.verdict for check in checks.values()} == {"ok"}
        assert "160 GFLOP/s" in checks["matrix products"].found
        assert "gpu memory" not in checks

    def test_slow_products_are_a_warning_with_a_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        check = by_name(mlx_probe.mlx_checks({**FACTS, "gflops": 4.0, "blas": None}))["matrix products"]
        assert check.verdict == "warn"
        assert "libopenblas0-pthread" in check.advice

    def test_no_compiler(self) -> None:
        check = by_name(mlx_probe.mlx_checks({**FACTS, "compiled": "g++: not found"}))["mx.compile"]
        assert (check.verdict, check.found) == ("mend", "g++: not found")
        assert "g++" in check.advice

    def test_no_mlx(self) -> None:
        checks = mlx_probe.mlx_checks({"error": "No module named 'mlx'"})
        assert [check.verdict for check in checks] == ["mend"]
        assert "pip install" in checks[0].advice

    def test_metal_shows_what_the_gpu_may_use(self) -> None:
        info = {"max_recommended_working_set_size": 12 * 2**30}
        facts = {**FACTS, "metal": True, "device": "Device(gpu, 0)", "info": info}
        checks = by_name(mlx_probe.mlx_checks(facts))
        assert "Metal" in checks["mlx"].found
        assert "12.0 GB" in checks["gpu memory"].found

    def test_a_mac_without_metal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        assert by_name(mlx_probe.mlx_checks(FACTS))["mlx"].verdict == "warn"


class TestMachine:
    def test_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert doctor.packages().verdict == "ok"
        stated = ["numpy>=1000", "no-such-package>=1", 'pytest>=1000; extra == "test"']
        monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: stated)
        check = doctor.packages()
        assert check.verdict == "mend"
        assert ">=1000" in check.found
        assert "no-such-package missing" in check.found
        assert "pytest" not in check.found

    @pytest.mark.parametrize(("free_gb", "verdict"), [(50, "ok"), (5, "warn"), (0.5, "mend")])
    def test_disk(
        self, free_gb: float, verdict: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(0, 0, int(free_gb * 2**30)))
        assert doctor.disk(tmp_path).verdict == verdict

    def test_an_intel_python_on_a_mac(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
        assert doctor.chip().verdict == "mend"

    @pytest.mark.parametrize(("version", "verdict"), [("13.6.1", "mend"), ("15.1", "ok"), ("26.0", "ok")])
    def test_macos(self, version: str, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        monkeypatch.setattr(doctor.platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
        assert doctor.system().verdict == verdict

    def test_wordnet_zipped_or_not_there(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import nltk

        monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
        assert doctor.wordnet().verdict == "warn"
        (tmp_path / "corpora").mkdir()
        (tmp_path / "corpora" / "wordnet.zip").write_bytes(b"PK\x05\x06" + bytes(18))
        assert doctor.wordnet().verdict == "ok"

    def test_optional_packages_name_their_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "OPTIONAL", {"numpy": "x", "no-such-package": "mlx_sumrl[track]"})
        check = doctor.optional_packages()
        assert check.verdict == "ok"
        assert check.found.startswith("numpy ")
        assert check.advice == "no-such-package: pip install 'mlx_sumrl[track]'"
