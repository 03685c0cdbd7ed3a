// openai for Node: OpenAI, and AzureOpenAI on Azure's paths.
import OpenAI, { AzureOpenAI } from 'openai';
import { zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import * as f from './features.mjs';

const Person = z.object({ name: z.string(), age: z.number() });
const parameters = f.weatherSchema;
const tool = { type: 'function', name: 'get_weather', parameters, strict: true };
const chatTool = { type: 'function', function: { name: 'get_weather', parameters } };
const ada = { name: 'Ada', age: 36 };

const asking = (content) => ({ model: f.MODEL, messages: [{ role: 'user', content }] });

async function* contents(stream) {
  for await (const chunk of stream) yield chunk.choices[0]?.delta.content ?? '';
}

function chatFeatures(sdk) {
  const { completions } = sdk.chat;
  return {
    async text() {
      const completion = await completions.create(asking(f.HELLO));
      f.same(completion.choices[0].message.content, f.GREETING);
    },
    async stream() {
      const stream = await completions.create({ ...asking(f.HELLO), stream: true });
      f.same(await f.joined(contents(stream)), f.GREETING);
      f.same(await completions.stream(asking(f.HELLO)).finalContent(), f.GREETING);
    },
    async tools() {
      const asked = { ...asking(f.WEATHER), tools: [chatTool] };
      const { message } = (await completions.create(asked)).choices[0];
      const [call] = message.tool_calls;
      f.same(call.function.arguments, '{"city":"Paris"}');
      const result = { role: 'tool', tool_call_id: call.id, content: 'sunny in Paris' };
      asked.messages.push(message, result);
      f.same((await completions.create(asked)).choices[0].message.content, f.FORECAST);
      const streamed = await completions.stream({ ...asking(f.WEATHER), tools: [chatTool] });
      const [again] = (await streamed.finalMessage()).tool_calls;
      f.same(again.function.arguments, '{"city":"Paris"}');
    },
    async structured() {
      const response_format = zodResponseFormat(Person, 'Person');
      const completion = await completions.parse({ ...asking(f.ADA), response_format });
      f.same(completion.choices[0].message.parsed, ada);
    },
    async error() {
      await f.raisesRefusal(() => completions.create(asking(f.FAIL)));
      await f.raisesRefusal(() => completions.stream(asking(f.FAIL)).finalContent());
      await f.raisesRefusal(() => completions.stream(asking(f.BREAK)).finalContent(), f.BROKEN);
    },
  };
}

async function responses(sdk) {
  const model = f.MODEL;
  f.same((await sdk.responses.create({ model, input: f.HELLO })).output_text, f.GREETING);
  const streamed = sdk.responses.stream({ model, input: f.HELLO });
  f.same((await streamed.finalResponse()).output_text, f.GREETING);
  const call = await sdk.responses.create({ model, input: f.WEATHER, tools: [tool] });
  const { call_id } = call.output[0];
  const last = await sdk.responses.create({
    model,
    input: [{ type: 'function_call_output', call_id, output: 'sunny in Paris' }],
    tools: [tool],
    previous_response_id: call.id,
  });
  f.same(last.output_text, f.FORECAST);
  const text = { format: zodTextFormat(Person, 'Person') };
  f.same((await sdk.responses.parse({ model, input: f.ADA, text })).output_parsed, ada);
  await f.raisesRefusal(() => sdk.responses.create({ model, input: f.FAIL }));
}

const common = { apiKey: f.KEY, maxRetries: 0 };
const sdk = new OpenAI({ baseURL: f.BASE, ...common });
await f.run('openai (Node)', 'openai', {
  ...chatFeatures(sdk),
  responses: () => responses(sdk),
});

const azure = new AzureOpenAI({ endpoint: f.URL, apiVersion: '2024-10-21', ...common });
await f.run('openai (Node, Azure)', 'openai', {
  ...chatFeatures(azure),
  responses: () => responses(azure),
});
