// Pictures that were dropped, kept in this browser: a reload, or another server, finds them again.

const MOST = 8;

const asked = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function pictures(mode) {
  const opening = indexedDB.open("beyond-blur", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "name" });
  return (await asked(opening)).transaction("pictures", mode).objectStore("pictures");
}

// A browser that keeps nothing, as in a private window, does without.
export async function keep(name, file) {
  try {
    const store = await pictures("readwrite");
    await asked(store.put({ name, file, title: file.name, at: Date.now() }));
    const all = await asked(store.getAll());
    for (const old of all.sort((a, b) => b.at - a.at).slice(MOST)) store.delete(old.name);
  } catch (error) {
    console.info("the picture is not kept:", error);
  }
}

// {file, title}, or undefined.
export async function kept(name) {
  try {
    return await asked((await pictures("readonly")).get(name));
  } catch {
    return undefined;
  }
}
