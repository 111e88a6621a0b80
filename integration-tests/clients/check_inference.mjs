// @huggingface/inference on Node. At an endpoint URL it speaks OpenAI's routes, for text generation too.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { InferenceClient } from "@huggingface/inference";

const url = process.argv[2];
const endpoint = new InferenceClient("-").endpoint(url);
const inputs = "The list type is";
const parameters = { max_new_tokens: 8, return_full_text: false, temperature: 0 };
const conversation = { messages: [{ role: "user", content: "Hello" }], max_tokens: 8, temperature: 0 };

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const checks = {
  generate: async () => {
    const answer = await endpoint.textGeneration({ inputs, parameters });
    assert.ok(answer.generated_text.length > 0);
  },
  stream: async () => {
    const whole = await endpoint.textGeneration({ inputs, parameters });
    const parts = await all(endpoint.textGenerationStream({ inputs, parameters }));
    assert.ok(parts.map((part) => part.choices[0].text).join("").startsWith(whole.generated_text));
  },
  chat: async () => {
    const answer = await endpoint.chatCompletion(conversation);
    assert.ok(answer.choices[0].message.content.length > 0);
    assert.ok(answer.usage.completion_tokens > 0);
  },
  "stream chat": async () => {
    const whole = await endpoint.chatCompletion(conversation);
    const parts = await all(endpoint.chatCompletionStream(conversation));
    const text = parts.map((part) => part.choices[0].delta.content).join("");
    assert.equal(text, whole.choices[0].message.content);
  },
  error: async () => {
    const refused = endpoint.chatCompletion({ ...conversation, temperature: -1 });
    await assert.rejects(refused, (error) => {
      assert.match(JSON.stringify(error.httpResponse ?? {}) + error.message, /temperature/);
      return true;
    });
  },
};

const results = {};
for (const [feature, check] of Object.entries(checks)) {
  try {
    await check();
    results[feature] = "pass";
  } catch (error) {
    results[feature] = error.stack;
  }
}
const manifest = new URL("./node_modules/@huggingface/inference/package.json", import.meta.url);
const { version } = JSON.parse(readFileSync(manifest, "utf8"));
console.log(JSON.stringify({ client: `@huggingface/inference ${version}`, results }));
