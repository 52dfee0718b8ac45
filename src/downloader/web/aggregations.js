// The aggregations: searched, sorted and cut into pages by the service, so that ten thousand cost no more than a page.

import { call, query } from "./api.js";
import { act, complain, confirm } from "./dialogs.js";
import { $, button, list, make, setForeign, setText } from "./dom.js";
import { openLimits } from "./limits.js";
import { aggregationState, plain, plural } from "./words.js";

const ROWS = 25;
// Between two looks; the fleet changes all the time.
const LOOK_MS = 2_000;
const TYPING_MS = 200;
// Up to here a meter shows the slots one by one.
const SLOTS = 16;

const view = { q: "", sort: "-work", skip: 0 };
let total = 0;

const path = (aggregation) => `aggregations/${encodeURIComponent(aggregation.aggr_id)}`;

async function cancelJobs({ aggr_id, pending, in_flight }) {
  const jobs = plural(pending + in_flight, "job", "jobs");
  const text = `${jobs} now: ${plain.format(pending)} pending and ${plain.format(in_flight)} in flight. Their callbacks report that they were cancelled.`;
  const verb = "Cancel the jobs";
  if (!(await confirm(`Cancel all jobs of ${aggr_id}?`, text, verb, { danger: true, typed: aggr_id }))) return "";
  let cancelled = 0;
  let complete = false;
  while (!complete) {
    const result = await call("DELETE", `${path({ aggr_id })}/jobs`);
    cancelled += result.cancelled;
    complete = result.complete;
  }
  look();
  return `${plural(cancelled, "job", "jobs")} of ${aggr_id} ${cancelled === 1 ? "is" : "are"} cancelled.`;
}

function row() {
  let shown = null;
  const name = make("bdi");
  const fill = make("span");
  const meter = make("div", "meter", fill);
  meter.ariaHidden = "true"; // the numbers beside it say the same
  // On a phone the state stands below the name.
  const states = ["wide", "narrow"].map((width) => ({ word: make("span", "word"), more: make("span", "sub"), width }));
  const [wide, narrow] = states.map(({ word, more, width }) => make(width === "wide" ? "td" : "div", width, word, more));
  const head = make("th", "", name, narrow);
  head.scope = "row";
  const [inFlight, limit, pending] = [make("span"), make("span", "of"), make("td", "count")];
  const [pause, limits, cancel, again] = ["Pause", "Limits", "Cancel", "Try now"].map((text) => button(text));
  for (const element of [pause, limits, again]) element.dataset.scope = "admin";
  cancel.dataset.scope = "submit";
  // A response to an earlier look would undo what is shown.
  const change = (changed) => {
    patch(changed);
    look();
  };
  pause.addEventListener("click", () =>
    act(pause, async () => {
      const changed = await call("PATCH", path(shown), { paused: !shown.paused });
      change(changed);
      return changed.paused ? `${changed.aggr_id} is paused.` : `${changed.aggr_id} goes on.`;
    }),
  );
  again.addEventListener("click", () =>
    act(again, async () => {
      const changed = await call("PATCH", path(shown), { cooling: null });
      change(changed);
      return `The cooldown of ${changed.aggr_id} has ended.`;
    }),
  );
  limits.addEventListener("click", () => openLimits(shown, path(shown), change));
  cancel.addEventListener("click", () => act(cancel, () => cancelJobs(shown)));

  function patch(aggregation) {
    shown = aggregation;
    const state = aggregationState(aggregation);
    setForeign(name, aggregation.aggr_id);
    const rates = [
      aggregation.rate && aggregation.state !== "at_rate" && `${plain.format(aggregation.rate)}/s at the most`,
      aggregation.pace && aggregation.state !== "at_rate" && `${plain.format(aggregation.pace)}/s after a cooldown`,
      aggregation.delay && aggregation.state !== "at_rate" && `${plain.format(aggregation.delay)} s between starts`,
    ];
    for (const { word, more } of states) {
      setText(word, state.word);
      word.classList.toggle("warn", Boolean(state.warn));
      setForeign(more, [state.more, ...rates].filter(Boolean).join(" · "));
    }
    setText(inFlight, plain.format(aggregation.in_flight));
    // Without jobs there is a limit only if an operator has set it.
    const limited = aggregation.in_flight + aggregation.pending > 0 || "limit" in aggregation.overridden;
    setText(limit, limited ? ` of ${plain.format(aggregation.limit)}` : "");
    meter.hidden = !limited;
    limit.classList.toggle("changed", "limit" in aggregation.overridden);
    limit.title = "limit" in aggregation.overridden ? `Set by an operator; jobs ask for ${aggregation.overridden.limit}` : "";
    setText(pending, plain.format(aggregation.pending));
    inFlight.classList.toggle("zero", aggregation.in_flight === 0);
    pending.classList.toggle("zero", aggregation.pending === 0);
    fill.style.transform = `scaleX(${Math.min(1, aggregation.in_flight / aggregation.limit)})`;
    meter.style.setProperty("--slots", aggregation.limit);
    meter.classList.toggle("slots", aggregation.limit > 1 && aggregation.limit <= SLOTS);
    setText(pause, aggregation.paused ? "Resume" : "Pause");
    pause.ariaLabel = `${pause.textContent} ${aggregation.aggr_id}`;
    limits.ariaLabel = `Limits of ${aggregation.aggr_id}`;
    again.ariaLabel = `Try ${aggregation.aggr_id} now`;
    again.hidden = aggregation.state !== "cooling";
    cancel.ariaLabel = `Cancel the jobs of ${aggregation.aggr_id}`;
    cancel.hidden = aggregation.in_flight + aggregation.pending === 0;
  }

  const slots = make("td", "count", inFlight, limit, meter);
  const actions = make("td", "actions", again, " ", pause, " ", limits, " ", cancel);
  return { element: make("tr", "", head, wide, slots, pending, actions), patch };
}

