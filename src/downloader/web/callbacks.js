// Callbacks that wait, and those that failed, by destination.

import { $, list, make, setForeign, setText } from "./dom.js";
import { destinationState, plain } from "./words.js";

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
      // After a failure the limit is 1, while those that were in flight go on.
      setText(of, destination.in_flight > destination.limit ? "" : ` of ${plain.format(destination.limit)}`);
      setText(pending, plain.format(destination.pending));
    },
  };
});

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

// Takes a snapshot of `/events`.
export function callbacksChanged({ waiting }) {
  $("callbacks-panel").hidden = !waiting?.callbacks;
  if (waiting?.callbacks) showCallbacks(waiting);
  showFailedTo(waiting?.callbacks?.failed_to);
}
