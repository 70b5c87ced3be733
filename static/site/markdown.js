// Markdown as DOM nodes, from the tokens of marked. Nothing is parsed as HTML: HTML in a text stays text.

import { copy, element } from "./dom.js";
import { lexer } from "./marked.js";

const SAFE_LINK = /^(https?:|mailto:)/i;
const INLINE = { strong: "strong", em: "em", del: "del" };

/** Return the nodes of a text; if it can't be parsed, the text itself. */
export function markdown(text) {
  try {
    return nodes(lexer(text, { gfm: true, breaks: true }));
  } catch {
    return [text];
  }
}

const nodes = (tokens) => tokens.flatMap(node);
const content = (token) => (token.tokens ? nodes(token.tokens) : [token.text ?? token.raw]);

function node(token) {
  switch (token.type) {
    case "space":
    case "def":
      return [];
    case "paragraph":
      return element("p", {}, content(token));
    case "heading": // the page's own headings are above
      return element(`h${Math.min(6, token.depth + 2)}`, {}, content(token));
    case "code":
      return codeBlock(token.text, token.lang);
    case "blockquote":
      return element("blockquote", {}, content(token));
    case "list":
      return element(token.ordered ? "ol" : "ul", { start: token.ordered && token.start !== 1 && token.start }, token.items.map((each) => element("li", {}, content(each))));
    case "checkbox":
      return element("input", { type: "checkbox", disabled: true, checked: token.checked, "aria-label": "Done" });
    case "table":
      return tableOf(token);
    case "hr":
    case "br":
      return element(token.type);
    case "strong":
    case "em":
    case "del":
      return element(INLINE[token.type], {}, content(token));
    case "codespan":
      return element("code", {}, token.text);
    case "link":
      return link(token.href, content(token));
    case "image": // pages load nothing from other hosts
      return link(token.href, [token.text || token.href]);
    case "html":
      return [token.raw];
    default:
      return content(token);
  }
}

const link = (href, children) => (SAFE_LINK.test(href) ? element("a", { href, rel: "noopener noreferrer", target: "_blank" }, children) : children);

function codeBlock(text, language) {
  const told = element("span", { class: "small quiet", role: "status" });
  const button = element("button", { type: "button", class: "small", click: () => copy(text, told) }, "Copy");
  return element(
    "div",
    { class: "code-block" },
    element("div", { class: "actions" }, element("span", { class: "small quiet" }, language || "code"), told, button),
    element("pre", { tabindex: "0" }, element("code", {}, text)),
  );
}

function tableOf({ header, rows }) {
  const row = (tag, cells) => element("tr", {}, cells.map((cell) => element(tag, { class: cell.align === "right" && "number" }, content(cell))));
  return element(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" },
    element("table", {}, element("thead", {}, row("th", header)), element("tbody", {}, rows.map((cells) => row("td", cells)))),
  );
}
