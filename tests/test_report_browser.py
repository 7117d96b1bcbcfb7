"""The page in a headless Chromium: it draws, sorts, filters, follows the theme, fits a phone, asks nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.report import main
from tests import synthetic
from tests.browser import CHROMIUM, Page, browser
from tests.test_analysis_report import write_hostile
from tests.test_command_line import wait_until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: package chromium)")
COLUMN = (
    "(name) => { const table = document.getElementById('table-strong');"
    "const place = [...table.tHead.rows[0].cells].findIndex((one) => one.textContent === name);"
    "return [...table.tBodies[0].rows].filter((row) => row.offsetParent)"
    ".map((row) => row.cells[place].firstChild.textContent.trim()); }"
)
CLICK = (
    "(name) => { const table = document.getElementById('table-strong');"
    "const head = [...table.tHead.rows[0].cells].find((one) => one.textContent === name);"
    "head.querySelector('button').click(); return head.getAttribute('aria-sort'); }"
)
CHOOSE = (
    "(value) => { const select = document.querySelector('select[name=workload]');"
    "select.value = value; select.dispatchEvent(new Event('change', {bubbles: true})); }"
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "local" / "synthetic"
    synthetic.demo_sweep(folder)
    assert main([str(folder), "--no-figures"]) == 0
    return folder / "analysis" / "report.html"


def opened(page: Page, path: Path, width: int = 1280) -> Page:
    """The page afresh, with all its charts drawn."""
    page.errors.clear()
    page.requests.clear()
    page.theme("light")
    page.size(width, 900)
    page.open(path)
    page.run("drawAll().then(() => true)")
    return page


def asked(page: Page, path: Path) -> list[str]:
    """Requests for anything but the page itself and what it makes itself."""
    return [url for url in page.requests if url != path.resolve().as_uri() and not url.startswith(("data:", "blob:"))]


def test_all_charts_are_drawn_without_errors_or_requests(page: Page, report: Path) -> None:
    opened(page, report)
    assert page.errors == []
    assert asked(page, report) == []
    drawn: list[int] = page.run(
        "[...document.querySelectorAll('figure[data-chart] .plot')]"
        ".map((plot) => plot.querySelectorAll('.points path, .heatmaplayer image').length)"
    )
    assert len(drawn) == 16
    assert all(count > 0 for count in drawn)


def test_charts_far_below_wait_until_someone_comes_near(page: Page, report: Path) -> None:
    page.size(1280, 900)
    page.open(report)
    waiting = "[...document.querySelectorAll('figure[data-chart]')].filter((one) => !one.dataset.drawn).length"
    assert page.run(waiting) > 0
    page.run("document.getElementById('ledger').scrollIntoView()")
    assert wait_until(lambda: page.run("document.querySelector('#ledger figure').dataset.drawn") == "yes", 20)
    assert page.errors == []


def test_tables_answer_while_the_charts_library_sleeps(page: Page, report: Path) -> None:
    page.run("history.scrollRestoration = 'manual'")
    page.size(1280, 100)
    page.open(report)
    asleep = page.run(f"[typeof Plotly, ({CLICK})('step [ms]'), typeof Plotly]")
    assert asleep == ["undefined", "ascending", "undefined"]
    assert wait_until(lambda: page.run("typeof Plotly") == "object", 20), "it wakes before anyone comes near"


def test_sorting_is_by_number_and_leaves_unknown_last(page: Page, report: Path) -> None:
    opened(page, report)
    before = page.run(f"({COLUMN})('step [ms]')")
    assert "-" in before
    assert page.run(f"({CLICK})('step [ms]')") == "ascending"
    up = page.run(f"({COLUMN})('step [ms]')")
    known = [one for one in before if one != "-"]
    unknown = ["-"] * (len(before) - len(known))
    assert up == sorted(known, key=float) + unknown
    assert up != before
    assert page.run(f"({CLICK})('step [ms]')") == "descending"
    assert page.run(f"({COLUMN})('step [ms]')") == sorted(known, key=float, reverse=True) + unknown
    assert page.run(f"({CLICK})('workers')") == "ascending"  # some have a mark behind them
    workers = [int(one.split()[0]) for one in page.run(f"({COLUMN})('workers')")]
    assert workers == sorted(workers)
    assert page.run("document.querySelectorAll('#table-strong [aria-sort]').length") == 1
    assert page.run(f"({CLICK})('workload')") == "ascending"
    names = page.run(f"({COLUMN})('workload')")
    assert names == sorted(names)
    assert len(set(names)) == 2


def test_sorting_reads_numbers_in_every_shape_that_tables_have(page: Page, report: Path) -> None:
    opened(page, report)
    ordered = ["-2.31", "1.00e-04", "0.0973", "0.112", "0.9", "4 †", "12.0", "> 30.1", "4103"]
    page.run(
        "((texts) => { const table = document.getElementById('table-strong');"
        "[...table.tBodies[0].rows].forEach((row, i) => { row.cells[0].textContent = texts[i] ?? '-'; }); })"
        f"({json.dumps(sorted(ordered))})"
    )
    name = page.run("document.querySelector('#table-strong th').textContent")
    page.run(f"({CLICK})('{name}')")
    shown = page.run(f"({COLUMN})('{name}')")
    assert shown[: len(ordered)] == ordered
    assert set(shown[len(ordered) :]) == {"-"}


def test_a_filter_hides_rows_traces_and_charts(page: Page, report: Path) -> None:
    opened(page, report)
    shown = "[...document.querySelectorAll('figure[data-chart]')].filter((one) => one.offsetParent)"
    titles = f"{shown}.map((one) => one.querySelector('figcaption').textContent)"
    cost = "document.querySelector('#cost .plot').data.map((trace) => trace.name)"
    assert len(page.run(titles)) == 16
    assert set(page.run(cost)) == {"front of time and cost", "mlp", "lenet"}
    page.run(f"({CHOOSE})('mlp')")
    assert set(page.run(f"({COLUMN})('workload')")) == {"mlp"}
    assert (
        page.run("document.querySelector('output').textContent") == "54 of 108 rows"
    )  # strong 32, weak 28, laws 18, limits 30
    assert len(page.run(titles)) == 9
    assert not [title for title in page.run(titles) if "lenet" in title]
    assert set(page.run(cost)) == {"front of time and cost", "mlp"}
    page.run(f"({CHOOSE})('')")
    assert set(page.run(f"({COLUMN})('workload')")) == {"lenet", "mlp"}
    assert len(page.run(titles)) == 16


def test_charts_follow_the_theme(page: Page, report: Path) -> None:
    opened(page, report)
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    surface = "getComputedStyle(document.body).backgroundColor"
    light = page.run(colour), page.run(surface), page.screenshot()
    page.theme("dark")
    page.run("new Promise((done) => setTimeout(done, 500))")
    dark = page.run(colour), page.run(surface), page.screenshot()
    assert light[0] == "rgb(27, 35, 48)"
    assert dark[0] == "rgb(228, 232, 238)"
    assert light[1] == "rgb(255, 255, 255)"
    assert dark[1] == "rgb(20, 24, 31)"
    assert light[2] != dark[2]
    assert page.errors == []


def test_a_phone_scrolls_no_page_sideways_but_tables(page: Page, report: Path) -> None:
    opened(page, report, width=390)
    assert page.run("document.documentElement.scrollWidth") <= 390
    boxes: list[list[int]] = page.run(
        "[...document.querySelectorAll('.scroll')].map((one) => [one.scrollWidth, one.clientWidth])"
    )
    assert max(inside for inside, _ in boxes) > 390
    assert max(box for _, box in boxes) <= 390


def test_the_keyboard_reaches_what_can_be_pressed(page: Page, report: Path) -> None:
    opened(page, report)
    page.run("document.querySelector('#table-strong button').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert page.run("document.querySelector('#table-strong th').getAttribute('aria-sort')") == "ascending"
    style: dict[str, Any] = page.run(
        "(({outlineStyle, outlineWidth}) => ({outlineStyle, outlineWidth}))(getComputedStyle(document.activeElement))"
    )
    assert style == {"outlineStyle": "solid", "outlineWidth": "3px"}


def test_it_prints(page: Page, report: Path) -> None:
    opened(page, report)
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    assert page.errors == []


def test_hostile_names_do_nothing(page: Page, tmp_path: Path) -> None:
    folder = write_hostile(tmp_path / "a" / "b")
    assert main([str(folder), "--no-figures"]) == 0
    path = folder / "analysis" / "report.html"
    opened(page, path)
    assert page.errors == []
    assert asked(page, path) == []
    assert page.run("typeof window.hit") == "undefined"
    assert page.run("document.querySelectorAll('.plot a, .plot img, .plot script').length") == 0
    opened(page, path, width=390)
    assert page.run("document.documentElement.scrollWidth") <= 390
