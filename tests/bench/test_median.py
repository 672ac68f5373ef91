"""The median measurement: runs, compares against scipy, and writes what it prints."""

import json

import pytest

from vexpress_trt.bench import median


def test_report_of_a_tiny_clip(tmp_path, capsys):
    path = tmp_path / "new" / "median.json"
    size = ["--frames", "2", "--height", "16", "--width", "24", "--rounds", "1", "--threads", "2", "--json", str(path)]
    assert median.main(size) == 0
    report = json.loads(path.read_text())
    names = [row["name"] for row in report["results"]]
    assert {"copy, threads: 1", "copy, threads: 2", "scipy.ndimage.median_filter"} <= set(names)
    assert any(name.startswith("clip, baseline") for name in names)
    for row in report["results"]:
        low, high = row["ms_range"]
        assert 0 < low <= row["ms_per_frame"] <= high
        assert row["gb_per_s"] * row["ms_per_frame"] * 1e6 == pytest.approx(2 * 16 * 24 * 3)
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
