// The key's form. The key is passed on when it is submitted, and not stored.

import { byId } from "./dom.js";
import { canBeKey } from "./service.js";

/** Call `use` with each key that is entered. */
export function onKey(use) {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = byId("key");
    const key = field.value.trim();
    field.setCustomValidity(canBeKey(key) ? "" : "A key has no spaces or special letters.");
    if (field.reportValidity()) use(key);
  });
  byId("key").addEventListener("input", () => byId("key").setCustomValidity(""));
}
