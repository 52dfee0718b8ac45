// Jobs by state, a page at a time, and what is done with those that are selected.

import { call, query } from "./api.js";
import { act, complain, confirm } from "./dialogs.js";
import { $, list, make, setForeign, setText } from "./dom.js";
import { bytes, moment, plain, plural } from "./words.js";

const ROWS = 25;
const LOOK_MS = 2_000;
// A search that matches little reads the whole list, so it is repeated after this many times as long as it took.
const PAUSES = 20;
const TYPING_MS = 200;

// The cursors of the pages up to this one; the first page has none.
let pages = [""];
let next = "";
let asked = 0;
let lookedAt = -Infinity;
let tookMs = 0;
let looking = 0;
let missed = false;
let timer = 0;
const selected = new Set();

function detail(job) {
  if (job.progress) return [`${bytes(job.progress.received)} so far`, job.progress.instance].filter(Boolean).join(" · ");
  const at = job.failed_at ?? job.finished_at;
  return [job.error, at && moment(new Date(at))].filter(Boolean).join(" · ");
}

// The state of a job as far as the list does not say it.
function stateOf(job) {
  const listed = $("jobs-state").value;
  if (listed === "callback") return "callback failed";
  return listed === "unfinished" && job.callback ? `${job.state}, callback ${job.callback}` : job.state;
}

const showRows = list($("jobs").tBodies[0], () => {
  const [box, link, url, name] = [make("input"), make("a"), make("span", "sub"), make("bdi")];
  const [narrow, state, more] = [make("bdi", "sub narrow"), make("span", "word"), make("span", "sub")];
  box.type = "checkbox";
  let id = "";
  box.addEventListener("change", () => select([id], box.checked));
  const head = make("th", "", link, url, narrow);
  head.scope = "row";
  return {
    element: make("tr", "", make("td", "", box), head, make("td", "wide", name), make("td", "", state, more)),
    patch(job) {
      id = job.id;
      box.checked = selected.has(id);
      box.ariaLabel = `Select job ${id}`;
      setText(link, id);
      link.href = `#job/${id}`;
      setForeign(url, job.url);
      setForeign(name, job.aggr_id);
      setForeign(narrow, job.aggr_id);
      setText(state, stateOf(job));
      setForeign(more, detail(job));
    },
  };
});

let jobs = [];

// Whether the list is that of one aggregation.
const whole = () => $("jobs-state").value === "pending" && $("jobs-group").value === "";

// What has to be typed before there is a list.
function unnamed() {
  if (whole() && $("jobs-q").value === "") return "Pending jobs are listed by aggregation: type its whole name.";
  const nameless = $("jobs-state").value === "unfinished" && $("jobs-group").value === "";
  return nameless ? "Unfinished jobs are listed by group: type its whole name." : "";
}

// What an empty list says.
function nothing(state) {
  const of = $("jobs-group").value || $("jobs-q").value ? " of these" : "";
  if (state === "running") return `No job${of} is being downloaded.`;
  if (state === "callback") return `No callback${of} has failed.`;
  if (state === "unfinished") return "No job of this group is unfinished.";
  return `No job${of} ${state === "pending" ? "is pending" : state === "cancelled" ? "was cancelled" : `has ${state}`}.`;
}

function show() {
  const state = $("jobs-state").value;
  showRows(jobs.map((job) => [job.id, job]));
  $("jobs").hidden = jobs.length === 0;
  setText($("jobs-none"), unnamed() || nothing(state));
  $("jobs-none").hidden = jobs.length > 0;
  $("jobs-q").placeholder = whole() ? "Whole name of an aggregation" : "Part of an aggregation";
  $("jobs-before").hidden = pages.length === 1;
  $("jobs-after").hidden = next === "";
  const count = selected.size;
  $("jobs-all").checked = count > 0 && count === jobs.length;
  $("jobs-cancel").hidden = count === 0 || !["pending", "running", "unfinished"].includes(state);
  $("jobs-retry").hidden = count === 0 || !["failed", "callback"].includes(state);
  setText($("jobs-retry"), state === "callback" ? "Send the selected callbacks again" : "Download the selected again");
}

