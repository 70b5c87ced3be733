// The field for the key: read when it is submitted, and handed on; nothing here stores it.

import { byId } from "./dom.js";
import { canBeKey } from "./service.js";

/** Call `use` with the key each time that one is entered. */
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
