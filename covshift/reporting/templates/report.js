"use strict";
// Draws the section of a layer from the embedded data, and filters and sorts what already stands on the page.
(() => {
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };

  const number = (value) => {
    if (value == null) return "\u2013";
    const size = Math.abs(value);
    return size && (size < 1e-3 || size >= 1e4) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  };

  // Layer sections

  const blocks = {};
  const unpacked = (name) => (blocks[name] ??= unpack(name));
  const unpack = (name) => {
    const bytes = Uint8Array.from(atob(find(name).textContent), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
  };

  const scaled = (axis, along) => {
    const told = { time: false, distr: { linear: 1, log: 3, symlog: 100 }[axis.scale] };
    if (axis.within) {
      told.fwd = (v) => Math.sign(v) * (Math.abs(v) <= axis.within ? Math.abs(v) / axis.within : 1 + Math.log10(Math.abs(v) / axis.within));
      told.bwd = (p) => Math.sign(p) * axis.within * (Math.abs(p) <= 1 ? Math.abs(p) : 10 ** (Math.abs(p) - 1));
    }
    if (axis.range) told.range = axis.range;
    else if (along) told.range = (plot, low, high) => (low === high ? [low - 1, high + 1] : [low, high]);
    return told;
  };

  const centres = (axis) => {
    const { fwd = (v) => v, bwd = (p) => p } = scaled(axis);
    const [low, high] = axis.range.map(fwd);
    return Array.from({ length: axis.centres }, (_, at) => bwd(low + ((at + 0.5) * (high - low)) / axis.centres));
  };

  const drawnAxis = (axis, colors, grid) => ({
    label: axis.label,
    stroke: colors.muted,
    grid: { show: grid, stroke: colors.line, width: 1 },
    ticks: { stroke: colors.line, width: 1 },
    values: (plot, values) => values.map((value) => (value == null ? null : number(value))),
    ...(axis.ticks && { splits: () => axis.ticks }),
  });

  const backdrop = (chart, palette, colors) => (plot) => {
    const { ctx, bbox } = plot;
    const [low, high] = [plot.scales.y.min, plot.scales.y.max];
    const toPixel = (value) => plot.valToPos(value, "y", true);
    ctx.save();
    ctx.fillStyle = colors.shade;
    for (const [from, to] of chart.shades ?? []) {
      const [top, bottom] = [toPixel(Math.min(to ?? high, high)), toPixel(Math.max(from ?? low, low))];
      if (bottom > top) ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    }
    if (chart.cells) {
      const x = plot.data[0].map((value) => plot.valToPos(value, "x", true));
      const rows = chart.cells.length / x.length;
      const [bottom, top] = chart.y.range.map(toPixel);
      const left = (i) => Math.round(i === 0 ? bbox.left : i === x.length ? bbox.left + bbox.width : (x[i - 1] + x[i]) / 2);
      const floor = (row) => Math.round(bottom + ((top - bottom) * row) / rows);
      for (let i = 0; i < chart.cells.length; i++) {
        const level = chart.cells.charCodeAt(i) - 48;
        if (!level) continue;
        const [column, row] = [Math.floor(i / rows), i % rows];
        ctx.fillStyle = palette[level];
        ctx.fillRect(left(column), floor(row + 1), left(column + 1) - left(column), floor(row) - floor(row + 1));
      }
    }
    ctx.strokeStyle = colors.zero;
    for (const [value] of chart.guides ?? []) {
      if (value < low || value > high) continue;
      ctx.beginPath();
      ctx.moveTo(bbox.left, toPixel(value));
      ctx.lineTo(bbox.left + bbox.width, toPixel(value));
      ctx.stroke();
    }
    ctx.restore();
  };

  const marginWidth = 96;

  // what belongs to a value at every step, turned on its side: the derivative of a nonlinearity at z
  const margin = ({ curve, y }, colors) => (plot) => {
    const { ctx, bbox } = plot;
    const size = uPlot.pxRatio;
    const left = bbox.left + bbox.width + 14 * size;
    const across = (value) => left + (value / curve.most) * (marginWidth - 30) * size;
    const along = (value) => plot.valToPos(value, "y", true);
    const inside = (value) => value >= plot.scales.y.min && value <= plot.scales.y.max;
    const path = (points) => {
      ctx.beginPath();
      for (const [value, at] of points) ctx.lineTo(across(value), along(at));
      ctx.stroke();
    };
    ctx.save();
    ctx.font = `${12 * size}px system-ui, sans-serif`;
    ctx.lineWidth = size;
    ctx.strokeStyle = colors.line;
    path([[0, plot.scales.y.min], [0, plot.scales.y.max]]);
    ctx.fillStyle = colors.muted;
    ctx.textAlign = "center";
    for (const [text, at, line] of [["0", 0, 18], [number(curve.most), curve.most, 18], [curve.label, curve.most / 2, 36]]) {
      ctx.fillText(text, across(at), bbox.top + bbox.height + line * size);
    }
    ctx.strokeStyle = colors.accent;
    ctx.lineWidth = 1.75 * size;
    const places = centres({ ...y, centres: curve.values.length });
    path(places.map((at, i) => [curve.values[i], at]).filter(([, at]) => inside(at)));
    ctx.fillStyle = ctx.strokeStyle = colors.ink;
    curve.marks.forEach(([at, value], end) => {
      if (!inside(at)) return;
      ctx.beginPath();
      ctx.arc(across(value), along(at), 4 * size, 0, 7);
      if (end) ctx.fill();
      else ctx.stroke();
    });
    ctx.restore();
  };

  // a swatch is a piece of the line: as strong as it is, and dashed where it is
  const marked = (lines, colors) => ({
    width: (plot, at) => (lines[at - 1]?.points ? 6 : Math.ceil(2 * (lines[at - 1]?.width ?? 1.25))),
    dash: (plot, at) => (lines[at - 1]?.points ? "dotted" : lines[at - 1]?.dash ? "dashed" : "solid"),
    stroke: (plot, at) => colors[lines[at - 1]?.role],
  });

  // a record between two without a number, of which a line shows nothing
  const alone = (values) => {
    const there = (at) => (values[at] ?? null) !== null;
    const found = values.map((_, at) => at).filter((at) => there(at) && !there(at - 1) && !there(at + 1));
    return found.length ? found : null;
  };

  const drawn = (chart, steps, { colors, palette }, place) => {
    const along = typeof chart.x === "string" ? { label: "step", scale: "linear" } : chart.x;
    const x = steps[chart.x] ?? centres(along);
    const series = chart.lines.map(({ label, role, width = 1.25, dash, points, aside }) => ({
      label,
      class: aside && "aside-series",
      stroke: colors[role],
      width: points ? 0 : width,
      dash: dash && [5, 4],
      points: { show: Boolean(points), fill: colors[role], size: 6, filter: (plot, at, show) => (show ? null : alone(plot.data[at])) },
      value: (plot, value) => number(value),
    }));
    const options = {
      width: place.clientWidth,
      height,
      scales: { x: scaled(along, true), y: scaled(chart.y) },
      axes: [{ ...drawnAxis(along, colors, false), size: 44 }, { ...drawnAxis(chart.y, colors, !chart.cells), size: 64 }],
      series: [{ label: along.label, value: (plot, value) => number(value) }, ...series],
      bands: (chart.ribbons ?? []).map((pair) => ({ series: pair.map((at) => at + 1), fill: `${colors[chart.lines[pair[0]].role]}33` })),
      cursor: { drag: { x: true, y: false } },
      legend: { markers: marked(chart.lines, colors) },
      hooks: { drawClear: [backdrop(chart, palette, colors), ...(chart.curve ? [margin(chart, colors)] : [])] },
      ...(chart.curve && { padding: [null, marginWidth, null, null] }),
    };
    return new uPlot(options, [x, ...chart.lines.map((line) => line.values)], place);
  };

  const height = 260;

  const drawAll = (charts, steps, told, place, prefix) => {
    const figures = charts.map((chart) => {
      const figure = element("figure", "", { id: `chart-${chart.key}` });
      figure.append(element("figcaption", chart.title), element("div", "", { role: "img", "aria-label": prefix + chart.title }));
      return figure;
    });
    place.replaceChildren(...figures);
    const plots = charts.map((chart, at) => (figures[at].plot = drawn(chart, steps, told, figures[at].lastChild)));
    const fit = new ResizeObserver(() => {
      for (const plot of plots) plot.setSize({ width: plot.root.parentElement.clientWidth, height });
    });
    fit.observe(place);
    return { destroy: () => { fit.disconnect(); for (const plot of plots) plot.destroy(); } };
  };

  const drawing = [];
  if (find("#curves") && window.DecompressionStream) {
    drawing.push(unpacked("#curve-data").then((told) => drawAll(told.curves.charts, told.curves.steps, told, find("#curves"), "")));
  }

  const panel = find("#layer");
  let shown;

  const filled = (select, labels, chosen) => {
    select.replaceChildren(...labels.map((label, value) => element("option", label, { value })));
    select.value = chosen;
  };

  const link = (anchor, run, layer, count) => {
    anchor.hidden = layer < 0 || layer >= count;
    anchor.href = `#r${run}-l${layer}`;
  };

  const show = async (run, layer, { quietly } = {}) => {
    panel.hidden = false;
    if (!window.DecompressionStream) {
      find("#layer-state").textContent = "This browser cannot unpack the data of the layers. The tables below hold their numbers; Chrome 80, Firefox 113, Safari 16.4 and later draw them.";
      return;
    }
    const told = await unpacked("#layer-data");
    const here = told.runs[run]?.layers[layer];
    if (!here) return;
    shown?.destroy();
    find("#layer-name").textContent = here.name;
    find("#layer-state").textContent = here.facts;
    filled(find("#layer-run"), told.runs.map(({ name }) => name), run);
    filled(find("#layer-of"), told.runs[run].layers.map(({ name }) => name), layer);
    link(find("#layer-previous"), run, layer - 1, told.runs[run].layers.length);
    link(find("#layer-next"), run, layer + 1, told.runs[run].layers.length);
    find("#layer-findings").replaceChildren(...here.findings.map(([check, verdict, reason, advice]) => {
      const item = element("li", "");
      item.append(element("span", verdict, { class: `v-${verdict.replace(" ", "-")}` }), element("strong", check), element("span", reason));
      if (advice) item.append(element("span", `${verdict === "not measured" ? "Needed" : "To try"}: ${advice}`, { class: "advice" }));
      return item;
    }));
    shown = drawAll(here.charts, told.runs[run].steps, told, find("#layer-charts"), `${here.name}: `);
    if (quietly) return;
    panel.scrollIntoView();
    find("#layer-heading").focus({ preventScroll: true });
  };

  const follow = (how) => {
    const match = /^#r(\d+)-l(\d+)$/.exec(location.hash);
    return match && show(Number(match[1]), Number(match[2]), how);
  };

  if (panel) {
    window.addEventListener("hashchange", () => follow());
    const jump = () => { location.hash = `r${find("#layer-run").value}-l${find("#layer-of").value}`; };
    find("#layer-of").addEventListener("change", jump);
    find("#layer-run").addEventListener("change", jump);
    drawing.push(follow({ quietly: history.state }));
  }

  // Tables that sort by a click on a heading

  const ranks = ["bad", "watch", "not measured", "ok", "does not apply"];
  const { compare } = new Intl.Collator(undefined, { numeric: true });
  const bySegments = (a, b) => {
    const at = a.findIndex((segment, i) => segment !== b[i]);
    return at < 0 ? a.length - b.length : at === b.length ? 1 : compare(a[at], b[at]);
  };
  const named = (cell) => (cell.title || cell.textContent).trim();
  // text is never taken for a number: 2.1 and 2.10 are two layers
  const key = (cell) => {
    const text = named(cell);
    if (cell.tagName === "TH" || cell.classList.contains("text")) return text.split(".");
    if (ranks.includes(text)) return ranks.indexOf(text);
    const value = parseFloat(text.replace(/^[<>] /, "").replaceAll(",", "").replace("\u2212", "-"));
    return Number.isNaN(value) ? Infinity : value;
  };
  const order = (a, b) => (Array.isArray(a) ? bySegments(a, b) : a - b || 0);

  const direction = (heading) => heading.getAttribute("aria-sort");
  const directions = { ascending: 1, descending: -1 };
  const following = { ascending: "descending", descending: "none" };

  const sort = (table, rows, column, heading) => {
    const turned = following[direction(heading)] ?? "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", turned);
    const keys = new Map(rows.map((row) => [row, key(row.cells[column])]));
    const sign = directions[turned] ?? 0;
    table.tBodies[0].append(...[...rows].sort((a, b) => sign * order(keys.get(a), keys.get(b))));
  };

  for (const table of all("table.sortable")) {
    const rows = all("tbody > tr", table);
    all("thead th", table).forEach((heading, column) => {
      const button = element("button", heading.textContent, { type: "button" });
      button.addEventListener("click", () => sort(table, rows, column, heading));
      heading.replaceChildren(button);
    });
  }

  // Layer names in tables lead to their sections

  for (const table of all(".numbers[data-base^='/runs/']")) {
    const run = table.dataset.base.split("/")[2];
    const links = new Map(all(`tr[id^="r${run}-l"] > th`).map((cell) => [named(cell), `#${cell.parentElement.id}`]));
    for (const cell of all("tbody th", table)) {
      const href = links.get(named(cell)) ?? links.get(named(cell).replace(/\.[^.]*$/, ""));
      if (href) cell.replaceChildren(element("a", cell.textContent, { href }));
    }
  }

  // Verdicts filtered by layer, check and verdict

  const filter = (place, form) => {
    const { layer, check, verdict } = Object.fromEntries(new FormData(form));
    const fits = (name, pairs) => name.toLowerCase().includes(layer.toLowerCase()) &&
      ((!check && !verdict) || pairs.some(([c, v]) => (!check || c === check) && (verdict ? v === verdict : v !== "does not apply")));
    const checks = all(".grid thead th", place).map((heading) => heading.textContent.trim());
    let count = 0;
    for (const row of all(".grid tbody tr", place)) {
      const words = [...row.cells].slice(1).map((cell, at) => [checks[at + 1], cell.textContent.trim()]);
      row.hidden = !fits(named(row.cells[0]), words);
      count += !row.hidden;
    }
    for (const item of all(".told", place)) {
      const [name, told] = all("b", item).map((word) => word.textContent);
      item.hidden = !fits(name, [[told, item.classList[1].slice(2).replace("-", " ")]]);
    }
    for (const group of all(".finding, details", place)) group.hidden = all(".told", group).every((item) => item.hidden);
    for (const details of all("details", place)) details.open = Boolean(layer || check || verdict);
    find("output", form).textContent = `${count} layers`;
  };

  for (const slot of all(".filter-place")) {
    const place = slot.closest(".verdicts");
    const form = find("#filter").content.firstElementChild.cloneNode(true);
    for (const heading of all(".grid thead th", place).slice(1)) {
      form.elements.check.append(element("option", heading.textContent.trim()));
    }
    form.addEventListener("input", () => filter(place, form));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => filter(place, form)));
    slot.append(form);
  }

  // The page of a run that goes on reads itself again, and stands as it was left: its history entry keeps how

  const places = (selector, told) => Object.fromEntries(all(selector).map(told));
  const focusable = "a, button, input, select, summary, [tabindex]";

  const state = () => {
    const owner = document.activeElement.closest("[id]");
    return {
      filters: places(".filter-place", ({ id, firstChild }) => [id, Object.fromEntries(new FormData(firstChild))]),
      open: all("details[open]").map(({ id }) => id),
      sorted: places("th[aria-sort]", (heading) => [heading.closest("table").id, [heading.textContent, direction(heading)]]),
      scrolled: places(".scroll > table[id]", ({ id, parentElement: { scrollLeft, scrollTop } }) => [id, [scrollLeft, scrollTop]]),
      seen: [window.scrollX, window.scrollY],
      focus: owner && [owner.id, all(focusable, owner).indexOf(document.activeElement)],
    };
  };

  const restore = async (left) => {
    for (const { id, firstChild: form } of all(".filter-place")) {
      const entries = Object.entries(left.filters[id] ?? {}).filter(([, value]) => value);
      for (const [name, value] of entries) form.elements[name].value = value;
      if (entries.length) form.dispatchEvent(new Event("input"));
    }
    for (const details of all("details")) details.open = left.open.includes(details.id);
    for (const table of all("table.sortable")) {
      const [text, sorted] = left.sorted[table.id] ?? [];
      const heading = all("thead th", table).find(({ textContent }) => textContent === text);
      while (heading && direction(heading) !== sorted) heading.firstChild.click();
    }
    await Promise.all(drawing);
    for (const table of all(".scroll > table[id]")) table.parentElement.scrollTo(...(left.scrolled[table.id] ?? [0, 0]));
    window.scrollTo(...left.seen);
    const owner = left.focus && document.getElementById(left.focus[0]);
    if (owner) (all(focusable, owner)[left.focus[1]] ?? owner).focus({ preventScroll: true });
    history.scrollRestoration = "auto";
  };

  if (history.state) restore(history.state);
  history.replaceState(null, "");

  const hold = find("#hold");
  if (hold) {
    hold.parentElement.hidden = false;
    setInterval(() => {
      if (hold.checked) return;
      history.replaceState(state(), "");
      history.scrollRestoration = "manual";
      location.reload();
    }, 1000 * hold.dataset.seconds);
  }
})();
