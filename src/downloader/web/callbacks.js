// Callbacks that wait, by destination, and what failed lately.

import { call, query } from "./api.js";
import { act, complain, confirm } from "./dialogs.js";
import { $, list, make, setForeign, setText } from "./dom.js";
import { destinationState, moment, plain, plural } from "./words.js";

const LOOK_MS = 2_000;
const SHOWN = 25;
// Destinations that are named with the number of their failed callbacks.
const DESTINATIONS = 5;

const showDestinations = list($("destinations").tBodies[0], () => {
  const [name, word, more] = [make("bdi"), make("span", "word"), make("span", "sub")];
  const [inFlight, of, pending] = [make("span"), make("span", "of"), make("td", "count")];
  const head = make("th", "", name);
  head.scope = "row";
  return {
    element: make("tr", "", head, make("td", "", word, more), make("td", "count", inFlight, of), pending),
    patch(destination) {
      const state = destinationState(destination);
      setForeign(name, destination.destination);
      setText(word, state.word);
      word.classList.toggle("warn", Boolean(state.warn));
      setText(more, state.more);
      setText(inFlight, plain.format(destination.in_flight));
      setText(of, ` of ${plain.format(destination.limit)}`);
      setText(pending, plain.format(destination.pending));
    },
  };
});

let failed = 0;

function showCallbacks(waiting) {
  const { destinations, more_destinations } = waiting.callbacks;
  showDestinations(destinations.map((each) => [each.destination, each]));
  $("destinations").hidden = destinations.length === 0;
  $("destinations-none").hidden = destinations.length > 0;
  setText($("destinations-more"), `${plain.format(more_destinations)} more destinations.`);
  $("destinations-more").hidden = more_destinations === 0;
}

function showFailedTo(destinations = []) {
  const told = destinations.slice(0, DESTINATIONS).map(({ destination, failed }) => `${plain.format(failed)} to ${destination}`);
  setForeign($("failures-to"), told.join(" · "));
  $("failures-to").hidden = told.length === 0;
}

// Failures

const showFailures = list($("failures").tBodies[0], () => {
  const link = make("a");
  const [time, name, what, reason] = [make("time"), make("bdi"), make("span", "tag"), make("span")];
  const head = make("th", "", link);
  head.scope = "row";
  return {
    element: make("tr", "", head, make("td", "", name), make("td", "wide", what), make("td", "", reason), make("td", "count", time)),
    patch(job) {
      setText(link, job.id);
      link.href = `#job/${job.id}`;
      setForeign(name, job.aggr_id);
      setText(what, job.failed_at ? "callback" : "download");
      setForeign(reason, job.error);
      time.dateTime = job.failed_at ?? job.finished_at;
      setText(time, moment(new Date(time.dateTime)));
    },
  };
});

const view = { aggr_id: "" };
let asked = 0;
let timer = 0;
let lookedAt = -Infinity;

async function look() {
  clearTimeout(timer);
  timer = 0;
  lookedAt = performance.now();
  const ticket = ++asked;
  try {
    const { jobs } = await call("GET", `failures?${query(view)}`);
    if (ticket !== asked) return;
    showFailures(jobs.slice(0, SHOWN).map((job) => [job.id, job]));
    $("failures").hidden = jobs.length === 0;
    $("failures-quiet").hidden = jobs.length > 0;
    setText($("failures-quiet"), view.aggr_id ? "Nothing of this aggregation has failed lately." : "Nothing has failed lately.");
    $("failures-search").hidden = jobs.length === 0 && view.aggr_id === "";
  } catch (problem) {
    if (problem.status === 422) complain(problem);
  }
}

let known = "";

// Takes a snapshot of `/events`.
export function callbacksChanged(snapshot) {
  const { waiting, counters } = snapshot;
  $("callbacks-panel").hidden = waiting === null;
  if (waiting) showCallbacks(waiting);
  showFailedTo(waiting?.callbacks.failed_to);
  failed = waiting?.callbacks.failed ?? 0;
  $("failures-retry").hidden = waiting !== null && failed === 0;
  setText($("failures-count"), waiting && failed ? `${plural(failed, "callback", "callbacks")} given up and kept` : "");
  const counted = JSON.stringify([counters.processor.downloads_failed, counters.notifier.callbacks_failed, failed]);
  if (counted !== known && !timer) {
    known = counted;
    timer = setTimeout(look, Math.max(0, lookedAt + LOOK_MS - performance.now()));
  }
}

$("failures-search").addEventListener("submit", (event) => {
  event.preventDefault();
  view.aggr_id = $("failures-aggregation").value;
  look();
});

$("failures-retry").addEventListener("click", async () => {
  const { aggr_id } = view;
  const which = aggr_id ? `of ${aggr_id} ` : "";
  const sure = await confirm("Send failed callbacks again?", `All callbacks ${which}that were given up and are kept are sent again. Their receivers know them by their id.`, "Send them again");
  if (!sure) return;
  act($("failures-retry"), async () => {
    let sent = 0;
    let cursor = "";
    do {
      const answer = await call("POST", `retry?${query({ aggr_id, cursor })}`);
      sent += answer.retried;
      cursor = answer.cursor;
    } while (cursor);
    look();
    return `${plural(sent, "callback is", "callbacks are")} sent again.`;
  });
});
