"""The page: its numbers are the tables', names in it are harmless, it loads nothing, and it says what is not met."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from analysis.exports.results import dictionary_csv, report_markdown, results_csv
from analysis.page.assemble import page
from analysis.page.chart import log_scale, plotly_text
from analysis.page.grid import heat_maps
from analysis.page.rules import rules
from analysis.page.scaling import scaling_charts
from analysis.page.spent import ledger_chart, pareto_chart
from analysis.page.study import panel_chart
from analysis.page.tables import diagnosis_shown, filters, laws_table, origins_table, tables
from analysis.report import advise, main
from analysis.runs.load import load_cells
from analysis.schema import Report
from analysis.series import build_report
from analysis.statistics.estimate import Estimate
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from analysis.tables.formats import all_tables, escape_markdown, markdown
from benchmarks.core.record import ModelSize
from benchmarks.core.sweep import Dropped
from tests import synthetic

VOID = {"meta", "link", "br", "img", "input", "hr"}
HOSTILE = {
    "script": "<script>window.hit=1</script>",
    "attribute": '"><img src=x onerror="window.hit=1"> \' onmouseover=hit()',
    "end": "</script></table><!-- ]]> {{ 7*7 }} {% raw %}",
    "long": "x" * 3000,
    "plotly": '<a href="https://evil.example">b</a> %{x} $\\alpha$ &lt;',
}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element | str] = field(default_factory=list)

    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text() for child in self.children)

    def all(self, tag: str) -> list[Element]:
        inside = [child for child in self.children if isinstance(child, Element)]
        return [one for child in inside for one in ([child] if child.tag == tag else []) + child.all(tag)]


class Tree(HTMLParser):
    """A page as a tree; raises where an element is ended that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = self.here = Element("", {}, None)
        self.elements: list[Element] = []
        self.feed(text)
        self.close()
        assert self.here is self.root, f"<{self.here.tag}> is not ended"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice in <{tag}>"
        element = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(element)
        self.elements.append(element)
        if tag not in VOID:
            self.here = element

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag, f"</{tag}> within <{self.here.tag}>"
        assert self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.children.append(data)

    def named(self, name: str) -> Element:
        [found] = [one for one in self.elements if one.attributes.get("id") == name]
        return found

    def tagged(self, tag: str) -> list[Element]:
        return [one for one in self.elements if one.tag == tag]


def report_of(folder: Path) -> Report:
    return build_report(load_cells(folder))


def page_of(folder: Path) -> str:
    loaded = load_cells(folder)
    report = build_report(loaded)
    return page(report, advise(loaded, report))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "local" / "synthetic"
    synthetic.demo_sweep(folder)
    return folder


@pytest.fixture(scope="module")
def text(demo: Path) -> str:
    return page_of(demo)


