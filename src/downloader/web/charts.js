// Charts of the last minutes and of the last day, drawn by uPlot (`vendor/`). Its legend is our own, as it has words and is read aloud.

import { call } from "./api.js";
import { $, list, make, setText } from "./dom.js";
import uPlot from "./uPlot.min.js";
import { REASONS, bytes, plain, seconds } from "./words.js";

const HEIGHT_PX = 150;
const SPAN_S = 900;
const SPAN_MIN_S = 120;
// The service keeps a point of the backlog every five minutes.
const POINT_S = 300;
// How much of the past says when the backlog ends.
const RATE_S = 60;
// The time that one bar of failures covers.
const BAR_S = 30;
// A logarithm has no place for 0, which the fastest calls are rounded to.
const LATENCY_MIN_S = 0.001;
// Of the most frequent reasons; if there are more, the last one stands for all others.
const COLOURS = ["bad", "warn", "accent", "blue", "muted"];

const narrow = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const perSecond = (value) => `${narrow.format(value)}/s`;

// The page's colours as the canvas needs them: `light-dark()` is resolved by the browser.
const probe = document.body.appendChild(make("span"));
probe.hidden = true;

function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

const decades = (_plot, ticks) => ticks.map((tick) => (Number.isInteger(Math.log10(tick)) ? tick : null));
const STEPS_S = [60, 120, 180, 300, 1800, 3600, 7200, 10_800, 21_600];
const POWERS = Array.from({ length: 50 }, (_, exponent) => 2 ** exponent);

let samples = [];
let charts = [];

// One chart with its legend. `rows` are uPlot's data, `lines` one `{label, colour, text}` for each series.
class Chart {
  constructor(id, { unit, log = false, bars = false, incrs }) {
    this.box = $(id);
    this.legend = list(this.box.querySelector(".legend"), () => {
      const [swatch, label, value] = [make("i"), make("span"), make("b")];
      swatch.ariaHidden = "true";
      return {
        element: make("li", "", swatch, label, value),
        patch: (line) => {
          swatch.className = line.colour;
          setText(label, line.label);
          setText(value, line.text);
        },
      };
    });
    this.unit = unit;
    this.log = log;
    this.bars = bars;
    this.incrs = incrs;
    this.plot = null;
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
  }

  size() {
    return { width: this.box.querySelector(".plot").clientWidth, height: HEIGHT_PX };
  }

  show(rows, lines) {
    this.legend(lines.map((line) => [line.label, line]));
    const holder = this.box.querySelector(".plot");
    this.begin = rows[0][0];
    holder.ariaLabel = lines.map(({ label, text }) => `${label} ${text}`).join(", ") || "nothing";
    const looks = lines.map((line) => line.colour).join();
    if (this.plot && this.looks === looks) {
      this.plot.setData(rows);
      return;
    }
    this.plot?.destroy();
    this.looks = looks;
    this.plot = new uPlot(this.options(lines), rows, holder);
  }

  options(lines) {
    const axis = { stroke: () => colour("muted"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false } };
    const { unit } = this;
    const drawn = (line) => ({
      stroke: () => colour(line.colour),
      width: this.bars ? 0 : 1.75,
      fill: this.bars ? () => colour(line.colour) : undefined,
      paths: this.bars ? uPlot.paths.bars({ size: [0.8, 40], align: 1 }) : undefined,
      points: { show: (plot) => plot.data[0].length === 1 }, // one point makes no line
    });
    const range = (_plot, _low, high) => [0, high > 0 ? high * 1.1 : 1];
    // Whole powers of ten: from any other lower end uPlot 1.6.32 counts its ticks without end.
    const logRange = (_plot, low, high) => uPlot.rangeLog(Math.min(low ?? 0.01, 0.01), Math.max(high ?? 1, 1), 10, true);
    return {
      ...this.size(),
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: () => [Math.min(this.begin, Date.now() / 1000 - SPAN_MIN_S), Date.now() / 1000] },
        y: this.log ? { distr: 3, range: logRange } : { range },
      },
      axes: [
        { ...axis, grid: { show: false }, values: (_plot, ticks) => ticks.map((tick) => time.format(tick * 1000)), incrs: STEPS_S, size: 28, space: 70 },
        {
          ...axis,
          values: (_plot, ticks) => ticks.map((tick) => (tick === null ? "" : unit(tick))),
          ...(this.log && { filter: decades, grid: { ...axis.grid, filter: decades } }),
          ...(this.incrs && { incrs: this.incrs }),
          size: 68,
          space: 32,
        },
      ],
      padding: [8, 4, 0, 0],
      series: [{}, ...lines.map(drawn)],
    };
  }
}

const at = () => samples.map((sample) => sample.at_ms / 1000);
const last = () => samples.at(-1) ?? {};

function showRates(chart, names) {
  const values = ([name]) => samples.map((sample) => sample.rates?.[name] ?? null);
  const text = ([name]) => (last().rates ? chart.unit(last().rates[name]) : "–");
  chart.show([at(), ...names.map(values)], names.map((each) => ({ label: each[1], colour: each[2], text: text(each) })));
}

const LATENCIES = [
  ["queue_wait", "queue", "warn"],
  ["download", "download", "accent"],
  ["delivery", "callback", "blue"],
];

