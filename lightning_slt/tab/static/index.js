// TensorBoard's entry: it loads this module in an iframe and calls render().
import {mount} from "./app.js";
import {http} from "./source.js";

export function render() {
  document.title = "SLT";
  document.documentElement.lang = "en";
  const place = document.createElement("main");
  document.body.append(place);
  const theme = hostTheme();
  const app = mount(place, http(new URL("../", import.meta.url)), {dark: theme.dark()});
  theme.listen(() => app.setDark(theme.dark()));
  onReload(() => app.refresh());
}

// TensorBoard marks its own page with a class, and the iframe is of the same origin; elsewhere the system decides.
function hostTheme() {
  const body = hostBody();
  if (!body) return {dark: () => null, listen: () => {}};
  return {
    dark: () => body.classList.contains("dark-mode"),
    listen: (told) => new MutationObserver(told).observe(body, {attributes: true, attributeFilter: ["class"]}),
  };
}

function hostBody() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null; // a page of another origin, as in notebooks
  }
}

// TensorBoard's messages to plugins: JSON over a port that the guest hands to the host; each wants a reply.
function onReload(told) {
  if (window.parent === window) return;
  const {port1, port2} = new MessageChannel();
  port1.onmessage = ({data}) => {
    const message = JSON.parse(data);
    if (message.isReply) return;
    if (message.type === "experimental.DataReloaded") told();
    port1.postMessage(JSON.stringify({type: message.type, id: message.id, payload: null, error: null, isReply: true}));
  };
  window.parent.postMessage("experimental.bootstrap", "*", [port2]);
}
