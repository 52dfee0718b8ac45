// The stream of `GET /events`: opened again when it breaks, closed while nobody sees the page.

import { $, setText } from "./dom.js";
import { clock } from "./words.js";

const RETRY_MS = 1000;
const RETRY_MAX_MS = 10_000;
// An event comes every 15 s at least. Without one for twice as long the connection is broken, even if TCP has not noticed.
const DEAD_MS = 35_000;
// Browsers allow six connections to a host, so a hidden tab closes its own.
const HIDDEN_MS = 5_000;

let receivers = null;
let source = null;
let failures = 0;
let heardAt = null;
let retry = 0;
let dead = 0;

function tell(state, text) {
  $("link").hidden = false;
  $("link").className = `link ${state}`;
  setText($("state"), text);
  setText($("heard"), state === "lost" && heardAt ? `numbers from ${clock.format(heardAt)}` : "");
}

function heard() {
  failures = 0;
  heardAt = new Date();
  tell("live", "Live");
  clearTimeout(dead);
  dead = setTimeout(lost, DEAD_MS);
}

function connect() {
  close();
  if (!receivers) return;
  source = new EventSource("events");
  for (const [name, receive] of Object.entries(receivers)) {
    source.addEventListener(name, (event) => {
      heard();
      receive(JSON.parse(event.data));
    });
  }
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
  document.dispatchEvent(new Event("refused")); // perhaps, for the session may have ended: a stream does not tell why it broke
  tell("lost", "Reconnecting…");
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

// Calls the function of each event's name with the event's data. A second call changes nothing.
export function listen(functions) {
  if (receivers) return;
  receivers = functions;
  tell("", "Connecting…");
  connect();
}

export function stopListening() {
  receivers = null;
  close();
  $("link").hidden = true;
}