const table = $("aggregations");
const showRows = list(table.tBodies[0], row);
let order = [];

// Rows keep their places while the pointer or the focus is in them, so that a click hits the row that it was aimed at.
function calmly(found) {
  if (table.tBodies[0].matches(":hover, :focus-within")) {
    const place = new Map(order.map((name, index) => [name, index]));
    found = found.toSorted((a, b) => (place.get(a.aggr_id) ?? Infinity) - (place.get(b.aggr_id) ?? Infinity) || 0);
  }
  order = found.map(({ aggr_id }) => aggr_id);
  return found;
}

let asked = 0;
let lookedAt = -Infinity;
let timer = 0;

async function look() {
  clearTimeout(timer);
  timer = 0;
  lookedAt = performance.now();
  const ticket = ++asked;
  const parameters = query({ q: view.q, sort: view.sort, count: ROWS, cursor: view.skip || "" });
  let page;
  try {
    page = await call("GET", `aggregations?${parameters}`);
  } catch (problem) {
    if (problem.status === 422) complain(problem); // that the store or the service does not answer is shown elsewhere
    return;
  }
  if (ticket !== asked) return; // the view has changed meanwhile
  total = page.total;
  if (view.skip && view.skip >= total) {
    view.skip = Math.max(0, Math.ceil(total / ROWS) - 1) * ROWS;
    look();
    return;
  }
  show(page.aggregations);
}

function show(found) {
  const began = performance.now();
  showRows(calmly(found).map((aggregation) => [aggregation.aggr_id, aggregation]));
  const from = `${plain.format(view.skip + 1)}–${plain.format(view.skip + found.length)}`;
  setText($("aggregations-count"), total > ROWS ? `${from} of ${plain.format(total)}` : total ? plural(total, "aggregation", "aggregations") : "");
  $("aggregations-pages").hidden = total <= ROWS;
  $("aggregations-before").ariaDisabled = view.skip === 0 ? "true" : null;
  $("aggregations-after").ariaDisabled = view.skip + ROWS >= total ? "true" : null;
  table.hidden = total === 0;
  $("aggregations-none").hidden = total > 0 || view.q === "";
  $("aggregations-search").hidden = total <= 1 && view.q === "";
  performance.measure("aggregations", { start: began });
}

let allPaused = false;

// Takes a snapshot of `/events`.
export function showPause({ paused, counters }) {
  allPaused = paused;
  setText($("pause-all"), paused ? "Resume everything" : "Pause everything");
  $("pause-all").hidden = !counters.processor; // the token does not have all aggregations
}

$("pause-all").addEventListener("click", () =>
  act($("pause-all"), async () => {
    const paused = !allPaused;
    const text = "No download starts, of aggregations that come later either. Downloads in flight go on, and jobs are accepted.";
    if (paused && !(await confirm("Pause all aggregations?", text, "Pause everything"))) return "";
    await call("PATCH", "aggregations", { paused });
    look();
    return paused ? "All aggregations are paused." : "Aggregations go on, except those that are paused by name.";
  }),
);

// After a change of the fleet: at once, but not more often than every `LOOK_MS`.
export function aggregationsChanged() {
  if (!timer) timer = setTimeout(look, Math.max(0, lookedAt + LOOK_MS - performance.now()));
}

function turn(step) {
  const skip = view.skip + step * ROWS;
  if (skip < 0 || skip >= total) return;
  view.skip = skip;
  look();
}

$("aggregations-before").addEventListener("click", () => turn(-1));
$("aggregations-after").addEventListener("click", () => turn(1));

let typing = 0;
$("aggregations-q").addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    view.q = event.target.value;
    view.skip = 0;
    look();
  }, TYPING_MS);
});

const sorts = [...table.querySelectorAll("thead button[data-sort]")];

function markSort() {
  for (const each of sorts) {
    const sorted = view.sort.replace("-", "") === each.dataset.sort;
    const direction = view.sort.startsWith("-") ? "descending" : "ascending";
    each.closest("th").ariaSort = sorted ? direction : null;
  }
}

for (const each of sorts) {
  each.addEventListener("click", () => {
    const { sort, first } = each.dataset;
    const other = first === "-" ? "" : "-";
    view.sort = view.sort === first + sort ? other + sort : first + sort;
    view.skip = 0;
    markSort();
    look();
  });
}
