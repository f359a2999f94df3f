"use strict";
(() => {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const plots = [];

  const shown = (value) => {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e").replace("-", "−");
    return String(Number(value.toPrecision(3))).replace("-", "−");
  };

  // Only the ticks that have room: of a long logarithmic axis powers of ten, of a short one 1, 2, 3 and 5 of each too.
  const logTicks = (scale) => (u) => {
    const { min, max } = u.scales[scale];
    const decades = Math.log10(max / min);
    const digits = decades > 2.5 ? [1] : decades > 0.7 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8];
    const found = [];
    for (let k = Math.floor(Math.log10(min)); k <= Math.ceil(Math.log10(max)); k++) {
      for (const digit of digits) {
        const tick = Number(`${digit}e${k}`);
        if (tick >= min && tick <= max) found.push(tick);
      }
    }
    const every = Math.ceil(found.length / 8);
    return found.filter((_, k) => k % every === 0);
  };

  const all = (u, ticks) => ticks;

  const draw = (box, chart, height) => {
    const series = [{}], bands = [], columns = [chart.x], places = [];
    for (const line of chart.lines) {
      const color = () => (isDark() ? line.dark : line.color);
      const width = line.strong ? 2.6 : 1.6;
      const dash = line.dashes.map((d) => d * width * 1.2);
      const place = { name: line.name, line: series.length, all: [series.length] };
      const points = { show: line.values.filter((v) => v != null).length < 2 };
      series.push({ stroke: color, width, dash, points, spanGaps: true });
      columns.push(line.values);
      if (line.low.length) {
        const none = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
        bands.push({
          series: [series.length + 1, series.length],
          fill: () => color() + (line.strong ? "2c" : "1c"),
        });
        place.all.push(series.length, series.length + 1);
        series.push({ ...none }, { ...none });
        columns.push(line.low, line.high);
      }
      places.push(place);
    }
    const axis = {
      stroke: () => css("--soft"),
      grid: { stroke: () => css("--line"), width: 1 },
      ticks: { stroke: () => css("--line"), width: 1, size: 4 },
      font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      labelSize: 18,
      gap: 4,
      values: (u, splits) => splits.map(shown),
    };
    // The longest number decides how much room the axis takes.
    const room = (u, values) => 30 + 7 * Math.max(2, ...(values ?? []).map((v) => (v ?? "").length));
    const reading = box.parentElement.querySelector(".reading");
    const read = (u) => {
      const k = u.cursor.idx;
      const told = k == null ? [] : places
        .filter((p) => u.series[p.line].show)
        .map((p) => `${p.name} ${shown(u.data[p.line][k])}`);
      reading.textContent = k == null ? "" : `${chart.xlabel} ${shown(u.data[0][k])}: ${told.join(", ")}`;
    };
    const y = chart.limits ? { range: () => chart.limits } : {};
    const u = new uPlot({
      width: Math.max(box.clientWidth, 200),
      height,
      series,
      bands,
      legend: { show: false },
      cursor: { drag: { x: true, y: false }, points: { show: false }, y: false },
      scales: { x: { time: false, distr: chart.xlog ? 3 : 1 }, y: { ...y, distr: chart.log ? 3 : 1 } },
      axes: [
        { ...axis, label: chart.xlabel, size: 26, ...(chart.xlog ? { splits: logTicks("x"), filter: all } : {}) },
        { ...axis, label: chart.ylabel, size: room, ...(chart.log ? { splits: logTicks("y"), filter: all } : {}) },
      ],
      hooks: { setCursor: [read] },
    }, columns, box);
    box.addEventListener("keydown", (event) => {
      const last = chart.x.length - 1, k = u.cursor.idx ?? -1;
      const jump = Math.max(1, Math.round(last / 50));
      const next = { ArrowRight: k + jump, ArrowLeft: k - jump, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      const place = Math.min(Math.max(next, 0), last);
      u.setCursor({ left: u.valToPos(chart.x[place], "x"), top: 10 });
    });
    new ResizeObserver(() => {
      const width = Math.max(box.clientWidth, 200);
      if (width !== u.width) u.setSize({ width, height });
    }).observe(box);
    plots.push(u);
    return { u, places };
  };

  const groups = JSON.parse(document.getElementById("data").textContent);
  for (const element of document.querySelectorAll(".charts")) {
    const many = element.classList.contains("many");
    let made = [];
    const make = () => {
      const boxes = element.querySelectorAll(".plot");
      made = groups[Number(element.dataset.group)].map((chart, k) => draw(boxes[k], chart, many ? 210 : 340));
      for (const button of element.querySelectorAll(".legend button")) apply(button);
    };
    const apply = (button) => {
      const show = button.getAttribute("aria-pressed") === "true";
      for (const { u, places } of made) {
        for (const place of places.filter((p) => p.name === button.dataset.name)) {
          for (const k of place.all) if (u.series[k].show !== show) u.setSeries(k, { show });
        }
      }
    };
    for (const button of element.querySelectorAll(".legend button")) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        apply(button);
      });
    }
    // What is folded has no width to draw in.
    const folded = element.closest("details");
    if (folded && !folded.open) folded.addEventListener("toggle", make, { once: true });
    else make();
  }

  const order = (row, column) => row.cells[column].dataset.order;
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x < y ? -1 : x > y ? 1 : 0;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === "ascending";
        for (const other of headers) other.removeAttribute("aria-sort");
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => {
          const [x, y] = [order(a, column), order(b, column)];
          if (x === "" || y === "") return (x === "") - (y === ""); // what is absent stays at the end
          return down ? compare(y, x) : compare(x, y);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  const redraw = () => plots.forEach((u) => u.redraw(false, true));
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  prefersDark.addEventListener("change", redraw);
})();
