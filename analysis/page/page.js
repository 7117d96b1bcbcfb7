"use strict";
// Charts follow the page's colours, tables can be sorted, both can be filtered. Names are only ever set as text.
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const chosen = {};
  const collator = new Intl.Collator("en", { numeric: true });

  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const one = (name) => style.getPropertyValue(`--${name}`).trim();
    return { "@ink": one("ink"), "@muted": one("muted"), "@surface": one("surface"), soft: one("soft"), line: one("line") };
  };

  // Put the page's colours in where the data name them.
  const painted = (value, now, key) => {
    if (Array.isArray(value)) return value.map((one) => painted(one, now, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, painted(one, now, name)]));
    }
    return (key === "color" || key === "colorscale") && typeof value === "string" && value in now ? now[value] : value;
  };

  const axis = (given, now) => ({
    gridcolor: now.line, linecolor: now.line, zerolinecolor: now.line, ticks: "outside", tickcolor: now.line,
    automargin: true, ...given, title: { standoff: 8, ...given.title },
  });

  const layout = (chart, now, width) => ({
    ...chart.layout,
    xaxis: axis(chart.layout.xaxis, now),
    yaxis: axis(chart.layout.yaxis, now),
    height: chart.layout.height ?? (chart.wide ? 420 : 380),
    autosize: true,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12, color: now["@ink"] },
    hoverlabel: { bgcolor: now["@surface"], bordercolor: now.line, font: { color: now["@ink"] }, align: "left" },
    hovermode: "closest",
    margin: { l: 56, r: 14, t: 14, b: 44 },
    legend: { orientation: "h", traceorder: "normal", xref: "container", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", font: { size: width < 420 ? 10 : 11 } },
  });

  const isChosen = (tags) => Object.entries(chosen).every(([key, value]) => !value || !(key in tags) || tags[key] === value);

  // Plotly is larger than all the rest and takes long to start: whoever reads the answer, or sorts, need not wait for it.
  const plotly = () => {
    if (!window.Plotly) {
      const script = document.createElement("script");
      script.textContent = document.getElementById("plotly").textContent;
      document.head.append(script);
    }
    return window.Plotly;
  };

  // What is left of a chart's traces; a chart of which nothing is left is hidden.
  const left = (figure) => {
    const { traces } = charts[Number(figure.dataset.chart)];
    const kept = traces.filter((trace) => !trace.meta || isChosen(trace.meta));
    // A lone line without tags is an ideal or a front: without the rest it says nothing.
    figure.hidden = traces.some((trace) => trace.meta) && !kept.some((trace) => trace.meta);
    return kept;
  };

  const draw = (figure) => {
    const chart = charts[Number(figure.dataset.chart)];
    const plot = figure.querySelector(".plot");
    const now = colours();
    const traces = left(figure);
    if (figure.hidden) return Promise.resolve();
    return plotly().react(plot, painted(traces, now), layout(chart, now, plot.clientWidth), {
      displaylogo: false, responsive: true, displayModeBar: false,
    }).then(() => { figure.dataset.drawn = "yes"; });
  };

  // Far charts wait until someone comes near: a page with many opens at once all the same.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(entry.target);
      }
    }
  }, { rootMargin: "800px" });
  figures.forEach((figure) => near.observe(figure));
  const redraw = () => figures.forEach((figure) => (figure.dataset.drawn ? draw(figure) : left(figure)));
  if (figures.length) addEventListener("load", () => setTimeout(plotly, 1000)); // before anyone is near, or prints
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => figures.forEach(draw));
  addEventListener("afterprint", () => figures.forEach(draw));
  window.drawAll = () => Promise.all(figures.map(draw));

  // The number at the head of a text, for sorting: `> 12.3` and `4 †` are numbers, `-` is none.
  const amount = (text) => {
    const found = /^[>\s]*([+-]?\d[\d.]*(?:e[+-]?\d+)?)/i.exec(text);
    return found ? Number(found[1]) : NaN;
  };

  const compare = (a, b, sign) => {
    const none = (one) => one.text === "-" || one.text === "";
    if (none(a) || none(b)) return none(a) - none(b);
    if (a.amount !== b.amount && !Number.isNaN(a.amount) && !Number.isNaN(b.amount)) return sign * (a.amount - b.amount);
    return sign * collator.compare(a.text, b.text);
  };

  const sort = (table, heading) => {
    const column = [...heading.parentNode.children].indexOf(heading);
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    heading.parentNode.querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction);
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => {
      const text = (row.cells[column].firstChild?.textContent ?? "").trim();
      return { row, text, amount: amount(text) };
    });
    keyed.sort((a, b) => compare(a, b, direction === "ascending" ? 1 : -1));
    body.append(...keyed.map((one) => one.row));
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("th button").forEach((button) => {
      button.addEventListener("click", () => sort(table, button.closest("th")));
    });
    if (table.tBodies[0].rows.length > 60) table.parentNode.classList.add("tall");
  });

  const filter = (form) => {
    for (const select of form.querySelectorAll("select")) chosen[select.name] = select.value;
    let shown = 0;
    let all = 0;
    document.querySelectorAll("table.sortable").forEach((table) => {
      const rows = [...table.tBodies[0].rows];
      rows.forEach((row) => { row.hidden = !isChosen(row.dataset); });
      const left = rows.filter((row) => !row.hidden).length;
      table.parentNode.nextElementSibling.hidden = left > 0 || rows.length === 0;
      if (rows.some((row) => Object.keys(row.dataset).length)) {
        shown += left;
        all += rows.length;
      }
    });
    form.querySelector("output").textContent = `${shown} of ${all} rows`;
    redraw();
  };
  const form = document.querySelector("form.filters");
  if (form) {
    form.reset();
    form.addEventListener("change", () => filter(form));
    form.addEventListener("submit", (event) => event.preventDefault());
  }
})();
