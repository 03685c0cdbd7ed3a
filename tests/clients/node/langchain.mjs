// LangChain for JavaScript: ChatOpenAI, by chat completions and by the Responses API.
import { HumanMessage } from '@langchain/core/messages';
import { tool } from '@langchain/core/tools';
import { ChatOpenAI } from '@langchain/openai';
import { z } from 'zod';
import * as f from './features.mjs';

const Person = z.object({ name: z.string(), age: z.number() });
const weather = tool(({ city }) => `sunny in ${city}`, {
  name: 'get_weather',
  description: 'The weather in a city.',
  schema: z.object({ city: z.string() }),
});

async function* texts(stream) {
  for await (const chunk of stream) yield chunk.text;
}

function features(options) {
  const llm = new ChatOpenAI({
    model: f.MODEL,
    apiKey: f.KEY,
    maxRetries: 0,
    configuration: { baseURL: f.BASE },
    ...options,
  });
  return {
    async text() {
      f.same((await llm.invoke(f.HELLO)).text, f.GREETING);
    },
    async stream() {
      f.same(await f.joined(texts(await llm.stream(f.HELLO))), f.GREETING);
    },
    async tools() {
      const bound = llm.bindTools([weather]);
      const messages = [new HumanMessage(f.WEATHER)];
      const turn = await bound.invoke(messages);
      f.same(turn.tool_calls[0].args, { city: 'Paris' });
      messages.push(turn, await weather.invoke(turn.tool_calls[0]));
      f.same((await bound.invoke(messages)).text, f.FORECAST);
    },
    async structured() {
      const structured = llm.withStructuredOutput(Person, { name: 'Person' });
      f.same(await structured.invoke(f.ADA), { name: 'Ada', age: 36 });
    },
    async error() {
      await f.raisesRefusal(() => llm.invoke(f.FAIL));
    },
  };
}

async function responses() {
  const all = features({ useResponsesApi: true });
  for (const feature of Object.values(all)) await feature();
}

await f.run('LangChain (JS)', '@langchain/openai', { ...features({}), responses });
