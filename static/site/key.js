// The key's form. The key stays in memory, or in this tab's session storage if the holder asks for that.

import { byId } from "./dom.js";
import { canBeKey } from "./service.js";

const PLACE = "aiapi-key";

/** Return this tab's storage; null where the browser allows none. */
function storage() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

/** Call `use` with each key that is entered, and with the kept one. A key is kept once `use` resolves to true. */
export function onKey(use) {
  const field = byId("key");
  const keep = byId("keep-key");
  const accept = async (key) => {
    const isAccepted = await use(key);
    if (isAccepted && keep.checked) storage()?.setItem(PLACE, key);
    else if (!isAccepted) storage()?.removeItem(PLACE);
  };
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    field.setCustomValidity(canBeKey(key) ? "" : "A key has no spaces or special letters.");
    if (field.reportValidity()) accept(key);
  });
  field.addEventListener("input", () => field.setCustomValidity(""));
  keep.addEventListener("change", () => { if (!keep.checked) storage()?.removeItem(PLACE); });
  const kept = storage()?.getItem(PLACE);
  if (!kept) return;
  keep.checked = true;
  field.value = kept;
  accept(kept);
}

/** Forget the key, in memory and storage. */
export function forgetKey() {
  storage()?.removeItem(PLACE);
  location.reload();
}
