// The page: hands the events of `GET /events` to the modules that show them.

import { aggregationsChanged, showPause } from "./aggregations.js";
import { callbacksChanged } from "./callbacks.js";
import { changesChanged } from "./changes.js";
import { addSamples } from "./charts.js";
import { $, setText } from "./dom.js";
import { failuresChanged } from "./failures.js";
import { showFleet } from "./fleet.js";
import { groupsChanged } from "./groups.js";
import { jobMayHaveChanged, openLinkedJob } from "./job.js";
import { jobsChanged } from "./jobs.js";
import { signIn } from "./signin.js";
import { listen, stopListening } from "./stream.js";

// How often times and ages are shown anew while nothing changes.
const AGAIN_MS = 5_000;

let last = null;

function show(snapshot) {
  last = snapshot;
  showFleet(snapshot);
  showPause(snapshot);
  aggregationsChanged();
  callbacksChanged(snapshot);
  failuresChanged(snapshot);
  groupsChanged();
  changesChanged();
  jobMayHaveChanged();
  jobsChanged();
  const busy = snapshot.aggregations.length > 0;
  const used = busy || Object.values(snapshot.counters.processor ?? { own: 1 }).some((value) => value > 0);
  $("quiet").hidden = busy || !used;
  $("first").hidden = used;
  $("live").hidden = false;
}

for (const example of document.querySelectorAll(".example")) {
  setText(example, example.textContent.replace("http://localhost:8000/", new URL(".", location).href));
}
setInterval(() => last && !document.hidden && show(last), AGAIN_MS);

function start() {
  listen({ snapshot: show, history: addSamples });
  openLinkedJob();
}

signIn(start, stopListening);
