// AI SDK: @ai-sdk/openai (its default is the Responses API) and its .chat, @ai-sdk/openai-compatible, useChat's transport.
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, TextStreamChatTransport, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';
import * as f from './features.mjs';

const Person = z.object({ name: z.string(), age: z.number() });
const tools = {
  get_weather: tool({
    description: 'The weather in a city.',
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `sunny in ${city}`,
  }),
};

async function failedStream(options) {
  const onError = () => {};
  for await (const part of streamText({ ...options, onError }).fullStream) {
    if (part.type === 'error') throw part.error;
  }
}

function features(model) {
  const common = { model, maxRetries: 0 };
  return {
    async text() {
      f.same((await generateText({ ...common, prompt: f.HELLO })).text, f.GREETING);
    },
    async stream() {
      f.same(await f.joined(streamText({ ...common, prompt: f.HELLO }).textStream), f.GREETING);
    },
    async tools() {
      const asked = { ...common, tools, prompt: f.WEATHER, stopWhen: stepCountIs(3) };
      f.same((await generateText(asked)).text, f.FORECAST);
      f.same(await streamText(asked).text, f.FORECAST);
    },
    async structured() {
      const output = Output.object({ schema: Person });
      const answer = await generateText({ ...common, output, prompt: f.ADA });
      f.same(answer.output, { name: 'Ada', age: 36 });
    },
    async error() {
      await f.raisesRefusal(() => generateText({ ...common, prompt: f.FAIL }));
      await f.raisesRefusal(() => failedStream({ ...common, prompt: f.FAIL }));
      await f.raisesRefusal(() => failedStream({ ...common, prompt: f.BREAK }), f.BROKEN);
    },
  };
}

const openai = createOpenAI({ baseURL: f.BASE, apiKey: f.KEY });
const chat = features(openai.chat(f.MODEL));
const byDefault = features(openai(f.MODEL));
await f.run('AI SDK (chat)', '@ai-sdk/openai', chat);
await f.run('AI SDK (default)', '@ai-sdk/openai', {
  ...byDefault,
  // The second turn names items of the first one by their ids.
  async responses() {
    const first = await generateText({ model: openai(f.MODEL), prompt: f.HELLO });
    const messages = [
      { role: 'user', content: f.HELLO },
      ...first.response.messages,
      { role: 'user', content: f.HELLO },
    ];
    f.same((await generateText({ model: openai(f.MODEL), messages })).text, f.GREETING);
  },
});

const compatible = createOpenAICompatible({
  name: 'rewrap',
  baseURL: f.BASE,
  apiKey: f.KEY,
  supportsStructuredOutputs: true,
});
await f.run('AI SDK (compatible)', '@ai-sdk/openai-compatible', features(compatible(f.MODEL)));

async function* chunks(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    if (value.type === 'text-delta') yield value.delta;
    if (value.type === 'error') throw new Error(value.errorText);
  }
}

const transport = new TextStreamChatTransport({ api: `${f.URL}/ask` });
const send = (text) =>
  transport.sendMessages({
    chatId: 'chat-1',
    trigger: 'submit-message',
    messages: [{ id: 'message-1', role: 'user', parts: [{ type: 'text', text }] }],
  });
await f.run('AI SDK (useChat on /ask)', 'ai', {
  async stream() {
    f.same(await f.joined(chunks(await send(f.HELLO))), f.GREETING);
  },
  async error() {
    await f.raisesRefusal(async () => f.joined(chunks(await send(f.FAIL))));
  },
});
