// The AI SDK and the openai package for Node against the mock at OPENAI_BASE_URL.

import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const baseURL = process.env.OPENAI_BASE_URL;
const control = new URL("/mock/", baseURL);
const openai = createOpenAI({ baseURL, apiKey: "sk-mock" });
const compatible = createOpenAICompatible({
  name: "rewrap",
  baseURL,
  apiKey: "sk-mock",
  supportsStructuredOutputs: true,
});
const MODELS = {
  chat: openai.chat("gpt-4o"),
  responses: openai.responses("gpt-4o"),
  compatible: compatible("gpt-4o"),
};

const recipe = z.object({
  name: z.string(),
  minutes: z.number().int().min(1).max(600),
  difficulty: z.enum(["easy", "hard"]),
  steps: z.array(z.object({ text: z.string(), optional: z.boolean() })).min(2),
  note: z.string().nullable(),
});

const tools = {
  get_weather: tool({
    description: "The weather of a city",
    inputSchema: z.object({ city: z.string(), days: z.number().int() }),
    execute: async ({ city, days }) => `${city} has sun for ${days} days`,
  }),
  get_time: tool({
    description: "The time of a zone",
    inputSchema: z.object({ zone: z.string() }),
    execute: async ({ zone }) => `noon in ${zone}`,
  }),
};

async function script(rules) {
  const answer = await fetch(new URL("rules", control), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(rules),
  });
  assert.equal(answer.status, 200, await answer.text());
}

async function requests() {
  return (await (await fetch(new URL("requests", control))).json()).data;
}

beforeEach(() => fetch(new URL("reset", control), { method: "POST" }));

for (const [name, model] of Object.entries(MODELS)) {
  test(`${name}: generateObject gives a valid object`, async () => {
    const { object } = await generateObject({ model, schema: recipe, prompt: "A soup in 25 minutes" });
    assert.deepEqual(recipe.parse(object), object);
    assert.equal(object.minutes, 25);
  });

  test(`${name}: generateObject gives a valid array`, async () => {
    const { object } = await generateObject({ model, output: "array", schema: recipe, prompt: "Soups" });
    for (const element of object) recipe.parse(element);
  });

  test(`${name}: generateObject gives one of an enum`, async () => {
    const { object } = await generateObject({
      model,
      output: "enum",
      enum: ["action", "comedy"],
      prompt: "A comedy, please",
    });
    assert.equal(object, "comedy");
  });

  test(`${name}: streamObject ends with a valid object`, async () => {
    const { partialObjectStream, object } = streamObject({ model, schema: recipe, prompt: "Soup" });
    let parts = 0;
    for await (const _ of partialObjectStream) parts += 1;
    assert.ok(parts > 1);
    recipe.parse(await object);
  });

  test(`${name}: an agent loop with a tool ends`, async () => {
    const { text, steps } = await generateText({
      model,
      tools,
      stopWhen: stepCountIs(5),
      prompt: 'Use get_weather for "Rome" and 3 days',
    });
    assert.match(text, /Rome has sun for 3 days/);
    assert.equal(steps.length, 2);
  });

  test(`${name}: a streamed agent loop with two tools ends`, async () => {
    const result = streamText({
      model,
      tools,
      stopWhen: stepCountIs(5),
      prompt: "Use get_weather and get_time",
    });
    await result.consumeStream();
    assert.match(await result.text, /has sun for.*noon in/s);
    assert.equal((await result.steps).length, 2);
  });

  test(`${name}: a typed output comes after a tool`, async () => {
    const { output } = await generateText({
      model,
      tools,
      output: Output.object({ schema: recipe }),
      stopWhen: stepCountIs(5),
      prompt: "Use get_time for 'UTC'",
    });
    recipe.parse(output);
  });

  test(`${name}: retries pass a 429 that ends`, async () => {
    await script([{ then: { error: { name: "rate_limit", retry_after: 0.01 } }, times: 1 }, { then: "Done." }]);
    const { text } = await generateText({ model, prompt: "Hello", maxRetries: 2 });
    assert.equal(text, "Done.");
    assert.deepEqual((await requests()).map((row) => row.status), [429, 200]);
  });
}

test("embedMany gives unit vectors", async () => {
  const { embeddings } = await embedMany({
    model: openai.embedding("text-embedding-3-small"),
    values: ["a red apple", "42 trains"],
  });
  assert.equal(embeddings.length, 2);
  for (const vector of embeddings) {
    assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-6);
  }
});

test("openai: parse gives a valid object", async () => {
  const client = new OpenAI({ baseURL, apiKey: "sk-mock" });
  const answer = await client.chat.completions.parse({
    model: "gpt-4o",
    messages: [{ role: "user", content: "A soup in 25 minutes" }],
    response_format: zodResponseFormat(recipe, "recipe"),
  });
  recipe.parse(answer.choices[0].message.parsed);
});

test("openai: runTools ends", async () => {
  const client = new OpenAI({ baseURL, apiKey: "sk-mock" });
  const called = [];
  const runner = client.chat.completions.runTools({
    model: "gpt-4o",
    messages: [{ role: "user", content: "Please look up 'Bern'" }],
    tools: [
      {
        type: "function",
        function: {
          name: "look_up",
          parameters: { type: "object", properties: { name: { type: "string" } }, required: ["name"] },
          parse: JSON.parse,
          function: ({ name }) => {
            called.push(name);
            return "130000";
          },
        },
      },
    ],
  });
  assert.match(await runner.finalContent(), /130000/);
  assert.deepEqual(called, ["Bern"]);
});
