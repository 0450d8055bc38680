// What the page asks of its server.

export class Refused extends Error {}

const GONE = "The page's server does not answer. Is `ccsnet app` still running?";
const POLL = 120; // Milliseconds between two looks at a job.

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(GONE);
  }
  if (answer.ok) return answer;
  let text = `The server answered ${answer.status}.`;
  try {
    text = (await answer.json()).error ?? text;
  } catch {
    // It was no JSON: the number must do.
  }
  throw new Refused(text);
}

export const askJson = async (path, options) => (await ask(path, options)).json();

// Where an image comes from: what the gallery and the picture both begin a job with.

export function fromExample(number, name) {
  return { name, begin: (query) => post(`/api/examples/${number}`, query) };
}

export function fromFolder(number, name) {
  return { name, begin: (query) => post(`/api/folder/${number}`, query) };
}

export function fromFile(file, about) {
  const begin = (query) => {
    if (file.size > about.max_bytes) {
      const limit = Math.round(about.max_bytes / 2 ** 20);
      throw new Refused(
        `${Math.ceil(file.size / 2 ** 20)} MiB are too many, at most ${limit} are taken ` +
          "(--max-megabytes). Make it smaller, or cut it into tiles.",
      );
    }
    return post("/api/images", { ...query, name: file.name }, file);
  };
  return { name: file.name || "pasted image", begin };
}

async function post(path, query, body) {
  const type = { "Content-Type": "application/octet-stream" };
  const options = { method: "POST", body, headers: body ? type : {} };
  return (await askJson(`${path}?${new URLSearchParams(query)}`, options)).job;
}

// The end of a job; `tell` hears how far it is. Cancelled: null, without waiting for its end.
export async function follow(job, tell, signal) {
  const cancel = () => ask(`/api/jobs/${job}/cancel`, { method: "POST" }).catch(() => {});
  signal?.addEventListener("abort", cancel, { once: true });
  if (signal?.aborted) cancel();
  for (;;) {
    const { state, done, total, error, result } = await askJson(`/api/jobs/${job}`);
    if (signal?.aborted) return null;
    if (state === "done") return result;
    if (state === "failed") throw new Refused(error);
    if (state === "cancelled") return null;
    tell(state, done, total);
    await new Promise((wake) => setTimeout(wake, POLL));
  }
}

// The picture, and of every model the class and the confidence of its pixels.
export async function pixelsOf(facts) {
  const base = `/api/results/${facts.id}`;
  const picture = ask(`${base}/image`).then(async (answer) =>
    createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" }),
  );
  const views = facts.views.map(async (view, index) => {
    const [label, confidence] = await Promise.all(
      ["label", "confidence"].map(async (kind) =>
        (await ask(`${base}/${index}/${kind}`)).arrayBuffer(),
      ),
    );
    const Labels = view.bytes === 1 ? Uint8Array : Uint16Array;
    return { label: new Labels(label), confidence: new Uint8Array(confidence) };
  });
  return { picture: await picture, views: await Promise.all(views) };
}
