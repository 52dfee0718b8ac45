// The page lives on `GET /events`: each snapshot is the whole truth, and what it changes is patched in place.
// Text from elsewhere becomes text nodes only.

const RETRY_MS = 1000;
const RETRY_MAX_MS = 10_000;
// The stream says something every 15 s; after two silences and a bit it is dead, whatever TCP believes.
const DEAD_MS = 35_000;
// Browsers allow a host six connections: a tab that nobody sees gives its own back.
const HIDDEN_MS = 5_000;
// Rows change places at most so often, or nobody could read them.
const SORT_MS = 3_000;
// Up to here a meter shows the slots one by one.
const SLOTS = 16;

const COUNTERS = {
  downloads: [
    ["downloads_succeeded", "succeeded", "Downloads whose file was stored"],
    ["downloads_failed", "failed", "Downloads that failed for good", "bad"],
    ["downloads_retried", "retried", "Attempts that failed and are followed by another"],
    ["downloads_released", "handed back", "Downloads handed back without counting the attempt"],
    ["leases_lost", "leases lost", "Downloads that another instance has taken over"],
    ["leases_recovered", "recovered", "Downloads taken over from instances that died"],
  ],
  callbacks: [
    ["callbacks_delivered", "delivered", "Callbacks that their peer has acknowledged"],
    ["callbacks_failed", "failed", "Callbacks given up, kept to be sent again", "bad"],
    ["callbacks_retried", "retried", "Deliveries that failed and are followed by another"],
    ["callbacks_released", "handed back", "Callbacks handed back by a stop"],
    ["leases_lost", "leases lost", "Callbacks that another instance has taken over"],
    ["leases_recovered", "recovered", "Callbacks taken over from instances that died"],
  ],
};

// Counters that are told of elsewhere.
const HEADLINES = new Set(["in_flight", "bytes", "backends_unhealthy"]);

const $ = (id) => document.getElementById(id);

// Small tools

function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setTitle(element, text) {
  if (element.title !== text) element.title = text;
}

const foreign = new WeakMap();

