// The live view as a page of its own. Its address may say knobs, such as ?embed&peclet=500&picture=Bands.

import { KNOBS, mount } from "./live.js";
import { PATTERNS } from "./patterns.js";

const asked = new URLSearchParams(location.search), { embed, picture, paused, size, ...knobs } = Object.fromEntries(asked);
const pictures = globalThis.PICTURES ?? {};
document.body.classList.toggle("embed", embed !== undefined);
const all = new Map(Object.entries({ ...pictures, ...PATTERNS })), [first] = all.values();

// The address says what is seen; seldom enough for browsers that count how often it changes.
let later;
function changed(knobs) {
  for (const [name, value] of Object.entries(knobs))
    value === String(KNOBS[name] ?? "") ? asked.delete(name) : asked.set(name, value);
  clearTimeout(later);
  later = setTimeout(() => {
    history.replaceState(null, "", asked.size ? `?${asked}` : location.pathname);
    whole();
  }, 300);
}

const options = { knobs, pictures, changed, paused: paused === undefined ? undefined : true, size: Number(size) || undefined };
window.live = mount(document.getElementById("live"), all.get(picture) ?? first, options);
if (embed !== undefined) {
  const link = Object.assign(document.createElement("a"), { target: "_blank", textContent: "All knobs" });
  document.querySelector(".live-bar").append(link);
}
whole();

// From a page within another one to the page of its own.
function whole() {
  const link = document.querySelector(".live-bar a"), address = new URL(location.href);
  address.searchParams.delete("embed");
  if (link) link.href = address;
}
