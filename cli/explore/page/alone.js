// The live view as a page of its own. Its address may say knobs, such as ?embed&peclet=500&picture=Bands.

import { mount } from "./live.js";
import { PATTERNS } from "./patterns.js";

const { embed, picture, paused, size, ...knobs } = Object.fromEntries(new URLSearchParams(location.search));
const pictures = globalThis.PICTURES ?? {};
document.body.classList.toggle("embed", embed !== undefined);
const all = new Map(Object.entries({ ...pictures, ...PATTERNS })), [first] = all.values();
const options = { knobs, pictures, paused: paused === undefined ? undefined : true, size: Number(size) || undefined };
window.live = mount(document.getElementById("live"), all.get(picture) ?? first, options);
if (embed !== undefined) {
  const link = document.createElement("a");
  Object.assign(link, { href: location.pathname, target: "_blank", textContent: "All knobs" });
  document.querySelector(".live-bar").append(link);
}
