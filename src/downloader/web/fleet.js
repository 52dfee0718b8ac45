// What a snapshot of `/events` has about the fleet as a whole: what needs attention, counters and instances.

import { downloadsPerSecond } from "./charts.js";
import { $, list, make, setForeign, setText, setTitle } from "./dom.js";
import { TROUBLES, bytes, day, duration, moment, plain, plural, short } from "./words.js";

// A download that has been due for less is not worth a word.
const OLD_MS = 60_000;
// Instances that a note names.
const NAMED = 3;

const COUNTERS = {
  downloads: [
    ["downloads_succeeded", "succeeded", "Downloads whose file was stored"],
    ["downloads_failed", "failed", "Downloads that failed for good", "bad"],
    ["downloads_retried", "retried", "Attempts that failed and are followed by another"],
    ["downloads_throttled", "throttled", "Attempts that ended with a cooldown of their aggregation and do not count"],
    ["downloads_released", "handed back", "Downloads handed back without counting the attempt"],
    ["leases_lost", "leases lost", "Downloads that another instance has taken over"],
    ["leases_recovered", "recovered", "Downloads taken over from instances that died"],
    ["poison", "poison", "Downloads that failed because their workers died too often", "bad"],
  ],
  callbacks: [
    ["callbacks_delivered", "delivered", "Callbacks that their peer has acknowledged"],
    ["callbacks_failed", "failed", "Callbacks given up, kept to be sent again", "bad"],
    ["callbacks_retried", "retried", "Deliveries that failed and are followed by another"],
    ["callbacks_released", "handed back", "Callbacks handed back by a stop"],
    ["leases_lost", "leases lost", "Callbacks that another instance has taken over"],
    ["leases_recovered", "recovered", "Callbacks taken over from instances that died"],
    ["poison", "poison", "Callbacks that failed because their workers died too often", "bad"],
  ],
};

// Counters that are shown elsewhere.
const HEADLINES = new Set(["in_flight", "bytes", "backends_unhealthy"]);

// What needs attention

const showNotes = list($("notes"), () => {
  const title = make("strong");
  const text = make("span");
  const element = make("p", "note", title, " ", text);
  return {
    element,
    patch(note) {
      setForeign(title, note.title);
      setForeign(text, note.text);
      element.classList.toggle("bad", note.bad);
    },
  };
});

// When the store answered last, as far as this page has heard.
let answeredAt = null;

function notes(snapshot) {
  const found = [];
  if (snapshot.store) answeredAt = new Date();
  else {
    const since = answeredAt ? ` since ${moment(answeredAt)}` : "";
    found.push(["store", { bad: true, title: `The store does not answer${since}.`, text: "These are the numbers it gave last." }]);
  }
  for (const [name, title] of Object.entries(TROUBLES)) {
    const troubled = new Map(snapshot.instances.filter((row) => row.troubles[name]).map((row) => [row.instance, row]));
    if (troubled.size === 0) continue;
    const texts = [...troubled.values()].slice(0, NAMED).map((row) => `${row.host}: ${row.troubles[name]}`);
    if (troubled.size > NAMED) texts.push("and others");
    const instances = plural(troubled.size, "instance", "instances");
    found.push([name, { bad: name !== "lag", title: title(instances), text: `${texts.join("; ")}.` }]);
  }
  if (snapshot.stalled) {
    const oldest = duration(Date.now() - new Date(snapshot.waiting.downloads.oldest_due_at));
    found.push(["stalled", { bad: true, title: "Downloads do not progress.", text: `The oldest has been due for ${oldest}, and no attempt has ended or received a byte for ten minutes.` }]);
  }
  if (snapshot.paused) {
    found.push(["paused", { bad: false, title: "All aggregations are paused.", text: "No download starts." }]);
  }
  const backends = new Map();
  for (const instance of snapshot.instances) {
    for (const { backend, error } of instance.unhealthy) {
      const known = backends.get(backend) ?? { count: 0, error: "" };
      backends.set(backend, { count: known.count + 1, error: known.error || error });
    }
  }
  for (const [backend, { count, error }] of backends) {
    found.push([
      `backend ${backend}`,
      { bad: false, title: `Backend ${backend} is unhealthy on ${plural(count, "instance", "instances")}.`, text: error },
    ]);
  }
  return found;
}

// Counters: the first few always, the others when they have counted something

const ALWAYS = 3;

function tiles(id, names) {
  const known = new Map(names.map(([name, ...rest]) => [name, rest]));
  const always = new Set(names.slice(0, ALWAYS).map(([name]) => name));
  const show = list($(id), ([name]) => {
    const [label, meaning, kind] = known.get(name) ?? [name.replaceAll("_", " "), name];
    const number = make("dd");
    const element = make("div", "tile", make("dt", "", label), number);
    return {
      element,
      patch([, value]) {
        setText(number, (value < 1_000_000 ? plain : short).format(value));
        setTitle(element, `${meaning}: ${plain.format(value)}`);
        element.hidden = value === 0 && !always.has(name);
        element.classList.toggle("zero", value === 0);
        element.classList.toggle("bad", kind === "bad" && value > 0);
      },
    };
  });
  return (counters) => {
    const values = new Map(names.map(([name]) => [name, 0]));
    for (const [name, value] of Object.entries(counters)) if (!HEADLINES.has(name)) values.set(name, value);
    show([...values].map((pair) => [pair[0], pair]));
  };
}

