// The dialog about one job: what has happened to it, and what can be done with it.

import { call } from "./api.js";
import { act, confirm } from "./dialogs.js";
import { $, list, make, setForeign, setText } from "./dom.js";
import { aggregationState, bytes, duration, full, plural, seconds } from "./words.js";

const LOOK_MS = 1_000;

const dialog = $("job");
let id = "";
let job = null;
let why = "";

const STATES = {
  pending: "waits",
  running: "is being downloaded",
  succeeded: "is stored",
  failed: "has failed",
  cancelled: "is cancelled",
};

const later = (time) => new Date(time) > Date.now();

// What is known of a download or callback: its failed attempts, the last start, the next one, and its end.
function* attempts(task, what, end) {
  const errors = task.errors.filter(({ at }) => at !== task.finished_at || task.state !== "failed");
  for (const { at, error } of errors) yield { at, title: `${what} failed`, text: error, kind: "warn" };
  const over = task.finished_at && !["pending", "running"].includes(task.state);
  if (task.started_at) {
    const which = task.deliveries > 1 ? `, the last of ${plural(task.deliveries, "start", "starts")}` : "";
    yield { at: task.started_at, title: `${what} started${which}`, text: task.instance && `by ${task.instance}` };
  }
  if (over) {
    const taken = task.started_at && `took ${seconds((new Date(task.finished_at) - new Date(task.started_at)) / 1000)}`;
    yield { at: task.finished_at, ...end, text: [end.text, taken].filter(Boolean).join(" · ") };
  }
  else if (task.state === "pending" && task.due_at) {
    yield { at: task.due_at, title: later(task.due_at) ? `${what} begins` : `${what} is due`, text: "", next: true };
  }
}

function ending(found) {
  if (found.state === "succeeded") {
    if (found.response?.not_modified) return { title: "Not modified", text: "The earlier file is still the newest.", kind: "good" };
    const { size = 0, mime_type = "", image_size = "", filename = "" } = found.file ?? {};
    return { title: "Stored", text: [bytes(size), mime_type, image_size, filename].filter(Boolean).join(" · "), kind: "good" };
  }
  if (found.state === "failed") return { title: "Failed for good", text: found.error, kind: "bad" };
  return { title: "Cancelled", text: "", kind: "warn" };
}

function story(found) {
  const events = [{ at: found.created_at, title: "Submitted", text: found.url }, ...attempts(found, "Download", ending(found))];
  const { callback } = found;
  if (callback) {
    const given = callback.errors.at(-1)?.error ?? "";
    const end = callback.state === "succeeded" ? { title: "Callback delivered", text: callback.destination, kind: "good" } : { title: "Callback given up", text: given, kind: "bad" };
    events.push(...attempts(callback, "Callback", end));
  }
  if (found.kept_until) events.push({ at: found.kept_until, title: "File and record are deleted", text: "", next: true });
  // Equal times stay in the order of the story.
  return events.filter(({ at }) => at).sort((a, b) => new Date(a.at) - new Date(b.at));
}

const showStory = list($("job-story"), () => {
  const [time, title, text] = [make("time"), make("b"), make("span", "sub")];
  return {
    element: make("li", "", time, make("div", "", title, text)),
    patch(event) {
      time.dateTime = event.at;
      setText(time, full.format(new Date(event.at)));
      setText(title, event.title);
      setForeign(text, event.text);
      time.parentElement.className = event.next ? "next" : (event.kind ?? "");
    },
  };
});

const PHASES = {
  queue: "waited in the queue",
  robots: "robots.txt",
  dns: "looked the name up",
  connect: "connected",
  tls: "TLS handshake",
  first_byte: "waited for the response",
  body: "received the body",
  store: "checked and stored",
};

const showPhases = list($("job-phases"), () => {
  const [name, time, bar] = [make("span"), make("b"), make("span", "length")];
  return {
    element: make("li", "", name, time, bar),
    patch({ phase, taken, longest }) {
      setText(name, PHASES[phase] ?? phase);
      setText(time, seconds(taken));
      bar.style.width = `${(100 * taken) / (longest || 1)}%`;
    },
  };
});

// Where the last attempt went, and how long each phase of it took.
function showCourse({ last_attempt: course, url }) {
  $("job-course").hidden = !course;
  if (!course) return;
  const { phases, address, redirects } = course;
  const hops = redirects.map(({ status, url: target }) => `${status} to ${target}`);
  const kept = "first_byte" in phases && !("connect" in phases);
  const way = [hops.length ? [url, ...hops].join(", ") : "", address && `at ${address}`, kept ? "over a kept connection" : ""];
  setForeign($("job-way"), way.filter(Boolean).join(" · "));
  const longest = Math.max(...Object.values(phases));
  showPhases(Object.entries(phases).map(([phase, taken]) => [phase, { phase, taken, longest }]));
}

