/** The admin's story: uploads a login, lists hosts page by page, reads the audit log, rotates a key, rolls back. */
import assert from "node:assert/strict";
import { ApiError, connect, document, pages, value } from "codex-authd-client";
import { environment } from "./environment.js";

const { adminUrl, hostsUrl, ca, certificate, login, renewed } = environment();
const admin = connect({ baseUrl: adminUrl, ca, certificate });

const first = value(await admin.POST("/admin/auth/upload", { body: { auth_text: login } }));
const second = value(await admin.POST("/admin/auth/upload", { body: { auth_text: renewed } }));
assert.ok(second.canonical_digest);
assert.notEqual(second.canonical_digest, first.canonical_digest);

const register = async (fqdn: string) => value(await admin.POST("/admin/hosts/register", { body: { fqdn } })).host;
const hosts = [];
for (let number = 0; number < 5; number++) hosts.push(await register(`page-${number}.example.com`));

const seen: string[] = [];
for await (const page of pages((page) =>
  admin.GET("/admin/hosts", { params: { query: { limit: 2, ...page } } }),
)) {
  assert.ok(page.hosts.length <= 2);
  seen.push(...page.hosts.map((host) => host.fqdn));
}
assert.equal(new Set(seen).size, seen.length);
for (const host of hosts) assert.ok(seen.includes(host.fqdn));

// Registering a host again gives it a new key; the old one is refused at once.
const rotated = await register("page-4.example.com");
const former = hosts[4];
assert.ok(former);
assert.equal(rotated.id, former.id);
await assert.rejects(
  document(connect({ baseUrl: hostsUrl, ca, apiKey: former.api_key })),
  (refused) => refused instanceof ApiError && refused.status === 401,
);

const actions: string[] = [];
for await (const page of pages((page) =>
  admin.GET("/admin/audit", { params: { query: { limit: 3, ...page } } }),
)) {
  actions.push(...page.entries.map((entry) => entry.action));
}
assert.ok(actions.length >= hosts.length + 3);

const versions = [];
for await (const page of pages((page) =>
  admin.GET("/admin/auth/history", { params: { query: { limit: 1, ...page } } }),
)) {
  versions.push(...page.versions);
}
const old = versions.find((version) => version.digest === first.canonical_digest);
assert.ok(old);
const back = value(await admin.POST("/admin/auth/rollback", { body: { version: old.version } }));
assert.ok(back.version.version > old.version);

for (const { id, fqdn } of hosts) {
  assert.equal(value(await admin.DELETE("/admin/hosts/{id}", { params: { path: { id } } })).deleted, fqdn);
}
const gone = await admin.GET("/admin/hosts/{id}", { params: { path: { id: rotated.id } } });
assert.throws(
  () => value(gone),
  (refused) => refused instanceof ApiError && refused.status === 404 && refused.code !== "",
);
