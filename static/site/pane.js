// One model's answer in the playground: its text as it arrives, its cost, times and limits, and the turns before it.

import { readAnswer, recordOf } from "./answers.js";
import { byId, copy, element } from "./dom.js";
import { exactMoney, exactly, milliseconds, money, moment, UNKNOWN } from "./format.js";
import { markdown } from "./markdown.js";
import { showRefusal } from "./refusals.js";
import { Refusal, send } from "./service.js";

/** Milliseconds between two renderings of an answer that is being written: each parses all of it. */
const RENDER_MS = 100;
/** Descriptions of cache outcomes. */
const OUTCOMES = {
  HIT: "from the cache, free",
  MISS: "asked the model",
  COALESCED: "shared with an identical request, free",
  BYPASS: "cache not used",
};

/** Facts with a line of their own. */
const WHOLE = ["Cache", "Model", "Request id"];

export class Pane {
  /** @param {string} suffix of the ids of its elements. @param {() => void} again sends the request once more. */
  constructor(suffix, again) {
    this.part = (name) => byId(`${name}${suffix}`);
    this.again = again;
    this.turns = []; // earlier questions and answers, which the model gets as well
    this.text = "";
    this.latest = null; // the request whose facts are shown
    this.endCountdown = () => {};
    this.part("copy-answer").addEventListener("click", () => copy(this.text, this.part("answer-copied")));
    this.showFacts(new Headers(), {});
  }

  say(text) {
    this.part("status").textContent = text;
  }

  /** Remove the last failure. */
  clearFailure() {
    this.endCountdown();
    this.part("failure").replaceChildren();
  }

  /** Forget all turns. */
  clear() {
    this.turns = [];
    this.text = "";
    this.latest = null;
    this.showTurns();
    this.clearFailure();
    this.part("answer").replaceChildren();
    this.showFacts(new Headers(), {});
    for (const name of ["limits", "copy-answer"]) this.part(name).hidden = true;
    this.say("");
  }

  /** Send a request, show what comes, and return whether it was answered. */
  async ask(asked, { key, signal, question }) {
    this.begin(signal, question);
    const clock = { began: performance.now(), first: null };
    let answer = null;
    try {
      answer = await send(asked.path, { key, method: "POST", headers: asked.headers, body: asked.body, signal });
      this.showLimits(answer.headers);
      const { tokens } = await readAnswer(answer, (text) => this.write(text, clock));
      this.tell(answer, { tokens, first: clock.first, total: performance.now() - clock.began }, { key, signal });
      return true;
    } catch (error) {
      this.fail(error, answer, clock);
      return false;
    } finally {
      this.show();
      this.part("answer").setAttribute("aria-busy", "false");
      this.part("copy-answer").hidden = !this.text;
    }
  }

  begin(signal, question) {
    this.latest = signal;
    this.text = "";
    this.clearFailure();
    this.showTurns(question);
    this.part("answer").replaceChildren();
    this.showFacts(new Headers(), {});
    this.part("copy-answer").hidden = true;
    this.part("answer").setAttribute("aria-busy", "true");
    this.part("answer").hidden = false;
    this.part("talk").scrollTop = this.part("talk").scrollHeight;
    this.say("Waiting for the answer…");
  }

  /** Show the earlier turns, and the question that is being asked. */
  showTurns(question = null) {
    const asked = (text) => element("p", { class: "question" }, element("span", { class: "hidden-label" }, "You: "), text);
    const earlier = this.turns.flatMap((turn) => [asked(turn.question), element("div", { class: "prose" }, markdown(turn.answer))]);
    this.part("turns").replaceChildren(...earlier, ...(question === null ? [] : [asked(question)]));
  }

  write(text, clock) {
    if (!text) return;
    if (clock.first === null) {
      clock.first = performance.now() - clock.began;
      this.say("Answering…");
    }
    this.text += text;
    this.timer ??= setTimeout(() => this.show(), RENDER_MS);
  }

  /** Render the text so far; an answer that is read at its end stays there. */
  show() {
    clearTimeout(this.timer);
    this.timer = null;
    const box = this.part("talk");
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 30;
    this.part("answer").replaceChildren(...markdown(this.text));
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  /** Show the facts at once, then complete them from the usage record: a stream's headers don't have its cost. */
  async tell(answer, { tokens, first, total }, { key, signal }) {
    const { headers } = answer;
    const cost = headers.get("X-Cost-USD");
    this.say(`Answered in ${milliseconds(total)}.`);
    this.showFacts(headers, { tokens, cost, first, total });
    if (cost !== null && tokens) return;
    const record = await recordOf(headers.get("X-Request-ID"), key);
    if (!record || this.latest !== signal) return;
    const counted = { input: record.input_tokens, output: record.output_tokens, total: record.input_tokens + record.output_tokens };
    this.showFacts(headers, { tokens: tokens ?? counted, cost: cost ?? record.cost, first, total, isUnpriced: record.cost === null });
  }

  showFacts(headers, { tokens, cost, first, total, isUnpriced = false }) {
    const outcome = headers.get("X-Cache");
    const detail = tokens?.input === undefined ? null : `${exactly(tokens.input)} in, ${exactly(tokens.output)} out`;
    const facts = [
      ["Tokens", exactly(tokens?.total), detail],
      isUnpriced ? ["Cost", "unknown", "the model has no price"] : ["Cost", money(cost), money(cost) === exactMoney(cost) ? null : exactMoney(cost)],
      ["First token", milliseconds(first)],
      ["Total", milliseconds(total)],
      ["Cache", outcome ?? UNKNOWN, OUTCOMES[outcome]],
      ["Model", headers.get("X-Model") ?? UNKNOWN, headers.get("X-Fallback") === "true" ? "a fallback answered" : null],
      ["Request id", headers.get("X-Request-ID") ?? UNKNOWN],
    ];
    const lines = facts.map(([name, value, more]) =>
      element("div", { class: WHOLE.includes(name) && "whole" }, element("dt", {}, name), element("dd", {}, value, more && element("small", {}, more))),
    );
    this.part("facts").replaceChildren(...lines);
  }

  showLimits(headers) {
    const told = [...headers].filter(([name]) => /^(x-)?ratelimit/.test(name));
    const reset = (name, value) => (name === "x-ratelimit-reset" ? ` (${moment(new Date(Number(value) * 1000), { seconds: true })})` : null);
    const rows = told.map(([name, value]) =>
      element("tr", {}, element("th", { scope: "row" }, element("code", {}, name)), element("td", {}, value, reset(name, value))),
    );
    this.part("limit-rows").replaceChildren(...rows);
    this.part("limits").hidden = rows.length === 0;
  }

  fail(error, answer, clock) {
    const total = milliseconds(performance.now() - clock.began);
    if (error.name === "AbortError") {
      this.say(`Stopped after ${total}. What was written until then is billed.`);
      return;
    }
    const refusal = error instanceof Refusal ? error : new Refusal("The answer broke off.", { code: "unreachable", requestId: answer?.headers.get("X-Request-ID") });
    this.say(`Failed after ${total}.`);
    if (refusal.requestId) this.showFacts(answer?.headers ?? new Headers({ "X-Request-ID": refusal.requestId }), {});
    this.part("answer").hidden = !this.text;
    this.endCountdown = showRefusal(this.part("failure"), refusal, { again: this.again });
    this.show();
    this.part("talk").scrollTop = this.part("talk").scrollHeight; // the reason is at the end
  }
}
