// Requests to the service that serves this page.

// Why the service has not done what it was asked for, in its own words.
export class Problem extends Error {
  constructor(detail, status = 0, field = "") {
    super(detail);
    this.status = status;
    this.field = field;
  }
}

export async function call(method, path, body) {
  // The header tells a request of this page from one that another site has a browser send.
  const headers = { "X-Downloader-Page": "1", ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Problem("The service does not answer.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.status === 401 && path !== "session") document.dispatchEvent(new Event("refused"));
  if (!response.ok) {
    throw new Problem(answer.detail ?? `The service answered ${response.status}.`, response.status, answer.field);
  }
  return answer;
}

export const query = (values) => new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ""));
