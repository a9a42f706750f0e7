// Messages of the server: the length of a JSON header (uint32, little-endian), the header, the bytes it announces.

export async function* messages(path, query, signal) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`, { signal });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `the server answered ${answer.status}`);
  const reader = answer.body.getReader();
  const parts = [];
  let have = 0;

  async function take(count) {
    while (have < count) {
      const { done, value } = await reader.read();
      if (done) return null;
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

  for (;;) {
    const length = await take(4);
    if (!length) return;
    const header = JSON.parse(new TextDecoder().decode(await take(new DataView(length.buffer).getUint32(0, true))));
    if (header.kind === "error") throw new Error(header.text);
    header.body = await take(header.bytes);
    if (!header.body) throw new Error("the server ended in the middle; is it still running?");
    yield header;
  }
}
