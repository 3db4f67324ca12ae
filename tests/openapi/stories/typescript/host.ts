/** The host's story: an admin registers it, it redeems its token, retrieves, stores and removes itself. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { inspect } from "node:util";
import { ApiError, connect, document, value } from "codex-authd-client";
import { environment } from "./environment.js";

const { adminUrl, hostsUrl, ca, certificate, login, renewed } = environment();
const NO_DIGEST = "0".repeat(64);

const admin = connect({ baseUrl: adminUrl, ca, certificate });
value(await admin.POST("/admin/auth/upload", { body: { auth_text: login } }));
const made = await admin.POST("/admin/hosts/register", { body: { fqdn: "ts.example.com" } });
const { host: registered, installer } = value(made);
assert.equal(registered.secure, true);
const key = registered.api_key;

const anybody = connect({ baseUrl: hostsUrl, ca });
const redeem = () => anybody.GET("/install/{token}", { params: { path: { token: installer.token } }, parseAs: "text" });
const script = await redeem();
assert.ok(script.data?.includes(key));
const again = await redeem();
assert.equal(again.response.status, 410);

const host = connect({ baseUrl: hostsUrl, ca, apiKey: key });
assert.ok(!inspect(host, { depth: 10 }).includes(key));
const answer = value(
  await host.POST("/auth", { body: { command: "retrieve", digest: NO_DIGEST, last_refresh: "2020-01-01T00:00:00Z" } }),
);
assert.equal(answer.status, "outdated");
assert.ok(answer.auth_text);
assert.equal(createHash("sha256").update(answer.auth_text).digest("hex"), answer.canonical_digest);
assert.ok(answer.api_calls >= 1);

const exact = await document(host);
assert.ok(exact);
assert.equal(new TextDecoder().decode(exact.content()), answer.auth_text);
assert.equal(exact.digest, answer.canonical_digest);
assert.equal(await document(host, exact.etag), undefined);
assert.ok(!inspect(exact, { depth: 10, showHidden: true }).includes("access_token"));

const { last_refresh } = answer.auth_text.match(/"last_refresh"\s*:\s*"(?<last_refresh>[^"]+)"/)?.groups ?? {};
assert.ok(last_refresh);
const current = value(await host.POST("/auth", { body: { command: "retrieve", digest: exact.digest, last_refresh } }));
assert.equal(current.status, "valid");

const stored = value(await host.POST("/auth", { body: { command: "store", auth_text: renewed } }));
assert.equal(stored.status, "updated");
assert.notEqual(stored.canonical_digest, exact.digest);
const newer = await document(host, exact.etag);
assert.equal(newer?.digest, stored.canonical_digest);

assert.equal(value(await host.DELETE("/auth")).deleted, "ts.example.com");
await assert.rejects(document(host), (refused) => {
  assert.ok(refused instanceof ApiError);
  assert.equal(refused.status, 401);
  assert.ok(refused.code !== "" && !refused.message.includes(key));
  return true;
});
