import json
from pathlib import Path

import pytest

from benchmarks.report import Cost, Row, Target, compare, table, write


def row(name: str, values: list[float], **more: object) -> Row:
    return Row(benchmark="publish", name=name, unit="/s", values=values, **more)  # type: ignore[arg-type]


def test_ratios_are_taken_round_by_round() -> None:
    ours, theirs = row("ours", [10, 30, 50]), row("stock", [20, 30, 200])
    compare([ours], theirs)
    assert ours.ratios == [0.5, 1, 0.25]
    assert theirs.ratios == []


def test_the_ratio_by_cpu_is_above_1_where_the_sidecar_takes_less_than_the_baseline() -> None:
    ours = row("ours", [1, 1], costs=[Cost(sidecar=20, client=5), Cost(sidecar=80)])
    compare([ours], row("stock", [1, 1], costs=[Cost(client=40), Cost(client=40)]))
    assert ours.cpu_ratios == [2, 0.5]


def test_a_row_that_lacks_a_round_is_not_compared() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([row("ours", [10])], row("stock", [20, 30]))


@pytest.mark.parametrize(
    ("target", "values", "ratios", "verdict"),
    [
        (Target(0.35, aim=0.6), [9000], [0.2, 0.4, 0.4], "≥ 0.35 (aim 0.6) ✓"),
        (Target(0.35), [9000], [0.2, 0.2, 0.9], "≥ 0.35 ✗ missed"),
        (Target(60, at_most=True), [60], [], "≤ 60 ✓"),
        (Target(60, at_most=True), [59, 61, 62], [], "≤ 60 ✗ missed"),
        (None, [1], [], ""),
    ],
)
def test_the_verdict_is_on_the_median_ratio_or_where_there_is_none_on_the_median_value(
    target: Target | None, values: list[float], ratios: list[float], verdict: str
) -> None:
    assert row("ours", values, ratios=ratios, target=target).verdict == verdict


def test_the_table_shows_runs_median_range_cost_ratio_and_target() -> None:
    costs = [Cost(sidecar=cost, client=7) for cost in (40.0, 60.0, 50.0)]
    ours = row("ours", [9000, 11000, 10000], costs=costs, ratios=[0.5], cpu_ratios=[0.7], target=Target(0.35))
    other = Row(benchmark="memory", name="RSS", unit="MB", values=[38.94])
    heading, group, line, second_group, second = table([ours, other]).splitlines()
    assert [group, second_group] == ["PUBLISH", "MEMORY"]
    assert " ".join(line.split()) == "ours 3 10,000 /s 9,000 – 11,000 50.0 7.0 – 0.50 0.70 ≥ 0.35 ✓"
    assert " ".join(second.split()) == "RSS 1 38.9 MB 38.9 – 38.9 – – –"
    assert heading.index("runs") + len("runs") == line.index("3") + 1


def test_the_results_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "now.json"
    write(path, [row("ours", [1.5], costs=[Cost(sidecar=2)])], {"cpus": 2})
    document = json.loads(path.read_text())
    assert document["cpus"] == 2
    assert document["rows"][0]["values"] == [1.5]
    assert document["rows"][0]["costs"] == [{"sidecar": 2, "client": None, "server": None}]
