// Groups of jobs with their progress, a page at a time, and the way to the jobs of one.

import { call, query } from "./api.js";
import { complain } from "./dialogs.js";
import { $, list, make, setForeign, setText } from "./dom.js";
import { showJobsOf } from "./jobs.js";
import { groupState, plain, plural } from "./words.js";

const LOOK_MS = 5_000;
// Those that somebody waits for come first.
const ORDER = ["sealed", "open", "complete"];

// The cursors of the pages up to this one; the first page has none.
let pages = [""];
let next = "";
let asked = 0;
let lookedAt = -Infinity;
let timer = 0;

const showRows = list($("groups").tBodies[0], () => {
  let shown = null;
  const [link, name, ended, of, failed, cancelled] = [
    make("a"), make("bdi"), make("span"), make("span", "of"), make("span"), make("span", "sub"),
  ];
  const fill = make("span");
  const meter = make("div", "meter", fill);
  meter.ariaHidden = "true"; // the numbers beside it say the same
  link.append(name);
  link.href = "#jobs-panel";
  link.addEventListener("click", () => showJobsOf(shown));
  // On a phone the state stands below the name.
  const states = ["wide", "narrow"].map((width) => ({ word: make("span", "word"), more: make("a", "sub"), width }));
  const [wide, narrow] = states.map(({ word, more, width }) => make(width === "wide" ? "td" : "div", width, word, more));
  const head = make("th", "", link, narrow);
  head.scope = "row";
  return {
    element: make("tr", "", head, wide, make("td", "count", ended, of, meter), make("td", "count", failed, cancelled)),
    patch(group) {
      shown = group;
      const state = groupState(group);
      setForeign(name, group.name);
      for (const { word, more } of states) {
        setText(word, state.word);
        setText(more, state.callback);
        more.hidden = !state.callback;
        more.href = `#job/${group.callback_id}`;
        more.classList.toggle("bad", Boolean(state.bad));
      }
      const finished = group.jobs - group.unfinished;
      setText(ended, plain.format(finished));
      setText(of, ` of ${plain.format(group.jobs)}`);
      fill.style.transform = `scaleX(${group.jobs ? finished / group.jobs : 0})`;
      setText(failed, plain.format(group.failed));
      failed.classList.toggle("zero", group.failed === 0);
      setText(cancelled, group.cancelled ? `${plain.format(group.cancelled)} cancelled` : "");
    },
  };
});

async function look() {
  clearTimeout(timer);
  timer = 0;
  lookedAt = performance.now();
  const ticket = ++asked;
  let page;
  try {
    page = await call("GET", `groups?${query({ cursor: pages.at(-1) })}`);
  } catch (problem) {
    if (problem.status === 422) complain(problem);
    return;
  }
  if (ticket !== asked) return;
  const rank = ({ state }) => ORDER.indexOf(state);
  const groups = page.groups.toSorted((one, other) => rank(one) - rank(other) || one.name.localeCompare(other.name));
  next = page.cursor;
  showRows(groups.map((group) => [group.name, group]));
  const none = groups.length === 0 && pages.length === 1 && next === "";
  for (const id of ["groups-panel", "jobs-group-label", "jobs-unfinished"]) $(id).hidden = none;
  setText($("groups-count"), plural(groups.length, "group", "groups") + (next || pages.length > 1 ? " on this page" : ""));
  $("groups-before").hidden = pages.length === 1;
  $("groups-after").hidden = next === "";
}

// After a change of the fleet, while the first page is shown: later pages stay as they are read.
export function groupsChanged() {
  if (pages.length === 1 && !timer) timer = setTimeout(look, Math.max(0, lookedAt + LOOK_MS - performance.now()));
}

function turn(to) {
  pages = to;
  look();
}

$("groups-before").addEventListener("click", () => turn(pages.slice(0, -1)));
$("groups-after").addEventListener("click", () => turn([...pages, next]));
