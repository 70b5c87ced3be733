// The limits of key and account: remaining amounts, bars, and reset times.

import { byId, element } from "./dom.js";
import { count, duration, exactMoney, exactly, holder, money, words } from "./format.js";

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
const titleOf = (state) => `${nameOf(state).toLowerCase()} (${ownerOf(state)})`;
const share = (state) => (Number(state.limit) > 0 ? Number(state.used) / Number(state.limit) : 1);

function gradeOf(state) {
  if (state.remaining === null) return ["", "Unknown now."];
  if (Number(state.remaining) <= 0) return ["spent", "Limit reached."];
  return share(state) >= NEAR ? ["near", "Close to the limit."] : ["", ""];
}

/** Show the limits of a /usage answer, the most used first. */
export function showStanding({ limits, source }) {
  const limited = limits.filter((state) => state.limit !== null).sort((one, other) => share(other) - share(one));
  byId("limits").replaceChildren(...limited.map(card));
  byId("left-summary").replaceChildren(summary(limited, source));
  byId("unlimited").textContent = unlimited(limits);
}

/** Return the ms until the first exhausted limit resets; Infinity if none is exhausted. */
export function roomAgain({ limits }) {
  const spent = limits.filter((state) => state.limit !== null && state.reset !== null && gradeOf(state)[0] === "spent");
  return Math.min(...spent.map((state) => state.reset * 1000 - Date.now()));
}

/** Describe the limits that are reached or close, then the budget in money that is the most used. */
function summary(limited, source) {
  if (source === "records") return "Live counters are unavailable: monthly amounts come from the request log, and the use of rates is unknown.";
  const of = (grade) => limited.filter((state) => gradeOf(state)[0] === grade);
  const [reached, near, budget] = [of("spent"), of("near"), limited.find(isMoney)];
  const sentences = [
    reached.length && `Limit reached: ${reached.map((state) => `${titleOf(state)}, ${reset(state)}`).join("; ")}.`,
    near.length && `Close to the limit: ${near.map(titleOf).join("; ")}.`,
    !reached.length && !near.length && (limited.length ? "You are well within your limits." : "This key has no limits."),
    budget && sentence(budget),
  ];
  return sentences.filter(Boolean).join(" ");
}

/** Describe what is used of a limit, and when it resets; nothing if that is unknown. */
function sentence(state) {
  if (state.used === null) return "";
  const who = state.owner.startsWith("account") ? "You have" : `${holder(state).replace(/^t/, "T")} has`;
  const [verb, when] = state.name === "concurrent_requests" ? ["", "open"] : ["used ", state.name.endsWith("per_minute") ? "in the last minute" : "this month"];
  const unit = isMoney(state) ? "" : state.name.includes("tokens") ? " tokens" : " requests";
  return `${who} ${verb}${shown(state, state.used)} of ${shown(state, state.limit)}${unit}${state.model ? ` with ${state.model}` : ""} ${when}; ${reset(state)}.`;
}

/** Describe when a limit resets: a month in UTC, a minute's window in seconds, because it frees up bit by bit. */
function reset(state) {
  if (state.reset === null) return "one frees up when a request ends";
  const at = new Date(state.reset * 1000);
  const rest = (at - Date.now()) / 1000;
  if (state.name.endsWith("per_minute")) return `all ${shown(state, state.limit)} are available ${rest > 0 && Number(state.used) > 0 ? `again in ${duration(rest)}` : "now"}`;
  return `resets on ${at.toLocaleDateString("en-GB", { day: "numeric", month: "long", timeZone: "UTC" })} ${at.toISOString().slice(11, 16)} UTC`;
}

function card(state) {
  const { forecast } = state;
  const [grade, text] = gradeOf(state);
  const title = `${exact(state, state.used)} of ${exact(state, state.limit)} used, ${exact(state, state.remaining)} left`;
  return element(
    "div",
    { class: `card ${grade}` },
    element("h3", {}, nameOf(state), element("span", {}, ownerOf(state))),
    element("p", { class: "left", title }, `${shown(state, state.remaining)} left `, element("small", {}, `of ${shown(state, state.limit)}`)),
    element("progress", { max: "1", value: String(Math.min(1, share(state))), "aria-label": `${nameOf(state)}, ${ownerOf(state)}: ${title}` }),
    element("p", { class: "small" }, element("span", { class: "state" }, text && `${text} `), sentence(state)),
    forecast && Number(state.remaining) > 0 ? element("p", { class: forecast.reached ? "small state warn-text" : "small" }, forecast.text) : null,
  );
}

function unlimited(limits) {
  const free = limits.filter((state) => state.limit === null);
  const used = free.filter((state) => state.used !== null && state.name.startsWith("monthly"))
    .map((state) => `${exact(state, state.used)}${isMoney(state) ? "" : " tokens"} by ${ownerOf(state)}`);
  const rest = used.length ? ` Used this month: ${new Intl.ListFormat("en").format(used)}.` : "";
  return free.length ? `Nothing else is limited.${rest}` : "";
}
