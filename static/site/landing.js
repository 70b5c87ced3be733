// The landing page: the first request in several languages.

import { showCode } from "./code.js";
import { byId } from "./dom.js";
import { snippets } from "./snippets.js";

const { model } = byId("code").dataset;
showCode(snippets(location.origin, { path: "/v1/chat/completions", headers: {}, body: { model, messages: [{ role: "user", content: "What is the capital of France?" }] } }));
