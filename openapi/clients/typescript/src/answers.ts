/** What the daemon answers: the value, the error, the pages of a list. */
import type { components } from "./schema.js";

export type ErrorBody = components["schemas"]["ErrorBody"];

/** What a call of the client returns. */
export interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

export interface Page {
  next?: string | null;
}

/** The daemon refused, or something in front of it answered. */
export class ApiError extends Error {
  /** The HTTP status. */
  readonly status: number;
  /** Stable, for programs; "" if the answer is not the daemon's. */
  readonly code: string;
  /** The reasons for each wrong member of the request. */
  readonly errors: Readonly<Record<string, readonly string[]>>;
  /** Seconds to wait before the next attempt, if the daemon said so. */
  readonly retryAfter: number | undefined;

  /** body: what the daemon said, or words for what did not come from it. */
  constructor(status: number, body: ErrorBody | string) {
    const said: Pick<ErrorBody, "code" | "message" | "errors" | "retry_after"> =
      typeof body === "string" ? { code: "", message: body } : body;
    const errors = said.errors ?? {};
    const reasons = Object.entries(errors).map(([member, wrong]) => `; ${member}: ${wrong.join(", ")}`);
    super(`${status} ${said.code}: ${said.message}${reasons.join("")}`);
    this.name = "ApiError";
    this.status = status;
    this.code = said.code;
    this.errors = errors;
    this.retryAfter = said.retry_after ?? undefined;
  }
}

function isErrorBody(body: unknown): body is ErrorBody {
  if (typeof body !== "object" || body === null) return false;
  return "status" in body && body.status === "error" && "code" in body && "message" in body;
}

export function failure(status: number, body: unknown): ApiError {
  return new ApiError(status, isErrorBody(body) ? body : "the answer is not the daemon's");
}

/** The `data` of an answer; throws ApiError for every other answer. */
export function value<T>(answer: Answer<{ data: T }>): T {
  if (answer.data === undefined) throw failure(answer.response.status, answer.error);
  return answer.data.data;
}

/** Fetches page after page; `fetch` gets the query of the page: {}, then the cursor that was `next` of the page before. */
export async function* pages<P extends Page>(
  fetch: (query: { cursor?: string }) => Promise<Answer<{ data: P }>>,
): AsyncGenerator<P, void, void> {
  let query: { cursor?: string } | undefined = {};
  while (query !== undefined) {
    const page: P = value(await fetch(query));
    yield page;
    query = page.next == null ? undefined : { cursor: page.next };
  }
}