@pytest.fixture(scope="module")
def tree(text: str) -> Tree:
    return Tree(text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(write_hostile(tmp_path_factory.mktemp("hostile") / "a" / "b"))


def write_hostile(folder: Path) -> Path:
    """A sweep in which all that a user or a failing run can name is hostile."""
    configs: list[dict[str, Any]] = []
    records = []
    for name in HOSTILE.values():
        for workers in (1, 2, 4, 8):
            of = synthetic.config(workers, workload={"name": name}, strategy={"name": name, "hook": name})
            number = len(configs)
            configs.append(of)
            if workers == 8:
                one = synthetic.failed(of, "error", name)
            else:
                environment = {"commit": name, "packages": {"torch": name}, "driver": name}
                one = synthetic.record(of, [0.1 / workers] * 4, notes=[name], environment=environment)
                one.ledger = {name: 3.0, "window": 2.0}
            one.run_id, one.cell_id = f"run{number}", f"cell{number}"
            records.append(one)
    dropped = [Dropped(settings={name: name}, reason=name) for name in HOSTILE.values()]
    synthetic.write(folder, records)
    figure = [{"kind": "bars", "y": "step_time_s", "title": HOSTILE["attribute"]}]
    synthetic.write_manifest(
        folder, configs[:0], dropped, question=" ".join(HOSTILE.values()), sweep=HOSTILE["script"], figure=figure
    )
    return folder


def sweep(folder: Path, repeats: int = 6, steps: int = 4, **changes: Any) -> Report:
    """Four worker counts, every run with what a record of a container says."""
    environment = {"commit": "0123456789abcdef", "image_sha256": "ab" * 32, "packages": {"torch": "2.9"}, "driver": "5"}
    configs = [synthetic.config(n, repeat=repeat) for n in (1, 2, 4, 8) for repeat in range(repeats)]
    records = [
        synthetic.record(
            of,
            [(0.8 / of["workers"] + 0.01) * (1 + 0.01 * of["repeat"])] * steps,
            **({"environment": environment} | changes),
        )
        for of in configs
    ]
    synthetic.write(folder, records)
    synthetic.write_manifest(folder, configs)
    return report_of(folder)


def test_every_entry_of_every_table_is_in_the_page(demo: Path, tree: Tree) -> None:
    report = report_of(demo)
    for table in all_tables(report):
        shown = tree.named(f"table-{table.name}")
        assert [one.text() for one in shown.all("th")] == table.header
        rows = [[cell.text() for cell in row.all("td")] for row in shown.all("tr")[1:]]
        assert rows == [[f"{entry.text} {entry.interval}".strip() for entry in row] for row in table.rows]
        assert [one.text() for one in shown.all("caption")] == [table.title]
        after = tree.elements[tree.elements.index(shown) :]
        assert all(any(note == one.text() for one in after if one.tag == "li") for note in table.notes)
    assert len(all_tables(report)) == 3


def test_answer_and_gaps_are_told(tree: Tree, demo: Path) -> None:
    loaded = load_cells(demo)
    advice = advise(loaded, build_report(loaded))
    assert advice is not None
    shown = [one.text() for one in tree.tagged("p") if one.attributes.get("class") == "answer"]
    assert shown == [one.sentence for one in advice.answers]
    assert len(shown) == 2, "one for each workload"
    gaps = tree.named("gaps").text()
    assert "3 of 3 failed: oom (hang: rank 3: out of memory)" in gaps
    assert "mlp, 8 workers, global batch 512" in gaps  # never run
    assert "strategy=single needs workers == 1: it is one process" in gaps


def test_structure_for_readers_who_do_not_see(tree: Tree) -> None:
    ids = Counter(one.attributes["id"] for one in tree.elements if "id" in one.attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    targets = [one.attributes["href"][1:] for one in tree.tagged("a")]
    assert len(targets) > 8
    assert all(target in ids for target in targets)
    assert all(name in ids for one in tree.elements for name in one.attributes.get("aria-labelledby", "").split())
    levels = [int(one.tag[1]) for one in tree.elements if re.fullmatch("h[1-6]", one.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in one.attributes for one in tree.tagged("th"))
    assert all(one.all("caption") and one.all("button") for one in tree.tagged("table") if "id" in one.attributes)
    assert {one.tag for one in tree.elements} >= {"header", "nav", "main", "footer"}
    assert tree.tagged("html")[0].attributes["lang"] == "en"


def test_each_chart_has_words_and_its_numbers_as_a_table(tree: Tree) -> None:
    charts = json.loads(tree.named("charts").text())
    figures = tree.tagged("figure")
    assert [int(one.attributes["data-chart"]) for one in figures] == list(range(len(charts)))
    assert len(charts) == 16  # three measures, two kinds, two workloads; two grids, cost, ledger
    for figure in figures:
        [plot] = [one for one in figure.all("div") if one.attributes.get("role") == "img"]
        assert len(plot.attributes["aria-label"]) > 20
        assert figure.all("figcaption")[0].text()
        assert len(figure.all("table")[0].all("tr")) > 1


@pytest.mark.parametrize("which", ["text", "hostile"])
def test_the_page_loads_nothing(which: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(which)
    tree = Tree(content)
    for one in tree.elements:
        for name in ("src", "srcset", "href", "action", "data", "poster", "formaction"):
            assert re.match("#|data:,", one.attributes.get(name, "#")), one
        assert not [name for name in one.attributes if name.startswith("on") or name == "style"], one
    style = tree.tagged("style")[0].text()
    assert "url(" not in style
    assert "@import" not in style
    [policy] = [one.attributes["content"] for one in tree.tagged("meta") if "http-equiv" in one.attributes]
    [own] = [one.text() for one in tree.tagged("script") if "type" not in one.attributes]
    scripts = [own, tree.named("plotly").text()]
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert policy.startswith("default-src 'none'; script-src " + " ".join(f"'sha256-{one}'" for one in digests) + ";")


def test_hostile_names_are_text(hostile: str) -> None:
    tree = Tree(hostile)
    known = (
        "html head title style meta link script body header nav main section footer noscript form label select option "
    )
    known += "output h1 h2 h3 p a ul ol li dl dt dd div figure figcaption details summary strong small button "
    known += "table caption thead tbody tr th td"
    assert {one.tag for one in tree.elements} <= set(known.split())
    assert len(tree.tagged("script")) == 3
    assert "{{ 7*7 }}" in tree.named("gaps").text()
    data = json.loads(tree.named("charts").text())
    shown = [one for one in strings(data) if "%{" not in one or "evil" in one]
    assert not [one for one in shown if re.search(r"<(?!/?b>|br>)", one)]
    assert any(HOSTILE["script"][:20] in html.unescape(one) for one in shown)
    templates = {trace[key] for chart in data for trace in chart["traces"] for key in trace if "template" in key}
    assert templates <= {"%{text}", "%{customdata}<extra></extra>"}  # a name in a template would be obeyed
    assert max(map(len, shown)) < 1000


def strings(value: object) -> list[str]:
    """All texts that Plotly shows: `meta` is for the page's own filters, and in no template."""
    if isinstance(value, Mapping):
        return [one for key, inner in value.items() if key != "meta" for one in strings(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_text_for_plotly_has_no_markup() -> None:
    assert plotly_text("<b>&\n'x'\x00") == "&lt;b&gt;&amp; 'x'"
    assert plotly_text("a" * 99, 10) == "a" * 9 + "…"


def test_a_sweep_of_500_runs_is_below_6_mb(tmp_path: Path) -> None:
    for cell in range(100):
        for repeat in range(5):
            size = 64 * 2 ** (cell % 5) * (1 + cell // 25)
            of = synthetic.config(
                2 ** (cell // 5 % 5), global_batch=size, repeat=repeat, workload={"name": f"model{cell // 25}"}
            )
            synthetic.write(tmp_path, [synthetic.record(of, [0.1 + 0.001 * (cell + repeat)] * 4)])
    report = report_of(tmp_path)
    assert report.runs.ok == 500
    assert len(page_of(tmp_path).encode()) < 6e6


def test_throughput_chart_has_the_reports_numbers(demo: Path) -> None:
    report = report_of(demo)
    charts, left_out = scaling_charts(report)
    assert left_out == 0
    chart = next(one for one in charts if one.title == "Throughput, strong scaling: lenet")
    marks = {trace["name"]: trace for trace in chart.traces if "marker" in trace}
    assert list(marks) == ["batch 64", "batch 128", "batch 256", "batch 512"]
    for series in report.strong[:4]:
        trace = marks[f"batch {series.fixed_batch}"]
        known = [point for point in series.points if point.throughput_samples_per_s]
        rates = [point.throughput_samples_per_s for point in known]
        assert trace["x"] == [point.workers for point in known]
        assert trace["y"] == pytest.approx([rate.value for rate in rates if rate], rel=1e-5)
        above = [rate.high - rate.value for rate in rates if rate]
        below = [rate.value - rate.low for rate in rates if rate]
        assert trace["error_y"]["array"] == pytest.approx(above, rel=1e-4)
        assert trace["error_y"]["arrayminus"] == pytest.approx(below, rel=1e-4)
        assert trace["meta"] == {"workload": "lenet"}
    assert marks["batch 512"]["x"] == [1, 2, 4]  # eight workers were out of memory
    assert ["batch 512", "8", "oom", "0"] in chart.rows


def test_the_law_passes_through_what_it_was_made_from(tmp_path: Path) -> None:
    """Times 0.8 / n + 0.01 are a law of Amdahl's kind: base 0.81, so on 4 workers 0.81 / 0.21 = 3.857."""
    charts, _ = scaling_charts(sweep(tmp_path))
    by_title = {chart.title.split(",")[0]: chart for chart in charts if "strong" in chart.title}
    speedup = by_title["Speed-up"].traces
    ideal, low, high, law, marks = speedup
    assert ideal["y"] == ideal["x"]
    assert max(ideal["x"]) > 8  # as far as the forecasts
    assert marks["mode"] == "markers"
    at = law["x"].index(4)
    assert law["y"][at] == pytest.approx(0.81 / 0.21, rel=1e-3)
    assert low["y"][at] <= law["y"][at] <= high["y"][at]
    efficiency = by_title["Efficiency"].traces[3]
    assert efficiency["y"][at] == pytest.approx(0.81 / 0.21 / 4, rel=1e-3)
    assert by_title["Throughput"].traces[2]["y"][at] == pytest.approx(64 / 0.21 / 1.025, rel=1e-3)


def test_each_base_has_its_ideal(demo: Path) -> None:
    charts, _ = scaling_charts(report_of(demo))
    chart = next(one for one in charts if one.title == "Speed-up, weak scaling: lenet")
    ideals = [(trace["x"][0], trace["y"]) for trace in chart.traces if trace.get("name") == "ideal"]
    assert ideals == [(1, [1, 2, 4, 8]), (2, [1, 2, 4]), (4, [1, 2])]


def test_failed_cells_stand_at_their_place_in_the_grid(demo: Path) -> None:
    [lenet, mlp], left_out = heat_maps(report_of(demo))
    assert left_out == 0
    numbers, states = lenet.traces
    assert (numbers["x"], numbers["y"]) == (["1", "2", "4", "8"], ["64", "128", "256", "512"])
    assert numbers["z"][3][3] is None
    assert states["text"][3][3] == "oom"
    assert states["z"][3][3] == 0
    assert [value is None for line in states["z"] for value in line] == [True] * 15 + [False]
    assert "out of memory" in states["customdata"][3][3]
    assert numbers["text"][0][2].endswith("<br>2 of 3")  # a repeat timed out
    assert mlp.traces[1]["text"][3][3] == "planned"
    report = report_of(demo)
    rate = next(p for p in report.cells if p.cell_id == "lenet-ddp-w2-b128").throughput_samples_per_s
    assert rate is not None
    assert numbers["z"][1][1] == pytest.approx(rate.value, rel=1e-5)


def test_a_weak_sweep_has_its_grid_over_the_batch_per_worker(tmp_path: Path) -> None:
    for workers in (1, 2, 4):
        for batch in (16, 32):
            synthetic.write(tmp_path, [synthetic.record(synthetic.config(workers, global_batch=batch * workers))])
    [chart], _ = heat_maps(report_of(tmp_path))
    assert chart.traces[0]["y"] == ["16", "32"]
    assert "batch per worker" in chart.words


def test_ledger_is_the_median_by_phase(tmp_path: Path) -> None:
    for repeat, (start, window) in enumerate([(1.0, 5.0), (2.0, 9.0), (6.0, 7.0)]):
        of = synthetic.config(1, repeat=repeat)
        synthetic.write(tmp_path, [synthetic.record(of, ledger={"start": start, "window": window})])
    report = report_of(tmp_path)
    assert report.cells[0].ledger_s == {"start": 2.0, "window": 7.0}
    chart = ledger_chart(report)
    assert chart is not None
    assert [(trace["name"], trace["x"]) for trace in chart.traces] == [("start", [2.0]), ("window", [7.0])]
    assert "78%" in chart.words


def test_front_of_time_and_cost(tmp_path: Path) -> None:
    """1 worker 1 s, 2 workers 0.6 s, 4 workers 0.7 s a step: the last is slower and dearer than the second."""
    for workers, time in ((1, 1.0), (2, 0.6), (4, 0.7)):
        synthetic.write(tmp_path, [synthetic.record(synthetic.config(workers), [time] * 4)])
    loaded = load_cells(tmp_path)
    report = build_report(loaded)
    advice = advise(loaded, report)
    assert advice is not None
    chart = pareto_chart(advice, report)
    assert chart is not None
    front, measured = chart.traces
    steps = 1e6 / 64
    assert front["y"] == pytest.approx([0.6 * steps, 1.0 * steps])
    assert front["x"] == pytest.approx([0.6 * steps * 2 / 3600, steps / 3600], rel=1e-5)
    assert sum(symbol.endswith("-open") for symbol in measured["marker"]["symbol"]) == 1
    assert [row[-1] for row in chart.rows] == ["yes", "yes", ""]


def test_origins_count_runs(tmp_path: Path) -> None:
    for repeat, torch in enumerate(["2.9", "2.8", "2.9"]):
        of = synthetic.config(1, repeat=repeat)
        synthetic.write(tmp_path, [synthetic.record(of, environment={"packages": {"torch": torch}})])
    of = synthetic.config(2)
    synthetic.write(tmp_path, [synthetic.failed(of, "oom")])
    report = report_of(tmp_path)
    found = {(one.fact, one.value): one.runs for one in report.origins}
    assert found["torch versions", "2.9"] == 2
    assert found["torch versions", "2.8"] == 1
    assert found["hosts", "node0"] == 3
    assert found["commits", "unknown"] == 3
    table = origins_table(report)
    assert table is not None
    assert ["torch version", "2.9", "2"] in [[entry.text for entry in row.entries] for row in table.rows]
    assert any("mixed torch versions: 2.9 in 2 runs" in one.text() for one in Tree(page_of(tmp_path)).tagged("li"))


def test_laws_are_listed_with_their_miss_and_refusals_with_their_reason(demo: Path) -> None:
    report = report_of(demo)
    table = laws_table(report)
    assert table is not None
    rows = {row.entries[0].text: [entry.text for entry in row.entries] for row in table.rows}
    assert len(rows) == len(report.strong) + len(report.weak)
    fit = report.strong[0].fit
    assert fit is not None
    assert fit.held_out is not None
    row = rows["strong 1: lenet ddp, global batch 64"]
    assert row[1] == fit.model
    assert row[4:7:2] == [str(fit.held_out.workers), f"{fit.held_out.miss:+.1%}"]
    assert rows["weak 10: mlp ddp, batch per worker 256"][1] == "none: 2 worker counts; a law needs 4"


def test_rows_carry_what_filters_ask_for(tmp_path: Path) -> None:
    for strategy in ({"name": "ddp", "hook": "none"}, {"name": "ddp", "hook": "fp16"}, {"name": "zero1"}):
        for workers in (1, 2):
            of = synthetic.config(workers, strategy=strategy)
            one = synthetic.record(of)
            one.run_id = one.cell_id = f"{strategy['name']}{strategy.get('hook')}{workers}"
            synthetic.write(tmp_path, [one])
    report = report_of(tmp_path)
    assert filters(report) == {"strategy": ["ddp", "zero1"]}
    shown = {table.name: [row.tags["strategy"] for row in table.rows] for table in tables(report)}
    assert Counter(shown["strong"]) == {"ddp": 4, "zero1": 2}
    assert Counter(shown["strategies"]) == {"ddp": 4, "zero1": 2}  # where the text is `ddp hook=fp16`


def verdicts(report: Report) -> dict[int, str]:
    return {rule.number: rule.verdict for rule in rules(report)}


def test_rules_of_a_thorough_sweep(tmp_path: Path) -> None:
    found = verdicts(sweep(tmp_path))
    assert [number for number, verdict in found.items() if verdict == "met"] == [1, 2, 3, 4, 5, 7, 9, 10, 12]
    assert [number for number, verdict in found.items() if verdict == "partly met"] == [6, 8, 11]


def test_rules_of_percentiles_and_bounds(tmp_path: Path) -> None:
    """With twenty steps percentiles are there; with ceilings the hardware's bound is."""
    model = ModelSize(parameters=1, step_flops_per_sample=1_000_000)
    report = sweep(tmp_path, steps=20, model=model, ceilings={"matmul_fp32_flops_per_s": 1e12})
    assert (verdicts(report)[8], verdicts(report)[11]) == ("met", "met")
    evidence = {rule.number: rule.evidence for rule in rules(report)}
    assert "the slowest twentieth takes 0% longer" in evidence[8].replace("-0%", "0%")
    assert "known of 4 of 4 points" in evidence[11]
    charts, _ = scaling_charts(report)
    [bound] = [chart for chart in charts if chart.title.startswith("Share of the hardware's bound")]
    # 64 samples of 1e6 operations in 0.81 s (median of 1.00 to 1.05 of it), against 1e12 a second.
    assert bound.traces[-1]["y"][0] == pytest.approx(64e6 / (0.81 * 1.025) / 1e12, rel=1e-3)
    report.cells[0].step_time_p95_s = None
    report.strong[0].points[0].mfu_of_ceiling = None
    assert (verdicts(report)[8], verdicts(report)[11]) == ("partly met", "partly met")


def test_limits_are_listed_with_their_evidence(tmp_path: Path) -> None:
    report = sweep(tmp_path)
    shown = diagnosis_shown(report)
    assert shown is not None
    assert [row.entries[0].text for row in shown.rows] == [
        f"{count} worker{'s' * (count > 1)}, global batch 64" for count in (1, 2, 4, 8)
    ]
    sentences = [point.bottleneck.sentence for point in report.cells if point.bottleneck]
    assert [row.entries[2].text for row in shown.rows] == sentences
    [why] = [one for one in Tree(page_of(tmp_path)).tagged("p") if one.attributes.get("class") == "why"]
    # Of 0.81 s on one worker, eight take 0.11 s: 0.81 / 0.11 / 8.
    assert why.text() == f"{sentences[3]} Its 8 workers are 92% efficient against 1 (base of strong scaling)."


@pytest.mark.parametrize(("repeats", "expected"), [(1, "not met"), (2, "partly met"), (5, "partly met"), (6, "met")])
def test_rule_of_intervals_counts_repeats(repeats: int, expected: str, tmp_path: Path) -> None:
    found = verdicts(sweep(tmp_path, repeats))
    assert found[5] == expected
    assert found[7] == ("not met" if repeats == 1 else "met")
    assert found[8] == ("not met" if repeats == 1 else "partly met")


def test_rules_see_what_a_sweep_lacks(tmp_path: Path) -> None:
    sweep(tmp_path)
    whole = load_cells(tmp_path)
    for run in next(cell for cell in whole.cells if cell.workers == 1).runs:
        (tmp_path / run.run_id / "record.json").unlink()
    found = verdicts(report_of(tmp_path))
    assert (found[1], found[2]) == ("partly met", "not met")  # a base of two workers; six runs without a record


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "not met"),
        ({"commit": "abc", "packages": {"torch": "2"}}, "partly met"),
        ({"commit": "abc", "packages": {"torch": "2"}, "image_sha256": "ef", "dirty": True}, "partly met"),
        ({"commit": "abc", "packages": {"torch": "2"}, "image_sha256": "ef", "dirty": False}, "met"),
    ],
)
def test_rule_of_the_setup(environment: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert verdicts(sweep(tmp_path, 2, environment=environment))[9] == expected


def test_rules_of_ratios_and_rates_would_see_a_wrong_number(tmp_path: Path) -> None:
    report = sweep(tmp_path, 2)
    assert (verdicts(report)[3], verdicts(report)[4]) == ("met", "met")
    one = report.strong[0].points[1]
    one.efficiency = Estimate(value=0.5, low=0.4, high=0.6)
    report.cells[0].throughput_samples_per_s = Estimate(value=1.0, low=1.0, high=1.0)
    assert (verdicts(report)[3], verdicts(report)[4]) == ("not met", "not met")


def test_panels_keep_their_numbers_and_say_what_is_missing() -> None:
    def point(x: float | str, value: float, **more: Any) -> PanelPoint:
        return PanelPoint(x=x, y=Estimate(value=value, low=value - 0.5, high=value + 0.25), n=3, **more)

    stack = Panel(
        kind="parts", mark="stack", title="parts", x_label="", y_label="time [s]", missing=["b: oom"],
        series=[PanelSeries(label=name, points=[point("a", 2.0), point("c", 3.0)]) for name in ("wait", "work")],
    )  # fmt: skip
    chart = panel_chart(stack)
    assert chart.layout["barmode"] == "relative"
    assert [(trace["name"], trace["y"], trace["x"]) for trace in chart.traces] == [
        ("wait", ["a", "c"], [2.0, 3.0]),
        ("work", ["a", "c"], [2.0, 3.0]),
    ]
    assert chart.traces[0]["error_x"]["array"] == [0.25, 0.25]
    assert chart.traces[0]["error_x"]["arrayminus"] == [0.5, 0.5]
    assert chart.notes == ["no number: b: oom"]
    assert chart.rows[1] == ["wait", "c", "3.00 [2.50, 3.25]", "3"]
    points = [point(1.0, 9.0, on_front=True), point(2.0, 9.5), point(3.0, 4.0, on_front=True)]
    scatter = Panel(
        kind="front", mark="scatter", title="", x_label="cost", y_label="time [s]",
        series=[PanelSeries(label="all", points=points)],
    )  # fmt: skip
    front, marks = panel_chart(scatter).traces
    assert (front["x"], front["y"]) == ([1.0, 3.0], [9.0, 4.0])
    assert marks["marker"]["symbol"] == ["circle", "circle-open", "circle"]


def test_logarithmic_labels_are_whole_numbers() -> None:
    wide = log_scale([0.03, 40.0])
    assert wide["type"] == "log"
    assert [wide["ticktext"][wide["tickvals"].index(value)] for value in (0.05, 0.2, 10.0)] == ["0.05", "0.2", "10"]
    assert log_scale([2.0, 3.0]) == {"type": "linear"}
    assert log_scale([]) == {"type": "linear"}


def test_command_prints_tables_and_ends_with_the_pages_path(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(demo), "--no-figures", "--out", str(demo / "out")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(demo / "out" / "report.html")
    assert "96 runs planned: 87 ok, 4 failed (3 oom, 1 timeout), 5 missing" in printed.out
    assert Tree((demo / "out" / "report.html").read_text()).tagged("h1")[0].text() == "synthetic on local"
    assert main([str(demo / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_a_sweep_without_a_number_has_a_page(tmp_path: Path) -> None:
    synthetic.write_manifest(tmp_path, [synthetic.config(workers) for workers in (1, 2)])
    tree = Tree(page_of(tmp_path))
    [answer] = [one for one in tree.tagged("p") if one.attributes.get("class") == "answer"]
    assert answer.text() == "No cell has a number yet."
    assert tree.tagged("figure") == []
    assert {one.text() for one in tree.tagged("strong")} <= {"does not apply", "not met"}


def csv_of(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content)))


def test_results_have_all_measures_of_every_cell(demo: Path) -> None:
    report = report_of(demo)
    rows = {row["cell_id"]: row for row in csv_of(results_csv(report))}
    assert list(rows) == [point.cell_id for point in report.cells]
    point = next(one for one in report.strong[1].points if one.workers == 4)
    row = rows[point.cell_id]
    for name, value in (("step_time_s", point.step_time_s), ("strong_efficiency", point.efficiency)):
        assert value is not None
        found = [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")]
        assert found == [value.value, value.low, value.high]
    assert row["strong_series"] == "2"
    assert row["ledger_window_s"] == "10.0"
    assert row["workload"] == "lenet"
    weak = next(one for series in report.weak for one in series.points if one.cell_id == point.cell_id)
    assert weak.speedup is not None
    assert float(row["weak_speedup"]) == weak.speedup.value != float(row["strong_speedup"])
    lost = rows["lenet-ddp-w8-b512"]
    assert (lost["status"], lost["step_time_s"], lost["repeats_ok"]) == ("oom", "", "0")


def test_results_have_the_studys_measures(tmp_path: Path) -> None:
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(workers)) for workers in (1, 2)])
    figure = [{"kind": "bars", "y": "data_wait_s"}]
    synthetic.write_manifest(tmp_path, [synthetic.config(workers) for workers in (1, 2)], figure=figure)
    report = report_of(tmp_path)
    assert [row["data_wait_s"] for row in csv_of(results_csv(report))] == ["0.0", "0.0"]
    words = {row["column"]: row for row in csv_of(dictionary_csv(report))}
    assert words["data_wait_s"]["unit"] == "s"
    assert "waiting for data" in words["data_wait_s"]["meaning"]


def test_the_dictionary_explains_every_column_with_its_unit(demo: Path) -> None:
    report = report_of(demo)
    words = csv_of(dictionary_csv(report))
    assert [row["column"] for row in words] == list(csv_of(results_csv(report))[0])
    assert [row["column"] for row in words if len(row["meaning"]) < 10] == []
    units = {row["column"]: row["unit"] for row in words}
    assert units["step_time_s_low"] == "s"
    assert units["throughput_samples_per_s"] == "samples/s"
    assert units["peak_memory_bytes"] == units["bytes_per_step"] == "bytes"
    assert units["strong_speedup"] == units["accuracy"] == units["workers"] == ""
    assert units["global_batch"] == "samples"


def test_markdown_has_the_answer_the_tables_and_the_rules(demo: Path) -> None:
    loaded = load_cells(demo)
    report = build_report(loaded)
    advice = advise(loaded, report)
    assert advice is not None
    text = report_markdown(report, advice, markdown(report, []))
    assert (
        text.index(escape_markdown(advice.answers[0].sentence))
        < text.index("## Strong scaling")
        < text.index("## Scaling laws")
    )
    assert text.count("**not met**") == list(verdicts(report).values()).count("not met") > 0
    assert [line[:3] for line in text.splitlines()[-12:]] == [f"{n}. "[:3] for n in range(1, 13)]
    assert escape_markdown("lenet ddp, global batch 64") in text
