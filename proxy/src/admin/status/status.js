// The status page: reads /metrics (OpenMetrics text), keeps the last ten minutes in memory, draws them.
"use strict";

const EVERY_MS = 2000;
const KEPT = 300;
const COLOURS = ["#3b76e1", "#e0803a", "#22a06b", "#b04ac9", "#d64550", "#1797a6", "#9a7b0a", "#7a869a"];
const SHED = ["source_rate", "tenant_full", "tenant_rate", "global_rate"];
const TOP = COLOURS.length - 1;
const SVG = "http://www.w3.org/2000/svg";

/** Columns of the heat at most, at least, and how long each is. */
const [COLUMNS, FEWEST, COLUMN_MS] = [60, 12, 10e3];
/** What the heat's rows show, from its foot to its top, in seconds. */
const [SHORTEST, DECADES] = [1e-6, 7];

const history = [];
/** What came since the page was opened, and in each column of time, the newest last. */
let since = new Map();
const heat = [];

/** Lines of the exposition: name, labels, value. */
function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found || line.startsWith("#")) continue;
    const labels = {};
    for (const [, key, value] of (found[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** Sums of a metric's samples by one label; without a label under one name. */
function sums(samples, name, label, where = () => true) {
  const out = new Map();
  for (const s of samples) {
    if (s.name !== name || !where(s.labels)) continue;
    const key = label ? s.labels[label] || "(none)" : name;
    out.set(key, (out.get(key) || 0) + s.value);
  }
  return out;
}

/** Growth per second of counters between two looks; a counter that went back began anew. */
function rates(now, before, seconds) {
  const out = new Map();
  for (const [key, value] of now) {
    const old = before.get(key) || 0;
    out.set(key, Math.max(0, value < old ? value : value - old) / seconds);
  }
  return out;
}

function counters(samples) {
  const isShed = (l) => SHED.includes(l.verdict);
  return {
    bytes: sums(samples, "mksgate_flow_bytes_total", "mode"),
    events: new Map([
      ["opened", total(sums(samples, "mksgate_sessions_opened_total"))],
      ["closed", total(sums(samples, "mksgate_sessions_closed_total"))],
    ]),
    refused: sums(samples, "mksgate_refusals_total", "reason"),
    shed: sums(samples, "mksgate_xdp_packets_total", "verdict", isShed),
  };
}

const total = (map) => [...map.values()].reduce((a, b) => a + b, 0);

/** Cumulative buckets of every latency: name → [[bound, count]…]. */
function buckets(samples) {
  const out = new Map();
  for (const s of samples) {
    const name = /^mksgate_(\w+)_seconds_bucket$/.exec(s.name);
    if (!name) continue;
    const bound = s.labels.le === "+Inf" ? Infinity : Number(s.labels.le);
    if (!out.has(name[1])) out.set(name[1], []);
    out.get(name[1]).push([bound, s.value]);
  }
  return out;
}

/** What came between two looks, bucket by bucket; counters that went back began anew, and all they hold came since. */
function growth(now, before) {
  const out = new Map();
  for (const [name, bounds] of now) {
    const old = new Map(before.get(name));
    const anew = bounds.some(([bound, n]) => n < (old.get(bound) || 0));
    out.set(name, bounds.map(([bound, n]) => [bound, anew ? n : n - (old.get(bound) || 0)]));
  }
  return out;
}

/** Both together. */
function joined(one, other) {
  const out = new Map(one);
  for (const [name, bounds] of other) {
    const had = new Map(one.get(name));
    out.set(name, bounds.map(([bound, n]) => [bound, n + (had.get(bound) || 0)]));
  }
  return out;
}

const count = (bounds) => (bounds.length ? bounds[bounds.length - 1][1] : 0);

/** The quantile of cumulative buckets, within its bucket by straight line. */
function quantile(bounds, q) {
  const all = count(bounds);
  if (!all) return null;
  let [low, below] = [0, 0];
  for (const [bound, n] of bounds) {
    if (n >= q * all) {
      if (bound === Infinity) return low;
      return low + (bound - low) * ((q * all - below) / Math.max(n - below, 1));
    }
    [low, below] = [bound, n];
  }
  return low;
}

function make(kind, attributes, text) {
  const element = document.createElementNS(SVG, kind);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** Three digits, without zeros behind a point. */
function digits(value) {
  const text = value.toPrecision(3);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

function short(value) {
  if (value === 0) return "0";
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size) return digits(value / size) + " " + unit;
  }
  return value >= 100 ? value.toFixed(0) : digits(value);
}

function time(seconds) {
  if (seconds === null) return "–";
  if (seconds < 1e-3) return (seconds * 1e6).toPrecision(3) + " µs";
  if (seconds < 1) return (seconds * 1e3).toPrecision(3) + " ms";
  return seconds.toPrecision(3) + " s";
}

/** The smallest of 1, 2, 5 × a power of ten that is not below. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((m) => m * power >= value * 0.999) * power;
}

/** The loudest keys, and the rest as one. */
function loudest(points) {
  const weight = new Map();
  for (const { values } of points) for (const [key, v] of values) weight.set(key, (weight.get(key) || 0) + v);
  const keys = [...weight].filter(([, w]) => w > 0).sort((a, b) => b[1] - a[1]).map(([key]) => key);
  if (keys.length <= TOP) return { keys: keys.sort(), rest: [] };
  return { keys: keys.slice(0, TOP).sort(), rest: keys.slice(TOP) };
}

/** Areas over time, on top of each other unless they are not parts of a whole, and a legend with the newest values. */
function draw(id, points, nothing, stacked = true) {
  const box = document.getElementById(id);
  const legend = document.getElementById(id + "-legend");
  const [width, height, left, bottom] = [box.clientWidth, box.clientHeight, 46, 18];
  const title = box.parentElement.querySelector("h2").textContent;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const { keys, rest } = loudest(points);
  const names = rest.length ? [...keys, "others"] : keys;
  const of = (values, key) =>
    key === "others" && rest.length ? rest.reduce((a, k) => a + (values.get(k) || 0), 0) : values.get(key) || 0;
  const whole = (values) => (stacked ? values.reduce((a, v) => a + v, 0) : Math.max(0, ...values));
  const top = ceiling(Math.max(0, ...points.map((p) => whole(names.map((k) => of(p.values, k))))));
  const end = points.length ? points[points.length - 1].at : 0;
  const span = Math.max(60e3, end - (points.length ? points[0].at : 0));
  const x = (at) => left + (width - left) * (1 - (end - at) / span);
  const y = (v) => 6 + (height - bottom - 6) * (1 - v / top);
  for (const part of [0, 0.5, 1]) {
    svg.append(make("line", { class: "grid", x1: left, x2: width, y1: y(top * part), y2: y(top * part) }));
    svg.append(make("text", { x: left - 6, y: y(top * part) + 4, "text-anchor": "end" }, short(top * part)));
  }
  svg.append(make("text", { x: left, y: height - 3 }, `${Math.round(span / 1000)} s ago`));
  svg.append(make("text", { x: width, y: height - 3, "text-anchor": "end" }, "now"));
  let base = points.map(() => 0);
  names.forEach((key, n) => {
    const above = points.map((p, i) => base[i] + of(p.values, key));
    const up = points.map((p, i) => `${x(p.at).toFixed(1)},${y(above[i]).toFixed(1)}`);
    const down = points.map((p, i) => `${x(p.at).toFixed(1)},${y(base[i]).toFixed(1)}`).reverse();
    const colour = COLOURS[n];
    svg.append(make("polygon", { points: [...up, ...down].join(" "), fill: colour, "fill-opacity": stacked ? 0.55 : 0.15 }));
    svg.append(make("polyline", { points: up.join(" "), fill: "none", stroke: colour, "stroke-width": 1.5 }));
    if (stacked) base = above;
  });
  if (!names.length) {
    svg.append(make("text", { class: "none", x: (left + width) / 2, y: height / 2, "text-anchor": "middle" }, nothing));
  }
  box.replaceChildren(svg);
  const newest = points.length ? points[points.length - 1].values : new Map();
  legend.replaceChildren(...names.map((key, n) => {
    const item = document.createElement("li");
    const dot = make("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
    dot.append(make("rect", { width: 10, height: 10, rx: 3, fill: COLOURS[n] }));
    const value = document.createElement("b");
    value.textContent = " " + short(of(newest, key));
    item.append(dot, key, value);
    return item;
  }));
}

/** Where a time lies on the logarithmic scale, 0 to 1. */
const place = (seconds) => Math.min(1, Math.max(0, Math.log10(Math.max(seconds, SHORTEST) / SHORTEST) / DECADES));

const stage = (name) => name.replaceAll("_", " ");

function latencies() {
  const rows = [...since].map(([name, bounds]) => {
    const [p50, p90, p99] = [0.5, 0.9, 0.99].map((q) => quantile(bounds, q));
    const row = document.createElement("tr");
    if (!count(bounds)) row.className = "idle";
    for (const text of [stage(name), short(count(bounds)), time(p50), time(p90), time(p99)]) {
      row.insertCell().textContent = text;
    }
    const cell = row.insertCell();
    cell.className = "bars";
    const svg = make("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const [value, opacity] of [[p99, 0.25], [p90, 0.45], [p50, 0.9]]) {
      if (value !== null) {
        svg.append(make("rect", { y: 2, height: 6, width: 100 * place(value), fill: COLOURS[0], "fill-opacity": opacity }));
      }
    }
    cell.append(svg);
    return row;
  });
  document.getElementById("latencies").replaceChildren(...rows);
}

/** Adds what came to its column of time. */
function warm(at, came) {
  const start = Math.floor(at / COLUMN_MS) * COLUMN_MS;
  const newest = heat[heat.length - 1];
  if (newest?.start === start) newest.came = joined(newest.came, came);
  else heat.push({ start, came });
  // The clock may have been set back.
  while (heat[0].start <= start - COLUMNS * COLUMN_MS || heat[0].start > start) heat.shift();
}

/** One map of each stage that had anything: time to the right, latency upwards, the stronger the more. How long a person
 * looks at a console is no latency. */
function heatmaps() {
  const end = heat.length ? heat[heat.length - 1].start : 0;
  const stages = [...since.keys()].filter((name) => name !== "session" && heat.some(({ came }) => count(came.get(name) || [])));
  const maps = stages.map((name) => {
    const columns = heat.map(({ start, came }) => ({ back: (end - start) / COLUMN_MS, bounds: came.get(name) || [] }));
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = stage(name);
    figure.append(caption, heatmap(columns, name));
    return figure;
  });
  const box = document.getElementById("heat");
  if (maps.length) box.replaceChildren(...maps);
  else box.textContent = "nothing was timed";
}

function heatmap(columns, name) {
  const [width, height, left, bottom] = [320, 104, 46, 16];
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": inWords(columns, name) });
  const y = (seconds) => (height - bottom) * (1 - place(seconds));
  for (const [seconds, text] of [[1e-6, "1 µs"], [1e-3, "1 ms"], [1, "1 s"]]) {
    svg.append(make("line", { class: "grid", x1: left, x2: width, y1: y(seconds), y2: y(seconds) }));
    svg.append(make("text", { x: left - 6, y: Math.max(10, y(seconds) + 4), "text-anchor": "end" }, text));
  }
  const shown = Math.max(FEWEST, columns[0].back + 1);
  svg.append(make("text", { x: left, y: height - 3 }, `${(shown * COLUMN_MS) / 1000} s ago`));
  svg.append(make("text", { x: width, y: height - 3, "text-anchor": "end" }, "now"));
  const cells = columns.flatMap(({ back, bounds }) => parts(bounds).map((part) => ({ ...part, back })));
  const most = Math.max(...cells.map(({ n }) => n));
  const step = (width - left) / shown;
  for (const { back, low, high, n } of cells) {
    // By the logarithm: a single one among thousands is seen.
    const opacity = 0.2 + 0.8 * (Math.log1p(n) / Math.log1p(most));
    const [x, foot, top] = [width - (back + 1) * step, y(low), y(high)];
    const cell = make("rect", { class: "cell", x, y: top, width: step - 0.4, height: Math.max(1.5, foot - top), "fill-opacity": opacity });
    cell.append(make("title", {}, `${time(low)} to ${high === Infinity ? "more" : time(high)}: ${short(n)}`));
    svg.append(cell);
  }
  return svg;
}

/** What lies in each bucket alone, where there is anything. */
function parts(bounds) {
  let [low, below] = [0, 0];
  return bounds.flatMap(([high, all]) => {
    const part = { low, high, n: all - below };
    [low, below] = [high, all];
    return part.n > 0 ? [part] : [];
  });
}

/** The same for those who do not see it. */
function inWords(columns, name) {
  const timed = columns.filter(({ bounds }) => count(bounds));
  const p99 = ({ bounds }) => quantile(bounds, 0.99);
  const slowest = timed.reduce((a, b) => (p99(b) > p99(a) ? b : a));
  const ago = ({ back }) => (back ? `${back * (COLUMN_MS / 1000)} seconds ago` : "now");
  const newest = timed[timed.length - 1];
  return `${stage(name)} over time: p99 ${time(p99(newest))} ${ago(newest)}, at most ${time(p99(slowest))} ${ago(slowest)}`;
}

function figures(samples) {
  const one = (name) => total(sums(samples, name));
  const all = [
    ["consoles", one("mksgate_sessions")],
    ["handshakes", one("mksgate_handshakes")],
    ["not yet in", one("mksgate_preauth_connections")],
    ["tickets remembered", one("mksgate_tickets_tracked")],
    ["audit records lost", one("mksgate_audit_lost_total")],
  ];
  document.getElementById("figures").replaceChildren(...all.map(([name, value]) => {
    const item = document.createElement("li");
    const number = document.createElement("b");
    number.textContent = short(value) + " ";
    item.append(number, name);
    return item;
  }));
}

function state(text, kind) {
  const element = document.getElementById("state");
  element.textContent = text;
  element.className = kind;
}

async function look() {
  try {
    const patience = { signal: AbortSignal.timeout(5000), cache: "no-store" };
    const [metrics, ready] = await Promise.all([fetch("metrics", patience), fetch("ready", patience)]);
    if (!metrics.ok) {
      const said = await metrics.json().catch(() => null);
      throw new Error(said?.error ?? `/metrics answers ${metrics.status}`);
    }
    const samples = parse(await metrics.text());
    const why = await ready.json();
    state(ready.ok ? "serving" : why.error, ready.ok ? "good" : "bad");
    const now = { at: Date.now(), sessions: sums(samples, "mksgate_sessions", "tenant"), counters: counters(samples), buckets: buckets(samples) };
    const last = history[history.length - 1];
    // What the first look finds came before the page was opened.
    const came = growth(now.buckets, last ? last.buckets : now.buckets);
    since = joined(since, came);
    warm(now.at, came);
    history.push(now);
    if (history.length > KEPT) history.shift();
    draw("sessions", history.map((p) => ({ at: p.at, values: p.sessions })), "no console is open");
    const rate = (what) => history.slice(1).map((p, i) => {
      const before = history[i];
      return { at: p.at, values: rates(p.counters[what], before.counters[what], Math.max(0.001, (p.at - before.at) / 1000)) };
    });
    draw("bytes", rate("bytes"), "no byte has moved");
    draw("events", rate("events"), "none", false);
    draw("refused", rate("refused"), "nobody was refused");
    draw("shed", rate("shed"), "nothing was shed");
    latencies();
    heatmaps();
    figures(samples);
  } catch (error) {
    state(`no answer (${error.message})`, "bad");
  }
  setTimeout(look, EVERY_MS);
}

look();
