// Calls of the server's API, with errors that a person can read.

export const BASE = "/console/api/v1";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let signedOut = () => {};

export function onSignedOut(callback) {
  signedOut = callback;
}

export async function send(method, path, { body, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(BASE + path, {
      method,
      body,
      signal,
      credentials: "same-origin",
      headers: method === "GET" ? headers : { ...headers, "X-Torchmar-Console": "1" },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. It may have been stopped.");
  }
  if (response.ok) return response;
  const text = await response.text();
  const message = messageOf(text) || `The server answered with status ${response.status}.`;
  if (response.status === 401 && path !== "/sign-in") signedOut(message);
  const error = new ApiError(response.status, message);
  error.response = response;
  error.text = text;
  throw error;
}

export const get = async (path, options) => (await send("GET", path, options)).json();

export const post = async (path, document) =>
  (await send("POST", path, { body: JSON.stringify(document), headers: { "Content-Type": "application/json" } })).json();

// A call of the management API, with its own parameters.
export async function manage(method, path, parameters = {}) {
  const query = new URLSearchParams(parameters).toString();
  return (await send(method, `/management${path}${query ? `?${query}` : ""}`)).json();
}

export const part = encodeURIComponent;

function messageOf(text) {
  try {
    const document = JSON.parse(text);
    return String(document.message || document.error || "");
  } catch {
    return "";
  }
}
