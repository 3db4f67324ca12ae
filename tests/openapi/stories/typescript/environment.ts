/** What the stories are given: tests/openapi/stories.py sets it. */
import { readFileSync } from "node:fs";

export function environment() {
  const given = (name: string): string => {
    const text = process.env[name];
    if (text === undefined) throw new Error(`${name} is not set`);
    return text;
  };
  const file = (name: string): string => readFileSync(given(name), "utf8");
  return {
    adminUrl: given("AUTHD_ADMIN_URL"),
    hostsUrl: given("AUTHD_HOSTS_URL"),
    ca: file("AUTHD_CA"),
    certificate: { cert: file("AUTHD_CERTIFICATE"), key: file("AUTHD_KEY") },
    login: file("AUTHD_LOGIN"),
    renewed: file("AUTHD_RENEWED_LOGIN"),
  };
}
