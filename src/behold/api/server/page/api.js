// The server, as any other client of the OpenAI API sees it. Addresses are relative, so a proxy may add a prefix.

const KEY = "behold-api-key";

export const getKey = () => sessionStorage.getItem(KEY);
export const setKey = (key) => sessionStorage.setItem(KEY, key);

/** A request that failed. status 0: no answer came at all. title: what happened, in plain words. */
export class ApiError extends Error {
  constructor(status, { message = "", param = null, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  get title() {
    if (this.status === 0) return this.message ? "The connection was lost." : "The server cannot be reached. Is it still running?";
    if (this.status === 401) return "The server asks for a key.";
    if (this.code === "context_length_exceeded") return "This is too long for the model. Shorten it, or start a new chat.";
    if (this.status === 413) return "That is more than the server takes at once. Send fewer or smaller pictures.";
    if (this.status === 429) return `The server is busy. Try again in ${this.retryAfter ?? "a few"} seconds.`;
    if (this.status === 503) return "The server takes no requests now: it is starting or stopping.";
    if (this.status === 504) return "The answer took longer than the server allows.";
    if (this.status >= 500) return "Something went wrong on the server.";
    return "The server refused the question.";
  }
}

let askForKey = async () => false;

/** `handler(refused)` is called when a key is needed; it resolves to whether there is a new one to try. */
export const onKeyNeeded = (handler) => { askForKey = handler; };

async function call(path, { body, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (getKey()) headers["Authorization"] = `Bearer ${getKey()}`;
  const options = { headers, signal, method: body ? "POST" : "GET", body: body && JSON.stringify(body) };
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0);
  }
  if (response.status === 401 && (await askForKey(Boolean(getKey())))) return call(path, { body, signal });
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const details = { retryAfter: response.headers.get("Retry-After") };
  try {
    Object.assign(details, (await response.json()).error);
  } catch {
    details.message = response.statusText; // not from this server: a proxy in between, say
  }
  return new ApiError(response.status, details);
}

/** Names of the models; the first one answers. */
export async function models() {
  return (await (await call("v1/models")).json()).data.map((model) => model.id);
}

/** What the model is given for a conversation. */
export async function look(messages, signal) {
  return (await call("v1/behold/look", { body: { messages }, signal })).json();
}

/** The chunks of one answer, as they come. Aborting `signal` ends the work on the server too. */
export async function* ask(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", { body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.type === "timeout" ? 504 : 500, chunk.error);
    yield chunk;
  }
  throw new ApiError(0, { message: "The connection ended in the middle of the answer." });
}

/** The data of each server-sent event of a stream of bytes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (pending + value).replaceAll("\r\n", "\n").split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "The connection broke off in the middle of the answer." });
  } finally {
    reader.cancel().catch(() => {});
  }
}