// Text that a client or a peer chose. What would be invisible, or turn the text round, is spelled out.
function setForeign(element, text) {
  if (foreign.get(element) === text) return;
  foreign.set(element, text);
  const children = [];
  // At odd indices stand the separators: what is odd, and marks behind which a long text may be broken.
  text.split(/([\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}|[-./:@_])/u).forEach((part, index) => {
    if (index % 2 === 0) children.push(part);
    else if (/[-./:@_]/.test(part)) children.push(part, make("wbr"));
    else children.push(make("span", "odd", `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
  });
  element.replaceChildren(...children);
}

const plain = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toLocaleString("en", { maximumSignificantDigits: unit ? 3 : 4 })} ${units[unit]}`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

function duration(ms) {
  const minutes = Math.max(0, Math.floor(ms / 60_000));
  const hours = Math.floor(minutes / 60);
  const days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min` : "under a minute";
}

function plural(count, one, many) {
  return `${plain.format(count)} ${count === 1 ? one : many}`;
}

// Keyed children: rows are made once, patched, moved only when out of place, and removed with what they show.
function list(parent, build) {
  const rows = new Map();
  return (entries) => {
    const kept = new Set(entries.map(([key]) => key));
    for (const [key, row] of rows) {
      if (!kept.has(key)) {
        row.element.remove();
        rows.delete(key);
      }
    }
    let next = parent.firstElementChild;
    for (const [key, value] of entries) {
      let row = rows.get(key);
      if (!row) {
        row = build(value);
        rows.set(key, row);
      }
      row.patch(value);
      if (row.element === next) next = next.nextElementSibling;
      else parent.insertBefore(row.element, next);
    }
  };
}

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

function notes(snapshot) {
  const found = [];
  if (!snapshot.store) {
    found.push(["store", { bad: true, title: "The store does not answer.", text: "These are the numbers it gave last." }]);
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

// Counters

function tiles(id, names) {
  const known = new Map(names.map(([name, ...rest]) => [name, rest]));
  const show = list($(id), ([name]) => {
    const [label, meaning, kind] = known.get(name) ?? [name.replaceAll("_", " "), name];
    const number = make("dd");
    const element = make("div", "tile", make("dt", "", label), number);
    return {
      element,
      patch([, value]) {
        setText(number, (value < 1_000_000 ? plain : short).format(value));
        setTitle(element, `${meaning}: ${plain.format(value)}`);
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

// Aggregations

const showAggregations = list($("aggregations").tBodies[0], () => {
  const name = make("bdi");
  const paused = make("span", "tag warn", "paused");
  const fill = make("span");
  const meter = make("div", "meter", fill);
  meter.ariaHidden = "true"; // the numbers beside it say the same
  const cooling = make("span", "tag warn", "cooling down");
  const head = make("th", "", make("div", "load", make("div", "", name, " ", paused, " ", cooling), meter));
  head.scope = "row";
  const [inFlight, limit, pending] = [make("td", "count"), make("td", "count"), make("td", "count")];
  return {
    element: make("tr", "", head, inFlight, limit, pending),
    patch(load) {
      setForeign(name, load.aggr_id);
      paused.hidden = !load.paused;
      cooling.hidden = !load.cooling_until;
      cooling.title = load.cooling_until ? `Its origin asked for a pause until ${load.cooling_until}` : "";
      setText(inFlight, plain.format(load.in_flight));
      setText(limit, plain.format(load.limit));
      setText(pending, plain.format(load.pending));
      inFlight.classList.toggle("zero", load.in_flight === 0);
      pending.classList.toggle("zero", load.pending === 0);
      fill.style.transform = `scaleX(${Math.min(1, load.in_flight / Math.max(1, load.limit))})`;
      meter.style.setProperty("--slots", load.limit);
      meter.classList.toggle("slots", load.limit > 1 && load.limit <= SLOTS);
    },
  };
});

let order = new Map();
let sortedAt = -Infinity;

// The busiest first, but each row stays where it is for a while; new ones come last until then.
function calmly(aggregations) {
  const now = performance.now();
  if (now - sortedAt > SORT_MS) {
    order = new Map(aggregations.map((load, index) => [load.aggr_id, index]));
    sortedAt = now;
    return aggregations;
  }
  const place = (load) => order.get(load.aggr_id) ?? Infinity;
  for (const load of aggregations) if (!order.has(load.aggr_id)) order.set(load.aggr_id, order.size);
  return aggregations.toSorted((a, b) => place(a) - place(b));
}

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

// The whole page

let last = null;

function show(snapshot) {
  last = snapshot;
  const { aggregations, instances, counters } = snapshot;
  showNotes(notes(snapshot));
  setText($("downloads-now"), plain.format(snapshot.in_flight.downloads));
  setText($("callbacks-now"), plain.format(snapshot.in_flight.callbacks));
  setText($("stored"), bytes(counters.processor.bytes ?? 0));
  showDownloads(counters.processor);
  showCallbacks(counters.notifier);

  showAggregations(calmly(aggregations).map((load) => [load.aggr_id, load]));
  const total = aggregations.length + snapshot.more_aggregations;
  setText($("aggregations-count"), total ? `${plain.format(total)} with work` : "");
  setText($("aggregations-more"), `${plain.format(snapshot.more_aggregations)} more, less busy than these.`);
  $("aggregations-more").hidden = snapshot.more_aggregations === 0;
  $("aggregations").hidden = aggregations.length === 0;
  const used = total > 0 || Object.values(counters.processor).some((value) => value > 0);
  $("quiet").hidden = total > 0 || !used;
  $("first").hidden = used;

  showInstances(instances.map((instance) => [`${instance.role} ${instance.instance}`, instance]));
  const running = new Set(instances.map((instance) => instance.instance)).size;
  setText($("instances-count"), instances.length ? plural(running, "process", "processes") : "");
  setText($("instances-more"), `${plain.format(snapshot.more_instances)} more.`);
  $("instances-more").hidden = snapshot.more_instances === 0;
  $("instances").hidden = instances.length === 0;
  $("nobody").hidden = instances.some((instance) => instance.role !== "api");
  $("live").hidden = false;
}

// The stream

let source = null;
let failures = 0;
let heardAt = null;
let retry = 0;
let dead = 0;

function say(state, text) {
  $("link").hidden = false;
  $("link").className = `link ${state}`;
  setText($("state"), text);
  setText($("heard"), state === "lost" && heardAt ? `numbers from ${clock.format(heardAt)}` : "");
}

function heard() {
  failures = 0;
  heardAt = new Date();
  say("live", "Live");
  clearTimeout(dead);
  dead = setTimeout(lost, DEAD_MS);
}

function connect() {
  close();
  source = new EventSource("events");
  source.addEventListener("snapshot", (event) => {
    heard();
    show(JSON.parse(event.data));
  });
  source.addEventListener("alive", heard);
  // The browser would try again by itself, but not after every kind of failure.
  source.addEventListener("error", lost);
}

function close() {
  clearTimeout(retry);
  clearTimeout(dead);
  source?.close();
  source = null;
}

function lost() {
  close();
  say("lost", "Reconnecting…");
  const wait = Math.min(RETRY_MAX_MS, RETRY_MS * 2 ** failures);
  failures += 1;
  // Not all pages at once, when a service comes back.
  retry = setTimeout(connect, wait * (0.75 + Math.random() / 2));
}

let hidden = 0;

document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (document.hidden) hidden = setTimeout(close, HIDDEN_MS);
  else if (!source) connect();
});
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => event.persisted && connect());
addEventListener("online", connect);
setInterval(() => last && source && show(last), 30_000); // durations grow

for (const example of document.querySelectorAll(".example")) {
  setText(example, example.textContent.replace("http://localhost:8000/", new URL(".", location).href));
}
say("", "Connecting…");
connect();
