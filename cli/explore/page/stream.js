// Messages of the server: the length of a JSON header (uint32, little-endian), the header, the bytes it announces.

import { kept } from "./store.js";

// The server ends what this page no longer wants, and is fair between pages.
const client = Array.from(crypto.getRandomValues(new Uint32Array(2)), (part) => part.toString(36)).join("");

const PATIENCE = 8; // times that a busy server is asked again, a second later each

// Add a picture; its name, height and width.
export async function send(file) {
  const headers = { "content-type": "application/octet-stream" };
  const answer = await fetch("/api/pictures", { method: "POST", body: file, headers });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

// The server, until it is not busy. It may have been started anew, or have made room: this browser still has what was dropped.
async function asked(path, query, signal) {
  for (let again = 1; ; again++) {
    const answer = await fetch(`${path}?${new URLSearchParams({ ...query, client })}`, { signal });
    const lost = answer.status === 410 && (await kept(query.picture));
    if (again === PATIENCE || !(lost || answer.status === 503)) return answer;
    await (lost ? send(lost.file) : new Promise((resolve) => setTimeout(resolve, 1000)));
  }
}

export async function* messages(path, query, signal) {
  const answer = await asked(path, query, signal);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `the server answered ${answer.status}`);
  const reader = answer.body.getReader();
  const parts = [];
  let have = 0, ended = false;

  async function take(count) {
    while (have < count) {
      const { done, value } = await reader.read();
      if ((ended = done)) return null;
      parts.push(value);
      have += value.length;
    }
    const taken = new Uint8Array(count);
    for (let filled = 0; filled < count;) {
      const part = parts[0].subarray(0, count - filled);
      taken.set(part, filled);
      filled += part.length;
      if (part.length === parts[0].length) parts.shift();
      else parts[0] = parts[0].subarray(part.length);
    }
    have -= count;
    return taken;
  }

  try {
    for (;;) {
      const length = await take(4);
      if (!length) return;
      const header = JSON.parse(new TextDecoder().decode(await take(new DataView(length.buffer).getUint32(0, true))));
      if (header.kind === "error" || header.kind === "cancelled") throw new Error(header.text);
      header.body = await take(header.bytes);
      if (!header.body) throw new Error("the server ended in the middle; is it still running?");
      yield header;
    }
  } finally {
    if (!ended) reader.cancel().catch(() => {}); // whoever has seen enough leaves
  }
}
