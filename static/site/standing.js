// The limits of key and account: remaining amounts, bars, and reset times.

import { byId, element } from "./dom.js";
import { count, duration, exactMoney, exactly, holder, moment, money, TIME_ZONE, words } from "./format.js";

/** The used share of a limit from which it is shown as nearly used up. */
const NEAR = 0.8;
const NAMES = {
  requests_per_minute: "Requests per minute",
  tokens_per_minute: "Tokens per minute",
  concurrent_requests: "Concurrent requests",
  monthly_tokens: "Tokens this month",
  monthly_cost: "Spend this month",
};

const isMoney = (state) => state.name === "monthly_cost";
const shown = (state, value) => (isMoney(state) ? money(value) : count(value));
const exact = (state, value) => (isMoney(state) ? exactMoney(value) : exactly(value));
const nameOf = (state) => NAMES[state.name] ?? words(state.name);
const ownerOf = (state) => holder(state, "the whole account") + (state.model ? `, ${state.model}` : "");
const share = (state) => (Number(state.limit) > 0 ? Number(state.used) / Number(state.limit) : 1);

function gradeOf(state) {
  if (state.remaining === null) return ["", "unknown now"];
  if (Number(state.remaining) <= 0) return ["spent", "used up"];
  return share(state) >= NEAR ? ["near", "nearly used up"] : ["", ""];
}

/** Show the limits of a /usage answer, the most used first, with the forecasts of its budgets. */
export function showStanding({ limits, source, month }, forecasts = new Map()) {
  const limited = limits.filter((state) => state.limit !== null).sort((one, other) => share(other) - share(one));
  byId("limits").replaceChildren(...limited.map((state) => card(state, forecasts.get(state))));
  byId("left-summary").replaceChildren(summary(limited, source), element("span", { class: "quiet small" }, ` Times are in ${TIME_ZONE}.`));
  byId("unlimited").textContent = unlimited(limits, month);
}

/** Return the ms until the first exhausted limit resets; Infinity if none is exhausted. */
export function roomAgain({ limits }) {
  const spent = limits.filter((state) => state.limit !== null && state.reset !== null && gradeOf(state)[0] === "spent");
  return Math.min(...spent.map((state) => state.reset * 1000 - Date.now()));
}

function summary(limited, source) {
  if (source === "records") return "Live counters are unavailable: monthly amounts come from the request log, and the use of rates is unknown.";
  const spent = limited.filter((state) => gradeOf(state)[0] === "spent");
  if (spent.length) return `Used up: ${spent.map((state) => `${nameOf(state).toLowerCase()} (${ownerOf(state)}), ${until(state)}`).join("; ")}.`;
  const near = limited.filter((state) => gradeOf(state)[0] === "near");
  if (near.length) return `Nearly used up: ${near.map((state) => `${nameOf(state).toLowerCase()} (${ownerOf(state)})`).join("; ")}.`;
  return limited.length ? "All limits have room." : "This key has no limits.";
}

/** Describe when a limit resets. A minute's window frees its slots one by one: at `reset` all of it is free. */
function until(state) {
  if (state.reset === null) return "until a request ends";
  if (state.name.endsWith("per_minute")) return "frees up within a minute";
  const at = new Date(state.reset * 1000);
  const rest = (at - Date.now()) / 1000;
  return rest > 0 ? `until ${moment(at, { seconds: rest < 3600 })} (in ${duration(rest)})` : "until now";
}

function reset(state) {
  if (state.reset === null) return "Frees up when a request ends.";
  const at = new Date(state.reset * 1000);
  const rest = (at - Date.now()) / 1000;
  if (Number(state.used) === 0 && state.name.endsWith("per_minute")) return "Nothing used in the last minute.";
  return rest > 0 ? `Resets at ${moment(at, { seconds: rest < 3600 })}, in ${duration(rest)}.` : "Resets now.";
}

function card(state, forecast) {
  const [grade, told] = gradeOf(state);
  const title = `${exact(state, state.used)} of ${exact(state, state.limit)} used, ${exact(state, state.remaining)} left`;
  return element(
    "div",
    { class: `card ${grade}` },
    element("h3", {}, nameOf(state), element("span", {}, ownerOf(state))),
    element("p", { class: "left", title }, `${shown(state, state.remaining)} left `, element("small", {}, `of ${shown(state, state.limit)}`)),
    element("progress", { max: "1", value: String(Math.min(1, share(state))), "aria-label": `${nameOf(state)}, ${ownerOf(state)}: ${title}` }),
    element("p", { class: "small" }, `${shown(state, state.used)} used. ${reset(state)} `, element("span", { class: "state" }, told)),
    forecast && Number(state.remaining) > 0 ? element("p", { class: "small" }, forecastText(state, forecast)) : null,
  );
}

/** Describe what a budget will have used at the end of the month (UTC), and when it is reached before. */
function forecastText(state, { expected, ends, reachedAt }) {
  const day = (time) => new Date(time).toLocaleDateString("en-GB", { day: "numeric", month: "long", timeZone: "UTC" });
  const amount = shown(state, isMoney(state) ? expected : Math.round(expected));
  const sentence = `At this pace ${amount} of ${shown(state, state.limit)} by ${day(ends - 1)}`;
  return reachedAt === null ? `${sentence}.` : element("span", { class: "state warn-text" }, `${sentence}; reached on ${day(reachedAt)}.`);
}

function unlimited(limits, month) {
  const free = limits.filter((state) => state.limit === null);
  if (!free.length) return "";
  const used = (state) => (state.used === null || !state.name.startsWith("monthly") ? "" : `, ${exact(state, state.used)} used`);
  return `Without a limit (months are of UTC, now ${month}): ${free.map((state) => `${nameOf(state).toLowerCase()} of ${ownerOf(state)}${used(state)}`).join("; ")}.`;
}
