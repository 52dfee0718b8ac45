// Elements: made once, patched in place. Text from elsewhere becomes text nodes only.

export const $ = (id) => document.getElementById(id);

export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

export function button(text, className = "") {
  const element = make("button", className, text);
  element.type = "button";
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setTitle(element, text) {
  if (element.title !== text) element.title = text;
}

const foreign = new WeakMap();

// Text that a client or a peer chose. Characters that are invisible or reverse the text are spelled out.
export function setForeign(element, text) {
  if (foreign.get(element) === text) return;
  foreign.set(element, text);
  const children = [];
  // Separators have odd indices: characters to be spelled out, and marks behind which a long text may be broken.
  text.split(/([\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}|[-./:@_])/u).forEach((part, index) => {
    if (index % 2 === 0) children.push(part);
    else if (/[-./:@_]/.test(part)) children.push(part, make("wbr"));
    else children.push(make("span", "odd", `U+${part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
  });
  element.replaceChildren(...children);
}

// Keyed children: rows are made once, patched, moved only when out of place, and removed with what they show.
// What has the focus keeps it when its row moves. When its row is removed, the section gets the focus.
export function list(parent, build) {
  const rows = new Map();
  return (entries) => {
    const focused = parent.contains(document.activeElement) ? document.activeElement : null;
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
    if (focused && document.activeElement !== focused) {
      (focused.isConnected ? focused : parent.closest("section")).focus({ preventScroll: true });
    }
  };
}
