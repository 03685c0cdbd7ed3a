// The frame of a client program: it runs the features of one client, and prints a line of JSON for each.
import { readFileSync } from 'node:fs';

export const URL = process.env.BASE_URL;
export const BASE = `${URL}/v1`;
export const KEY = 'sk-client-1234';
export const MODEL = 'mock-model';

// rules.toml answers these.
export const HELLO = 'Please say hello.';
export const GREETING = 'Hello from the mock.';
export const WEATHER = 'How is the weather in Paris?';
export const FORECAST = 'The weather: sunny in Paris';
export const ADA = 'Ada is 36 years old.';
export const FAIL = 'Please fail.';
export const REFUSAL = 'The backend refuses this.';
export const BREAK = 'Please break off.'; // an error in the middle of a stream
export const BROKEN = 'The server had an error while processing your request.';
export const weatherSchema = {
  type: 'object',
  properties: { city: { type: 'string' } },
  required: ['city'],
  additionalProperties: false,
};

export function same(found, expected) {
  if (JSON.stringify(found) !== JSON.stringify(expected)) {
    throw new Error(`got ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
  }
}

// The exception of a client contains the message of the backend.
export async function raisesRefusal(call, message = REFUSAL) {
  try {
    await call();
  } catch (error) {
    if (String(error?.message ?? error).includes(message)) return;
    throw new Error(`the exception has another message: ${error}`);
  }
  throw new Error('no exception');
}

export async function joined(texts) {
  let all = '';
  for await (const text of texts) all += text;
  return all;
}

function versionOf(name) {
  const file = `${process.env.CLIENT_MODULES}/${name}/package.json`;
  return JSON.parse(readFileSync(file, 'utf8')).version;
}

// Run each feature; its name is that of its column in the table.
export async function run(client, name, features) {
  for (const [feature, call] of Object.entries(features)) {
    const start = performance.now();
    let failure = '';
    try {
      await call();
    } catch (error) {
      failure = error?.stack ?? String(error);
    }
    const seconds = (performance.now() - start) / 1000;
    const version = `${name} ${versionOf(name)}`;
    console.log(JSON.stringify({ client, version, feature, failure, seconds }));
  }
}