function show() {
  $("job-error").hidden = true;
  $("job-facts").hidden = false;
  const { state, callback } = job;
  const wait = state === "pending" && job.due_at && later(job.due_at) ? `, until ${full.format(new Date(job.due_at))}` : "";
  setText($("job-state"), `It ${STATES[state] ?? state}${wait}; ${plural(job.attempts, "attempt", "attempts")}${age(job)}.`);
  setForeign($("job-aggregation"), job.aggr_id);
  setForeign($("job-why"), why);
  showStory(story(job).map((event, index) => [`${index} ${event.title}`, event]));
  showCourse(job);
  const url = job.download_url;
  $("job-file").hidden = !/^https?:/.test(url);
  $("job-file").href = /^https?:/.test(url) ? url : "#";
  $("job-cancel").hidden = !["pending", "running"].includes(state);
  $("job-download").hidden = state !== "failed" || ["pending", "running"].includes(callback?.state);
  $("job-callback").hidden = callback?.state !== "failed";
}

function age(found) {
  return found.created_at ? `, submitted ${duration(Date.now() - new Date(found.created_at))} ago` : "";
}

// What holds its aggregation, if the job waits; its own time is in the story.
async function whyItWaits(found) {
  if (found.state !== "pending") return "";
  try {
    const aggregation = await call("GET", `aggregations/${encodeURIComponent(found.aggr_id)}`);
    const { word, more } = aggregationState(aggregation);
    return aggregation.state === "scheduled" ? "" : `· ${[word, more].filter(Boolean).join(", ")}`;
  } catch {
    return ""; // the job has ended meanwhile
  }
}

async function look() {
  const wanted = id;
  try {
    const found = await call("GET", `jobs/${encodeURIComponent(wanted)}`);
    const reason = await whyItWaits(found);
    if (wanted !== id) return;
    [job, why] = [found, reason];
    show();
  } catch (problem) {
    if (wanted !== id) return;
    $("job-error").hidden = false;
    setForeign($("job-error"), problem.message);
    if (!job) for (const each of ["job-facts", "job-cancel", "job-download", "job-callback", "job-file"]) $(each).hidden = true;
  }
}

let lookedAt = -Infinity;

// After a change of the fleet, which may concern the job that is shown.
export function jobMayHaveChanged() {
  if (!dialog.open || performance.now() - lookedAt < LOOK_MS) return;
  lookedAt = performance.now();
  look();
}

function open() {
  const [, wanted] = location.hash.match(/^#job\/(.+)$/) ?? [];
  if (!wanted) return dialog.close();
  try {
    id = decodeURIComponent(wanted);
  } catch {
    id = wanted; // a link that somebody typed
  }
  job = null;
  setForeign($("job-title"), `Job ${id}`);
  if (!dialog.open) dialog.showModal();
  look();
}

dialog.addEventListener("close", () => {
  if (dialog.open) return; // the event comes late: another job is shown already
  id = "";
  if (location.hash.startsWith("#job/")) history.replaceState(null, "", location.pathname + location.search);
});

$("job-search").addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = $("job-id").value.trim();
  if (wanted) location.hash = `job/${encodeURIComponent(wanted)}`;
  $("job-id").value = "";
});

function action(name, method, path, said) {
  $(name).addEventListener("click", () =>
    act($(name), async () => {
      await call(method, path(encodeURIComponent(id)));
      await look();
      $("job-title").focus();
      return `Job ${id} ${said}.`;
    }),
  );
}

action("job-download", "POST", (job_id) => `retry/${job_id}?download=1`, "is downloaded again");
action("job-callback", "POST", (job_id) => `retry/${job_id}`, "has its callback sent again");
$("job-cancel").addEventListener("click", async () => {
  const wanted = id;
  const sure = await confirm("Cancel this job?", `${wanted} ends, and its callback reports that it was cancelled.`, "Cancel the job", { danger: true });
  if (!sure) return;
  act($("job-cancel"), async () => {
    await call("DELETE", `jobs/${encodeURIComponent(wanted)}`);
    await look();
    $("job-title").focus();
    return `Job ${wanted} is cancelled.`;
  });
});

addEventListener("hashchange", open);

export const openLinkedJob = () => location.hash && open();
