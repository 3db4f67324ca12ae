/** The connection: whom the client trusts, and what it shows to be let in. */
import { Agent, request } from "node:https";
import createClient, { type Client as FetchClient } from "openapi-fetch";
import type { paths } from "./schema.js";

export type Client = FetchClient<paths>;

export interface Options {
  /** The listener's address, such as https://auth.example.com:8443. */
  baseUrl: string;
  /** PEM text of the only authority that is trusted (server-ca.crt). Left out: those that Node.js trusts. */
  ca?: string | Buffer;
  /** PEM texts of an admin's certificate and its private key, for the admin listener. */
  certificate?: { cert: string | Buffer; key: string | Buffer };
  /** Of a signed-in user. Give this or `apiKey`, not both. */
  accessToken?: string;
  /** Of a host. */
  apiKey?: string;
  /** Milliseconds without a byte until a request fails. */
  timeoutMs?: number;
}

const DEFAULT_TIMEOUT_MS = 60_000;

export function connect(options: Options): Client {
  if (options.accessToken !== undefined && options.apiKey !== undefined) {
    throw new TypeError("give an access token or an API key, not both");
  }
  const token = options.accessToken ?? options.apiKey;
  const agent = new Agent({
    keepAlive: true,
    ...(options.ca === undefined ? {} : { ca: options.ca }),
    ...options.certificate,
  });
  const timeout = options.timeoutMs ?? DEFAULT_TIMEOUT_MS;
  return createClient<paths>({
    baseUrl: options.baseUrl.replace(/\/+$/, ""),
    fetch: (asked) => send(asked, agent, token, timeout),
  });
}

/** Node's fetch takes neither an authority nor a client certificate; node:https does. Redirects are not followed. */
async function send(asked: Request, agent: Agent, token: string | undefined, timeout: number): Promise<Response> {
  const body = Buffer.from(await asked.arrayBuffer());
  const headers: Record<string, string> = Object.fromEntries(asked.headers);
  if (token !== undefined) headers["authorization"] = `Bearer ${token}`;
  if (body.length > 0) headers["content-length"] = String(body.length);
  return new Promise((resolve, reject) => {
    const how = { method: asked.method, headers, agent, timeout, signal: asked.signal };
    const call = request(asked.url, how, (answer) => {
      const chunks: Buffer[] = [];
      answer.on("data", (chunk: Buffer) => chunks.push(chunk));
      answer.on("error", reject);
      answer.on("end", () => {
        const status = answer.statusCode ?? 0;
        const bodyless = status === 204 || status === 304;
        const received = new Headers();
        for (const [name, values] of Object.entries(answer.headersDistinct)) {
          for (const one of values ?? []) received.append(name, one);
        }
        resolve(new Response(bodyless ? null : Buffer.concat(chunks), { status, headers: received }));
      });
    });
    call.on("timeout", () => call.destroy(new Error(`no answer within ${timeout} ms`)));
    call.on("error", reject);
    call.end(body);
  });
}