function select(ids, on) {
  for (const id of ids) on ? selected.add(id) : selected.delete(id);
  show();
}

async function look() {
  clearTimeout(timer);
  timer = 0;
  missed = false;
  const began = performance.now();
  looking += 1;
  try {
    await read(++asked);
  } finally {
    looking -= 1;
    lookedAt = performance.now();
    tookMs = lookedAt - began;
  }
  if (missed) jobsChanged();
}

async function read(ticket) {
  const [state, group, q] = ["jobs-state", "jobs-group", "jobs-q"].map((id) => $(id).value);
  const which = state === "callback" ? { callback: "failed" } : { state: state === "unfinished" ? "" : state };
  let page = { jobs: [], cursor: "" };
  if (!unnamed()) {
    try {
      const parameters = query({ ...which, group, [whole() ? "aggr_id" : "q"]: q, count: ROWS, cursor: pages.at(-1) });
      page = await call("GET", `jobs?${parameters}`);
    } catch (problem) {
      if (problem.status === 422) complain(problem);
      return;
    }
  }
  if (ticket !== asked) return;
  jobs = page.jobs;
  next = page.cursor;
  for (const id of selected) if (!jobs.some((job) => job.id === id)) selected.delete(id);
  show();
}

// After a change of the fleet, while the first page is shown: later pages stay as they are read.
export function jobsChanged() {
  missed = looking > 0;
  if (pages.length > 1 || timer || missed) return;
  timer = setTimeout(look, Math.max(0, lookedAt + Math.max(LOOK_MS, PAUSES * tookMs) - performance.now()));
}

function turn(to) {
  pages = to;
  selected.clear();
  look();
}

$("jobs-before").addEventListener("click", () => turn(pages.slice(0, -1)));
$("jobs-after").addEventListener("click", () => turn([...pages, next]));
$("jobs-state").addEventListener("change", () => turn([""]));
$("jobs-form").addEventListener("submit", (event) => event.preventDefault());
$("jobs-all").addEventListener("change", () => select(jobs.map(({ id }) => id), $("jobs-all").checked));
let typing = 0;
for (const id of ["jobs-q", "jobs-group"]) {
  $(id).addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => turn([""]), TYPING_MS);
  });
}

// Lists the jobs of a group that somebody most likely looks for.
export function showJobsOf({ name, unfinished, failed }) {
  $("jobs-group").value = name;
  $("jobs-q").value = "";
  $("jobs-state").value = unfinished ? "unfinished" : failed ? "failed" : "succeeded";
  turn([""]);
}

// One request for each job; a job whose state has changed meanwhile is left as it is.
async function each(title, text, verb, method, path, done) {
  const ids = [...selected];
  if (!(await confirm(title(plural(ids.length, "job", "jobs")), text, verb, { danger: method === "DELETE" }))) return "";
  let count = 0;
  for (const id of ids) {
    try {
      await call(method, path(id));
      count += 1;
    } catch (problem) {
      if (![404, 409].includes(problem.status)) throw problem;
    }
  }
  selected.clear();
  look();
  const left = ids.length - count;
  return `${plural(count, "job is", "jobs are")} ${done}.${left ? ` ${plain.format(left)} had ended or changed meanwhile.` : ""}`;
}

$("jobs-cancel").addEventListener("click", () =>
  act($("jobs-cancel"), () =>
    each((count) => `Cancel ${count}?`, "Their callbacks report that they were cancelled.", "Cancel the selected", "DELETE", (id) => `jobs/${id}`, "cancelled")),
);
$("jobs-retry").addEventListener("click", () => {
  const download = $("jobs-state").value === "failed";
  const text = download ? "Each begins anew, and its callback is sent when it ends." : "Their receivers know them by their id.";
  act($("jobs-retry"), () =>
    each((count) => `Try ${count} again?`, text, "Try again", "POST", (id) => `retry/${id}${download ? "?download=1" : ""}`, "tried again"));
});
