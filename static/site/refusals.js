// Display of refusals: what happened, whose limit it was, when to try again, and the meaning of the code.

import { element } from "./dom.js";
import { count, duration, exactMoney, holder, moment, words } from "./format.js";

/** The page's codes by OpenAI's names; for `rate_limit_exceeded` the code depends on the limit. */
const SAME = { rate_limit_exceeded: "rate_limited", insufficient_quota: "budget_exhausted" };
const BY_LIMIT = { tokens_per_minute: "tokens_limited", concurrent_requests: "concurrency_limited" };

/**
 * Show a refusal in a box (emptied first), with a countdown if it has a retry time, and what `stillWorks`.
 * Returns the function that ends the countdown.
 */
export function showRefusal(box, refusal, { again = null, stillWorks = null } = {}) {
  const about = [refusal.status || null, refusal.code].filter(Boolean).join(" ");
  const parts = [
    element("p", {}, element("strong", {}, about || "No answer"), ": ", refusal.message),
    ...fieldLines(refusal.fields),
    limitLine(refusal.limit),
    refusal.requestId ? element("p", { class: "small" }, "Request id: ", element("code", {}, refusal.requestId)) : null,
    stillWorks && element("p", { class: "small" }, stillWorks),
    element("p", { class: "small" }, explain(refusal, "What this code means, and what to do")),
  ];
  const { line, end } = countdown(refusal.retryAfter, again);
  box.replaceChildren(element("div", { class: "notice bad" }, element("div", { role: "alert" }, parts), line));
  return end;
}

function fieldLines(fields) {
  return Object.entries(fields).map(([name, messages]) =>
    element("p", { class: "small" }, element("code", {}, name), messages.length ? `: ${[messages].flat().join(" ")}` : " is at fault."),
  );
}

function limitLine(limit) {
  if (!limit) return null;
  const amount = (value) => (typeof value === "string" ? exactMoney(value) : count(value));
  const reset = limit.reset ? `, free again at ${moment(new Date(limit.reset * 1000), { seconds: true })}` : "";
  const whose = holder(limit, "the account") + (limit.model ? ` for ${limit.model}` : "");
  return element("p", { class: "small" }, `${words(limit.name)} of ${whose}: ${amount(limit.used)} of ${amount(limit.limit)} used${reset}.`);
}

/** Return a link from a content to the page's explanation of a code; the content alone if there is none. */
export function explain({ code, limit }, content) {
  const own = (code === "rate_limit_exceeded" && BY_LIMIT[limit?.name]) || (SAME[code] ?? code);
  const row = document.getElementById(`code-${own}`);
  if (!row) return content;
  const open = () => { document.getElementById("codes").open = true; };
  return element("a", { href: `#${row.id}`, click: open }, content);
}

function countdown(seconds, again) {
  if (!seconds) return { line: null, end: () => {} };
  const until = Date.now() + seconds * 1000;
  const left = element("strong", {});
  const button = again && element("button", { type: "button", class: "small", disabled: true, click: again }, "Send again");
  const line = element("p", { class: "actions" }, element("span", { role: "timer" }, "Try again in ", left), button);
  const tick = () => {
    const rest = (until - Date.now()) / 1000;
    left.textContent = rest > 0 ? duration(rest) : "0 s: now";
    if (rest > 0) return;
    clearInterval(timer);
    if (button) button.disabled = false;
  };
  const timer = setInterval(tick, 500);
  tick();
  return { line, end: () => clearInterval(timer) };
}
