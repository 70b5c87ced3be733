// The tabs with the code of a request in several languages, and the button that copies it.

import { byId, copy } from "./dom.js";

let code = {};
let language = "curl";
const tabs = () => [...document.querySelectorAll('[role="tab"]')];

/** Show the code of each language, `{curl, python, javascript, install}`, in the tabs. */
export function showCode(written) {
  code = written;
  show();
}

function show() {
  byId("code-text").textContent = code[language];
  byId("install").textContent = code.install[language] ? `\n${code.install[language]}` : "";
}

function choose(tab) {
  language = tab.id.replace("tab-", "");
  for (const each of tabs()) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  byId("code").setAttribute("aria-labelledby", tab.id);
  show();
}

function move(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs().at((tabs().indexOf(event.target) + step) % tabs().length);
  choose(next);
  next.focus();
}

for (const tab of tabs()) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", move);
}
byId("copy").addEventListener("click", () => copy(code[language], byId("copied")));
