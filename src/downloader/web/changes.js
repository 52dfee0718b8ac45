// What was changed lately, and by which token.

import { call, query } from "./api.js";
import { $, list, make, setForeign, setText } from "./dom.js";
import { changeWords, moment } from "./words.js";

const LOOK_MS = 5_000;
const FEW = 5;
const MANY = 200;

const showRows = list($("changes").tBodies[0], () => {
  const [time, who, client, what, more] = [make("time"), make("bdi"), make("span", "sub"), make("span"), make("bdi", "sub")];
  const head = make("th", "", time);
  head.scope = "row";
  return {
    element: make("tr", "", head, make("td", "", who, client), make("td", "", what, more)),
    patch(change) {
      const words = changeWords(change);
      time.dateTime = change.at;
      setText(time, moment(new Date(change.at)));
      setForeign(who, change.token ?? "without a token");
      setForeign(client, change.client);
      setText(what, words.what);
      setForeign(more, words.more);
    },
  };
});

let count = FEW;
let timer = 0;
let lookedAt = -Infinity;

async function look() {
  clearTimeout(timer);
  timer = 0;
  lookedAt = performance.now();
  let changes;
  try {
    changes = await call("GET", `audit?${query({ count: count + 1 })}`);
  } catch {
    return; // that the store or the service does not answer is shown elsewhere
  }
  showRows(changes.slice(0, count).map((change) => [JSON.stringify(change), change]));
  $("changes").hidden = changes.length === 0;
  $("changes-none").hidden = changes.length > 0;
  $("changes-more").hidden = changes.length <= count || count === MANY;
}

// After a change of the fleet.
export function changesChanged() {
  if (document.body.classList.contains("may-admin") && !timer) {
    timer = setTimeout(look, Math.max(0, lookedAt + LOOK_MS - performance.now()));
  }
}

$("changes-more").addEventListener("click", () => {
  count = MANY;
  look();
});
