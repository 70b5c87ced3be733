// The account page: limits, then usage of a range. Refreshed each minute while the page is visible.

import { download, usageCsv } from "./csv.js";
import { byId } from "./dom.js";
import { duration, moment, TIME_ZONE } from "./format.js";
import { showFigures } from "./figures.js";
import { forgetKey, onKey } from "./key.js";
import { showKeys } from "./keys.js";
import { rangeName, rangeOf } from "./ranges.js";
import { fetchRecords, showRecords } from "./records.js";
import { showRefusal } from "./refusals.js";
import { Refusal } from "./service.js";
import { roomAgain, showStanding } from "./standing.js";
import { fetchUsage } from "./usage.js";

const REFRESH_MS = 60_000;
const SOONEST_MS = 5000;

let key = ""; // in memory; key.js may keep a copy for the tab
let choice = { range: "7d", own: {}, group: "model" };
let shown = null; // the displayed figures, and the time of their request
let turn = 0; // number of the latest request; answers to earlier ones are not shown
let timer = null;

const say = (text) => { byId("status").textContent = text; };

/** Fetch, show, and schedule the next refresh. After a failure the old figures stay, with their age. */
async function load({ isQuiet = false } = {}) {
  const mine = ++turn;
  const asked = { ...choice, key };
  clearTimeout(timer);
  if (!isQuiet) say("Loading…");
  byId("usage").setAttribute("aria-busy", "true");
  try {
    const found = await find(asked);
    if (mine !== turn) return;
    show(found);
  } catch (error) {
    if (mine !== turn) return;
    fail(error instanceof Refusal ? error : new Refusal("This page could not read the answer.", { code: "unreadable" }));
    if (!(error instanceof Refusal)) throw error;
  } finally {
    if (mine === turn) byId("usage").setAttribute("aria-busy", "false");
  }
  plan();
}

/** Fetch limits and totals, and the details only if the totals have changed. */
async function find(asked) {
  const range = rangeOf(asked.range, asked.own);
  const { usage, ...standing } = await fetchUsage(asked.key, range, range.unit);
  const mark = JSON.stringify([usage, asked.range, asked.own, asked.group]);
  const found = { standing, at: new Date(), mark, range, group: asked.group, whole: usage.totals, series: usage.series };
  if (shown?.mark === mark) return { ...shown, ...found };
  if (!usage.totals.requests) return { ...found, split: [], parts: [], records: [], next: null };
  const [split, parts, { requests: records, next }] = await Promise.all([
    fetchUsage(asked.key, range, `${range.unit},${asked.group}`),
    fetchUsage(asked.key, range, asked.group),
    fetchRecords(asked.key),
  ]);
  return { ...found, split: split.usage.series, parts: parts.usage.series, records, next };
}

/** Say when a key ends. */
function ending(expiresAt) {
  if (!expiresAt) return "never expires";
  const date = new Date(expiresAt);
  return `expires ${moment(date)} (in ${duration(Math.max(0, (date - Date.now()) / 1000))})`;
}

function show(found) {
  const isSame = shown?.mark === found.mark;
  shown = found;
  const { standing, range, whole } = found;
  byId("key-problem").replaceChildren();
  byId("stale").replaceChildren();
  byId("usage-problem").replaceChildren();
  byId("key-form").hidden = true;
  byId("key").value = "";
  byId("whose").textContent = `Account ${standing.account} · key ${standing.key} · tier ${standing.tier} · ${ending(standing.expires_at)}`;
  byId("whose-actions").hidden = false;
  byId("content").hidden = false;
  showStanding(standing);
  byId("range-text").textContent = `${rangeName(range)}, all keys of the account, by ${range.unit} (${TIME_ZONE}).`;
  byId("empty").hidden = whole.requests > 0;
  byId("filled").hidden = whole.requests === 0;
  byId("csv").disabled = whole.requests === 0;
  byId("requests").hidden = whole.requests === 0;
  if (whole.requests && !isSame) {
    showFigures(found);
    showRecords(found.records, found.next, older);
  }
  say(`As of ${moment(found.at, { seconds: true })} (${TIME_ZONE}). This page refreshes every minute.`);
}

function fail(refusal) {
  if (!shown) {
    say("");
    key = "";
    showRefusal(byId("key-problem"), refusal, { stillWorks: refusal.status < 500 ? null : "API requests may still work: try the playground." });
  } else if (refusal.status === 400) {
    showRefusal(byId("usage-problem"), refusal);
    say("This range can't be shown.");
  } else {
    showRefusal(byId("stale"), refusal, { stillWorks: "The figures below are older. You can still download them as CSV, and API requests may still work." });
    say(`As of ${moment(shown.at, { seconds: true })} (${TIME_ZONE}), not refreshed since: the last attempt failed. The page retries every minute.`);
  }
}

/** Schedule the next refresh, earlier if a limit resets before. A hidden page waits until it is visible. */
function plan() {
  clearTimeout(timer);
  if (!shown || document.hidden) return;
  const wait = Math.min(REFRESH_MS, Math.max(SOONEST_MS, roomAgain(shown.standing) + 500));
  timer = setTimeout(() => load({ isQuiet: true }), wait);
}

/** Add the page of requests before those shown. */
async function older() {
  try {
    const { requests, next } = await fetchRecords(key, shown.next);
    Object.assign(shown, { records: [...shown.records, ...requests], next });
    showRecords(shown.records, next, older);
  } catch (error) {
    showRefusal(byId("records-problem"), error);
  }
}

/** Use a key: show its account, and its keys if it may manage them. Returns whether it was accepted. */
async function use(entered) {
  key = entered;
  await load();
  byId("keys").hidden = !key || !shown.standing.scopes.includes("keys:manage");
  if (!byId("keys").hidden) await showKeys(key);
  return Boolean(key);
}

function chooseRange(button) {
  for (const each of byId("ranges").querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === button));
  const range = button.dataset.range;
  byId("own").hidden = range !== "own";
  if (range === "own") {
    byId("own-from").focus();
    return;
  }
  choice = { ...choice, range };
  load();
}

function chooseOwn(event) {
  event.preventDefault();
  const own = { from: byId("own-from").value, to: byId("own-to").value };
  const isWrong = !own.from || !own.to || own.from > own.to;
  byId("own-problem").textContent = isWrong ? "Choose two days, the earlier one first." : "";
  if (isWrong) return;
  choice = { ...choice, range: "own", own };
  load();
}

function save() {
  const days = [shown.range.from, new Date(shown.range.to - 1)].map((date) => date.toLocaleDateString("en-CA", { timeZone: TIME_ZONE }));
  download(`usage-${shown.standing.account}-by-${shown.group}-${days.join("-to-")}.csv`, usageCsv(shown.split, shown.group));
}

onKey(use);
byId("refresh").addEventListener("click", () => load());
byId("forget").addEventListener("click", forgetKey);
byId("csv").addEventListener("click", save);
byId("own").addEventListener("submit", chooseOwn);
byId("group").addEventListener("change", (event) => { choice = { ...choice, group: event.target.value }; load(); });
for (const button of byId("ranges").querySelectorAll("button")) button.addEventListener("click", () => chooseRange(button));
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !shown) clearTimeout(timer);
  else if (Date.now() - shown.at > REFRESH_MS) load({ isQuiet: true });
  else plan();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (shown?.whole.requests) showFigures(shown); });
