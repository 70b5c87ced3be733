// Formatting of numbers and times for all pages. The exact value of a rounded one is in its element's title.

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 });

export const UNKNOWN = "–";

/** Format a count as 1,204 or 1.2 M; null as a dash. */
export function count(number) {
  if (number === null || number === undefined) return UNKNOWN;
  return Math.abs(number) < 10_000 ? WHOLE.format(number) : SHORT.format(number).replace(/([A-Z])$/, " $1");
}

/** Format a count with all its digits. */
export const exactly = (number) => (number === null || number === undefined ? UNKNOWN : WHOLE.format(number));

/** Format US dollars (number or text) as $12.34; amounts below ten cents with two significant digits. */
export function money(dollars) {
  if (dollars === null || dollars === undefined) return UNKNOWN;
  const value = Number(dollars);
  if (value === 0 || Math.abs(value) >= 0.1) {
    return value >= 100_000 ? `$${count(value)}` : `$${value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
  }
  return value < 1e-9 ? "$0.00" : `$${value.toFixed(Math.min(9, 1 - Math.floor(Math.log10(value))))}`;
}

/** Format US dollars (text with nine decimals) with all significant decimals. */
export const exactMoney = (dollars) => (dollars === null || dollars === undefined ? UNKNOWN : `$${String(dollars).replace(/(\.\d\d\d*?)0+$/, "$1")}`);

/** Format the cost of requests, some of which may have no price: `$1.20`, `at least $1.20`, or `unknown`. */
export function knownMoney({ cost, unpriced_requests: unpriced }, write = money) {
  if (!unpriced) return write(cost);
  return cost === null ? "unknown" : `at least ${write(cost)}`;
}

/** Format milliseconds as 340 ms or 1.25 s; null as a dash. */
export function milliseconds(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  return ms < 1000 ? `${ms < 10 ? Number(ms.toFixed(1)) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
}

/** Format a percentile, which is within 5 %, with two digits: ~340 ms, ~1.3 s; null as a dash. */
export function aboutMilliseconds(ms) {
  if (ms === null || ms === undefined) return UNKNOWN;
  const rounded = Number(ms.toPrecision(2));
  return rounded < 1000 ? `~${rounded} ms` : `~${rounded / 1000} s`;
}

/** Format a share of 1 as 36 % or 36.4 %; null as a dash. */
export const percent = (share) => (share === null || share === undefined ? UNKNOWN : `${Number((share * 100).toFixed(1))} %`);

/** The browser's time zone (IANA name). */
export const TIME_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/** Format a time in the local zone, with the date unless it is today. */
export function moment(date, { seconds = false, timeZone = undefined } = {}) {
  const time = { hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined, hourCycle: "h23", timeZone };
  const day = (of) => of.toLocaleDateString("en-CA", { timeZone });
  const isToday = day(date) === day(new Date());
  return date.toLocaleString("en-GB", isToday ? time : { ...time, day: "numeric", month: "short", year: "numeric" });
}

/** Format seconds as 42 s, 12 min, 5 h or 6 days. */
export function duration(seconds) {
  const whole = Math.max(0, Math.ceil(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.round(whole / 60)} min`;
  return whole < 172_800 ? `${Math.round(whole / 3600)} h` : `${Math.round(whole / 86_400)} days`;
}

/** Return the readable name of a limit, column or choice: `requests_per_minute` is "requests per minute". */
export const words = (name) => String(name).replaceAll("_", " ");

/** Return the owner of a limit of /usage or of a refusal; `account` is the word for an account. */
export function holder({ owner, maker }, account) {
  if (maker) return `the key ${maker} that made this one`;
  return owner.startsWith("key") ? "this key" : account;
}
