// Forecast of the monthly budgets of the key and its account, at the pace of the last seven days.

const DAY = 86_400_000;
const PACE_DAYS = 7;
const AMOUNTS = { monthly_cost: (each) => Number(each.cost), monthly_tokens: (each) => each.input_tokens + each.output_tokens };

/** Return the days (UTC) whose usage gives the pace. */
export function paceRange(now = new Date()) {
  const today = new Date(now).setUTCHours(0, 0, 0, 0);
  return { from: new Date(today - (PACE_DAYS - 1) * DAY), to: new Date(today + DAY) };
}

/**
 * Return forecasts of a /usage answer's budgets: a map from the limit to `{expected, ends, reachedAt}`.
 *
 * `pace` is the usage by day and key of `paceRange`; null gives no forecast. A budget for one model, or of a key that made this one, has none.
 */
export function forecasts({ limits, key }, pace, now = Date.now()) {
  const today = new Date(now);
  const ends = Date.UTC(today.getUTCFullYear(), today.getUTCMonth() + 1, 1);
  const found = new Map();
  if (!pace) return found;
  for (const state of limits) {
    const amount = AMOUNTS[state.name];
    if (!amount || state.limit === null || state.used === null || !["key", "account"].includes(state.owner)) continue;
    const own = pace.filter((each) => amount(each) > 0 && (state.owner === "account" || each.key === key));
    const first = Math.min(now, ...own.map(({ start }) => Date.parse(start)));
    const aDay = own.reduce((sum, each) => sum + amount(each), 0) / Math.max(1, (now - first) / DAY);
    const [used, limit] = [Number(state.used), Number(state.limit)];
    const expected = used + aDay * ((ends - now) / DAY);
    found.set(state, { expected, ends, reachedAt: used < limit && limit <= expected ? now + DAY * ((limit - used) / aDay) : null });
  }
  return found;
}