const showDownloads = tiles("downloads-counters", COUNTERS.downloads);
const showCallbacks = tiles("callbacks-counters", COUNTERS.callbacks);

// Instances

const showInstances = list($("instances").tBodies[0], () => {
  const role = make("span", "tag");
  const host = make("span");
  const id = make("span");
  const facts = make("span", "narrow");
  const trouble = make("span", "sub bad");
  const [start, age] = [make("time"), make("span", "sub")];
  const version = make("td", "wide");
  const inFlight = make("td", "count");
  const head = make("th", "", host, make("span", "sub", facts, id), trouble);
  head.scope = "row";
  return {
    element: make("tr", "", make("td", "wide", role), head, version, make("td", "", start, age), inFlight),
    patch(instance) {
      setText(role, instance.role);
      setForeign(host, instance.host);
      const prefix = `${instance.host}-`; // most names begin with their host's
      setForeign(id, instance.instance.startsWith(prefix) ? instance.instance.slice(prefix.length) : instance.instance);
      setForeign(facts, `${instance.role} ${instance.version} · `);
      setForeign(version, instance.version);
      setTitle(head, instance.instance);
      setText(inFlight, instance.in_flight === null ? "–" : plain.format(instance.in_flight));
      inFlight.classList.toggle("zero", !instance.in_flight);
      const started = new Date(instance.started_ms);
      setText(start, instance.started_ms ? day.format(started) : "");
      start.dateTime = instance.started_ms ? started.toISOString() : "";
      setText(age, instance.started_ms ? duration(Date.now() - started) : "");
      setForeign(trouble, instance.unhealthy.map(({ backend }) => `${backend} unhealthy`).join(", "));
      trouble.hidden = instance.unhealthy.length === 0;
    },
  };
});

const left = (ms) => (ms < 60_000 ? "under a minute" : `at least ${duration(ms)}`);

// How much waits, since when, and when what may start would end at the rate of the last samples of the history.
// It takes longer if an aggregation that starts few jobs has most of them.
function showBacklog(downloads) {
  setText($("pending"), plain.format(downloads?.pending ?? 0));
  const oldest = downloads?.oldest_due_at && Date.now() - new Date(downloads.oldest_due_at);
  const rate = downloadsPerSecond();
  const more = [];
  const held = downloads?.held ?? 0;
  if (held) more.push(`${plain.format(held)} of them paused or cooling`);
  if (oldest >= OLD_MS) more.push(`the oldest has been due for ${duration(oldest)}`);
  const free = (downloads?.pending ?? 0) - held;
  if (free > 0 && rate) {
    more.push(`${left((free / rate) * 1000)} left ${held ? "for the others " : ""}at ${Number(rate.toPrecision(2))}/s`);
  }
  setText($("backlog-more"), more.map((text) => ` · ${text}`).join(""));
}

export function showFleet(snapshot) {
  const { instances, counters } = snapshot;
  showNotes(notes(snapshot));
  setText($("downloads-now"), plain.format(snapshot.in_flight.downloads));
  showBacklog(snapshot.waiting?.downloads);
  // A token that does not have all aggregations sees nothing of the whole fleet.
  const all = Boolean(counters.processor);
  for (const id of ["charts-panel", "callbacks-counted", "instances-panel", "counters-foot", "stored-line"]) $(id).hidden = !all;
  $("downloads-counters").hidden = !all;
  if (!all) $("day-panel").hidden = true; // else shown with its chart
  const failed = snapshot.waiting?.callbacks?.failed;
  document.title = failed ? `(${short.format(failed)} failed) downloader` : "downloader";
  if (!all) return;
  const versions = new Set(instances.map(({ version }) => version).filter(Boolean));
  setForeign($("version"), versions.size ? ` · version ${[...versions].join(", ")}` : "");
  setText($("callbacks-now"), plain.format(snapshot.in_flight.callbacks));
  setText($("stored"), bytes(counters.processor.bytes ?? 0));
  showDownloads(counters.processor);
  showCallbacks(counters.notifier);

  showInstances(instances.map((instance) => [`${instance.role} ${instance.instance}`, instance]));
  const running = new Set(instances.map((instance) => instance.instance)).size;
  setText($("instances-count"), instances.length ? plural(running, "process", "processes") : "");
  setText($("instances-more"), `${plain.format(snapshot.more_instances)} more.`);
  $("instances-more").hidden = snapshot.more_instances === 0;
  $("instances").hidden = instances.length === 0;
  $("nobody").hidden = instances.some((instance) => instance.role !== "api");
}
