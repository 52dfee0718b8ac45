// Signing in: the token is exchanged for a cookie that scripts cannot read, and is kept nowhere here.

import { call } from "./api.js";
import { complain } from "./dialogs.js";
import { $, setForeign } from "./dom.js";

const SCOPES = ["submit", "retry", "admin"];

let enter = () => {};
let leave = () => {};

function show(session) {
  const out = session.tokens && session.name === null;
  $("signin").hidden = !out;
  $("who").hidden = !session.expires_at; // without one there is nothing to sign out of
  setForeign($("who-name"), session.name ?? "");
  // Buttons that the token may not use are not there; see style.css.
  for (const scope of SCOPES) document.body.classList.toggle(`may-${scope}`, !session.tokens || session.scopes.includes(scope));
  if (out) {
    leave();
    $("live").hidden = true;
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    $("signin-token").focus();
  } else {
    enter();
  }
}

// Whether the service wants a token: asked at first, and when it refuses a request or the stream.
async function check() {
  try {
    show(await call("GET", "session"));
  } catch {
    enter(); // it does not answer: the stream says so, and goes on trying
  }
}

$("signin-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("signin-token");
  setForeign($("signin-error"), "");
  try {
    const session = await call("POST", "session", { token: token.value.trim() });
    token.value = "";
    show(session);
  } catch (problem) {
    setForeign($("signin-error"), problem.status === 401 ? "No such token is configured." : problem.message);
    token.select();
    token.focus();
  }
});

$("signout").addEventListener("click", async () => {
  try {
    await call("DELETE", "session");
    await check();
  } catch (problem) {
    complain(problem);
  }
});

document.addEventListener("refused", check);

// Calls `start` when the service may be asked, and `stop` when it wants a token first; both may be called again.
export function signIn(start, stop) {
  enter = start;
  leave = stop;
  check();
}
