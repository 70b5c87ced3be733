// A request's page: the button that copies its id.

import { byId, copy } from "../site/dom.js";

byId("copy-id").addEventListener("click", () => copy(byId("request-id").textContent, byId("copied")));