function showLatencies(chart) {
  const values = ([name]) => samples.map((sample) => (sample.latencies?.[name] ? Math.max(sample.latencies[name][1], LATENCY_MIN_S) : null));
  const text = ([name]) => {
    const found = last().latencies?.[name];
    return found ? `${seconds(found[1])}, median ${seconds(found[0])}` : "–";
  };
  chart.show([at(), ...LATENCIES.map(values)], LATENCIES.map((each) => ({ label: each[1], colour: each[2], text: text(each) })));
}

// Failures in stacked bars: the longest first, and each covers the lower part of those before.
function showFailures(chart) {
  const bars = new Map();
  const totals = new Map();
  for (const { at_ms, failures = {} } of samples) {
    const start = Math.floor(at_ms / 1000 / BAR_S) * BAR_S;
    if (!bars.has(start)) bars.set(start, {});
    const bar = bars.get(start);
    for (const [code, count] of Object.entries(failures)) {
      bar[code] = (bar[code] ?? 0) + count;
      totals.set(code, (totals.get(code) ?? 0) + count);
    }
  }
  const codes = [...totals].sort(([a, x], [b, y]) => y - x || a.localeCompare(b)).map(([code]) => code);
  const own = codes.length > COLOURS.length ? codes.slice(0, COLOURS.length - 1) : codes;
  const groups = own.map((code) => [REASONS[code] ?? code, [code]]);
  if (own.length < codes.length) groups.push(["other reasons", codes.slice(own.length)]);
  const sum = (found, wanted) => wanted.reduce((all, code) => all + (found(code) ?? 0), 0);
  const rows = groups.map((_group, index) => [...bars.values()].map((bar) => sum((code) => bar[code], groups.slice(index).flatMap(([, wanted]) => wanted)) || null));
  const lines = groups.map(([label, wanted], index) => ({ label, colour: COLOURS[index], text: plain.format(sum((code) => totals.get(code), wanted)) }));
  chart.show([[...bars.keys()], ...rows], lines);
  $("failures-none").hidden = codes.length > 0;
  chart.box.querySelector(".plot").hidden = codes.length === 0;
}

let points = [];
let askedAt = -Infinity;
let backlog = null;
let ended = null;

async function lookAtDay() {
  drawDay();
  if (performance.now() - askedAt < POINT_S * 1000) return;
  askedAt = performance.now();
  try {
    points = await call("GET", "backlog");
    drawDay();
    if (points.length === 0) askedAt = -Infinity; // the first point comes soon after the start
  } catch {
    askedAt = -Infinity; // that the store or the service does not answer is shown elsewhere
  }
}

function drawDay() {
  $("day-panel").hidden = points.length === 0;
  if (points.length === 0) return;
  backlog ??= new Chart("chart-backlog", { unit: (value) => narrow.format(value) });
  ended ??= new Chart("chart-ended", { unit: perSecond });
  const times = points.map((point) => new Date(point.at) / 1000);
  const rate = (name) => points.map((point, index) => {
    const grown = point[name] - points[index - 1]?.[name];
    return grown >= 0 ? grown / (times[index] - times[index - 1]) : null; // the store may have been emptied
  });
  const text = (chart, value) => (value === null ? "–" : chart.unit(value));
  const show = (chart, lines) => chart.show([times, ...lines.map(({ values }) => values)], lines.map((line) => ({ ...line, text: text(chart, line.values.at(-1)) })));
  show(backlog, [["downloads", "downloads", "accent"], ["callbacks", "callbacks", "blue"]].map(([name, label, colour]) => ({ label, colour, values: points.map((point) => point[name]) })));
  show(ended, [["succeeded", "succeeded", "accent"], ["failed", "failed", "bad"]].map(([name, label, colour]) => ({ label, colour, values: rate(name) })));
}

function draw() {
  const empty = samples.length === 0;
  $("charts").hidden = empty;
  $("charts-none").hidden = !empty;
  if (empty) return;
  if (charts.length === 0) {
    const [jobs, data] = [new Chart("chart-jobs", { unit: perSecond }), new Chart("chart-bytes", { unit: (value) => `${bytes(value)}/s`, incrs: POWERS })];
    const latency = new Chart("chart-latency", { unit: seconds, log: true });
    const failures = new Chart("chart-failures", { unit: (value) => narrow.format(value), bars: true });
    charts = [
      () => showRates(jobs, [["succeeded", "succeeded", "accent"], ["failed", "failed", "bad"], ["delivered", "called back", "blue"]]),
      () => showRates(data, [["bytes", "stored", "accent"]]),
      () => showLatencies(latency),
      () => showFailures(failures),
    ];
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      draw();
      drawDay();
    });
  }
  for (const show of charts) show();
}

// Downloads that ended in a second, over the last minute; 0 while that is not known.
export function downloadsPerSecond() {
  const rates = samples.filter(({ at_ms, rates }) => rates && at_ms > Date.now() - RATE_S * 1000).map(({ rates }) => rates.succeeded + rates.failed);
  return rates.length ? rates.reduce((sum, rate) => sum + rate, 0) / rates.length : 0;
}

// Samples as `/events` sends them: all that there are at first, then those that are new.
export function addSamples(added) {
  const known = last().at_ms ?? 0;
  // After a reconnection, perhaps with another process, all come again.
  if (added.length > 1) samples = added;
  else if (added[0].at_ms > known) samples.push(...added);
  samples = samples.filter(({ at_ms }) => at_ms > Date.now() - SPAN_S * 1000);
  draw();
  lookAtDay();
}

draw();
