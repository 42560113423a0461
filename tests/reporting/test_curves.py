"""What is drawn is what metrics.jsonl says; the picture stands by itself; and no run is held up by it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.config.named_run import CurvesConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting import curve_file
from mlx_sumrl.reporting.curve_file import CurveFile
from mlx_sumrl.reporting.curves import PANELS, draw, read_curves, running_mean, save
from mlx_sumrl.reporting.json_files import encoded

SVG = "{http://www.w3.org/2000/svg}"


def supervised_rows(steps: int = 40) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": 0, "stage": "sft", "evaluation/loss": 3.0, "evaluation/train_loss": 2.9}
    ]
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "stage": "sft",
            "loss": 3 / step,
            "grad_norm": 1.0 + step,
            "learning_rate": 1e-4 * step,
        }
        if step % 10 == 0:
            row |= {"evaluation/loss": 1 + abs(step - 20) / 10, "evaluation/train_loss": 2 / step}
        rows.append(row)
    return rows


def staged_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": n, "stage": "sft", "loss": 2.0 / n, "learning_rate": 1e-3} for n in (1, 2)
    ]
    for step in range(3, 13):
        rows.append(
            {
                "step": step,
                "stage": "length" if step < 8 else "quality",
                "loss": 0.01 * step,
                "reward/mean": -1 / step,
                "length/within": min(step / 10, 1),
                "length/mean": 20.0 + step,
                "grad_norm": math.nan if step == 5 else 0.5,
                "learning_rate": 1e-4,
            }
        )
    return rows


def write_run(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"options": {"name": path.name, **options}}))
    (path / "metrics.jsonl").write_bytes(b"".join(map(encoded, rows)))
    return path


@pytest.fixture
def sft_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "tuned", supervised_rows(), length={"target": 64, "tolerance": 5})


@pytest.fixture
def grpo_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "staged", staged_rows(), length={"target": 24, "tolerance": 3}, stages=[])


def lines_of(figure: Any) -> dict[str, np.ndarray]:
    return {
        line.get_gid(): line.get_xydata()
        for axes in figure.axes
        for line in axes.lines
        if line.get_gid() and line.get_gid() != "stage"
    }


def values_of(rows: list[dict[str, Any]], metric: str, *stages: str) -> list[list[float]]:
    return [
        [row["step"], row[metric]]
        for row in rows
        if metric in row and row["stage"] in (stages or (row["stage"],))
    ]


def test_a_supervised_run(sft_run: Path) -> None:
    figure = draw([read_curves(sft_run)])
    rows, drawn = supervised_rows(), lines_of(figure)
    for metric in ("loss", "evaluation/loss", "evaluation/train_loss", "grad_norm", "learning_rate"):
        np.testing.assert_array_equal(drawn[metric], values_of(rows, metric))
    np.testing.assert_array_equal(drawn["lowest"], [[20, 1.0]])
    assert len(drawn) == 6
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.partition(" (")[0] for title in titles] == ["Loss", "Gradient norm", "Learning rate"]
    loss, _, rate = figure.axes
    assert rate.get_position().height < loss.get_position().height / 2
    assert rate.get_xlabel() == "step"


def test_a_run_of_stages(grpo_run: Path) -> None:
    figure = draw([read_curves(grpo_run)])
    rows, drawn = staged_rows(), lines_of(figure)
    np.testing.assert_array_equal(drawn["loss"], values_of(rows, "loss", "sft"))  # GRPO's says little
    for metric in ("reward/mean", "length/within", "length/mean", "grad_norm"):
        np.testing.assert_array_equal(drawn[metric], values_of(rows, metric))  # NaN where it was NaN
    assert math.isnan(drawn["grad_norm"][2, 1])
    assert "kl" not in drawn  # nobody measured it
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    (band,) = by_title["Length"].patches
    assert (band.get_y(), band.get_y() + band.get_height()) == (21, 27)
    for axes in figure.axes:
        bounds = [line.get_xdata()[0] for line in axes.lines if line.get_gid() == "stage"]
        assert bounds == [2.5, 7.5]
    assert [text.get_text() for text in figure.axes[0].texts] == ["sft", "length", "quality"]


def test_legends_do_not_cover_lines(grpo_run: Path, sft_run: Path) -> None:
    figure = draw([read_curves(grpo_run), read_curves(sft_run)])
    figure.canvas.draw()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.x0 > axes.get_window_extent().x1
        assert legend.x1 < figure.bbox.x1


def test_several_runs_share_axes(sft_run: Path, grpo_run: Path) -> None:
    figure = draw([read_curves(sft_run), read_curves(grpo_run, "other")])
    drawn = lines_of(figure)
    np.testing.assert_array_equal(drawn["tuned/loss"], values_of(supervised_rows(), "loss"))
    np.testing.assert_array_equal(drawn["other/loss"], values_of(staged_rows(), "loss", "sft"))
    colours = {
        line.get_gid(): line.get_color()
        for axes in figure.axes
        for line in axes.lines
        if str(line.get_gid()).endswith("/learning_rate")
    }
    assert len(set(colours.values())) == 2


def test_the_file_is_text_and_stands_by_itself(grpo_run: Path) -> None:
    file = grpo_run / "curves.svg"
    save(draw([read_curves(grpo_run)]), file)
    content = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(content)
    assert root.tag == f"{SVG}svg"
    said = {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}
    assert {
        "staged",
        "Reward",
        "Length",
        "Within the asked length",
        "asked for: 24 ± 3",
        "quality",
        "step",
    } <= said
    # Names of XML dialects are no addresses; nothing else may name a place.
    assert not re.search(r"\w+://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", content))
    assert "DOCTYPE" not in content
    links = [
        value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")
    ]
    assert all(link.startswith("#") for link in links)
    again = grpo_run / "again.svg"
    save(draw([read_curves(grpo_run)]), again)
    assert again.read_bytes() == file.read_bytes()
    assert sorted(path.name for path in grpo_run.iterdir()) == [
        "again.svg",
        "config.json",
        "curves.svg",
        "metrics.jsonl",
    ]


def test_the_path_in_the_file_is_the_metric(grpo_run: Path) -> None:
    """The points of the drawn path are one affine map of the data."""
    file = grpo_run / "curves.svg"
    save(draw([read_curves(grpo_run)]), file)
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    group = next(element for element in root.iter(f"{SVG}g") if element.get("id") == "length/mean")
    path = next(group.iter(f"{SVG}path")).get("d", "")
    drawn = np.array([[float(n) for n in pair] for pair in re.findall(r"[ML] (\S+) (\S+)", path)])
    data = np.array(values_of(staged_rows(), "length/mean"))
    # A straight line, which the writer may shorten to its ends.
    for axis in (0, 1):
        fitted = np.interp([data[0, 0], data[-1, 0]], data[:, 0], data[:, axis])
        scale = (drawn[-1, axis] - drawn[0, axis]) / (fitted[1] - fitted[0])
        marks = [[float(use.get("xy"[axis], "nan"))] for use in group.iter(f"{SVG}use")]
        assert len(marks) == len(data)
        np.testing.assert_allclose(
            np.ravel(marks), drawn[0, axis] + scale * (data[:, axis] - data[0, axis]), atol=1e-3
        )


def test_one_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "short", staged_rows()[4:5])
    drawn = lines_of(draw([read_curves(run)]))
    np.testing.assert_array_equal(drawn["reward/mean"], [[5, -0.2]])
    assert "grad_norm" not in drawn  # its one value is not finite
    save(draw([read_curves(run)]), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_falls_from_far_above(tmp_path: Path) -> None:
    rows = [{"step": n, "stage": "sft", "loss": 50.0 if n < 3 else 1.0 + n / 100} for n in range(1, 41)]
    axes = draw([read_curves(write_run(tmp_path / "a", rows))]).axes[0]
    assert axes.get_ylim()[1] < 2
    assert axes.get_title(loc="left") == "Loss (the first 10% of the steps begin above, at 50)"
    rows[30]["loss"] = 49.0  # what comes later is always in sight
    assert draw([read_curves(write_run(tmp_path / "b", rows))]).axes[0].get_ylim()[1] > 49


def test_running_mean() -> None:
    values = np.array([1.0, 2.0, math.nan, 4.0, math.inf, 6.0, math.nan, math.nan, math.nan])
    expected = [
        np.mean(near[np.isfinite(near)]) if np.isfinite(near).any() else math.nan
        for near in (values[max(n - 1, 0) : n + 2] for n in range(len(values)))
    ]
    np.testing.assert_allclose(running_mean(values, 3), expected)
    np.testing.assert_allclose(running_mean(np.array([1.0, 3.0]), 5), [2, 2])


def test_noisy_metrics_get_a_mean_and_keep_their_line(tmp_path: Path) -> None:
    rows = [
        {"step": n, "stage": "s", "reward/mean": math.sin(n), "learning_rate": 1.0} for n in range(1, 101)
    ]
    figure = draw([read_curves(write_run(tmp_path / "long", rows))])
    drawn = lines_of(figure)
    np.testing.assert_array_equal(drawn["reward/mean"], values_of(rows, "reward/mean"))
    values = drawn["reward/mean"][:, 1]
    np.testing.assert_allclose(drawn["reward/mean/mean"][50, 1], values[48:53].mean())
    assert set(drawn) == {"reward/mean", "reward/mean/mean", "learning_rate"}
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["reward/mean, mean of 5"]


def test_what_cannot_be_drawn(tmp_path: Path, sft_run: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run that has taken a step.*there are .*tuned"):
        read_curves(tmp_path / "nowhere")
    empty = write_run(tmp_path / "empty", [{"step": 1, "stage": "sft", "loss": math.inf}])
    with pytest.raises(UserError, match="no step of empty has a finite number"):
        draw([read_curves(empty)])
    torn = write_run(tmp_path / "torn", staged_rows())
    with (torn / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "rew')
    assert len(lines_of(draw([read_curves(torn)]))["reward/mean"]) == 10


def test_the_user_s_style_stays_the_user_s(sft_run: Path, tmp_path: Path) -> None:
    import matplotlib

    save(draw([read_curves(sft_run)]), tmp_path / "usual.svg")
    with matplotlib.rc_context({"svg.fonttype": "path", "lines.linewidth": 9, "font.size": 20}):
        save(draw([read_curves(sft_run)]), tmp_path / "styled.svg")
        assert matplotlib.rcParams["lines.linewidth"] == 9
        assert matplotlib.rcParams["svg.fonttype"] == "path"
    assert (tmp_path / "styled.svg").read_bytes() == (tmp_path / "usual.svg").read_bytes()


def test_neither_pyplot_nor_mlx_is_loaded(sft_run: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from mlx_sumrl.reporting.curves import draw, read_curves, save\n"
        "assert not any(name.partition('.')[0] == 'matplotlib' for name in sys.modules)\n"
        f"run = Path({str(sft_run)!r})\nsave(draw([read_curves(run)]), run / 'curves.svg')\n"
        "loaded = {'matplotlib.pyplot', 'mlx', 'mlx.core'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


class Clock:
    """Time that passes when told to, and with each drawing."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_when_it_is_drawn(sft_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times, notes = Clock(), [], []

    def slow(figure: Any, path: Path) -> None:
        times.append(clock.now)
        clock.now += 2.0

    monkeypatch.setattr(curve_file, "save", slow)
    file = CurveFile(sft_run, CurvesConfig(every_s=10), notes.append, clock)
    for second in (0, 9, 10, 11, 60, 111, 112, 113):
        clock.now = max(clock.now, float(second))
        file.update()
    assert times == [10, 112]  # two seconds once: not again before 50 times as many have passed
    file.update(ends=True)
    assert len(times) == 3
    never = CurveFile(sft_run, CurvesConfig(draw=False), notes.append, clock)
    never.update(ends=True)
    assert len(times) == 3
    assert notes == []


def test_a_failure_is_one_note(sft_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    def full(figure: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(curve_file, "save", full)
    file = CurveFile(sft_run, CurvesConfig(every_s=0), notes.append)
    file.update()
    file.update(ends=True)
    assert len(notes) == 1
    assert "No space left on device" in notes[0]
    assert "the run goes on" in notes[0]


def test_every_metric_is_drawn_once() -> None:
    metrics = [curve.metric for panel in PANELS for curve in panel.curves]
    assert len(set(metrics)) == len(metrics)
