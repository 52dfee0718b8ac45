// What has failed for good, by aggregation and reason, and the buttons that try it again.

import { call, query } from "./api.js";
import { act, complain, confirm } from "./dialogs.js";
import { $, list, make, setForeign, setText } from "./dom.js";
import { moment, plain, plural } from "./words.js";

const LOOK_MS = 2_000;
const TYPING_MS = 200;
// Aggregations that a question names.
const NAMED = 5;

const showGroups = list($("failures").tBodies[0], () => {
  const [name, what, reason, link] = [make("bdi"), make("span", "tag"), make("span"), make("a")];
  const [jobs, time] = [make("td", "count"), make("time")];
  const head = make("th", "", name);
  head.scope = "row";
  return {
    element: make("tr", "", head, make("td", "wide", what), make("td", "", reason, make("span", "sub", link)), jobs, make("td", "count", time)),
    patch(group) {
      setForeign(name, group.aggr_id);
      setText(what, group.kind);
      setForeign(reason, group.error);
      setText(link, group.newest);
      link.href = `#job/${group.newest}`;
      setText(jobs, plain.format(group.jobs));
      time.dateTime = group.newest_at;
      setText(time, moment(new Date(group.newest_at)));
    },
  };
});

let asked = 0;
let timer = 0;
let lookedAt = -Infinity;

async function look() {
  clearTimeout(timer);
  timer = 0;
  lookedAt = performance.now();
  const ticket = ++asked;
  const q = $("failures-q").value;
  try {
    const failures = await call("GET", `failures?${query({ q })}`);
    if (ticket === asked) show(failures, q);
  } catch (problem) {
    if (problem.status === 422) complain(problem);
  }
}

function show({ groups, more_groups, downloads, callbacks, complete }, q) {
  showGroups(groups.map((group) => [JSON.stringify([group.kind, group.aggr_id, group.error_code, group.error]), group]));
  const none = groups.length === 0;
  $("failures").hidden = none;
  $("failures-quiet").hidden = !none;
  setText($("failures-quiet"), q ? "Nothing has failed of an aggregation with this in its name." : "Nothing has failed.");
  $("failures-search").hidden = none && q === "";
  const counts = [
    [downloads.jobs, "download", "downloads"],
    [callbacks.jobs, "callback", "callbacks"],
  ];
  const told = counts.filter(([count]) => count).map((count) => plural(...count)).join(", ");
  setText($("failures-count"), complete ? told : `the newest ${told}`);
  $("failures-more").hidden = more_groups === 0;
  setText($("failures-more"), `${plain.format(more_groups)} more aggregations and reasons.`);
  $("failures-send").hidden = callbacks.jobs === 0;
  $("failures-download").hidden = downloads.jobs === 0;
}

let known = "";

// Takes a snapshot of `/events`.
export function failuresChanged({ waiting, counters }) {
  const counted = JSON.stringify([counters, waiting?.callbacks?.failed, waiting?.downloads]);
  if (counted !== known && !timer) {
    known = counted;
    timer = setTimeout(look, Math.max(0, lookedAt + LOOK_MS - performance.now()));
  }
}

let typing = 0;
$("failures-q").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(look, TYPING_MS);
});

// Whose jobs they are: the aggregations with the most of them.
function whose(groups, more) {
  const jobs = new Map();
  for (const group of groups) jobs.set(group.aggr_id, (jobs.get(group.aggr_id) ?? 0) + group.jobs);
  const sorted = [...jobs].toSorted(([, one], [, other]) => other - one);
  const names = sorted.slice(0, NAMED).map(([name, count]) => `${name} (${plain.format(count)})`);
  const others = sorted.length - NAMED;
  if (others > 0 || more) names.push(more ? "others" : plural(others, "other aggregation", "other aggregations"));
  return new Intl.ListFormat("en").format(names);
}

// Counts what failed, asks, and retries no more than was counted.
async function retry(button, kind, { title, consequence, done }) {
  const q = $("failures-q").value; // as it is typed, whatever the table shows
  const failures = await call("GET", `failures?${query({ q, all: "1" })}`);
  const { jobs, newest_at } = failures[`${kind}s`];
  if (!jobs) {
    look();
    throw new Error(`No ${kind} of these has failed any more.`);
  }
  const owners = whose(failures.groups.filter((group) => group.kind === kind), failures.more_groups);
  const count = plural(jobs, kind, `${kind}s`);
  const least = failures.complete ? "" : " These are the newest ones; there are more.";
  if (!(await confirm(title(count), `Of ${owners}.${least} ${consequence}`, title(count).replace("?", "")))) return "";
  let retried = 0;
  let cursor = "";
  do {
    const parameters = query({ q, until: newest_at, download: kind === "download" ? "1" : "", cursor });
    const page = await call("POST", `retry?${parameters}`);
    retried += page.retried;
    cursor = page.cursor;
  } while (cursor);
  look();
  return `${plural(retried, `${kind} is`, `${kind}s are`)} ${done}.`;
}

const AGAIN = {
  callback: {
    title: (count) => `Send ${count} again?`,
    consequence: "Their receivers know them by their id.",
    done: "sent again",
  },
  download: {
    title: (count) => `Repeat ${count}?`,
    consequence: "Each begins anew, and its callback is sent when it ends.",
    done: "repeated",
  },
};

for (const [kind, id] of [["callback", "failures-send"], ["download", "failures-download"]]) {
  $(id).addEventListener("click", () => act($(id), () => retry($(id), kind, AGAIN[kind])));
}
