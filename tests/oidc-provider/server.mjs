// A real OpenID provider on loopback for the tests, with pages of its own that load nothing.
// `node server.mjs DIRECTORY`: where the package is installed (tests/install-oidc-provider.sh).
//
// Each line on stdin is a JSON object:
//   {"port": 0, "clients": […], "accounts": {"name": {claims}}, "keys": ["PKCS#8 PEM of an RSA key", …]}
// The first starts it; each later one replaces what it names: other keys are served from then on, the old ones gone.
// Each is answered with one line on stdout: {"issuer": "http://127.0.0.1:PORT", "kids": […]}.
// It ends with its stdin.

import { createHash, createPrivateKey, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// Whatever the package has to say is for the log; stdout is for answers.
console.log = console.info = console.error;

const installed = createRequire(`${process.argv[2]}/`).resolve('oidc-provider');
const { Provider } = await import(pathToFileURL(installed));
const { default: MemoryAdapter } = await import(new URL('adapters/memory_adapter.js', pathToFileURL(installed)));

const settings = { port: 0, clients: [], accounts: {}, keys: [] };
const cookieKeys = [randomBytes(32).toString('hex')];
let provider;
let answer;

const server = createServer((request, response) => {
  handle(request, response).catch((error) => {
    console.error(error);
    page(response, 400, 'This sign-in cannot go on', `<p>${text(error.message)}</p>`);
  });
});

async function handle(request, response) {
  if (request.url.startsWith('/interaction/')) await interact(request, response);
  else await answer(request, response);
}

/// Who are you, and may they know?
async function interact(request, response) {
  const { uid, prompt, params, session, grantId } = await provider.interactionDetails(request, response);
  if (request.method !== 'POST') {
    const client = text(params.client_id);
    const form = (fields) => `<form method="post" action="/interaction/${text(uid)}">${fields}</form>`;
    if (prompt.name === 'login') {
      return page(response, 200, 'The company: sign in', form(
        '<label for="name">User name</label> <input id="name" name="name" autocomplete="off"> <button>Sign in</button>'
        + ' <button name="refuse" value="yes">Cancel</button>'));
    }
    return page(response, 200, 'The company: consent', `<p>${client} wants to know: ${text(params.scope)}</p>` + form(
      '<button>Allow</button> <button name="refuse" value="yes">Refuse</button>'));
  }
  const fields = new URLSearchParams(await body(request));
  const finish = (result, options) => provider.interactionFinished(request, response, result, options);
  if (fields.has('refuse')) {
    return finish({ error: 'access_denied', error_description: 'the user said no' });
  }
  if (prompt.name === 'login') {
    const name = fields.get('name') ?? '';
    if (!Object.hasOwn(settings.accounts, name)) return page(response, 403, 'Nobody has this name', '<p>Go back.</p>');
    return finish({ login: { accountId: name } });
  }
  const known = grantId && await provider.Grant.find(grantId);
  const grant = known || new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope((prompt.details.missingOIDCScope ?? []).join(' '));
  grant.addOIDCClaims(prompt.details.missingOIDCClaims ?? []);
  const consent = { grantId: await grant.save() };
  return finish({ consent }, { mergeWithLastSubmission: true });
}

async function body(request) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}

function page(response, status, title, inside) {
  response.writeHead(status, {
    'content-type': 'text/html; charset=utf-8',
    'content-security-policy': "default-src 'none'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
  });
  response.end(`<!doctype html><html lang="en"><title>${title}</title><link rel="icon" href="data:,"><h1>${title}</h1>${inside}</html>`);
}

function text(value) {
  return String(value).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

/// A key's name is made from the key, so that another key has another name.
function jwk(pem) {
  const key = createPrivateKey(pem).export({ format: 'jwk' });
  return { ...key, use: 'sig', alg: 'RS256', kid: createHash('sha256').update(key.n).digest('hex').slice(0, 16) };
}

/// From here on a provider of these settings answers. Codes and sign-ins under way are in one memory for all of them.
function configure() {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const keys = settings.keys.map(jwk);
  provider = new Provider(issuer, {
    adapter: (model) => new MemoryAdapter(model),
    clients: settings.clients,
    jwks: { keys },
    cookies: { keys: cookieKeys },
    claims: { openid: ['sub'], email: ['email', 'email_verified'] },
    // The client asks for an ID token and nothing after it.
    conformIdTokenClaims: false,
    pkce: { required: () => true },
    features: { devInteractions: { enabled: false } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    findAccount: (_, id) => Object.hasOwn(settings.accounts, id)
      ? { accountId: id, claims: () => ({ sub: id, ...settings.accounts[id] }) }
      : undefined,
  });
  for (const event of ['server_error', 'authorization.error', 'grant.error', 'jwks.error', 'discovery.error']) {
    provider.on(event, (_, error) => console.error(event, error.message, error.error_detail ?? ''));
  }
  answer = provider.callback();
  process.stdout.write(`${JSON.stringify({ issuer, kids: keys.map((key) => key.kid) })}\n`);
}

for await (const line of createInterface({ input: process.stdin })) {
  Object.assign(settings, JSON.parse(line));
  if (!server.listening) await new Promise((done) => { server.listen(settings.port, '127.0.0.1', done); });
  configure();
}
process.exit(0);
