"use strict";
// Shows what the page holds: plotly draws, this switches rows on and off and sorts the table.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const table = document.querySelector("#results");
  const chooser = document.querySelector("#metric");
  const singly = document.querySelector("#singly");
  const logarithmic = document.querySelector("#logarithmic");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const shown = data.rows.map(() => true);

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colors = () => data.colors[dark.matches ? "dark" : "light"];
  const colorOf = (row) => colors()[row % colors().length];
  const veiled = (color) => color + "2b";

  function layout(more) {
    const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 8, r: 12, t: 28, b: 8 },
      hovermode: "closest",
      hoverlabel: { namelength: -1, bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
      legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, itemdoubleclick: false },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent") },
      dragmode: narrow.matches ? false : "zoom", // else a finger that scrolls the page zooms
      ...more,
      xaxis: { ...axis, ...more.xaxis },
      yaxis: { ...axis, ...more.yaxis },
    };
  }

  const config = {
    displaylogo: false,
    responsive: true,
    // plotly's own default is a button that sends the data to its makers.
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  function styled(trace) {
    const color = colorOf(trace.row);
    const made = { ...trace, visible: shown[trace.row] || "legendonly" };
    if (trace.kind === "band") return { ...made, fillcolor: veiled(color), line: { width: 0, color } };
    if (trace.error_y) made.error_y = { ...trace.error_y, color };
    if (trace.error_x) made.error_x = { ...trace.error_x, color };
    return { ...made, line: { ...trace.line, color }, marker: { ...trace.marker, color } };
  }

  // Written out, where plotly would write the last digit alone.
  function ticks(decades) {
    const digits = decades > 3 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    const powers = [...Array(25).keys()].map((i) => i - 12);
    const values = powers.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
    return { tickvals: values, ticktext: values.map(String) };
  }

  function curves() {
    const metric = data.metrics[chooser.value];
    const kinds = singly.checked ? ["run", "mean"] : ["band", "training", "mean"];
    const traces = metric.traces.filter((trace) => kinds.includes(trace.kind));
    const named = new Map();
    traces.forEach((trace) => trace.kind === "band" || named.has(trace.row) || named.set(trace.row, trace));
    return [
      traces.map((trace) => ({ ...styled(trace), showlegend: named.get(trace.row) === trace })),
      layout({
        xaxis: { title: { text: "epochs" } },
        yaxis: {
          title: { text: metric.label },
          type: logarithmic.checked ? "log" : "linear",
          ...(logarithmic.checked ? ticks(metric.decades) : {}),
        },
        uirevision: chooser.value + logarithmic.checked,
      }),
    ];
  }

  function finals() {
    const rows = data.rows.map((row, i) => i).filter((i) => shown[i] && data.finals.some((t) => t.row === i));
    const place = new Map(rows.map((row, i) => [row, rows.length - 1 - i]));
    const longest = narrow.matches ? 16 : 48;
    const short = (text) => (text.length > longest ? text.slice(0, longest - 1) + "\u2026" : text);
    const at = (trace) => ({ ...trace, y: trace.x.map((_, i) => place.get(trace.row) + (trace.kind === "mean" ? 0 : -0.22)) });
    const name = (row) => escaped(short(data.rows[row].name));
    return [
      data.finals.filter((trace) => place.has(trace.row)).map((trace) => styled(at(trace))),
      layout({
        showlegend: false,
        xaxis: { title: { text: data.label } },
        yaxis: {
          tickvals: rows.map((row) => place.get(row)),
          ticktext: rows.map(name),
          range: [-0.6, rows.length - 0.4],
          showgrid: false,
          fixedrange: true,
        },
      }),
    ];
  }

  function against() {
    const ticks = data.against.ticks;
    const axis = data.against.log ? { type: "log" } : {};
    return [
      data.against.traces.map(styled).map((trace) => ({ ...trace, visible: true })),
      layout({
        showlegend: data.against.traces.length > 1,
        xaxis: { title: { text: data.against.label }, ...axis, tickvals: ticks, ticktext: ticks.map(String) },
        yaxis: { title: { text: data.label } },
      }),
    ];
  }

  // plotly reads a little of HTML in its texts.
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function draw() {
    // On a phone each row of the legend takes a line.
    const height = narrow.matches ? `${21 + 1.3 * data.rows.length}rem` : "";
    document.getElementById("curves").style.height = height;
    for (const [id, make] of [["curves", curves], ["finals", finals], ["against", against]]) {
      const place = document.getElementById(id);
      if (place) Plotly.react(place, ...make(), config);
    }
    document.querySelectorAll(".swatch").forEach((mark) => {
      mark.style.background = colorOf(Number(mark.dataset.row));
    });
  }

  function show(row, on) {
    shown[row] = on;
    const line = table.querySelector(`tr[data-row="${row}"]`);
    line.classList.toggle("off", !on);
    line.querySelector("input").checked = on;
    draw();
  }

  function sort(heading) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (line) => line.cells[heading.cellIndex].dataset.key;
    const lines = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b), down ? -1 : 1));
    table.tBodies[0].append(...lines);
  }

  // What is not known comes last, either way.
  function compare(a, b, way) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return way * (x - y);
    return way * a.localeCompare(b, undefined, { numeric: true });
  }

  table.addEventListener("change", (event) => show(Number(event.target.dataset.row), event.target.checked));
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (heading) sort(heading);
  });
  const choose = () => {
    logarithmic.checked = data.metrics[chooser.value].log;
    draw();
  };
  chooser.addEventListener("change", choose);
  singly.addEventListener("change", draw);
  logarithmic.addEventListener("change", draw);
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  choose();
  document.getElementById("curves").on("plotly_legendclick", (event) => {
    const row = event.data[event.curveNumber].row;
    show(row, !shown[row]);
    return false;
  });
})();
