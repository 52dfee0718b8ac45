// Messages about actions, and questions before them.

import { $, setForeign } from "./dom.js";

const SAID_MS = 8_000;

let timer = 0;

function show(text, bad) {
  clearTimeout(timer);
  const said = $("said");
  // What is outside an open dialog is neither read aloud nor can it be pressed.
  ([...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body).append(said);
  said.hidden = false;
  said.classList.toggle("bad", bad);
  setForeign($("said-text"), text);
  // An error stays until it is closed.
  if (!bad) timer = setTimeout(() => (said.hidden = true), SAID_MS);
}

export const say = (text) => show(text, false);
export const complain = (problem) => show(problem.message, true);

$("said-close").addEventListener("click", () => ($("said").hidden = true));

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => dialog.contains($("said")) && document.body.append($("said")));
}

for (const each of document.querySelectorAll("[data-close]")) {
  each.addEventListener("click", () => each.closest("dialog").close());
}

// Carries out a button's action, and says what it returns; meanwhile the button cannot be pressed again.
export async function act(button, action) {
  if (button.ariaDisabled === "true") return; // not `disabled`, which would take the focus away
  button.ariaDisabled = "true";
  try {
    const done = await action();
    if (done) say(done);
  } catch (problem) {
    complain(problem);
  } finally {
    button.ariaDisabled = null;
  }
}

let answer = () => {};

// Asks before something that cannot be undone. Resolves to whether it was confirmed; the focus returns by itself.
// `typed` is what has to be typed first, if anything.
export function confirm(title, text, verb, { danger = false, typed = "" } = {}) {
  const dialog = $("confirm");
  setForeign($("confirm-title"), title);
  setForeign($("confirm-text"), text);
  setForeign($("confirm-do"), verb);
  $("confirm-do").className = danger ? "danger" : "primary";
  $("confirm-typing").hidden = typed === "";
  setForeign($("confirm-typed"), typed);
  $("confirm-input").value = "";
  const check = () => ($("confirm-do").disabled = $("confirm-input").value !== typed);
  $("confirm-input").oninput = check;
  check();
  dialog.showModal();
  answer(false);
  return new Promise((resolve) => (answer = resolve));
}

// A close is reported a moment later, and a button that asked cannot be pressed before its answer is known. So the
// buttons and Escape answer themselves, and a close that neither of them told counts only if no next question is open.
$("confirm").addEventListener("submit", ({ submitter }) => answer(submitter.value === "yes"));
$("confirm").addEventListener("cancel", () => answer(false));
$("confirm").addEventListener("close", ({ target }) => target.open || answer(false));
