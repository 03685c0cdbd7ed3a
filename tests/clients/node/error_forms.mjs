// openai for Node and the AI SDK in front of upstreams that answer errors in every form: the exception has their message.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';
import OpenAI from 'openai';
import * as f from './features.mjs';

const baseURL = f.BASE;
const apiKey = f.KEY;
const expected = process.env.ERRORS_MESSAGE;
const messages = [{ role: 'user', content: 'Hi' }];

async function each(check) {
  for (const model of process.env.ERRORS_MODELS.split(',')) await check(model);
}

async function raises(name, call) {
  let message = 'no exception';
  try {
    await call();
  } catch (error) {
    message = error.message;
  }
  // openai for Node puts the status before it, and a list of details names the place.
  if (!message.endsWith(expected)) throw new Error(`${name}: ${message}`);
}

const sdk = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
await f.run('openai (Node), forms of errors', 'openai', {
  error: () =>
    each(async (model) => {
      for (const stream of [false, true]) {
        const chat = { model, messages, stream };
        await raises(`${model} chat`, () => sdk.chat.completions.create(chat));
        const response = { model, input: 'Hi', stream };
        await raises(`${model} responses`, () => sdk.responses.create(response));
      }
    }),
});

const openai = createOpenAI({ baseURL, apiKey });
const compatible = createOpenAICompatible({ name: 'rewrap', baseURL, apiKey });

async function streamed(model) {
  const options = { model, prompt: 'Hi', maxRetries: 0, onError: () => {} };
  for await (const part of streamText(options).fullStream) {
    if (part.type === 'error') throw part.error;
  }
}

await f.run('AI SDK, forms of errors', '@ai-sdk/openai', {
  error: () =>
    each(async (id) => {
      for (const model of [openai(id), openai.chat(id), compatible(id)]) {
        const name = `${id} ${model.provider}`;
        await raises(name, () => generateText({ model, prompt: 'Hi', maxRetries: 0 }));
        await raises(name, () => streamed(model));
      }
    }),
});
