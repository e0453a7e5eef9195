// A certified OpenID provider on loopback, for the tests of OAuthService.
//
// Whoever types a name at its login page is that person; a name that starts with "unverified"
// has an e-mail address that nobody verified. Usage: node provider.mjs <port> <settings as JSON>
import { generateKeyPairSync } from 'node:crypto';
import { Provider } from 'oidc-provider';

const [port, settings] = [Number(process.argv[2]), JSON.parse(process.argv[3])];
const issuer = `http://127.0.0.1:${port}`;

function key(kid, alg, type, options) {
  const { privateKey } = generateKeyPairSync(type, options);
  return { ...privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' };
}

// New keys at every start: a restart is a rotation.
const kid = settings.kid ?? 'first';
const keys = [
  key(`${kid}-rsa`, 'RS256', 'rsa', { modulusLength: 2048 }),
  key(`${kid}-ec`, 'ES256', 'ec', { namedCurve: 'P-256' }),
  key(`${kid}-okp`, 'EdDSA', 'ed25519'),
];

const provider = new Provider(issuer, {
  clients: settings.clients,
  jwks: { keys },
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'EdDSA', 'HS256'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name'] },
  // With it, e-mail addresses come from the userinfo endpoint alone, as the standard has it.
  conformIdTokenClaims: settings.userinfo ?? false,
  pkce: { required: () => true },
  cookies: { keys: ['the cookies of a test'] },
  features: { devInteractions: { enabled: true } },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({
      sub: id,
      name: id,
      email: `${id}@example.com`,
      email_verified: !id.startsWith('unverified'),
    }),
  }),
});

provider.listen(port, '127.0.0.1', () => console.log('ready'));
