// Draws the charts of a report from the JSON in the page. Every text is written as a text node, and nothing is loaded.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const SERIES = 6;
  const PER_TEXT = 400; // characters shown before the first token that is marked
  let counter = 0;

  // ---- elements and words -----------------------------------------------------------------------------------------------

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.setAttribute("class", value);
      else if (name === "vars") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(3)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const sv = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const unique = (word) => `${word}-${++counter}`;

  function shown(value, unit, signed) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const sign = signed && value > 0 ? "+" : "";
    if (unit === "share") {
      const percent = 100 * value;
      if (percent !== 0 && Math.abs(percent) < 0.005) return `${value < 0 ? "−" : ""}<0.01%`;
      const digits = percent === 0 || Number.isInteger(percent) ? 0 : Math.abs(percent) < 1 ? 2 : Math.abs(percent) < 9.95 ? 1 : 0;
      return `${sign}${percent.toFixed(digits)}%`.replace("-", "−");
    }
    const size = Math.abs(value);
    const text = value === 0 ? "0" : size < 1e-3 || size >= 1e5 ? value.toExponential(1) : size >= 100 ? value.toFixed(0)
      : Number.isInteger(value) ? String(value) : value.toPrecision(3);
    return (sign + text).replace("-", "−");
  }
  const tick = (v, unit) => (unit === "share" ? shown(v, unit) : String(Number(v.toPrecision(3))).replace("-", "−"));
  const ends = (low, high, unit, signed) =>
    Number.isFinite(low) && Number.isFinite(high) ? `[${shown(low, unit, signed)}, ${shown(high, unit, signed)}]` : "";
  const finite = (values) => values.filter((v) => Number.isFinite(v));
  const at = (values, i) => (values && Number.isFinite(values[i]) ? values[i] : null);

  // ---- one tooltip ------------------------------------------------------------------------------------------------------

  const tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
  document.body.append(tip);
  function tell(lines, x, y) {
    tip.replaceChildren(...lines.filter(Boolean).map((line, i) => el("div", { class: i ? "" : "first" }, line)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(x + 14, document.documentElement.clientWidth - box.width - 8);
    const top = y + 18 + box.height > window.innerHeight ? y - box.height - 12 : y + 18;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }
  const hush = () => { tip.hidden = true; };
  for (const name of ["wheel", "touchmove"]) window.addEventListener(name, hush, { passive: true }); // not where focus scrolls
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });

  // ---- a table beside every chart -----------------------------------------------------------------------------------------

  function tableOf(columns, rows) {
    const details = el("details", { class: "numbers" }, el("summary", {}, "The numbers as a table"));
    details.addEventListener("toggle", () => {
      if (!details.open || details.childElementCount > 1) return;
      const body = el("tbody", {}, rows().map((row) =>
        el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", i ? { class: "n" } : { scope: "row" }, cell)))));
      const head = el("thead", {}, el("tr", {}, columns.map((name, i) => el("th", { scope: "col", class: i ? "n" : "" }, name))));
      details.append(el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "The numbers of this chart" },
        el("table", {}, head, body)));
    });
    return details;
  }

  // ---- scales and axes --------------------------------------------------------------------------------------------------

  function ticks(low, high, count, whole) {
    const rough = Math.max((high - low) / Math.max(1, count), whole ? 1 : 0);
    const power = 10 ** Math.floor(Math.log10(rough || 1));
    const step = (whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((m) => m * power).find((s) => s >= rough * 0.999) || power;
    const out = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return out;
  }
  const linear = (from, to, a, b) => (v) => a + ((v - from) / (to - from || 1)) * (b - a);

  function frame(chart, width, height, margin, name) {
    const svg = sv("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": name || `${chart.title}: ${chart.label}` });
    return { svg, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  }

  function yAxis(box, low, high, unit, label) {
    const y = linear(low, high, box.bottom, box.top);
    const marks = ticks(low, high, Math.max(2, Math.round((box.bottom - box.top) / 52)));
    box.svg.append(sv("g", { class: "axis" }, marks.map((v) => [
      sv("line", { class: v === 0 ? "zero" : "grid", x1: box.left, x2: box.right, y1: y(v), y2: y(v) }),
      sv("text", { x: box.left - 8, y: y(v) + 4, "text-anchor": "end" }, tick(v, unit)),
    ])));
    box.svg.append(sv("text", { class: "name", x: 0, y: 12 }, label));
    return y;
  }

  const tint = (s, k) => `s${(s.tint ?? k) % SERIES}`;
  function legend(drawn, dashed) {
    if (drawn.length < 2) return null;
    return el("ul", { class: "legend" }, drawn.map(({ name, tint: own }, i) =>
      el("li", {}, el("span", { class: `key s${(own ?? i) % SERIES}${dashed && dashed[i] ? " dashed" : ""}` }), name)));
  }

  // ---- colours of maps ----------------------------------------------------------------------------------------------------

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function parsed(hex) {
    const n = parseInt(hex.slice(1), 16);
    return [(n >> 16) & 255, (n >> 8) & 255, n & 255];
  }
  function isDark() {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function ramp() {
    const dark = isDark() ? "-dark" : "";
    const [neg, mid, pos, none] = ["--map-neg", "--map-mid", "--map-pos", "--map-none"].map((n) => parsed(colour(n + dark)));
    const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
    return (value, limit) => {
      if (!Number.isFinite(value)) return none;
      const t = Math.min(1, Math.abs(value) / limit);
      return mix(mid, value < 0 ? neg : pos, t ** 0.8);
    };
  }
  function paint(canvas, values, rows, columns, limit, upward) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows), of = ramp();
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const to = 4 * ((upward ? rows - 1 - r : r) * columns + c);
        image.data.set([...of(values[r * columns + c], limit), 255], to);
      }
    }
    context.putImageData(image, 0, 0);
  }
  const painters = [];
  const onTheme = (draw) => { painters.push(draw); draw(); };

  function largest(lists) {
    let size = 0;
    for (const list of lists) for (const v of list) if (Number.isFinite(v)) size = Math.max(size, Math.abs(v));
    return size || 1;
  }

  function colourBar(chart, limit) {
    const low = chart.scale === "sequential" ? 0 : -limit;
    return el("div", { class: "bar", "aria-hidden": "true" },
      el("span", {}, shown(low, chart.unit)), el("span", { class: `strip ${chart.scale}` }), el("span", {}, shown(limit, chart.unit, chart.scale !== "sequential")),
      el("span", { class: "what" }, chart.label));
  }

  // ---- heads: layer by head -----------------------------------------------------------------------------------------------

  function drawHeads(figure, chart) {
    const { layers: L, heads: H, maps, unit } = chart;
    const signed = chart.scale !== "sequential";
    const limit = largest(maps.map((m) => m.value));
    let map = 0, chosen = 0, focus = 0;
    const name = (i) => `L${Math.floor(i / H)}H${i % H}`;
    const marked = maps.map((m) => new Set(m.marked || []));
    const beyond = (m, i) => {
      if (m.marked) return marked[maps.indexOf(m)].has(i);
      const v = at(m.value, i), least = Math.max(m.floor || 0, m.control || 0);
      return v !== null && (m.floor !== undefined || m.control !== undefined) && Math.abs(v) > least;
    };
    const status = (m, i) => {
      const v = at(m.value, i);
      if (v === null) return "not known";
      if (m.marked) return beyond(m, i) ? m.mark : `not ${m.mark}`;
      if (m.floor !== undefined && Math.abs(v) <= m.floor) return "within rounding";
      if (m.control !== undefined && Math.abs(v) <= m.control) return "within the control";
      if (m.floor === undefined && m.control === undefined) return "";
      return m.control === undefined ? "beyond rounding" : "beyond rounding and control";
    };
    const words = (m, i) => [
      `${name(i)}  ${shown(m.value[i], unit, signed)}`,
      ends(at(m.low, i), at(m.high, i), unit, signed) && `interval ${ends(at(m.low, i), at(m.high, i), unit, signed)}`,
      m.floor !== undefined && `noise floor ${shown(m.floor, unit)}`,
      m.control !== undefined && `control ${shown(m.control, unit)}`,
      at(m.own, i) !== null && `its own control ${shown(m.own[i], unit, signed)}`,
      status(m, i),
    ];

    const dots = maps[0].marked ? maps[0].mark : maps.some((m) => m.control !== undefined) ? "beyond rounding and control"
      : maps.some((m) => m.floor !== undefined) ? "beyond rounding" : "";
    const hint = `${dots ? `A dot marks heads ${dots}. ` : ""}Arrow keys move, Enter opens a head.`;

    // The steps, as small maps.
    const thumbs = maps.length > 1 && el("div", { class: "thumbs", role: "group", "aria-label": `${chart.title}: choose a map` }, maps.map((m, i) => {
      const canvas = el("canvas", { "aria-hidden": "true" });
      onTheme(() => paint(canvas, m.value, L, H, limit, true));
      return el("button", { type: "button", "aria-pressed": "false", onclick: () => choose(i) }, canvas,
        el("span", { class: "one" }, m.name), m.kind && el("span", { class: "two" }, m.kind), m.n !== null && el("span", { class: "two" }, `n\u00a0=\u00a0${m.n}`));
    }));

    // The map itself: a grid of cells, layers upward.
    const cells = new Array(L * H);
    const every = L <= 16 ? 1 : L <= 40 ? 5 : 10, across = H <= 16 ? 1 : H <= 40 ? 4 : 8;
    const grid = el("div", { class: "cells", role: "grid", "aria-label": `${chart.title}, layer by head`, "aria-rowcount": L + 1, "aria-colcount": H + 1,
      vars: { "--columns": H, "--row": `${Math.max(8, Math.min(22, Math.round(470 / L)))}px` } });
    for (let l = L - 1; l >= 0; l--) {
      const row = el("div", { role: "row", "aria-rowindex": L - l });
      const numbered = l % every === 0 || (l === L - 1 && l % every > every / 2);
      row.append(el("div", { role: "rowheader" }, el("span", { class: "sr" }, numbered ? "layer " : `layer ${l}`), numbered && l));
      for (let h = 0; h < H; h++) {
        const i = l * H + h;
        cells[i] = el("div", { role: "gridcell", tabindex: -1, "data-i": i });
        row.append(cells[i]);
      }
      grid.append(row);
    }
    const names = el("div", { role: "row", "aria-rowindex": L + 1 }, el("div", { role: "columnheader" }, el("span", { class: "sr" }, "layer")));
    for (let h = 0; h < H; h++) {
      const numbered = h % across === 0;
      names.append(el("div", { role: "columnheader" }, el("span", { class: "sr" }, numbered ? "head " : `head ${h}`), numbered && h));
    }
    grid.append(names);

    const panel = el("div", { class: "inspector", role: "group", "aria-label": "The chosen head" });
    const live = el("p", { class: "sr", "aria-live": "polite" });
    figure.append(thumbs || "", el("div", { class: "heads-body" },
      el("div", { class: "map" }, el("div", { class: "axis-names", "aria-hidden": "true" }, el("span", {}, "layer ↑"), el("span", {}, "head →")),
        grid, colourBar(chart, limit), el("p", { class: "hint" }, hint)),
      panel), live,
      tableOf(["head", "map", "value", "low", "high", dots || "marked"], () => {
        const rows = [];
        maps.forEach((m) => m.value.forEach((v, i) => { if (v !== null) rows.push([Math.abs(v), i, m]); }));
        rows.sort((a, b) => b[0] - a[0]);
        return rows.slice(0, 500).map(([, i, m]) => [name(i), m.name, shown(m.value[i], unit, signed), shown(at(m.low, i), unit, signed),
          shown(at(m.high, i), unit, signed), beyond(m, i) ? "yes" : "no"]);
      }));

    function show() {
      const m = maps[map];
      for (let i = 0; i < cells.length; i++) {
        const v = at(m.value, i), cell = cells[i];
        const t = v === null ? 0 : Math.min(1, Math.abs(v) / limit) ** 0.8;
        cell.className = (v === null ? "none" : v < 0 ? "neg" : "pos") + (beyond(m, i) ? " beyond" : "") + (i === chosen ? " chosen" : "");
        cell.style.setProperty("--t", `${Math.round(1000 * t) / 10}%`);
        cell.setAttribute("aria-label", words(m, i).filter(Boolean).join(", "));
        cell.setAttribute("aria-selected", i === chosen ? "true" : "false");
      }
      if (thumbs) thumbs.querySelectorAll("button").forEach((b, i) => b.setAttribute("aria-pressed", i === map ? "true" : "false"));
    }
    function open(i) {
      cells[chosen].classList.remove("chosen");
      cells[chosen].setAttribute("aria-selected", "false");
      chosen = i;
      cells[i].classList.add("chosen");
      cells[i].setAttribute("aria-selected", "true");
      inspect(panel, chart, map, i, { name: name(i), status: status(maps[map], i), signed, go: choose });
    }
    function choose(i) {
      map = i;
      show();
      open(chosen);
    }
    function move(i, by) {
      cells[focus].tabIndex = -1;
      focus = i;
      cells[i].tabIndex = 0;
      if (by) cells[i].focus({ preventScroll: false });
    }
    grid.addEventListener("keydown", (event) => {
      const l = Math.floor(focus / H), h = focus % H;
      const to = { ArrowUp: [l + 1, h], ArrowDown: [l - 1, h], ArrowLeft: [l, h - 1], ArrowRight: [l, h + 1], Home: [l, 0], End: [l, H - 1],
        PageUp: [L - 1, h], PageDown: [0, h] }[event.key];
      if (to) {
        event.preventDefault();
        if (to[0] >= 0 && to[0] < L && to[1] >= 0 && to[1] < H) move(to[0] * H + to[1], true);
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open(focus);
        live.textContent = `${name(focus)} is open next to the map`;
      }
    });
    const here = (event) => { const cell = event.target.closest("[data-i]"); return cell ? Number(cell.dataset.i) : null; };
    grid.addEventListener("click", (event) => { const i = here(event); if (i !== null) { move(i, true); open(i); } });
    grid.addEventListener("pointermove", (event) => { const i = here(event); if (i === null) hush(); else tell(words(maps[map], i), event.clientX, event.clientY); });
    grid.addEventListener("pointerleave", hush);
    grid.addEventListener("focusin", (event) => {
      const i = here(event);
      if (i === null) return;
      move(i, false);
      const box = cells[i].getBoundingClientRect();
      if (cells[i].matches(":focus-visible")) tell(words(maps[map], i), box.right, box.bottom - 14);
    });
    grid.addEventListener("focusout", hush);
    const first = maps[0].value.reduce((best, v, i, all) => (v !== null && (all[best] === null || Math.abs(v) > Math.abs(all[best])) ? i : best), 0);
    chosen = first;
    show();
    move(first, false);
    open(first);
  }

  // What one head does: its numbers, where it looks, what it writes.
  function inspect(panel, chart, map, i, { name, status, signed, go }) {
    const m = chart.maps[map], key = `${Math.floor(i / chart.heads)}.${i % chart.heads}`;
    const said = [
      [chart.label, shown(m.value[i], chart.unit, signed)],
      ["95 % interval", ends(at(m.low, i), at(m.high, i), chart.unit, signed)],
      ["noise floor", m.floor === undefined ? "" : shown(m.floor, chart.unit)],
      ["control (95 % of heads)", m.control === undefined ? "" : shown(m.control, chart.unit)],
      ["its own control", at(m.own, i) === null ? "" : shown(m.own[i], chart.unit, signed)],
      ["examples", m.n === null || m.n === undefined ? "" : m.n],
    ].filter(([, v]) => v !== "");
    const known = status && !status.startsWith("not ") && !status.startsWith("within") ? "yes" : "weak";
    panel.replaceChildren(...[
      el("h3", {}, name, status && el("span", { class: `badge ${known}` }, status)),
      el("p", { class: "where" }, [m.name, m.kind].filter(Boolean).join(", ")),
      el("dl", { class: "small" }, said.map(([k, v]) => el("div", {}, el("dt", {}, k), el("dd", {}, v)))),
      chart.maps.length > 2 ? strip(chart, map, i, signed, go) : "",
      extra(chart, key),
      chart.views ? views(chart, m, key, name) : chart.note && !chart.details[key] ? el("p", { class: "note" }, chart.note) : "",
    ].flat(3));
  }

  // The same head in all maps, as small bars that can be pressed.
  function strip(chart, map, i, signed, go) {
    const limit = largest(chart.maps.map((m) => [m.value[i]]));
    return el("div", { class: "strip-of" }, el("h4", {}, "This head in all maps"), el("div", { class: "sticks", role: "group", "aria-label": "This head in all maps" }, chart.maps.map((m, k) => {
      const v = at(m.value, i), size = v === null ? 0 : Math.abs(v) / limit;
      return el("button", { type: "button", "aria-pressed": k === map ? "true" : "false", "aria-label": `${m.name}: ${shown(v, chart.unit, signed)}`, title: `${m.name}: ${shown(v, chart.unit, signed)}`, onclick: () => go(k) },
        el("span", { class: `stick ${v !== null && v < 0 ? "neg" : "pos"}`, vars: { "--size": `${(100 * size).toFixed(1)}%` } }));
    })));
  }

  function extra(chart, key) {
    const found = chart.details[key];
    if (!found) return "";
    return [
      el("h4", {}, found.title), found.text ? el("p", {}, found.text) : "",
      found.rows ? weights(found.rows.map(([text, value]) => ({ text, value })), largest([found.rows.map((r) => r[1])]), (v) => shown(v, found.unit || "number", chart.scale !== "sequential")) : "",
    ];
  }

  const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥");
  function weights(rows, limit, words) {
    return el("ol", { class: "weights" }, rows.map(({ text, value, note }) => el("li", {},
      el("span", { class: "what" }, el("bdi", {}, visible(text)), note ? el("small", {}, note) : ""),
      el("span", { class: "meter", "aria-hidden": "true" }, el("i", { class: value < 0 ? "neg" : "", vars: { "--size": `${Math.min(100, (100 * Math.abs(value)) / limit).toFixed(1)}%` } })),
      el("span", { class: "n" }, words(value)))));
  }

  function views(chart, m, key, name) {
    const all = data.views;
    if (!all) return ""; // the page says it below the map
    const found = all.views.filter((v) => v.step === m.step && v.heads[key]);
    if (!found.length) {
      return el("p", { class: "note" }, `Where ${name} looks at this step is not stored: it is kept for the ${all.count} strongest heads, at steps that the model gets right.`);
    }
    const body = el("div", { class: "view" });
    const choose = el("div", { class: "segmented", role: "group", "aria-label": "Example" }, found.map((view, k) =>
      el("button", { type: "button", "aria-pressed": k ? "false" : "true", onclick: () => draw(k) }, `example ${view.example}`)));
    function draw(k) {
      choose.querySelectorAll("button").forEach((b, j) => b.setAttribute("aria-pressed", j === k ? "true" : "false"));
      const view = found[k], one = view.heads[key], tokens = all.texts[view.text];
      body.replaceChildren(
        passage(tokens, one.keys, one.mass, view.read, view.answer),
        weights(one.keys.map((p, j) => ({ text: tokens[p], note: `position ${p}`, value: one.mass[j] })), 1, (v) => shown(v, "share")),
        el("h4", {}, "What it writes there"),
        el("p", { class: "small-print" }, "Tokens whose logits it raises most, against the mean of all tokens:"),
        weights(one.words.map((w, j) => ({ text: w, value: one.adds[j] })), largest([one.adds]), (v) => shown(v, "number", true)));
    }
    draw(0);
    return [el("h4", {}, "Where it looks"), choose, body];
  }

  // A text with the tokens marked that a row attends to. Tokens in between are one text node each run.
  function passage(tokens, keys, mass, read, answer) {
    const marks = new Map(keys.map((p, j) => [p, mass[j]]));
    marks.set(read, marks.has(read) ? marks.get(read) : 0);
    const places = [...marks.keys()].filter((p) => p >= 0 && p < tokens.length).sort((a, b) => a - b);
    const box = el("div", { class: "passage", tabindex: 0, role: "group", "aria-label": "The text, with the tokens marked that the head attends to" });
    let from = 0;
    for (const p of places) {
      if (p > from) {
        const run = tokens.slice(from, p).join("");
        box.append(run.length > PER_TEXT ? `${run.slice(0, from ? PER_TEXT / 2 : 0)} … ${run.slice(-PER_TEXT / 2)}` : run);
      }
      const weight = marks.get(p);
      box.append(el("mark", { class: p === read ? "read" : "", title: p === read ? `position ${p}, where it reads: ${shown(weight, "share")}` : `position ${p}: ${shown(weight, "share")}`,
        vars: { "--t": `${Math.round(100 * Math.min(1, weight ** 0.6))}%` } }, tokens[p]));
      from = p + 1;
    }
    box.append(el("span", { class: "answer-word" }, ` → ${answer}`));
    requestAnimationFrame(() => { box.scrollTop = box.scrollHeight; });
    return box;
  }

  // What the bands or whiskers of a chart are.
  const intervals = (chart, words) => (chart.series.some((s) => finite(s.low || []).length) ? el("p", { class: "small-print" }, `${words}: 95 % intervals.`) : "");

  // ---- lines ------------------------------------------------------------------------------------------------------------

  function drawLines(figure, chart) {
    const names = chart.series.map((s) => s.name);
    const key = legend(chart.series, chart.series.map((s) => s.dashed));
    if (key) figure.append(key);
    const xs = [...new Set(chart.series.flatMap((s) => finite(s.x)))].sort((a, b) => a - b);
    const ys = finite(chart.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]));
    if (chart.level) ys.push(chart.level[0]);
    if (!xs.length || !ys.length) return figure.append(el("p", { class: "note" }, "There is nothing to draw yet."));
    let low = chart.limits[0] ?? Math.min(...ys), high = chart.limits[1] ?? Math.max(...ys);
    if (low === high) { low -= 0.5; high += 0.5; }
    const holder = el("div", { class: "plot", tabindex: 0, role: "group", "aria-label": `${chart.title}: left and right arrows read the values` });
    const live = el("p", { class: "sr", "aria-live": "polite" });
    figure.append(holder, live, intervals(chart, "Bands"), tableOf([chart.across, ...names.flatMap((n) => [n, ""])], () => xs.map((x) => [shown(x), ...chart.series.flatMap((s) => {
      const i = s.x.indexOf(x);
      return [shown(at(s.y, i), chart.unit), ends(at(s.low, i), at(s.high, i), chart.unit)];
    })])));
    sized(holder, (width) => {
      const height = figure.classList.contains("compact") ? 210 : 280;
      const box = frame(chart, width, height, { left: 52, right: 12, top: 26, bottom: 40 });
      const y = yAxis(box, low, high, chart.unit, chart.label);
      const x = linear(xs[0], xs[xs.length - 1], box.left + 6, box.right - 6);
      for (const v of ticks(xs[0], xs[xs.length - 1], Math.round((box.right - box.left) / 64), xs.every(Number.isInteger))) {
        box.svg.append(sv("text", { class: "tick", x: x(v), y: box.bottom + 16, "text-anchor": "middle" }, tick(v)));
      }
      box.svg.append(sv("text", { class: "name", x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, chart.across));
      if (chart.span && Number.isFinite(chart.span[0]) && Number.isFinite(chart.span[1])) {
        const a = x(Math.max(chart.span[0], xs[0])), b = x(Math.min(chart.span[1], xs[xs.length - 1]));
        box.svg.append(sv("rect", { class: "span", x: a, y: box.top, width: Math.max(2, b - a), height: box.bottom - box.top }, sv("title", {}, chart.span[2])));
      }
      if (chart.level) {
        box.svg.append(sv("line", { class: "level", x1: box.left, x2: box.right, y1: y(chart.level[0]), y2: y(chart.level[0]) }),
          sv("text", { class: "level-name", x: box.right, y: y(chart.level[0]) - 5, "text-anchor": "end" }, chart.level[1]));
      }
      const clamp = (v) => Math.max(box.top, Math.min(box.bottom, y(v)));
      chart.series.forEach((s, k) => {
        const points = s.x.map((v, i) => [v, s.y[i], at(s.low, i), at(s.high, i)]).filter((p) => Number.isFinite(p[0]) && Number.isFinite(p[1]));
        const band = points.filter((p) => p[2] !== null && p[3] !== null);
        if (band.length > 1) {
          const path = [...band.map((p) => `${x(p[0])},${clamp(p[3])}`), ...band.slice().reverse().map((p) => `${x(p[0])},${clamp(p[2])}`)];
          box.svg.append(sv("polygon", { class: `band s${k % SERIES}`, points: path.join(" ") }));
        }
        box.svg.append(sv("polyline", { class: `line s${k % SERIES}${s.dashed ? " dashed" : ""}`, points: points.map((p) => `${x(p[0])},${clamp(p[1])}`).join(" ") }));
        if (points.length < 24) points.forEach((p) => box.svg.append(sv("circle", { class: `point s${k % SERIES}`, cx: x(p[0]), cy: clamp(p[1]), r: 2.6 })));
      });
      const cursor = sv("line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
      box.svg.append(cursor);
      let now = -1;
      const words = (v) => [`${chart.across} ${shown(v)}`, ...chart.series.map((s) => {
        const i = s.x.indexOf(v);
        return at(s.y, i) === null ? null : `${s.name}: ${shown(s.y[i], chart.unit)} ${ends(at(s.low, i), at(s.high, i), chart.unit)}`;
      })];
      const point = (i, px, py) => {
        now = i;
        cursor.setAttribute("x1", x(xs[i]));
        cursor.setAttribute("x2", x(xs[i]));
        cursor.setAttribute("visibility", "visible");
        tell(words(xs[i]), px, py);
      };
      const off = () => { cursor.setAttribute("visibility", "hidden"); hush(); };
      holder.onpointermove = (event) => {
        const offset = event.clientX - box.svg.getBoundingClientRect().left;
        let best = 0;
        xs.forEach((v, i) => { if (Math.abs(x(v) - offset) < Math.abs(x(xs[best]) - offset)) best = i; });
        point(best, event.clientX, event.clientY);
      };
      holder.onpointerleave = off;
      holder.onblur = off;
      holder.onkeydown = (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        const to = Math.max(0, Math.min(xs.length - 1, now + by)), at = box.svg.getBoundingClientRect();
        point(to, at.left + x(xs[to]), at.top + box.top);
        live.textContent = words(xs[to]).filter(Boolean).join(", ");
      };
      return box.svg;
    });
  }

  // ---- bars -------------------------------------------------------------------------------------------------------------

  // A name in two lines where one is too long, cut at the space that leaves the halves most alike.
  function halved(text, most) {
    if (text.length <= most || !text.includes(" ")) return [text];
    const spaces = [...text.matchAll(/ /g)].map((found) => found.index);
    const cut = spaces.reduce((best, i) => (Math.abs(2 * i - text.length) < Math.abs(2 * best - text.length) ? i : best));
    return [text.slice(0, cut), text.slice(cut + 1)];
  }

  function drawBars(figure, chart) {
    const names = chart.series.map((s) => s.name);
    const key = legend(chart.series);
    if (key) figure.append(key);
    const ys = finite(chart.series.flatMap((s) => [...s.value, ...(s.low || []), ...(s.high || [])]));
    if (!ys.length) return figure.append(el("p", { class: "note" }, "There is nothing to draw yet."));
    if (chart.level) ys.push(chart.level[0]);
    const low = Math.min(0, ...ys), high = Math.max(0, ...ys) || 1;
    const holder = el("div", { class: "plot" });
    const long = (g) => (chart.texts ? `${chart.groups[g]} ${chart.texts[g]}` : chart.groups[g]);
    const named = el("ol", { class: "bar-names", hidden: true }, chart.groups.map((_, g) => el("li", {}, long(g))));
    figure.append(holder, named, intervals(chart, "Vertical lines"), tableOf([chart.across || "", ...names.flatMap((n) => [n, "interval"])], () => chart.groups.map((_, g) => [long(g), ...chart.series.flatMap((s) => [
      shown(s.value[g], chart.unit), ends(at(s.low, g), at(s.high, g), chart.unit)])])));
    sized(holder, (width) => {
      const height = figure.classList.contains("compact") ? 215 : 265;
      const box = frame(chart, width, height + (chart.across ? 18 : 0), { left: 52, right: 12, top: 26, bottom: chart.across ? 58 : 40 });
      const y = yAxis(box, low, high, chart.unit, chart.label);
      if (chart.across) box.svg.append(sv("text", { class: "name", x: (box.left + box.right) / 2, y: height + 14, "text-anchor": "middle" }, chart.across));
      const step = (box.right - box.left) / chart.groups.length, inner = Math.min(step * 0.78, 34 * chart.series.length);
      const thick = inner / chart.series.length;
      const parts = chart.groups.map((group) => halved(group, Math.floor((step - 8) / 6.4)));
      const widest = (lines) => Math.max(...lines.map((text) => text.length)) * 6.4;
      const skip = Math.max(1, Math.ceil((widest(parts.flat()) + 8) / step));
      // Names too long to stand side by side are numbered, and listed below; steps of a series are left out instead.
      named.hidden = !(skip > 1 && Math.max(...chart.groups.map((group) => group.length)) > 16);
      chart.groups.forEach((_, g) => {
        const middle = box.left + (g + 0.5) * step;
        const lines = !named.hidden ? [String(g + 1)] : g % skip === 0 ? parts[g] : [];
        const x = Math.min(middle, width - widest(lines) / 2);
        lines.forEach((text, k) => box.svg.append(sv("text", { class: "tick", x, y: box.bottom + 16 + 14 * k, "text-anchor": "middle" }, text)));
        chart.series.forEach((s, k) => {
          const v = at(s.value, g);
          if (v === null) return;
          const left = middle - inner / 2 + k * thick, from = y(Math.max(0, v)), to = y(Math.min(0, v));
          box.svg.append(sv("rect", { class: `fill ${tint(s, k)}`, x: left + 0.5, y: from, width: Math.max(1, thick - 1.5), height: Math.max(0.5, to - from), rx: 1.5 }));
          if (at(s.low, g) !== null && at(s.high, g) !== null) {
            const c = left + thick / 2;
            for (const kind of ["whisker back", "whisker"]) box.svg.append(sv("path", { class: kind, d: `M${c} ${y(s.low[g])}V${y(s.high[g])}` }));
          }
        });
        const cover = sv("rect", { class: "cover", x: box.left + g * step, y: box.top, width: step, height: box.bottom - box.top });
        cover.addEventListener("pointermove", (event) => tell([long(g), ...chart.series.map((s) => at(s.value, g) === null ? null
          : `${s.name}: ${shown(s.value[g], chart.unit)} ${ends(at(s.low, g), at(s.high, g), chart.unit)}`)], event.clientX, event.clientY));
        cover.addEventListener("pointerleave", hush);
        box.svg.append(cover);
      });
      if (chart.level) {
        box.svg.append(sv("line", { class: "level", x1: box.left, x2: box.right, y1: y(chart.level[0]), y2: y(chart.level[0]) }),
          sv("text", { class: "level-name", x: box.right, y: y(chart.level[0]) - 5, "text-anchor": "end" }, chart.level[1]));
      }
      return box.svg;
    });
  }

  // ---- shares on top of each other, lying ---------------------------------------------------------------------------------

  function drawStack(figure, chart) {
    const names = chart.series.map((s) => s.name);
    figure.append(legend(chart.series) || "");
    const rows = chart.groups.map((group, g) => {
      const total = chart.series.reduce((sum, s) => sum + (at(s.value, g) || 0), 0) || 1;
      return el("div", { class: "stack-row" }, el("span", { class: "group" }, group), el("span", { class: "stack-bar" }, chart.series.map((s, k) => {
        const v = at(s.value, g);
        if (!v) return null;
        const share = v / total;
        const part = el("span", { class: `part ${tint(s, k)}`, vars: { "--size": `${(100 * share).toFixed(2)}%` } }, share > (window.innerWidth < 600 ? 0.15 : 0.075) ? shown(v, chart.unit) : "");
        part.addEventListener("pointermove", (event) => tell([group, `${s.name}: ${shown(v, chart.unit)} ${ends(at(s.low, g), at(s.high, g), chart.unit)}`], event.clientX, event.clientY));
        part.addEventListener("pointerleave", hush);
        return part;
      })));
    });
    figure.append(el("div", { class: "stack", role: "img", "aria-label": `${chart.title}: ${chart.label}` }, rows), el("p", { class: "small-print" }, chart.label),
      tableOf(["", ...names.flatMap((n) => [n, "interval"])], () => chart.groups.map((group, g) => [group, ...chart.series.flatMap((s) => [
        shown(s.value[g], chart.unit), ends(at(s.low, g), at(s.high, g), chart.unit)])])));
  }

  // ---- a matrix -----------------------------------------------------------------------------------------------------------

  function drawMatrix(figure, chart) {
    const R = chart.rows.length, C = chart.columns.length;
    const sizes = finite(chart.value).map(Math.abs).sort((a, b) => a - b);
    const limit = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(0.99 * sizes.length))] || sizes[sizes.length - 1] || 1 : 1;
    const canvas = el("canvas", { role: "img", "aria-label": `${chart.title}: ${chart.label}; the table below holds its largest entries` });
    const cursor = el("span", { class: "cursor-cell", hidden: true });
    const live = el("p", { class: "sr", "aria-live": "polite" });
    const holder = el("div", { class: "matrix-plot", tabindex: 0, role: "group", "aria-label": `${chart.title}: arrow keys read the entries`, vars: { "--ratio": R === C ? "1" : String(Math.max(C / R, 1.3)) } }, canvas, cursor);
    onTheme(() => paint(canvas, chart.value, R, C, limit, false));
    const names = (all, side) => {
      const longest = Math.max(...all.map((text) => text.length)) * 0.4 + 0.5, room = Math.min(window.innerWidth < 600 ? 15 : 33, Math.max(15, C * 2.4));
      const every = side === "left" ? Math.ceil(all.length / 20) : Math.ceil((longest * all.length) / room);
      return el("div", { class: side, "aria-hidden": "true" }, all.map((text, i) => i % every === 0 &&
        el("span", { vars: { [side === "left" ? "top" : "left"]: `${(100 * (i + 0.5)) / all.length}%` } }, text)));
    };
    const widest = Math.min(14, Math.max(...chart.rows.map((text) => text.length)) * 0.42 + 0.6);
    figure.append(el("div", { class: "matrix-body", vars: { "--names": `${widest}rem`, "--wide": `${Math.min(34, Math.max(15, C * 2.4))}rem` } }, el("span", { class: "up" }, chart.up),
      names(chart.rows, "left"), holder, names(chart.columns, "below"), el("span", { class: "across" }, chart.across)),
      colourBar(chart, limit), live, tableOf(["entry", "value"], () => chart.value.map((v, i) => [v, i]).filter(([v]) => v !== null)
        .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 200).map(([v, i]) => [`${chart.rows[Math.floor(i / C)]}, ${chart.columns[i % C]}`, shown(v, chart.unit, true)])));
    let r = 0, c = 0;
    const words = () => [`${chart.up} ${chart.rows[r]}, ${chart.across} ${chart.columns[c]}: ${shown(chart.value[r * C + c], chart.unit, chart.scale !== "sequential")}`,
      chart.texts && `${chart.columns[c]}: ${chart.texts[c]}`, chart.texts && r !== c && `${chart.rows[r]}: ${chart.texts[r]}`];
    const show = (x, y) => {
      cursor.hidden = false;
      fill(cursor, { vars: { left: `${(100 * c) / C}%`, top: `${(100 * r) / R}%`, width: `${100 / C}%`, height: `${100 / R}%` } }, []);
      tell(words(), x, y);
    };
    holder.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      c = Math.max(0, Math.min(C - 1, Math.floor(((event.clientX - box.left) / box.width) * C)));
      r = Math.max(0, Math.min(R - 1, Math.floor(((event.clientY - box.top) / box.height) * R)));
      show(event.clientX, event.clientY);
    });
    const off = () => { cursor.hidden = true; hush(); };
    holder.addEventListener("pointerleave", off);
    holder.addEventListener("blur", off);
    holder.addEventListener("keydown", (event) => {
      const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!by) return;
      event.preventDefault();
      r = Math.max(0, Math.min(R - 1, r + by[0]));
      c = Math.max(0, Math.min(C - 1, c + by[1]));
      const box = canvas.getBoundingClientRect();
      show(box.left + ((c + 1) / C) * box.width, box.top + ((r + 1) / R) * box.height - 14);
      live.textContent = words().filter(Boolean).join("; ");
    });
  }

  // ---- information flow -----------------------------------------------------------------------------------------------------

  function drawFlow(figure, chart) {
    const pick = el("div", { class: "segmented", role: "group", "aria-label": `${chart.title}: choose a step` });
    const holder = el("div", { class: "plot flow-plot", tabindex: 0, role: "group", "aria-label": `${chart.title}, may be scrolled sideways` });
    const list = el("ul", { class: "legend" }, [["node writer", "writes the answer"], ["node", "hands something on"], ["token question", "question"],
      ["token generated", "generated text"], ["token few_shot", "few-shot block"], ["token answer", "the answer's word"]]
      .map(([kind, text]) => el("li", {}, el("span", { class: `mark ${kind}` }), text)));
    const edges = el("details", { class: "numbers" });
    figure.append(pick, list, holder, el("p", { class: "small-print" }, chart.label), edges);
    let shownGraph = -1, width = 0;
    chart.graphs.forEach((graph, i) => pick.append(el("button", { type: "button", "aria-pressed": "false", onclick: () => draw(i) }, graph.name)));
    function draw(g) {
      shownGraph = g;
      const graph = chart.graphs[g];
      pick.querySelectorAll("button").forEach((b, i) => b.setAttribute("aria-pressed", i === g ? "true" : "false"));
      const order = graph.tokens.map((t) => t.position), need = Math.max(width, 62 * order.length + 60), height = 380;
      const box = frame(chart, need, height, { left: 44, right: 20, top: 16, bottom: 66 }, `${chart.title}, ${graph.name}: ${graph.nodes.length} heads and ${graph.edges.length} edges; the table below lists them`);
      const x = (p) => box.left + ((order.indexOf(p) + 0.5) * (box.right - box.left)) / order.length;
      const y = linear(0, Math.max(1, chart.layers - 1), box.bottom - 26, box.top);
      for (const l of ticks(0, chart.layers - 1, 6, true)) {
        box.svg.append(sv("line", { class: "grid", x1: box.left, x2: box.right, y1: y(l), y2: y(l) }), sv("text", { class: "tick", x: box.left - 8, y: y(l) + 4, "text-anchor": "end" }, l));
      }
      box.svg.append(sv("text", { class: "name", x: 0, y: 12 }, "layer"));
      // A head that another would cover moves aside, as far as its column goes.
      const spots = [], reach = Math.max(1, Math.floor((box.right - box.left) / order.length / 2 / 28));
      graph.nodes.forEach((n) => {
        const middle = x(n.position), height = y(n.layer);
        let best = middle;
        for (let k = 0; k <= 2 * reach; k++) {
          const tried = middle + Math.ceil(k / 2) * (k % 2 ? -28 : 28);
          if (tried > box.right + 8 || spots.some(([a, b]) => Math.hypot(a - tried, b - height) < 27)) continue;
          best = tried;
          break;
        }
        spots.push([best, height]);
      });
      const spot = (i) => spots[i];
      const size = largest([graph.edges.map((e) => e.weight)]);
      const wordOf = (p) => { const t = graph.tokens.find((one) => one.position === p); return t ? t.word : ""; };
      const label = (n) => `L${n.layer}H${n.head}`;
      const said = (e) => `${label(graph.nodes[e.parent])} takes ${e.child < 0 ? `“${wordOf(e.position)}” (position ${e.position})` : `what ${label(graph.nodes[e.child])} wrote at “${wordOf(e.position)}”`}${e.input ? `, by its ${{ v: "values", k: "keys", q: "queries" }[e.input] || e.input}` : ""}: ${shown(e.weight, "number", true)}`;
      graph.edges.forEach((e) => {
        const [x1, y1] = spot(e.parent), [x2, y2] = e.child < 0 ? [x(e.position), box.bottom - 6] : spot(e.child);
        const bend = { v: 8, k: 22, q: -22 }[e.input] || 0;
        const strength = Number.isFinite(e.weight) ? Math.abs(e.weight) / size : 0.2;
        const line = sv("path", { class: `edge ${e.input || "v"}${e.weight < 0 ? " neg" : ""}`, d: `M${x1} ${y1}Q${(x1 + x2) / 2 + bend} ${(y1 + y2) / 2} ${x2} ${y2}`, "stroke-width": 0.8 + 3.4 * strength });
        line.addEventListener("pointermove", (event) => tell([said(e)], event.clientX, event.clientY));
        line.addEventListener("pointerleave", hush);
        box.svg.append(line);
      });
      graph.nodes.forEach((n, i) => {
        const [cx, cy] = spot(i);
        const node = sv("g", { class: `node${n.depth === 0 ? " writer" : ""}` }, sv("circle", { cx, cy, r: 12.5 }), sv("text", { x: cx, y: cy + 3.2, "text-anchor": "middle" }, `${n.layer}.${n.head}`));
        node.addEventListener("pointermove", (event) => tell([label(n), `at “${wordOf(n.position)}” (position ${n.position})`, n.depth === 0 ? "writes the answer" : `depth ${n.depth}`], event.clientX, event.clientY));
        node.addEventListener("pointerleave", hush);
        box.svg.append(node);
      });
      graph.tokens.forEach((t) => {
        box.svg.append(sv("rect", { class: `token ${t.segment || ""}${t.answer ? " answer" : ""}`, x: x(t.position) - 6, y: box.bottom - 12, width: 12, height: 12, rx: 2 }),
          sv("text", { class: "word", x: x(t.position), y: box.bottom + 18, "text-anchor": "middle" }, t.word.trim().slice(0, 9) || "␣"),
          sv("text", { class: "tick", x: x(t.position), y: box.bottom + 33, "text-anchor": "middle" }, t.position));
      });
      box.svg.append(sv("text", { class: "name", x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, "tokens, with their positions"));
      holder.replaceChildren(box.svg);
      const open = edges.open;
      edges.replaceChildren(el("summary", {}, "The edges in words"), el("ul", { class: "findings" }, graph.edges.slice().sort((a, b) => Math.abs(b.weight || 0) - Math.abs(a.weight || 0)).map((e) => el("li", {}, said(e)))));
      edges.open = open;
    }
    sized(holder, (w) => { width = w; draw(Math.max(0, shownGraph)); return null; });
  }

  // ---- a quantity beside its threshold ------------------------------------------------------------------------------------

  function drawInterval(figure, chart) {
    const all = finite([chart.mean, chart.low, chart.high, chart.threshold]);
    const unit = chart.unit;
    let low = Math.min(...all), high = Math.max(...all);
    const room = (high - low || 1) * 0.18;
    low -= room;
    high += room;
    const holder = el("div", { class: "plot" });
    figure.append(holder, el("p", { class: "small-print" }, `${chart.label}${chart.label === chart.title ? ": " : ", "}mean with its 95 % interval; the dashed line is the threshold.`));
    const text = `${shown(chart.mean, unit)} ${ends(chart.low, chart.high, unit)}, threshold ${shown(chart.threshold, unit)}`;
    sized(holder, (width) => {
      const box = frame(chart, width, 66, { left: 10, right: 10, top: 22, bottom: 24 }, `${chart.label}: ${text}`);
      const x = linear(low, high, box.left, box.right), middle = (box.top + box.bottom) / 2;
      box.svg.append(sv("line", { class: "grid", x1: box.left, x2: box.right, y1: middle, y2: middle }));
      const side = chart.threshold > (low + high) / 2 ? "end" : "start";
      box.svg.append(sv("line", { class: "level", x1: x(chart.threshold), x2: x(chart.threshold), y1: box.top - 6, y2: box.bottom + 4 }),
        sv("text", { class: "level-name", x: x(chart.threshold) + (side === "end" ? -4 : 4), y: box.bottom + 18, "text-anchor": side }, `threshold ${shown(chart.threshold, unit)}`));
      if (Number.isFinite(chart.low) && Number.isFinite(chart.high)) {
        box.svg.append(sv("line", { class: "range", x1: x(chart.low), x2: x(chart.high), y1: middle, y2: middle }));
      }
      if (Number.isFinite(chart.mean)) {
        const near = Math.max(box.left + 70, Math.min(box.right - 70, x(chart.mean)));
        box.svg.append(sv("circle", { class: "mean", cx: x(chart.mean), cy: middle, r: 5 }),
          sv("text", { class: "value", x: near, y: 12, "text-anchor": "middle" }, `${shown(chart.mean, unit)} ${ends(chart.low, chart.high, unit)}`));
      }
      return box.svg;
    });
  }

  // ---- all of them ----------------------------------------------------------------------------------------------------------

  function sized(holder, draw) {
    let before = 0;
    const again = () => {
      const width = Math.round(holder.clientWidth);
      if (!width || width === before) return;
      before = width;
      const made = draw(width);
      if (made) holder.replaceChildren(made);
    };
    again();
    new ResizeObserver(again).observe(holder);
  }

  const DRAW = { heads: drawHeads, lines: drawLines, bars: drawBars, stack: drawStack, matrix: drawMatrix, flow: drawFlow, interval: drawInterval };
  const figures = [...document.querySelectorAll("[data-chart]")];
  function drawOne(figure) {
    if (figure.dataset.drawn) return;
    figure.dataset.drawn = "yes";
    const chart = data.charts[Number(figure.dataset.chart)];
    DRAW[chart.kind](figure, chart);
  }
  // What is seen at once is drawn at once, the rest while nothing else is to be done.
  const rest = figures.slice();
  function work() {
    const end = performance.now() + 12;
    while (rest.length && performance.now() < end) drawOne(rest.shift());
    if (rest.length) setTimeout(work, 0);
    else document.documentElement.dataset.ready = "yes";
  }
  window.addEventListener("beforeprint", () => {
    while (rest.length) drawOne(rest.shift());
    document.querySelectorAll("footer details").forEach((details) => { details.open = true; }); // how it was made belongs to a copy
  });

  // ---- theme and contents -----------------------------------------------------------------------------------------------

  const button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("pycotmech-theme"); } catch { return null; } };
  function theme(value) {
    if (value) document.documentElement.dataset.theme = value;
    button.textContent = isDark() ? "Light theme" : "Dark theme";
    painters.forEach((draw) => draw());
  }
  button.hidden = false;
  theme(["light", "dark"].includes(stored()) ? stored() : null);
  button.addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    try { localStorage.setItem("pycotmech-theme", next); } catch { /* a page from a file may have no storage */ }
    theme(next);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(null));

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      links.forEach((a, id) => { if (id === entry.target.id) a.setAttribute("aria-current", "location"); else a.removeAttribute("aria-current"); });
    }), { rootMargin: "-10% 0px -75% 0px" });
    document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
  }
  work();
})();
