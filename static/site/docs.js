// Swagger UI with the site's key field instead of its own authorizations, in the reader's light or dark.

import { byId } from "./dom.js";
import { onKey } from "./key.js";

/* global SwaggerUIBundle */

let key = "";

const nothing = () => () => null;
const dressing = { wrapComponents: { authorizeBtn: nothing, authorizeOperationBtn: nothing, InfoContainer: nothing, ServersContainer: nothing } };

/** Send the key in the one header that the curl line shows, and no cookies. */
function withKey(request) {
  if (request.loadSpec) return request;
  if (key) request.headers["X-API-Key"] = key;
  request.credentials = "omit";
  return request;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const dress = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", dress);
dress();
/** Name the fields that Swagger UI leaves without a name. */
function nameFields() {
  for (const field of byId("swagger-ui").querySelectorAll("select:not([aria-label]), textarea:not([aria-label])")) {
    field.setAttribute("aria-label", field.tagName === "SELECT" ? "Example" : "Request body");
  }
}

new MutationObserver(nameFields).observe(byId("swagger-ui"), { childList: true, subtree: true });
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  tryItOutEnabled: true,
  defaultModelsExpandDepth: -1,
  syntaxHighlight: { activated: false },
  plugins: [() => dressing],
  requestInterceptor: withKey,
});
onKey((entered) => {
  key = entered;
  byId("status").textContent = "Requests from this page are sent with your key.";
  return true;
});
