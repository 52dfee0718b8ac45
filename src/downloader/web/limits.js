// The dialog that sets an aggregation's limit, rate and delay. An empty field means what the jobs ask for.

import { call } from "./api.js";
import { say } from "./dialogs.js";
import { $, setForeign, setText } from "./dom.js";

const FIELDS = ["limit", "rate", "delay"];
const NOTHING = { limit: "1", rate: "no rate", delay: "no delay" };

const dialog = $("limits");
const input = (field) => $(`limits-${field}`);
let shown = null;

// `changed` is called with the aggregation as the service answers it.
export function openLimits(aggregation, path, changed) {
  shown = { aggregation, path, changed };
  setForeign($("limits-title"), `Limits of ${aggregation.aggr_id}`);
  for (const field of FIELDS) {
    const set = field in aggregation.overridden;
    const asked = set ? aggregation.overridden[field] : aggregation[field];
    input(field).value = set ? aggregation[field] : "";
    const hasJobs = aggregation.in_flight + aggregation.pending > 0;
    setText($(`limits-${field}-asked`), `Empty: what the jobs ask for${hasJobs ? `, ${asked ?? NOTHING[field]}` : ""}.`);
  }
  setText($("limits-error"), "");
  dialog.showModal();
}

function changes() {
  const found = {};
  for (const field of FIELDS) {
    const { value } = input(field);
    if (value !== "") found[field] = Number(value);
    else if (field in shown.aggregation.overridden) found[field] = null;
  }
  return found;
}

$("limits-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const changed = await call("PATCH", shown.path, changes());
    shown.changed(changed);
    dialog.close();
    say(`The limits of ${changed.aggr_id} hold from now on.`);
  } catch (problem) {
    // The service names the field, people know it by its label.
    const label = problem.field && document.querySelector(`label[for="limits-${CSS.escape(problem.field)}"]`)?.textContent;
    setForeign($("limits-error"), label ? problem.message.replace(problem.field, label) : problem.message);
    if (problem.field) input(problem.field)?.focus();
  }
});
