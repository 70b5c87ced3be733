// The account's keys, for a key with the scope keys:manage: list, create, rotate and revoke.

import { byId, copy, element, table } from "./dom.js";
import { moment } from "./format.js";
import { showRefusal } from "./refusals.js";
import { Refusal, send } from "./service.js";

const COLUMNS = ["Name", "Key", "State", "Scopes", "Last used", "Expires", "Actions"].map((label) => ({ label }));
const DAY_MS = 86_400_000;

let key = "";

/** Show the keys of the account to a key that may manage them. */
export async function showKeys(manager) {
  key = manager;
  try {
    const keys = await (await send("/keys", { key })).json();
    byId("key-list").replaceChildren(table("Keys of the account", COLUMNS, keys.map(row)));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    showRefusal(byId("key-list"), error);
  }
}

const when = (at) => (at ? moment(new Date(at)) : "–");

function row(each) {
  const works = each.state === "active";
  const button = (label, act) => element("button", { type: "button", class: "small", "aria-label": `${label} ${each.name}`, click: act }, label);
  const actions = works ? [button("Rotate", () => rotate(each)), " ", button("Revoke", () => revoke(each))] : [];
  return [each.name, { text: element("code", {}, `${each.prefix}…${each.last_four}`) }, each.state, each.scopes.join(", ") || "all but keys:manage", when(each.last_used_at), when(each.expires_at), { text: actions }];
}

/** Ask before a change that stops a key; resolves to the chosen button's value. */
function confirm(title, sentence, choices) {
  const dialog = byId("confirm");
  const button = ([value, label]) => element("button", { value, class: value && "main" }, label);
  dialog.replaceChildren(
    element("form", { method: "dialog" }, element("h2", { id: "confirm-title" }, title), element("p", {}, sentence), element("div", { class: "actions" }, [["", "Cancel"], ...choices].map(button))),
  );
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => { dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }); });
}

async function revoke(each) {
  const sentence = "Requests with it are refused (401) within a second. This can't be undone.";
  if (await confirm(`Revoke “${each.name}”?`, sentence, [["revoke", "Revoke"]])) await change(`/keys/${each.id}/revoke`);
}

async function rotate(each) {
  const sentence = "You get a new key with the same settings. How long should the old one keep working?";
  const grace = await confirm(`Rotate “${each.name}”?`, sentence, [["0", "Stop it now"], ["3600", "1 hour"], ["86400", "1 day"]]);
  if (grace) await change(`/keys/${each.id}/rotate`, { grace_seconds: Number(grace) });
}

async function create(event) {
  event.preventDefault();
  const days = Number(byId("new-expiry").value);
  const budget = byId("new-budget").value;
  const isMade = await change("/keys", {
    name: byId("new-name").value.trim(),
    ...(days ? { expires_at: new Date(Date.now() + days * DAY_MS).toISOString() } : {}),
    ...(budget ? { monthly_cost_budget: budget } : {}),
  });
  if (isMade) event.target.reset();
}

/** Send a change, show the new key if there is one, and list the keys again. Returns whether it was made. */
async function change(path, body) {
  byId("key-change").replaceChildren();
  try {
    const made = await (await send(path, { key, method: "POST", body })).json();
    if (made.key) showSecret(made);
    await showKeys(key);
    return true;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    showRefusal(byId("key-change"), error);
    return false;
  }
}

function showSecret({ name, key: secret }) {
  const told = element("span", { class: "small quiet", role: "status" });
  const box = element(
    "div",
    { class: "notice", tabindex: "-1" },
    element("h3", {}, `New key “${name}”`),
    element("p", {}, "Copy it now: it is not shown again."),
    element("p", { class: "actions" }, element("code", {}, secret), element("button", { type: "button", class: "small", click: () => copy(secret, told) }, "Copy"), told),
  );
  byId("key-change").replaceChildren(box);
  box.focus();
}

byId("new-key").addEventListener("submit", create);
