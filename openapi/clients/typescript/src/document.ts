/** The canonical login, byte for byte. JSON libraries change spaces and numbers; its digest then no longer matches. */
import { createHash } from "node:crypto";
import { ApiError, failure } from "./answers.js";
import type { Client } from "./connection.js";

export class Document {
  readonly #content: Uint8Array;
  /** For the next call of `document`. */
  readonly etag: string;
  /** The SHA-256 of the bytes, in lower-case hex digits. */
  readonly digest: string;

  constructor(content: Uint8Array, digest: string) {
    this.#content = content;
    this.etag = `"${digest}"`;
    this.digest = digest;
  }

  /** A private field behind it: neither console.log nor JSON.stringify shows the login. */
  content(): Uint8Array {
    return this.#content;
  }
}

/** Fetches the login of the host whose API key the client has. undefined: it is still the one with this `etag`. */
export async function document(client: Client, etag?: string): Promise<Document | undefined> {
  const { data, error, response } = await client.GET("/auth/document", {
    parseAs: "arrayBuffer",
    ...(etag === undefined ? {} : { headers: { "If-None-Match": etag } }),
  });
  if (response.status === 304) return undefined;
  if (data === undefined) throw failure(response.status, error);
  const content = new Uint8Array(data);
  const digest = createHash("sha256").update(content).digest("hex");
  if (response.headers.get("ETag") !== `"${digest}"`) {
    throw new ApiError(response.status, "the document is not the one that its ETag names");
  }
  return new Document(content, digest);
}
