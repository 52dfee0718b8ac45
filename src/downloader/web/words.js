// Numbers, times and states in words.

export const plain = new Intl.NumberFormat("en");
export const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toLocaleString("en", { maximumSignificantDigits: unit ? 3 : 4 })} ${units[unit]}`;
}

export const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

const DAY_MS = 86_400_000;

// A time in its short form: the time of day if it is less than half a day away.
export function moment(time) {
  return (Math.abs(Date.now() - time) < DAY_MS / 2 ? clock : day).format(time);
}

export function duration(ms) {
  const minutes = Math.max(0, Math.floor(ms / 60_000));
  const hours = Math.floor(minutes / 60);
  const days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : "under a minute";
}

export function plural(count, one, many) {
  return `${plain.format(count)} ${count === 1 ? one : many}`;
}

const later = (time) => time && new Date(time) > Date.now();

// How an aggregation is doing: a word, what follows it, and whether it needs attention.
export function aggregationState(aggregation) {
  const { state, in_flight, rate, delay, pace, cooling_until, cooling_reason, next_due_at } = aggregation;
  const due = next_due_at && moment(new Date(next_due_at));
  switch (state) {
    case "paused": return { word: "paused", more: in_flight ? `${plain.format(in_flight)} still in flight` : "", warn: true };
    case "cooling": return { word: `cooling until ${moment(new Date(cooling_until))}`, more: cooling_reason, warn: true };
    case "at_limit": return { word: "running", more: "at its limit" };
    case "at_rate":
      if (pace && pace * (delay ?? 0) < 1) {
        return { word: `at its pace, ${plain.format(pace)}/s, after a cooldown`, more: "" };
      }
      return delay > 1 / (rate ?? Infinity) || !rate
        ? { word: `at its pace, ${plain.format(delay)} s between starts`, more: "" }
        : { word: `at its rate, ${plain.format(rate)}/s`, more: "" };
    case "scheduled": return { word: `waiting until ${due}`, more: "for a retry or a start time" };
    case "disk_full": return { word: "waiting", more: "the disk of each processor is full", warn: true };
    case "no_processor": return { word: "waiting", more: "no processor runs", warn: true };
    case "ready": return { word: "ready", more: "starts with the next free slot" };
    default: return { word: state, more: "" };
  }
}

// How a group of jobs is doing; `callback` stands below its state.
export function groupState({ state, callback_state }) {
  const callback = callback_state && `callback ${CALLBACKS[callback_state] ?? callback_state}`;
  return { word: state, callback, bad: callback_state === "failed" };
}

const CALLBACKS = { pending: "waits", running: "is being delivered", succeeded: "delivered" };

export function seconds(value) {
  if (value < 0.995) return `${Number((value * 1000).toPrecision(2))} ms`;
  if (value < 100) return `${Number(value.toPrecision(2))} s`;
  return `${Number((value / 60).toPrecision(2))} min`;
}

// Why downloads fail, by their `error_code`; `callback` stands for callbacks that were given up.
export const REASONS = {
  callback: "callback given up",
  cancelled: "cancelled",
  connect: "not reachable",
  deadline: "deadline passed",
  digest: "wrong digest or size",
  dns: "name not found",
  egress: "address not allowed",
  http_status: "refused by status",
  image_size: "wrong image size",
  key_exists: "another file has the key",
  mime_type: "wrong type",
  not_modified: "not modified",
  poison: "its workers died",
  protocol: "malformed response",
  redirects: "too many redirects",
  robots: "refused by robots.txt",
  storage: "storage failed",
  timeout: "timed out",
  tls: "TLS failed",
  too_large: "too large",
  too_small: "too small",
  truncated: "cut short",
};

// Troubles of instances.
export const TROUBLES = {
  disk: (instances) => `The disk is full on ${instances}: no download starts there.`,
  store_memory: () => "The store's memory is almost full: new jobs are refused.",
  lag: (instances) => `${instances} cannot keep up.`,
};

export const full = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

// How callbacks to a destination are doing; `limit` is 1 after a failure, until one is delivered.
export function destinationState({ pending, in_flight, limit, due_at }) {
  const more = limit === 1 && pending ? "one at a time until one is delivered" : "";
  if (later(due_at)) return { word: `next attempt at ${moment(new Date(due_at))}`, more, warn: true };
  if (due_at) return { word: `oldest due for ${age(Date.now() - new Date(due_at))}`, more };
  return { word: in_flight ? "being delivered" : "nothing waits", more };
}

function age(ms) {
  return ms < 60_000 ? `${Math.max(0, Math.round(ms / 1000))} s` : duration(ms);
}

const ACTIONS = {
  adjust: "changed limits",
  cancel: "cancelled a job",
  cancel_jobs: "cancelled all jobs",
  pause_all: "changed the pause of everything",
  purge: "deleted a job and its file",
  retry: "sent a callback again",
  retry_jobs: "sent failed callbacks again",
};

// What an operator changed: the action, and the names, values and counts.
export function changeWords({ action, changed }) {
  const { paused, changes = {}, query = {}, download = query.download, ...rest } = changed;
  let what = ACTIONS[action] ?? action;
  if (action === "pause_all") what = paused ? "paused everything" : "ended the pause of everything";
  if (action === "adjust" && Object.keys(changes).length === 1) {
    if ("paused" in changes) what = changes.paused ? "paused" : "resumed";
    if ("cooling" in changes) what = "ended a cooldown";
  }
  if (download) what = action === "retry" ? "repeated a download" : "repeated failed downloads";
  const given = Object.entries(what === ACTIONS.adjust ? changes : query).filter(([name]) => name !== "download");
  const values = given.map(([name, value]) => `${name} ${value ?? "as the jobs ask"}`);
  const count = rest.count === undefined ? [] : [plural(rest.count, "job", "jobs")];
  return { what, more: [rest.job_id, rest.aggr_id, rest.group, ...values, ...count].filter(Boolean).join(" · ") };
}
